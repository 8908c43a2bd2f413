"""All participation modes; importing this module registers them."""

from fedsim import asynchronous, gossip, participation

__all__ = ["asynchronous", "gossip", "participation"]
