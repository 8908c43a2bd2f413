"""All data sets and partition schemes; importing this module registers them."""

from fedsim.data import california, image_folder, named, natural, own, partition, sets, text

__all__ = ["california", "image_folder", "named", "natural", "own", "partition", "sets", "text"]
