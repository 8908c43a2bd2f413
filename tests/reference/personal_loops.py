"""Models of which parts stay with clients, written the obvious way: one client after the other, in plain PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Phase = tuple[Callable[[str], bool], int]
"""Which parameters train, by name, and for how many steps (or epochs)."""


def train(
    module: nn.Module, task: Any, client: int, number: int, lr: float, batch: int, phases: Sequence[Phase], epochs: bool
) -> None:
    """A client's local work in a round, in place: SGD without momentum on the task's own minibatches."""
    who = np.array([client])
    per_unit = int(task.steps_per_epoch(who, batch)[0]) if epochs else 1
    total = sum(units for _, units in phases) * per_unit
    batches = task.plan(who, np.array([number]), np.array([total]), batch, epochs).batches
    module.train()
    step = 0
    for trains, units in phases:
        for name, p in module.named_parameters():
            p.requires_grad_(trains(name))
        for _ in range(units * per_unit):
            rows = batches.index[0, step, : int(batches.counts[0, step])]
            loss = nn.functional.cross_entropy(module(task.inputs[rows]), task.targets[rows])
            module.zero_grad()
            loss.backward()
            with torch.no_grad():
                for p in module.parameters():
                    if p.requires_grad:
                        assert p.grad is not None
                        p -= lr * p.grad
            step += 1


def server_loop(
    first: nn.Module,
    task: Any,
    rounds: int,
    personal: Collection[str],
    phases: Sequence[Phase],
    lr: float,
    batch: int,
    epochs: bool = True,
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """The server's shared part, and what stays with every client, after so many rounds of all clients.

    `personal` are names of parameters and buffers. Means weigh clients by their samples.
    """
    weights = task.sizes / task.sizes.sum()
    shared = {k: v.clone() for k, v in first.state_dict().items() if k not in personal}
    own = [{k: v.clone() for k, v in first.state_dict().items() if k in personal} for _ in weights]
    for number in range(1, rounds + 1):
        mean = {k: torch.zeros_like(v, dtype=torch.float64) for k, v in shared.items()}
        for client, weight in enumerate(weights.tolist()):
            module = copy.deepcopy(first)
            module.load_state_dict({**shared, **own[client]})
            train(module, task, client, number, lr, batch, phases, epochs)
            for k, v in module.state_dict().items():
                if k in personal:
                    own[client][k] = v.clone()
                else:
                    mean[k] += weight * v.double()
        shared = {k: mean[k].to(v.dtype) for k, v in shared.items()}
    return shared, own


def graph_loop(
    first: nn.Module, task: Any, rounds: int, personal: Collection[str], matrix: Tensor, lr: float, batch: int
) -> list[dict[str, Tensor]]:
    """Every node's model after so many rounds of DFedAvg with one epoch: its neighbours' shared parts are mixed."""
    nodes = [{k: v.clone() for k, v in first.state_dict().items()} for _ in range(len(matrix))]
    for number in range(1, rounds + 1):
        worked = []
        for client, state in enumerate(nodes):
            module = copy.deepcopy(first)
            module.load_state_dict(state)
            train(module, task, client, number, lr, batch, [(lambda _: True, 1)], True)
            worked.append({k: v.clone() for k, v in module.state_dict().items()})
        nodes = [
            {k: v if k in personal else sum((w * o[k] for w, o in zip(row, worked, strict=True)), torch.zeros_like(v))
             for k, v in worked[i].items()}
            for i, row in enumerate(matrix.tolist())
        ]  # fmt: skip
    return nodes
