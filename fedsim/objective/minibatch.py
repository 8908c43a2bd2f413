"""A lone client's minibatch, divided among threads.

Where a job is of many clients, threads share clients. Where it is of one, they share its minibatch: models are
functions of one sample alone, so its gradient is the sum of those of its portions. Portions go by sizes alone and are
added up in their order, so that numbers are the same bit for bit with any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from fedsim.core import crew
from fedsim.objective.kernel import Descent, Kernel

_SAMPLES = 16  # of a portion at least: matrix products of fewer are slow
_PRODUCTS = 16 * 10**6  # of a portion at least, one for each use of a parameter by a sample: some milliseconds


def grad(kernel: Kernel, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float) -> Tensor:
    """`Kernel.grad`, by all threads where x is one row of work enough."""
    parts = _portions(kernel, x, inputs.shape[1])
    if len(parts) == 1:
        return kernel.grad(x, inputs, targets, weights)
    return torch.cat([piece.reshape(-1) for piece in _pieces(kernel, x, inputs, targets, weights, parts)]).unsqueeze(0)


def change(kernel: Kernel, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float, lr: Tensor) -> Tensor:
    """`Kernel.change`, by all threads where x is one row of work enough."""
    if len(_portions(kernel, x, inputs.shape[1])) == 1:
        return kernel.change(x, inputs, targets, weights, lr)
    return grad(kernel, x, inputs, targets, weights).mul_(-lr)


def descend(kernel: Kernel, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float, lr: Tensor) -> None:
    """`Kernel.descend`, by all threads where x is one row of work enough."""
    descending(kernel, x, inputs.shape[1], lr)(inputs, targets, weights)


def walks(kernel: Kernel, x: Tensor, inputs: Tensor, b: int) -> bool:
    """`Kernel.walks`; not where x is one row whose minibatches of b samples all threads share."""
    return len(_portions(kernel, x, b)) == 1 and kernel.walks(x, inputs, b)


def descending(kernel: Kernel, x: Tensor, b: int, lr: Tensor, start: Tensor | None = None) -> Descent:
    """`Kernel.descending` on minibatches of b samples, by all threads where x is one row of work enough."""
    parts = _portions(kernel, x, b)
    if len(parts) == 1:
        return kernel.descending(x, lr, start)
    if start is not None:
        x.copy_(start)

    def step(inputs: Tensor, targets: Tensor, weights: Tensor | float) -> None:
        at = 0
        for piece in _pieces(kernel, x, inputs, targets, weights, parts):
            place = x[0, at : at + piece.numel()].view(piece.shape)
            place.addcmul_(piece, lr[0, 0], value=-1.0)
            at += piece.numel()

    return step


def _pieces(
    kernel: Kernel, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float, parts: Sequence[slice]
) -> Sequence[Tensor]:
    """`Kernel.pieces` of a minibatch as the sum of those of its `parts`: large models are gone over but once more."""

    def part(p: slice) -> Sequence[Tensor]:
        scale = weights[:, p] if isinstance(weights, Tensor) else weights
        return kernel.pieces(x, inputs[:, p], targets[:, p], scale)

    total, *others = crew.each([partial(part, p) for p in parts])
    for other in others:
        total = torch._foreach_add(list(total), list(other))
    return total


def changed(kernel: Kernel, x: Tensor, inputs: Tensor, change: Callable[[slice], Tensor]) -> Tensor:
    """What `change` makes of the samples ``inputs[:, part]``, each by itself, by all threads as `grad` would."""
    parts = _portions(kernel, x, inputs.shape[1])
    return change(parts[0]) if len(parts) == 1 else torch.cat(crew.each([partial(change, p) for p in parts]), dim=1)


def _portions(kernel: Kernel, x: Tensor, b: int) -> list[slice]:
    if not kernel.nature.plain or len(x) > 1 or x.device.type != "cpu" or not crew.free():
        return [slice(0, b)]
    return crew.even(b, max(1, min(b // _SAMPLES, b * x.shape[-1] * kernel.uses // _PRODUCTS)))
