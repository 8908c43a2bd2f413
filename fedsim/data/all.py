"""All data sets; importing this module registers them."""

from fedsim.data import california, sets

__all__ = ["california", "sets"]
