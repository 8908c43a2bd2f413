"""The algorithms, one file per paper or family; importing this package registers them all."""

from fedsim.algorithms import (
    dspodfl,
    fedavg,
    feddyn,
    fednova,
    fedopt,
    fedprox,
    gradient_tracking,
    scaffold,
)

__all__ = ["dspodfl", "fedavg", "feddyn", "fednova", "fedopt", "fedprox", "gradient_tracking", "scaffold"]
