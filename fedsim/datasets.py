"""All data sets; importing this module registers them."""

from fedsim import california, data

__all__ = ["california", "data"]
