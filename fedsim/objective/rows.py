"""Which rows of the data are whose, which of them evaluations take, and what they take in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedsim.core import crew, rng
from fedsim.core.arrays import Ints
from fedsim.core.tokens import widened
from fedsim.objective.kernel import Kernel


def evaluated(rows: Ints, limit: int | None, seed: int, purpose: str) -> Ints:
    """All rows, or a seeded sample of `limit` of them, in a fixed order."""
    if limit is None or limit >= len(rows):
        return np.sort(rows)
    chosen = rng.generator(seed, "eval_" + purpose).choice(len(rows), size=limit, replace=False)
    return np.sort(rows[chosen])


def index_lists(rows: Sequence[Ints]) -> tuple[Ints, Ints]:
    """Clients' row lists as one array and its offsets ``[n + 1]``: client i has ``flat[offsets[i]:offsets[i + 1]]``."""
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    return np.concatenate(rows).astype(np.int64), np.concatenate([[0], np.cumsum(lengths)])


def taken(inputs: Tensor, rows: Tensor) -> Tensor:
    """Rows `rows` ``[k]`` of `inputs`, which the crew's threads copy where there are many."""
    if inputs.device.type != "cpu":
        return inputs.index_select(0, rows)
    parts = crew.shares(len(rows), 2 * len(rows) * inputs[:1].nbytes)
    if len(parts) == 1:
        return inputs.index_select(0, rows)
    out = inputs.new_empty((len(rows), *inputs.shape[1:]))
    crew.apart(lambda part: torch.index_select(inputs, 0, rows[part], out=out[part]), parts)
    return out


def peak(kernel: Kernel, model: Tensor, inputs: Tensor, targets: Tensor, rows: int) -> int:
    """GPU memory that the gradient of `rows` rows on a minibatch takes at its largest."""
    x, y = model.expand(rows, -1).contiguous(), torch.stack([targets] * rows)
    both = widened(torch.stack([inputs] * rows))
    torch.cuda.reset_peak_memory_stats(model.device)
    before = torch.cuda.memory_allocated(model.device)
    kernel.grad(x, both, y, 1.0 / len(targets))
    return torch.cuda.max_memory_allocated(model.device) - before
