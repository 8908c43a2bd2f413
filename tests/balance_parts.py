"""Algorithms some of whose clients take long for no reason that could be predicted, importable by actors."""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import Tensor

from fedsim.algorithms.acid import Acid
from fedsim.algorithms.choco import Choco
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


@dataclass(frozen=True, kw_only=True)
class DearFedAvg(FedAvg):
    """FedAvg with dear clients."""

    def gradient(self, oracle: Oracle, x: Tensor) -> Tensor:
        return busy(super().gradient(oracle, x))


@dataclass(frozen=True, kw_only=True)
class DearScaffold(Scaffold):
    """SCAFFOLD, whose clients keep a control variate, with dear clients."""

    def gradient(self, oracle: Oracle, x: Tensor) -> Tensor:
        return busy(super().gradient(oracle, x))


@dataclass(frozen=True, kw_only=True)
class DearNodes(DSpodFL):
    """DSpodFL with dear nodes."""

    def gradient(self, oracle: Oracle, x: Tensor) -> Tensor:
        return busy(super().gradient(oracle, x))


@dataclass(frozen=True, kw_only=True)
class DearChoco(Choco):
    """CHOCO, whose nodes keep copies of what they sent, with dear nodes."""

    def gradient(self, oracle: Oracle, x: Tensor) -> Tensor:
        return busy(super().gradient(oracle, x))


@dataclass(frozen=True, kw_only=True)
class DearAcid(Acid):
    """ACiD, in continuous time, with dear nodes."""

    def gradient(self, oracle: Oracle, x: Tensor) -> Tensor:
        return busy(super().gradient(oracle, x))
