"""All data sets and partition schemes; importing this module registers them."""

from fedsim.data import california, natural, own, partition, sets

__all__ = ["california", "natural", "own", "partition", "sets"]
