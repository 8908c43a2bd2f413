"""Adversarial inputs: projected gradient ascent on the pixels of every minibatch, before gradients are taken of it.

Projected gradient descent (PGD) of Madry et al. (arXiv 1706.06083, section 2.1); with ``attack_on: local`` under FedAvg
it is Federated Adversarial Learning (FAL, arXiv 2208.03635). It stands between minibatches and gradients, so that every
algorithm, solver and mechanism trains with it.

What one sample becomes depends on that sample, the model, and numbers drawn for its place among its client's samples:
never on other samples. So each example's gradient is a function of that example, and clipping it bounds what one
example does, as it does without an adversary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsim.core import rng
from fedsim.core.arrays import Ints
from fedsim.core.errors import InputError, RunError
from fedsim.core.oracle import Oracle
from fedsim.core.types import Count, Message, NonNegative, Positive, clip_norm
from fedsim.data.pixels import PixelRange
from fedsim.data.sets import Dataset
from fedsim.objective import minibatch
from fedsim.objective.batches import Batches, BatchOracle, Change, Inputs, Source, SupervisedPlan
from fedsim.objective.kernel import Kernel

_TENSORS = 5  # like its inputs, that an attack holds


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """``adversary``: clients train on inputs that are changed to raise the loss, and evaluations measure it, too.

    Parameters
    ----------
    eps : how far a changed image may be from its own, in pixel units: 1 is from black to white, however the data are
        scaled. 0 changes nothing.
    step : length of a step of the attack, in the same units; default ``2.5 eps / steps`` (of `eval_steps` where `steps`
        is 0).
    steps : steps of the attack on each minibatch. With 0 clients train on the samples as they are, and only evaluations
        attack: what FedAvg without an adversary is worth against one.
    norm : ``linf``, eps bounds every pixel, and a step goes along the signs of the gradient; ``l2``, eps bounds the
        Euclidean length of an image's change, and a step goes along the gradient.
    random_start : begin at x + U(-eps, eps) instead of x (with ``l2`` brought back into the ball).
    attack_on : the ``local`` model of each step, or the one that was ``received`` in the round.
    eval_steps : steps of the attack at evaluations; default `steps`.
    """

    eps: NonNegative
    step: Positive | None = None
    steps: Annotated[int, Field(ge=0)] = 10
    norm: Literal["linf", "l2"] = "linf"
    random_start: bool = False
    attack_on: Literal["local", "received"] = "local"
    eval_steps: Count | None = None

    def check(self, data: Dataset) -> None:
        """Raise InputError where the inputs have no pixels, or nobody is attacked."""
        if self.steps == 0 and self.eval_steps is None:
            raise InputError("missing; with steps 0 evaluations alone attack; allowed: 1 or more", key="eval_steps")
        if data.pixels is None:
            found = "integers" if not data.train_x.is_floating_point() else "numbers of no known range"
            shape = "x".join(map(str, data.train_x.shape[1:]))
            raise InputError(
                f"found inputs of shape {shape} that are {found}, but eps is in units of pixels; allowed: images of "
                "bytes, such as mnist, or your own data set with `pixels`"
            )
        widest = 1.0 if self.norm == "linf" else data.train_x[0].numel() ** 0.5
        if self.eps > widest:
            message = f"found {self.eps:g}, but in pixel units no two images are more than {widest:g} apart"
            raise InputError(f"{message} with {self.norm}; allowed: up to {widest:g}, e.g. 8/255 = 0.0314", key="eps")

    def on(self, pixels: PixelRange) -> Pgd:
        """The attack on inputs with this range."""
        return Pgd(self, pixels)

    @property
    def length(self) -> float:
        """Of a step."""
        return 2.5 * self.eps / (self.steps or self.eval_steps or 1) if self.step is None else self.step


class Pgd(Inputs):
    """``z = P(z + step sign(grad_z loss))`` (``linf``), or ``P(z + step g / norm(g))`` (``l2``), from z = x.

    P projects on the ball around x, then on the range of pixels; a sample outside of that range stays where it is.
    """

    metrics: ClassVar[tuple[str, ...]] = ("robust_loss", "robust_accuracy")

    def __init__(self, adversary: Adversary, pixels: PixelRange) -> None:
        self.adversary, self.pixels = adversary, pixels
        self.passes = adversary.steps + 1
        self.plain = adversary.steps == 0 and not adversary.random_start

    def to(self, device: torch.device) -> Self:
        return type(self)(self.adversary, self.pixels.to(device))

    def check(self, kernel: Kernel, x: Tensor, inputs: Tensor, targets: Tensor) -> None:
        try:
            kernel.input_grad(x.unsqueeze(0), inputs.unsqueeze(0), targets.unsqueeze(0))
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"the model's loss has no gradient by its inputs ({reason}); allowed: no adversary"
            ) from None

    def plan(self, task: Source, batches: Batches, clients: Ints, rounds: Ints) -> SupervisedPlan:
        if self.plain:
            return super().plan(task, batches, clients, rounds)
        return _AdversarialPlan(task, batches, self, rng.key(task.seed, "adversary", clients, rounds))

    def evaluate(self, score: Callable[[Change], tuple[float, float]]) -> tuple[float, ...]:
        return score(self._tested)

    def _tested(self, kernel: Kernel, params: Tensor, inputs: Tensor, targets: Tensor, first: int) -> Tensor:
        """Test rows, attacked from starts that are the same in all evaluations."""
        steps = self.adversary.eval_steps or self.adversary.steps
        keys = rng.key(0, "adversary test", first + np.arange(len(inputs)))[None]
        return self.attack(kernel, params.unsqueeze(0), inputs.unsqueeze(0), targets.unsqueeze(0), keys, steps)[0]

    def attack(
        self, kernel: Kernel, x: Tensor, inputs: Tensor, targets: Tensor, keys: rng.Keys, steps: int | None = None
    ) -> Tensor:
        """Changed inputs ``[m, b, *sample]``, a new tensor, of the models x ``[m, d]``; keys ``[m, b]``."""
        a, pixels = self.adversary, self.pixels.to(inputs.device, inputs.dtype)
        ball = (_Cube if a.norm == "linf" else _Ball)(inputs, a.eps, pixels)
        z = inputs.clone()
        if a.random_start and a.eps > 0:
            ball.project(z.addcmul_(_draws(keys, inputs), a.eps * pixels.unit))
        for _ in range(a.steps if steps is None else steps):
            ball.step(z, kernel.input_grad(x, z, targets), a.length)
        return z


def _draws(keys: rng.Keys, like: Tensor) -> Tensor:
    """Numbers in (-1, 1), one of 65,536 evenly spread ones for each coordinate of samples with these keys."""
    drawn = torch.from_numpy(rng.symmetric(keys, like[0, 0].numel())).to(like.device)
    return drawn.to(like.dtype).add_(0.5).mul_(2.0**-15).view_as(like)


class _Cube:
    """All images whose pixels are within eps of their own."""

    def __init__(self, own: Tensor, eps: float, pixels: PixelRange) -> None:
        self.unit, near = pixels.unit, eps * pixels.unit
        self.low, self.high = own - near, own + near
        edge = torch.minimum(pixels.low, own)
        torch.maximum(self.low, edge, out=self.low)
        torch.maximum(pixels.high, own, out=edge)
        torch.minimum(self.high, edge, out=self.high)

    def step(self, z: Tensor, g: Tensor, length: float) -> None:
        """Move z along the signs of g, of which memory is used, and project it."""
        self.project(z.addcmul_(g.sign_(), length * self.unit))

    def project(self, z: Tensor) -> None:
        """Put the nearest image to z in its place."""
        z.clamp_(self.low, self.high)


class _Ball:
    """All images within Euclidean distance eps of their own."""

    def __init__(self, own: Tensor, eps: float, pixels: PixelRange) -> None:
        self.own, self.unit, self.several = own, pixels.unit, pixels.unit.numel() > 1
        self.low, self.high = torch.minimum(pixels.low, own), torch.maximum(pixels.high, own)
        # Where all pixels have one unit, lengths are measured in the model's numbers: passes cost more than arithmetic.
        self.eps = torch.full_like(self.unit, eps) if self.several else eps * self.unit

    def step(self, z: Tensor, g: Tensor, length: float) -> None:
        """Move z along g, of which memory is used, and project it."""
        g = g.contiguous()
        if self.several:
            g.mul_(self.unit)
        most, size = torch.finfo(g.dtype), _lengths(g)
        if bool((weak := size < most.tiny**0.5 / most.eps).any()):  # squares that vanish though the gradient does not
            size = torch.where(weak, _lengths(g, torch.float64), size)
        factor = (length * self.unit / size.clamp_min_(most.tiny)).clamp_(max=most.max)
        self.project(z.addcmul_(g, factor.to(g.dtype)), g)

    def project(self, z: Tensor, spare: Tensor | None = None) -> None:
        """Put in z's place the nearest image in the ball, brought back into the range of pixels.

        `spare`, of its form, is overwritten.
        """
        change = torch.sub(z, self.own, out=spare).contiguous()
        if self.several:
            change.div_(self.unit)
        factor = (self.eps / _lengths(change).clamp_min_(1e-12)).clamp_(max=1.0)
        if self.several:
            factor = factor * self.unit
        torch.addcmul(self.own, change, factor, out=z)
        z.clamp_(self.low, self.high)


def _lengths(v: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Euclidean lengths ``[m, b, 1, ...]`` of samples ``[m, b, *sample]``."""
    flat = v.view(*v.shape[:2], -1)
    found: Tensor = torch.linalg.vector_norm(flat, dim=-1, dtype=dtype)
    return found.view(*v.shape[:2], *[1] * (v.dim() - 2))


