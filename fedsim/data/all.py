"""All data sets and partition schemes; importing this module registers them."""

from fedsim.data import california, named, natural, own, partition, sets, text

__all__ = ["california", "named", "natural", "own", "partition", "sets", "text"]
