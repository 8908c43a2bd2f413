"""Algorithms whose clients have models of their own, importable by actors: what personalised ones are to the engine."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedsim.algorithms.base import Algorithm
from fedsim.algorithms.dspodfl import DSpodFL
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.round import Effort, Report
from fedsim.core.types import Message, State


class _Keeps(Algorithm):
    """A client keeps where its last work ended, and uses the mean of that and of what it receives."""

    def init_client(self, params: Tensor) -> State:
        return {**super().init_client(params), "v": params}

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        travels, stays, kept = super().message(local, received, client, effort)  # type: ignore[safe-super]
        return travels, stays, {**kept, "v": local["x"]}

    def personal_model(self, received: Message, client: State) -> Tensor:
        return 0.5 * (received["x"] + client["v"])


@dataclass(frozen=True, kw_only=True)
class Keeps(_Keeps, FedAvg):
    """Of a server."""


@dataclass(frozen=True, kw_only=True)
class KeepsNode(_Keeps, DSpodFL):
    """Of a graph."""