class _AdversarialPlan(SupervisedPlan):
    """Minibatches that are attacked; `keys` ``[m]`` are of clients and their rounds."""

    def __init__(self, task: Source, batches: Batches, pgd: Pgd, keys: rng.Keys) -> None:
        super().__init__(task, batches)
        self.pgd, self.keys = pgd, keys
        self.received: Tensor | None = None

    def begin(self, received: Message) -> None:
        super().begin(received)
        self.received = received.get("x")

    def oracle(self, step: int, count: int, lr: Tensor) -> Oracle:
        batch = self.batches.at(step, count)
        keys = rng.fold(self.keys[:count, None], step, batch.positions)
        if self.pgd.adversary.attack_on == "local":
            return _AdversarialOracle(self.task, batch, lr, self.pgd, keys)
        if self.received is None:
            raise RunError("found attack_on received, but this plan was not told what its clients received")
        received = self.received.expand(len(self.keys), -1)[:count]
        return _OnReceived(self.task, batch, lr, self.pgd, keys, received)


class _AdversarialOracle(BatchOracle):
    """Gradients at inputs that are attacked on the model at which they are taken."""

    def __init__(self, task: Source, batch: Batches, lr: Tensor, pgd: Pgd, keys: rng.Keys) -> None:
        super().__init__(task, batch, lr)
        self.pgd, self.keys = pgd, keys

    def seen(self, x: Tensor) -> Tensor:
        kernel, inputs, targets = self.kernel(), self.inputs, self.batch.targets

        def change(part: slice) -> Tensor:
            return self.pgd.attack(kernel, x, inputs[:, part], targets[:, part], self.keys[:, part])

        return minibatch.changed(kernel, x, inputs, change)

    def seen_part(self, x: Tensor, rows: slice, columns: slice, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.pgd.attack(self.task.kernel, x, inputs, targets, self.keys[rows, columns])

    def floats_per_sample(self, difference: bool) -> int:
        made = self.task.kernel.layout.total * (6 if difference else 0)
        return super().floats_per_sample(difference) + made + _TENSORS * self.task.inputs[0].numel()

    def clipped_part(
        self, kernel: Kernel, x: Tensor, seen: Tensor, targets: Tensor, valid: Tensor | None, bound: Tensor,
        minus: Tensor | None, at_minus: Callable[[], Tensor],
    ) -> Tensor:  # fmt: skip
        """A difference is one of gradients at other inputs: each model's own."""
        if minus is None:
            return kernel.clipped_sum(x, seen, targets, valid, bound, None)
        change = kernel.per_sample_grad(x, seen, targets) - kernel.per_sample_grad(minus, at_minus(), targets)
        clipped = clip_norm(change, bound.unsqueeze(-1))
        return (clipped if valid is None else clipped * valid.unsqueeze(-1)).sum(-2)


class _OnReceived(_AdversarialOracle):
    """Gradients at inputs that are attacked on the model that was received."""

    def __init__(self, task: Source, batch: Batches, lr: Tensor, pgd: Pgd, keys: rng.Keys, received: Tensor) -> None:
        super().__init__(task, batch, lr, pgd, keys)
        self.received = received

    @cached_property
    def _attacked(self) -> Tensor:
        return super().seen(self.received)

    def seen(self, x: Tensor) -> Tensor:
        return self._attacked

    def seen_part(self, x: Tensor, rows: slice, columns: slice, inputs: Tensor, targets: Tensor) -> Tensor:
        return super().seen_part(self.received[rows].to(x.dtype), rows, columns, inputs, targets)

    def clipped_part(
        self, kernel: Kernel, x: Tensor, seen: Tensor, targets: Tensor, valid: Tensor | None, bound: Tensor,
        minus: Tensor | None, at_minus: Callable[[], Tensor],
    ) -> Tensor:  # fmt: skip
        return BatchOracle.clipped_part(self, kernel, x, seen, targets, valid, bound, minus, at_minus)
