"""The algorithms, one file per paper or family; importing this package registers them all.

An algorithm is arithmetic on the last axis: the same lines serve one client ``[d]``, a shard ``[m, d]`` and all nodes
of a graph ``[n, d]``. `base` says which methods there are, `work` how local work and learning rates vary. They may
import `core` alone. Start with `fedprox`, which changes one line, then `scaffold`, which keeps state.
"""

from fedsim.algorithms import (
    acid,
    afl,
    apfl,
    baselines,
    beer,
    choco,
    dadao,
    diff2,
    diff2_bvr,
    ditto,
    dspodfl,
    ef21,
    fedamd,
    fedasync,
    fedavg,
    fedcm,
    feddyn,
    fednova,
    fedopt,
    fedprox,
    fedspeed,
    fsgld,
    gradient_tracking,
    ifca,
    monna,
    pfedme,
    powersgd,
    push_sum,
    qffl,
    sam,
    scaffold,
)

__all__ = [
    "acid", "afl", "apfl", "baselines", "beer", "choco", "dadao", "diff2", "diff2_bvr", "ditto", "dspodfl", "ef21",
    "fedamd", "fedasync", "fedavg", "fedcm", "feddyn", "fednova", "fedopt", "fedprox", "fedspeed", "fsgld",
    "gradient_tracking", "ifca", "monna", "pfedme", "powersgd", "push_sum", "qffl", "sam", "scaffold",
]  # fmt: skip
