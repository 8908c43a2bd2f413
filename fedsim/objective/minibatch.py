"""A lone client's minibatch, divided among threads.

Where a job is of many clients, threads share clients. Where it is of one, they share its minibatch: models are
functions of one sample alone, so its gradient is the sum of those of its portions. Portions go by sizes alone and are
added up in their order, so that numbers are the same bit for bit with any number of threads. Kernels that let threads
share each operator of large layers are left to that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from fedsim.core import crew
from fedsim.core.tokens import widened
from fedsim.objective.kernel import Descent, Kernel

_SAMPLES = 16  # of a portion at least: matrix products of fewer are slow
_PRODUCTS = 16 * 10**6  # of a portion at least: some milliseconds
_USES = 64  # of each parameter in a portion at least: going over all of them takes as long as about 40 uses
_BLOCK = 2**18  # numbers of a gradient that are added up at once, in a core's cache


def grad(kernel: Kernel, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float) -> Tensor:
    """`Kernel.grad`, by all threads where x is one row of work enough."""
    parts = _portions(kernel, x, inputs[0], inputs.shape[1])
    if len(parts) == 1:
        return kernel.grad(x, inputs, targets, weights)
    result = torch.empty_like(x)

    def put(place: slice, total: Tensor) -> None:
        result[0, place] = total

    _summed(kernel, x, inputs, targets, weights, parts, put)
    return result


def change(kernel: Kernel, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float, lr: Tensor) -> Tensor:
    """`Kernel.change`, by all threads where x is one row of work enough."""
    if len(_portions(kernel, x, inputs[0], inputs.shape[1])) == 1:
        return kernel.change(x, inputs, targets, weights, lr)
    return grad(kernel, x, inputs, targets, weights).mul_(-lr)


def descend(kernel: Kernel, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float, lr: Tensor) -> None:
    """`Kernel.descend`, by all threads where x is one row of work enough."""
    descending(kernel, x, inputs[0], inputs.shape[1], lr)(inputs, targets, weights)


def walks(kernel: Kernel, x: Tensor, inputs: Tensor, b: int) -> bool:
    """`Kernel.walks`; not where x is one row whose minibatches of b samples all threads share."""
    return len(_portions(kernel, x, inputs, b)) == 1 and kernel.walks(x, inputs, b)


def descending(kernel: Kernel, x: Tensor, samples: Tensor, b: int, lr: Tensor, start: Tensor | None = None) -> Descent:
    """`Kernel.descending` on minibatches of b of such `samples` ``[N, ...]``, by all threads where x is one row of work
    enough."""
    parts = _portions(kernel, x, samples, b)
    if len(parts) == 1:
        return kernel.descending(x, lr, start)
    if start is not None:
        x.copy_(start)

    def move(place: slice, total: Tensor) -> None:
        x[0, place].addcmul_(total, lr[0, 0], value=-1.0)

    return lambda inputs, targets, weights: _summed(kernel, x, inputs, targets, weights, parts, move)


def _summed(
    kernel: Kernel,
    x: Tensor,
    inputs: Tensor,
    targets: Tensor,
    weights: Tensor | float,
    parts: Sequence[slice],
    use: Callable[[slice, Tensor], None],
) -> None:
    """Have `use` for each stretch of a minibatch's gradient ``[d]``, the sum of those of its `parts`; threads share
    both, and large models are gone over but once more."""

    def part(p: slice) -> Sequence[Tensor]:
        scale = weights[:, p] if isinstance(weights, Tensor) else weights
        return [piece.reshape(-1) for piece in kernel.pieces(x, inputs[:, p], targets[:, p], scale)]

    found = crew.each([partial(part, p) for p in parts])
    stretches: list[list[tuple[int, int, slice]]] = [[]]  # piece, where its first number is, which of them
    at = room = 0
    for i, piece in enumerate(found[0]):
        for begin in range(0, piece.numel(), _BLOCK):
            taken = slice(begin, min(begin + _BLOCK, piece.numel()))
            if room + taken.stop - begin > _BLOCK and stretches[-1]:
                stretches.append([])
                room = 0
            stretches[-1].append((i, at, taken))
            room += taken.stop - begin
        at += piece.numel()

    def add(some: Sequence[tuple[int, int, slice]]) -> None:
        for i, at, taken in some:
            first, second, *others = (pieces[i][taken] for pieces in found)
            total = first + second
            for other in others:
                total += other
            use(slice(at + taken.start, at + taken.stop), total)

    crew.each([partial(add, some) for some in stretches])


def changed(kernel: Kernel, x: Tensor, inputs: Tensor, change: Callable[[slice], Tensor]) -> Tensor:
    """What `change` makes of the samples ``inputs[:, part]``, each by itself, by all threads as `grad` would."""
    parts = _portions(kernel, x, inputs[0], inputs.shape[1])
    return change(parts[0]) if len(parts) == 1 else torch.cat(crew.each([partial(change, p) for p in parts]), dim=1)


def _portions(kernel: Kernel, x: Tensor, samples: Tensor, b: int) -> list[slice]:
    """How minibatches of b of such `samples` ``[N, ...]`` are divided: in 1, 2, 4, 8, ... portions, for numbers of
    cores are even and an odd portion would leave one idle."""
    whole = [slice(0, b)]
    if len(x) > 1 or x.device.type != "cpu" or not kernel.nature.plain or not crew.free():
        return whole
    if b < 2 * _SAMPLES or kernel.shares(x):
        return whole
    products = b * kernel.products(widened(samples[:1]))
    most = min(b // _SAMPLES, products // _PRODUCTS, products // (_USES * x.shape[-1]))
    return crew.even(b, 2 ** int(math.log2(most))) if most > 1 else whole
