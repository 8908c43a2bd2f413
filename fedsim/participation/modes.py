"""All participation modes; importing this module registers them."""

from fedsim.participation import clocked, gossip, poisson, synchronous

__all__ = ["clocked", "gossip", "poisson", "synchronous"]
