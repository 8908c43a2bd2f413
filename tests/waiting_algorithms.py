"""Algorithms with the faults that only a GPU shows, for `tests/engine/test_on_device.py`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedsim.algorithms.fedavg import FedAvg
from fedsim.core.oracle import Oracle
from fedsim.core.types import Message, State


@dataclass(frozen=True, kw_only=True)
class WaitsInSteps(FedAvg):
    """Looks at a number of the device in every local step."""

    def local_step(self, oracle: Oracle, local: State, received: Message, client: State) -> State:
        stepped = super().local_step(oracle, local, received, client)
        return stepped if float(stepped["x"].sum()) == float(stepped["x"].sum()) else local


@dataclass(frozen=True, kw_only=True)
class TwoDevices(FedAvg):
    """Forgets to say on which device a tensor is to be."""

    def local_step(self, oracle: Oracle, local: State, received: Message, client: State) -> State:
        stepped = super().local_step(oracle, local, received, client)
        return {**stepped, "x": stepped["x"] + torch.zeros(stepped["x"].shape[-1], dtype=stepped["x"].dtype)}
