"""Algorithms some of whose clients take long for no reason that could be predicted, importable by actors."""

from __future__ import annotations

import time

from torch import Tensor

from fedsim.algorithms.acid import Acid
from fedsim.algorithms.choco import Choco
from fedsim.algorithms.client import ClientHalf
from fedsim.algorithms.dspodfl import DSpodFL
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.scaffold import Scaffold
from fedsim.core.oracle import Oracle

SECONDS = 0.006
"""That a dear client's gradient takes."""


def busy(g: Tensor) -> Tensor:
    """Compute for as long as there are dear clients among these: theirs is a gradient whose last entry is negative."""
    end = time.perf_counter() + SECONDS * int((g[:, -1] < -0.5).sum())
    while time.perf_counter() < end:
        pass
    return g


class _Dear(ClientHalf):
    """Clients some of whom are dear."""

    def gradient(self, oracle: Oracle, x: Tensor) -> Tensor:
        return busy(super().gradient(oracle, x))


class DearFedAvg(_Dear, FedAvg):
    """They keep nothing."""


class DearScaffold(_Dear, Scaffold):
    """They keep a control variate."""


class DearNodes(_Dear, DSpodFL):
    """Nodes of a graph."""


class DearChoco(_Dear, Choco):
    """Nodes that keep copies of what they sent."""


class DearAcid(_Dear, Acid):
    """Nodes in continuous time."""
