"""All models; importing this module registers them."""

from fedsim.models import build, language

__all__ = ["build", "language"]
