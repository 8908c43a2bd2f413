"""Algorithms that go wrong on purpose, importable by actors."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass

from torch import Tensor

from fedsim.algorithms.acid import Acid
from fedsim.algorithms.dspodfl import DSpodFL
from fedsim.algorithms.fedavg import FedAvg
from fedsim.core.oracle import Oracle


def refuse(g: Tensor) -> Tensor:
    """Raise where a gradient tells that the data are not to be believed."""
    if float(g.abs().max()) > 1e3:
        raise ValueError("these data are poison")
    return g


@dataclass(frozen=True, kw_only=True)
class Picky(FedAvg):
    """FedAvg that raises on poisoned data."""

    def gradient(self, oracle: Oracle, x: Tensor) -> Tensor:
        return refuse(super().gradient(oracle, x))


@dataclass(frozen=True, kw_only=True)
class PickyNode(DSpodFL):
    """DSpodFL that raises on poisoned data."""

    def gradient(self, oracle: Oracle, x: Tensor) -> Tensor:
        return refuse(super().gradient(oracle, x))


@dataclass(frozen=True, kw_only=True)
class Mortal(Acid):
    """ACiD in a process that is killed in the middle of its work, once a file is there; it is gone after that."""

    dies_of: str

    def gradient(self, oracle: Oracle, x: Tensor) -> Tensor:
        with suppress(FileNotFoundError):
            os.remove(self.dies_of)  # one process can
            os.kill(os.getpid(), signal.SIGKILL)
        return super().gradient(oracle, x)


@dataclass(frozen=True, kw_only=True)
class PickyAcid(Acid):
    """ACiD that raises on poisoned data."""

    def gradient(self, oracle: Oracle, x: Tensor) -> Tensor:
        return refuse(super().gradient(oracle, x))
