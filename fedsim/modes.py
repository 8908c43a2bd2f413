"""All participation modes; importing this module registers them."""

from fedsim import gossip, participation

__all__ = ["gossip", "participation"]
