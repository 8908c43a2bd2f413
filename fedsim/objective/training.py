"""Models that train otherwise than they are evaluated: dropout, batch normalisation, whatever counts in buffers.

A training forward then depends on more than parameters and samples (`Training`), and is made on the samples that a
client has, so that neither padding nor neighbours in a batch are seen. Models that change buffers are computed for one
client after the other, those that only draw for all together where ``vmap`` can take them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
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
from fedsim.models.layout import call, flatten, views
from fedsim.models.losses import Loss
from fedsim.models.nature import Nature, initial_state, nature_of
from fedsim.models.norms import training
from fedsim.objective.general import RowKernel, VmapKernel
from fedsim.objective.kernel import ROWS_ON_CPU, Kernel, NoSampleGradientError, Precision, Training
from fedsim.objective.stacked import Way, build_kernel


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
        own = dict(module.named_buffers())
        self._kinds = [None if own[name].is_floating_point() else own[name].dtype for name in nature.buffers.names]

    @property
    def state(self) -> Tensor:
        return self._state

    def during(self, how: Training) -> Self:
        bound = copy.copy(self)
        bound.how = how
        return bound

    descend, descending = Kernel.descend, Kernel.descending  # buffers change as well

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
        buffers = self._buffers(own)
        before = {name: b.clone() for name, b in buffers.items() if not b.is_floating_point()}
        with self._drawing(0 if how is None else int(how.keys[i])), self._casting(x):
            out = call(module, params, self.layout, inputs[i, :count], buffers)
        if how is not None and how.writes:
            for name, v in own.items():
                if name in before:  # what is averaged need not be whole, and stays so
                    v += buffers[name].to(v.dtype) - before[name].to(v.dtype)
                else:
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
        return each_alone(self, self.how, x, inputs, targets)

    def _evaluated(self, row: Tensor, inputs: Tensor, state: Tensor | None) -> Tensor:
        module, d = self.own.get(), self.layout.total
        training(module, False)
        if state is None:
            row, state = row[:d], row[d:]
        buffers = self._buffers(views(state, self.nature.buffers))
        return call(module, views(row, self.layout), self.layout, inputs, buffers).to(row.dtype)

    def _buffers(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of the buffers (autograd forbids changing views of one tensor in turn), whole numbers as such."""
        return {
            name: v.clone() if kind is None else v.round().to(kind)
            for (name, v), kind in zip(own.items(), self._kinds, strict=True)
        }

    def _drawing(self, key: int) -> AbstractContextManager[object]:
        return _Drawing(key, self.state.device) if self.nature.draws else nullcontext()


