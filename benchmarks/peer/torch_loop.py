"""The lean loop of `benchmarks/loops.py`: what a careful person writes without a simulator."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gate import Over, begin

given, gate = begin("loop")
sys.path.append(str(Path(__file__).parents[1]))
import torch  # noqa: E402
from loops import ClientLoop, NodeLoop  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn.utils import vector_to_parameters  # noqa: E402
from works import network  # noqa: E402


def tensor(array: object) -> Tensor:
    return torch.tensor(array)


torch.set_num_threads(given.threads)
work, model, orders = given.work, network(given.work.model), tensor(given.orders)
vector_to_parameters(tensor(given.start), model.parameters())
parts = (model, tensor(given.x), tensor(given.y), list(tensor(given.rows)), given.lr, work.batch)


def gossip() -> None:
    loop = NodeLoop(*parts, tensor(given.mixing))
    gate.between(loop.parameters, "torch", "numpy")
    loop.round(orders[:, 0])
    while True:
        gate.between(loop.parameters)
        loop.round()


def fedavg() -> None:
    loop = ClientLoop(*parts)

    def drawn() -> Sequence[Tensor]:
        return [loop.rows[i] for i in torch.randperm(work.clients)[: work.cohort].tolist()]

    gate.between(lambda: loop.x, "torch", "numpy")
    loop.round(list(orders))
    while True:
        gate.between(lambda: loop.x)
        loop.round(map(loop.epoch, drawn()))


with suppress(Over):
    gossip() if work.gossip else fedavg()
