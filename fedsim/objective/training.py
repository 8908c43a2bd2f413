"""Models that train otherwise than they are evaluated: dropout, batch normalisation, whatever counts in buffers.

A training forward then depends on more than parameters and samples (`Training`), and is made for one client after the
other, on the samples that it has, so that neither padding nor neighbours in a batch are seen.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedsim.core import rng
from fedsim.core.arrays import Ints
from fedsim.core.errors import InputError
from fedsim.core.rng import Keys
from fedsim.models.draws import Keyed
from fedsim.models.layout import call, views
from fedsim.models.losses import Loss
from fedsim.models.nature import Nature, initial_state, nature_of
from fedsim.models.norms import training
from fedsim.objective.kernel import Kernel, NoSampleGradientError, Precision, Training
from fedsim.objective.stacked import RowKernel, Way, build_kernel


class TrainingKernel(RowKernel):
    """One row after the other, each with its own draws and buffers.

    Model rows are ``[m, d]`` in training; in evaluations they are ``[m, d + s]``, buffers after parameters.
    """

    def __init__(self, module: nn.Module, loss: Loss, nature: Nature, precision: Precision = "full") -> None:
        super().__init__(module, loss, precision)
        self.nature = nature
        self.how: Training | None = None
        first = next(module.parameters())
        self._state = initial_state(module, nature, first.dtype).to(first.device)

    @property
    def state(self) -> Tensor:
        return self._state

    def during(self, how: Training) -> Self:
        bound = copy.copy(self)
        bound.how = how
        return bound

    def descend(self, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float, lr: Tensor) -> None:
        x.addcmul_(self.grad(x, inputs, targets, weights), lr, value=-1.0)

    def _row(self, i: int, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float) -> tuple[Tensor, ...]:
        how = self.how
        count = inputs.shape[1] if how is None else int(how.counts[i])
        params = {name: v.detach().requires_grad_() for name, v in views(x[i], self.layout).items()}
        leaves = list(params.values())
        if count == 0:  # a Poisson sample may be empty
            return tuple(torch.zeros_like(leaf) for leaf in leaves)
        module = self.own.get()
        training(module, True)
        state = self.state if how is None else how.state[i]
        own = views(state, self.nature.buffers)
        buffers = {name: v.clone() for name, v in own.items()}  # autograd forbids changing views of one tensor in turn
        with self._drawing(0 if how is None else int(how.keys[i])), self._casting(x):
            out = call(module, params, self.layout, inputs[i, :count], buffers)
        if how is not None and how.writes:
            for name, v in own.items():
                v.copy_(buffers[name])
        losses = self.loss(out.to(x.dtype), targets[i, :count])
        scale = weights[i, :count] if isinstance(weights, Tensor) else torch.full_like(losses, weights)
        return torch.autograd.grad(losses, leaves, scale, materialize_grads=True)

    def input_grad(self, x: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """Of the model as it is evaluated: an attack on inputs knows no masks, and no other samples."""
        result = torch.empty_like(inputs)

        def state(i: int) -> Tensor | None:
            return None if self.how is None else self.how.state[i]

        def one(i: int) -> None:
            leaf = inputs[i].detach()
            with torch.enable_grad(), self._casting(x):
                out = self._evaluated(x[i], leaf.requires_grad_(), state(i))
                result[i] = torch.autograd.grad(self.loss(out.to(x.dtype), targets[i]).sum(), leaf)[0]

        self._rows(one, inputs)
        return result

    @torch.no_grad()
    def outputs(self, x: Tensor, inputs: Tensor) -> Tensor:
        return torch.stack([self._evaluated(row, inputs, None) for row in x])

    def per_sample_grad(self, x: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        raise NoSampleGradientError

    def _evaluated(self, row: Tensor, inputs: Tensor, state: Tensor | None) -> Tensor:
        module, d = self.own.get(), self.layout.total
        training(module, False)
        if state is None:
            row, state = row[:d], row[d:]
        buffers = views(state, self.nature.buffers)
        return call(module, views(row, self.layout), self.layout, inputs, buffers)

    def _drawing(self, key: int) -> AbstractContextManager[object]:
        return _Drawing(key, self.state.device) if self.nature.draws else nullcontext()


class _Drawing(AbstractContextManager[object]):
    """`Keyed`; on a GPU with the attention whose dropout is an operator that can be seen."""

    def __init__(self, key: int, device: torch.device) -> None:
        self.keyed = Keyed(key)
        self.attention = sdpa_kernel(SDPBackend.MATH) if device.type == "cuda" else nullcontext()

    def __enter__(self) -> object:
        self.attention.__enter__()
        return self.keyed.__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *what: object) -> None:
        self.keyed.__exit__(*what)  # type: ignore[no-untyped-call]
        self.attention.__exit__(*what)  # type: ignore[arg-type]


def beside(
    kernel: Kernel, seed: int, clients: Ints, rounds: Ints, index: Ints
) -> tuple[Keys, Tensor] | tuple[None, None]:
    """`Batches.keys` and `Batches.state` of minibatches ``[m, steps, b]``; None for models that need neither."""
    if kernel.nature.plain:
        return None, None
    keys = rng.key(seed, "dropout", clients[:, None], rounds[:, None], np.arange(index.shape[1]))
    return keys, kernel.state.expand(len(index), -1).clone()


def kernel_of(
    module: nn.Module,
    loss: Loss,
    device: torch.device,
    inputs: Tensor,
    precision: Precision = "full",
    way: Way = "auto",
) -> Kernel:
    """The kernel for `module` on `device`, which is tried on some `inputs` ``[b, ...]``.

    Raises
    ------
    InputError
        `way` is ``stacked``, and the model cannot be computed so, or it draws in a way that cannot be keyed.
    """
    nature = nature_of(module, inputs)
    if nature.plain:
        return build_kernel(module, loss, device, inputs[0], precision, way)
    if way == "stacked":
        what = "draws random numbers" if nature.draws else "changes buffers"
        raise InputError(f"found 'stacked', but this model {what} while it trains; allowed: auto, rows", "kernel")
    return TrainingKernel(module, loss, nature, precision)
