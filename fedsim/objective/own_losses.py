"""What models lose on their clients' own training samples: what fair algorithms and selections of clients ask for.

Every client is computed by itself, so that no number depends on who else is asked, or where.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fedsim.core import crew, rng
from fedsim.core.arrays import Ints
from fedsim.core.oracle import Losses
from fedsim.core.tokens import Tokens, widened
from fedsim.core.types import BatchSize
from fedsim.objective.kernel import Kernel
from fedsim.objective.scores import counted

_ROWS = 1000  # samples that are evaluated at a time


class Source(Protocol):
    """What is needed of a task."""

    seed: int
    device: torch.device
    kernel: Kernel
    loss: Any
    inputs: Tensor
    targets: Tensor
    indices: Ints
    offsets: Ints
    sizes: Ints
    tokens: Tokens


def of_clients(task: Source, models: Tensor, clients: Ints, rounds: Ints, samples: BatchSize) -> Losses:
    """See `Task.losses`."""
    one = models.expand(len(clients), -1)
    keys = rng.key(task.seed, "losses", clients, rounds)

    def of(i: int) -> Tensor:
        first, size = int(task.offsets[clients[i]]), int(task.sizes[clients[i]])
        own = task.indices[first : first + size]
        if samples != "full" and samples < size:
            own = own[np.sort(rng.permute(keys[i], np.arange(samples), size))]
        return _sums(task, one[i], torch.as_tensor(own, device=task.device))

    parts = [partial(of, i) for i in range(len(clients))]
    found = crew.each(parts) if task.device.type == "cpu" else [part() for part in parts]
    if not found:
        empty = one.new_empty((0, 1))
        return Losses(empty, empty)
    each = torch.stack(found).to(one.dtype)
    return Losses(each[:, :1], each[:, 1:])


def _sums(task: Source, model: Tensor, rows: Tensor) -> Tensor:
    """Mean loss and mean square of a model on some rows of the data, ``[2]``, added up in float64."""
    total = torch.zeros(3, dtype=torch.float64, device=rows.device)
    for part in torch.split(rows, _ROWS):
        x, y = widened(task.inputs.index_select(0, part)), task.targets.index_select(0, part)
        losses = task.loss(task.kernel.outputs(model.unsqueeze(0), x)[0], y).double()
        count = torch.ones_like(losses) if task.tokens.single else counted(y).double()
        total += torch.stack([(losses * count).sum(), (losses.square() * count).sum(), count.sum()])
    return total[:2] / total[2].clamp_min(1.0)
