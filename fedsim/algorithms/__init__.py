"""The algorithms, one file per paper or family; importing this package registers them all."""

from fedsim.algorithms import (
    diff2,
    diff2_bvr,
    dspodfl,
    fedamd,
    fedasync,
    fedavg,
    fedcm,
    feddyn,
    fednova,
    fedopt,
    fedprox,
    fedspeed,
    gradient_tracking,
    sam,
    scaffold,
)

__all__ = [
    "diff2", "diff2_bvr", "dspodfl", "fedamd", "fedasync", "fedavg", "fedcm", "feddyn", "fednova", "fedopt", "fedprox",
    "fedspeed", "gradient_tracking", "sam", "scaffold",
]  # fmt: skip
