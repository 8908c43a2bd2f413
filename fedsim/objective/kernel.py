"""What the stacked engine needs of a model family: gradients and outputs of `m` parameter rows at once."""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.func import vmap

from fedsim.core.arrays import Ints
from fedsim.core.crew import Own
from fedsim.core.rng import Keys
from fedsim.core.rules import HeavyBall, Rule
from fedsim.core.types import State, clip_norm
from fedsim.models.layout import Layout, call, layout, trained, views
from fedsim.models.losses import Loss
from fedsim.models.nature import PLAIN, Nature
from fedsim.models.size import multiply_adds

Precision = Literal["full", "bf16"]
"""``bf16``: training runs the model under bfloat16 autocast; parameters, losses and gradients stay as they are."""


Descent = Callable[[Tensor, Tensor, Tensor | float], None]
"""A step of rows on their minibatches: ``descend(inputs, targets, weights)``, as `Kernel.descend` has them."""


@dataclass(frozen=True)
class Walk:
    """Minibatches of m rows, one after the other: rows `index` ``[m, steps, b]`` of all inputs ``[N, *sample]``.

    Targets are ``[m, steps, b, ...]``, weights ``[m, steps, b]`` or one number for all. The `rule` may be another one
    than plain SGD's; what it has `remembered` are rows ``[m, d]`` or ``[m, 1]``. Without an index all inputs are one
    row's one minibatch.
    """

    index: Tensor | None
    targets: Tensor
    weights: Tensor | float
    rule: Rule = HeavyBall()  # noqa: RUF009 - frozen
    remembered: State = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """What a training forward of `m` rows depends on besides parameters and samples, where it does.

    `keys` ``[m]`` are of what each draws, `counts` ``[m]`` say how many of its samples count, `state` ``[m, s]`` are
    the buffers that it changes, in place where it `writes`. `samples` ``[m, b]`` are keys of what each sample draws
    where its gradient is taken alone.
    """

    keys: Keys
    counts: Ints
    state: Tensor
    writes: bool = True
    samples: Keys | None = None


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
ROWS_ON_CPU = (*CONVOLUTIONS, nn.RNNBase)
"""Layers of which a CPU computes one client after the other: stacked they are slower."""
_POSITIONS = 8


class NoSampleGradientError(Exception):
    """A model has no gradient of one sample alone: it counts samples while it trains."""


