"""All participation modes; importing this module registers them."""

from fedsim import asynchronous, gossip, participation, poisson

__all__ = ["asynchronous", "gossip", "participation", "poisson"]
