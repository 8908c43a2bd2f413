"""A tiny problem for adversaries: three clients with four points each, and linear models that start where tests say.

Black and white are -8 and 8, so that ``eps: 0.00625`` is 0.1 in the points' own numbers and never meets the range.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedsim.algorithms.base import Effort, Message, Report, State
from fedsim.algorithms.fedavg import FedAvg
from fedsim.data.pixels import PixelRange
from fedsim.data.sets import Dataset, DatasetPart
from fedsim.models.build import Model

Array = np.ndarray[Any, Any]
EPS = 0.1 / 16
W0 = (0.3, -0.2, 0.1)


def points() -> tuple[Array, Array]:
    """x ``[3, 4, 3]`` and labels 0 and 1 ``[3, 4]``."""
    c, j, k = np.ogrid[:3, :4, :3]
    x = ((3 * c + 5 * j + 2 * k) % 7 - 3).astype(np.float64)
    return x, ((c + j)[..., 0] % 2).astype(np.int64)


@dataclass(frozen=True)
class Points(DatasetPart):
    """Three clients with four points each; the test rows are all of them."""

    pixels: bool = True

    def load(self, clients: int | None, seed: int, base: Path) -> Dataset:
        x, y = (torch.from_numpy(a.reshape(12, *a.shape[2:])) for a in points())
        known = PixelRange(torch.tensor(-8.0), torch.tensor(8.0)) if self.pixels else None
        rows = [np.arange(4 * c, 4 * c + 4) for c in range(3)]
        return Dataset("points", x.float(), y, x.float(), y, 2, clients=rows, pixels=known)


@dataclass(frozen=True)
class Binary(Model):
    """One output from (0.3, -0.2, 0.1), without (`outputs` 1) or with a second row of zeros before it (2)."""

    outputs: int = 1

    def build(self, input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
        layer = nn.Linear(3, self.outputs, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.zero_()[-1] = torch.tensor(W0, dtype=torch.float64)
            layer.bias.zero_()
        return nn.Sequential(nn.Flatten(), layer)


class Steps(nn.Module):
    """A model that rounds its inputs: its loss has no gradient by them."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.table = nn.Embedding(32, count)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.table(x.flatten(1).long().clamp(0, 31)).mean(1)
        return found


def rounding(input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:  # noqa: ARG001 - by these names
    return Steps(num_outputs)


@dataclass(frozen=True, kw_only=True)
class Shifted(FedAvg):
    """FedAvg whose clients receive x + 1 under another name."""

    def broadcast(self, state: State) -> Message:
        return {"shifted": state["x"] + 1}

    def start(self, received: Message, client: State) -> State:
        return {"x": received["shifted"] - 1}

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        return {"delta": local["x"] - received["shifted"] + 1}, {}, client


def sections(adversary: dict[str, Any] | None, outputs: int = 1, **algorithm: Any) -> dict[str, Any]:
    model = {"name": "adversary_makers:Binary", "outputs": outputs}
    return {
        "data": {"dataset": "adversary_makers:Points"},
        "model": {**model, "loss": "logistic" if outputs == 1 else "cross_entropy"},
        "algorithm": {
            "name": "fedavg" if adversary is None else "fal", "lr": 0.1, "local_steps": 5, "batch_size": "full",
            "weighting": "uniform", **algorithm,
        },
        **({} if adversary is None else {"adversary": adversary}),
    }  # fmt: skip


def on_digits(adversary: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    return {
        "seed": 3,
        "data": {"dataset": "digits", "clients": 4, "limit": 60, "normalize": "standard"},
        "model": {"name": "mlp", "hidden": [8]},
        "algorithm": {"name": "fedavg", "lr": 0.2, "local_steps": 3, "batch_size": 5},
        **({} if adversary is None else {"adversary": adversary}),
        **more,
    }  # fmt: skip
