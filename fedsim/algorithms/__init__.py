"""The algorithms, one file per paper or family; importing this package registers them all."""

from fedsim.algorithms import (
    dspodfl,
    fedasync,
    fedavg,
    feddyn,
    fednova,
    fedopt,
    fedprox,
    gradient_tracking,
    scaffold,
)

__all__ = ["dspodfl", "fedasync", "fedavg", "feddyn", "fednova", "fedopt", "fedprox", "gradient_tracking", "scaffold"]
