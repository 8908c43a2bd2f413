"""Moved to `fedsim.deployment.server`; this name serves apps that version 0.1.0 wrote, for one release."""

from fedsim.deployment.server import make_server_app

__all__ = ["make_server_app"]
