"""The algorithms, one file per paper or family; importing this package registers them all."""

from fedsim.algorithms import (
    diff2,
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

__all__ = [
    "diff2",
    "dspodfl",
    "fedasync",
    "fedavg",
    "feddyn",
    "fednova",
    "fedopt",
    "fedprox",
    "gradient_tracking",
    "scaffold",
]