class DrawingKernel(VmapKernel):
    """A model that draws and counts nothing, computed for all rows at once under ``vmap``.

    What a row draws depends on how many samples it has, so that rows of one number of them are taken together; a row
    that is alone in that takes the plain way.
    """

    randomness = "different"

    def __init__(self, rows: TrainingKernel) -> None:
        super().__init__(rows.module, rows.loss, rows.precision)
        self.rows, self.nature = rows, rows.nature
        self.keys: Keys | None = None

    def during(self, how: Training) -> Self:
        bound = copy.copy(self)
        bound.rows = self.rows.during(how)
        return bound

    def grad(self, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float) -> Tensor:
        how, b = self.rows.how, inputs.shape[1]
        if how is None:
            how = Training(np.zeros(len(x), dtype=np.uint64), np.full(len(x), b), x.new_zeros(len(x), 0))
        if len(x) > 1 and (how.counts == b).all():
            return self._together(how.keys, x, inputs, targets, weights)
        result = torch.zeros_like(x)
        for count in np.unique(how.counts[how.counts > 0]).tolist():  # a Poisson sample may be empty
            own = np.flatnonzero(how.counts == count)
            rows = torch.as_tensor(own, device=x.device)
            scale = weights[rows, :count] if isinstance(weights, Tensor) else weights
            part = (x[rows], inputs[rows, :count], targets[rows, :count], scale)
            if len(own) > 1:
                result[rows] = self._together(how.keys[own], *part)
            else:
                result[rows] = self.rows.during(replace(how, keys=how.keys[own], counts=how.counts[own])).grad(*part)
        return result

    def _together(self, keys: Keys, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float) -> Tensor:
        bound = copy.copy(self)
        bound.keys = keys
        training(self.own.get(), True)
        return VmapKernel.grad(bound, x, inputs, targets, weights)

    def forward(self, params: dict[str, Tensor], inputs: Tensor, shared: bool = False) -> Tensor:
        with nullcontext() if self.keys is None else _Drawing(self.keys, inputs.device):
            return super().forward(params, inputs, shared)

    def input_grad(self, x: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """Of the model as it is evaluated: an attack on inputs knows no masks."""
        training(self.own.get(), False)
        return super().input_grad(x, inputs, targets)

    def outputs(self, x: Tensor, inputs: Tensor) -> Tensor:
        return self.rows.outputs(x, inputs)  # PyTorch's fast ways of evaluating know no vmap

    def own_outputs(self, x: Tensor, inputs: Tensor) -> Tensor:
        return self.rows.own_outputs(x, inputs)

    def per_sample_grad(self, x: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        return each_alone(self, self.rows.how, x, inputs, targets)


def each_alone(kernel: Kernel, how: Training | None, x: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """`Kernel.per_sample_grad` of a model that draws: that of a row which has the sample alone, under its own key.

    Raises
    ------
    NoSampleGradientError
        The model counts samples.
    """
    if kernel.nature.buffers.total or how is None or how.samples is None:
        raise NoSampleGradientError
    m, b = inputs.shape[:2]
    alone = Training(how.samples.reshape(-1), np.ones(m * b, dtype=np.int64), x.new_zeros(m * b, 0), False)
    rows = x.unsqueeze(1).expand(m, b, -1).flatten(0, 1)
    grads = kernel.during(alone).grad(rows, inputs.flatten(0, 1)[:, None], targets.flatten(0, 1)[:, None], 1.0)
    return grads.view(m, b, -1)


class _Drawing(AbstractContextManager[object]):
    """`Keyed`; on a GPU with the attention whose dropout is an operator that can be seen."""

    def __init__(self, key: int | Keys, device: torch.device) -> None:
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
        return build_kernel(module, loss, device, inputs[0], precision, way, inputs)
    rows_only = TrainingKernel(module, loss, nature, precision)
    if way == "rows":
        return rows_only
    if nature.buffers.total:
        why = "changes buffers while it trains"
    elif way == "auto" and device.type == "cpu" and any(isinstance(layer, ROWS_ON_CPU) for layer in module.modules()):
        return rows_only
    elif _draws_alike(stacked := DrawingKernel(rows_only), inputs):
        return stacked
    else:
        why = "draws random numbers in a way that torch.func.vmap cannot take"
    if way == "stacked":
        raise InputError(f"found 'stacked', but this model {why}; allowed: auto, rows", "kernel")
    return rows_only


@torch.no_grad()
def _draws_alike(kernel: DrawingKernel, inputs: Tensor) -> bool:
    """Whether ``vmap`` can take a model that draws, and then draws what rows would, tried on some `inputs`."""
    module, few = kernel.own.get(), torch.stack([inputs[:2], inputs[:2]])
    params = views(flatten(kernel.module).expand(2, -1), kernel.layout)
    training(module, True)
    bound = copy.copy(kernel)
    bound.keys = np.arange(2, dtype=np.uint64)
    try:
        bound.differentiates(flatten(kernel.module).expand(2, -1), few, alike=False)  # keys differ
        for row, key in zip(bound.forward(params, few), bound.keys, strict=True):
            with _Drawing(int(key), inputs.device):
                alone = call(module, {name: v[0] for name, v in params.items()}, kernel.layout, few[0])
            if not torch.allclose(
                row, alone, rtol=0, atol=torch.finfo(row.dtype).eps ** 0.5 * float(alone.abs().max())
            ):
                return False
    except (RuntimeError, ValueError):  # operators without a batching rule, draws of a form that is not the rows'
        return False
    return True