class Kernel(ABC):
    """How one model family is evaluated for `m` parameter rows at once."""

    nature: Nature = PLAIN
    """What the model is besides a function of its parameters and of one sample."""

    def __init__(self, module: nn.Module, loss: Loss, precision: Precision = "full") -> None:
        # An operator that vmap has no rule for is computed client by client, and PyTorch asks for an issue about it.
        warnings.filterwarnings("ignore", "There is a performance drop because", UserWarning)
        self.module = module
        self.own = Own(module, _blank(module), _blank)  # its parameters are replaced while it computes
        self.loss = loss
        self.precision = precision
        self.layout: Layout = layout(module)
        self._products: dict[tuple[int, ...], int] = {}

    def during(self, how: Training) -> Self:
        """The kernel in a training step of which this is known; itself where it makes no difference."""
        return self

    @property
    def state(self) -> Tensor:
        """The buffers that training changes, as they are at first, ``[s]``."""
        return torch.zeros(0)

    def products(self, sample: Tensor) -> int:
        """Multiply-adds of the forward pass of one `sample` ``[1, ...]``, about; at least one of each parameter."""
        form = tuple(sample.shape)
        if form not in self._products:
            recurrent = any(isinstance(layer, nn.RNNBase) for layer in self.module.modules())
            least = self.layout.total * (_POSITIONS if recurrent else 1)
            sample = sample.to(next(self.module.parameters()).dtype) if sample.is_floating_point() else sample
            self._products[form] = max(least, multiply_adds(self.module, sample))
        return self._products[form]

    def shares(self, x: Tensor) -> bool:
        """Whether threads share each operator of a step of x, which is one row: then they do not share its samples."""
        return False

    @abstractmethod
    def grad(self, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float) -> Tensor:
        """Gradient of ``sum_j weights[i, j] * loss(model(x_i; inputs[i, j]), targets[i, j])`` for every row i.

        x ``[m, d]``, inputs ``[m, b, ...]``, targets ``[m, b, ...]``, weights ``[m, b]`` or one number for all
        -> ``[m, d]``.
        """

    def walks(self, x: Tensor, inputs: Tensor, samples: int) -> bool:
        """Whether its `walk` of rows x ``[m, d]`` on minibatches of so many samples, of all inputs ``[N, ...]``, is
        faster than step after step."""
        return False

    def walk(self, x: Tensor, inputs: Tensor, walk: Walk, lr: Tensor, start: Tensor | None = None) -> None:
        """Steps on several minibatches of all inputs ``[N, ...]``, one after the other; `start` as in `descending`."""
        if start is not None:
            x.copy_(start)
        for step in range(walk.targets.shape[1]):
            seen = inputs.unsqueeze(0) if walk.index is None else inputs[walk.index[:, step]]
            weights = walk.weights[:, step] if isinstance(walk.weights, Tensor) else walk.weights
            grad = partial(self.grad, inputs=seen, targets=walk.targets[:, step], weights=weights)
            walk.rule.step(x, walk.rule.gradient(grad, x), lr, walk.remembered)

    def pieces(self, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float) -> Sequence[Tensor]:
        """`grad` of one row x ``[1, d]`` as tensors of any form that make it up one after the other."""
        return (self.grad(x, inputs, targets, weights),)

    def change(self, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float, lr: Tensor) -> Tensor:
        """``-lr * grad(x)``, lr ``[m, 1]``: a new tensor ``[m, d]``."""
        return self.grad(x, inputs, targets, weights).mul_(-lr)

    def descend(self, x: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | float, lr: Tensor) -> None:
        """``x -= lr * grad(x)`` in place, lr ``[m, 1]``: fewer passes where nobody needs the gradient."""
        x.addcmul_(self.grad(x, inputs, targets, weights), lr, value=-1.0)

    def descending(self, x: Tensor, lr: Tensor, start: Tensor | None = None) -> Descent:
        """`descend` of the same rows x with the same lr, step after step: what is alike in all is made once.

        `start` ``[m, d]`` is where the first step starts from; x, which it fills, then holds nothing before it.
        """
        if start is not None:
            x.copy_(start)
        return lambda inputs, targets, weights: self.descend(x, inputs, targets, weights, lr)

    @abstractmethod
    def input_grad(self, x: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """Each sample's gradient of its own loss by its inputs: x ``[m, d]``, inputs ``[m, b, *sample]`` -> the same.

        It leaves the inputs as they are, and is cast as a training forward is.
        """

    @abstractmethod
    def outputs(self, x: Tensor, inputs: Tensor) -> Tensor:
        """Outputs of `m` models on the same inputs: x ``[m, d]``, inputs ``[N, ...]`` -> ``[m, N, k]``, no gradient."""

    words: ClassVar[str]
    """How it computes, in words."""
    alone: ClassVar[bool] = False
    """Whether models are computed one after the other, so that nothing is gained by equally many samples."""

    def own_outputs(self, x: Tensor, inputs: Tensor) -> Tensor:
        """Outputs of `m` models, each on inputs of its own: x ``[m, d]``, inputs ``[m, b, ...]`` -> ``[m, b, k]``."""
        return torch.stack([self.outputs(x[i : i + 1], own)[0] for i, own in enumerate(inputs)])

    def per_sample_grad(self, x: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """Each sample's own gradient: x ``[m, d]``, inputs ``[m, b, ...]`` -> ``[m, b, d]``."""
        module = self.own.get()

        def one(flat: Tensor, sample: Tensor, target: Tensor) -> Tensor:
            with self._casting(flat):
                out = call(module, views(flat, self.layout), self.layout, sample.unsqueeze(0))
            return self.loss(out.to(flat.dtype), target.unsqueeze(0)).sum()

        per_sample = vmap(torch.func.grad(one), in_dims=(None, 0, 0))
        result: Tensor = vmap(per_sample)(x, inputs, targets)
        return result

    def _casting(self, x: Tensor) -> AbstractContextManager[object]:
        """What a training forward runs in. Nothing is cached: each weight is used once, and vmap's must not escape."""
        if self.precision == "full":
            return nullcontext()
        return torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False)

    def clipped_sum(
        self, x: Tensor, inputs: Tensor, targets: Tensor, valid: Tensor | None, bound: Tensor, minus: Tensor | None
    ) -> Tensor:
        """``sum_j clip_bound(g_ij(x_i))``, or of the differences ``g_ij(x_i) - g_ij(minus_i)``, over the valid samples.

        x ``[m, d]``, inputs and targets ``[m, b, ...]``, valid ``[m, b]`` (None: all), bound ``[m, 1]`` -> ``[m, d]``.
        """
        grads = self.per_sample_grad(x, inputs, targets)
        if minus is not None:
            grads = grads - self.per_sample_grad(minus, inputs, targets)
        clipped = clip_norm(grads, bound.unsqueeze(-1))
        return (clipped if valid is None else clipped * valid.unsqueeze(-1)).sum(-2)

    def floats_per_sample(self, difference: bool) -> int:
        """Numbers that `clipped_sum` holds for each sample, about."""
        return 3 * self.layout.total * (2 if difference else 1)

    def _leaves(self, x: Tensor) -> dict[str, Tensor]:
        return {name: v.detach().requires_grad_() for name, v in views(x, self.layout).items()}

    def _total(self, out: Tensor, targets: Tensor, weights: Tensor | float) -> Tensor:
        losses = self.loss(out.flatten(0, 1), targets.flatten(0, 1))
        return (losses * weights.flatten()).sum() if isinstance(weights, Tensor) else losses.sum() * weights

    def _scatter(self, into: Tensor, grads: tuple[Tensor, ...]) -> None:
        torch._foreach_copy_(list(views(into, self.layout).values()), list(grads))


def _blank(module: nn.Module) -> nn.Module:
    """A copy of the module whose parameters hold nothing where they train: they are replaced before it computes.

    Frozen parameters and buffers are the module's own: a device has them once.
    """
    empty = {id(p): nn.Parameter(p.detach().new_empty(0)) for p in trained(module)}
    frozen: dict[int, Tensor] = {id(p): p for p in module.parameters() if not p.requires_grad}
    return copy.deepcopy(module, {**empty, **frozen, **{id(b): b for b in module.buffers()}})
