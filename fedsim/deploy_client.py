"""Moved to `fedsim.deployment.client`; this name serves apps that version 0.1.0 wrote, for one release."""

from fedsim.deployment.client import make_client_app

__all__ = ["make_client_app"]
