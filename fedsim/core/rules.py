"""How local solvers move x along gradients, in numbers that kernels read: several steps of such a rule may be one call.

A rule says no more than a solver's own formulas do (`fedsim.algorithms.solvers`), and changes tensors in place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from fedsim.core.types import State, clip_norm, norm

SMALL = 1e-7  # keeps a normalised ascent finite where the gradient vanishes, as in FL-Simulator's code


def unit(g: Tensor) -> Tensor:
    """``g / (||g|| + 1e-7)``, ``[..., d] -> [..., d]``."""
    return g / (norm(g) + SMALL)


@dataclass(frozen=True)
class Climb:
    """Gradients ``(1 - share) g(x) + share g(x + e)``,  ``e = rho g(x) / (||g(x)|| + 1e-7)``, of one minibatch both.

    Without `normalize` ``e = rho g(x)``.
    """

    rho: float
    normalize: bool = True
    share: float = 1.0

    def gradient(self, grad: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """It at x ``[m, d]``, by gradients that `grad` takes."""
        g = grad(x)
        return self.merged(g, grad(self.above(x, g)))

    def above(self, x: Tensor, g: Tensor) -> Tensor:
        """``x + e``"""
        return torch.add(x, unit(g) if self.normalize else g, alpha=self.rho)

    def merged(self, here: Tensor, above: Tensor) -> Tensor:
        """Of what was taken at x and at x + e."""
        return above if self.share == 1 else (1 - self.share) * here + self.share * above


@dataclass(frozen=True)
class Affine:
    """Directions ``scale g + pull x + shift`` along gradients g at x, with the same three in all steps of a round.

    `shift` is of each row ``[m, d]``, one for all ``[d]``, or None, which is 0. With a `climb` g is the gradient that
    it makes of two.
    """

    scale: float = 1.0
    pull: float = 0.0
    shift: Tensor | None = None
    climb: Climb | None = None


@dataclass(frozen=True, kw_only=True)
class Rule(ABC):
    """Steps along ``v = scale g + decay x + shift``, g being gradients that are shortened to the norm `clip`."""

    decay: float = 0.0
    scale: float = 1.0
    shift: Tensor | None = None
    clip: float | None = None
    climb: Climb | None = None

    def along(self, directions: Affine) -> Self:
        """The rule along these directions in the place of gradients."""
        decay = self.decay + directions.pull
        return replace(self, decay=decay, scale=directions.scale, shift=directions.shift, climb=directions.climb)

    def gradient(self, grad: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """What `step` wants as g: the gradient at x ``[m, d]`` by `grad`, or what `climb` makes of two."""
        return grad(x) if self.climb is None else self.climb.gradient(grad, x)

    def direction(self, x: Tensor, g: Tensor) -> Tensor:
        """v at x ``[m, d]``."""
        v = g if self.clip is None else clip_norm(g, self.clip)
        v = v if self.scale == 1 else v * self.scale
        v = torch.add(v, x, alpha=self.decay) if self.decay else v
        return v if self.shift is None else v + self.shift

    @abstractmethod
    def step(self, x: Tensor, g: Tensor, lr: Tensor, remembered: State) -> None:
        """One step of x ``[m, d]`` along g, lr ``[m, 1]``; x and the rows that are `remembered` change in place."""


@dataclass(frozen=True, kw_only=True)
class HeavyBall(Rule):
    """``b = momentum b + v;  x = x - lr b``, or with `nesterov` ``x = x - lr (v + momentum b)``; without momentum there
    is no b."""

    momentum: float = 0.0
    nesterov: bool = False

    def step(self, x: Tensor, g: Tensor, lr: Tensor, remembered: State) -> None:
        v = self.direction(x, g)
        if "b" in remembered:
            b = remembered["b"].mul_(self.momentum).add_(v)
            v = torch.add(v, b, alpha=self.momentum) if self.nesterov else b
        x.addcmul_(v, lr, value=-1.0)


@dataclass(frozen=True, kw_only=True)
class AdamRule(Rule):
    """``m = beta1 m + (1 - beta1) v;  s = beta2 s + (1 - beta2) v^2;  x = x - lr mhat / (sqrt(shat) + eps)``

    x is multiplied by ``1 - lr shrink`` before. t ``[m, 1]`` counts the steps.
    """

    beta1: float
    beta2: float
    eps: float
    shrink: float = 0.0

    def step(self, x: Tensor, g: Tensor, lr: Tensor, remembered: State) -> None:
        m, s, t = (remembered[k] for k in ("m", "s", "t"))
        v = self.direction(x, g)
        if self.shrink:
            x.mul_(1 - lr * self.shrink)
        t.add_(1)
        m.lerp_(v, 1 - self.beta1)
        s.mul_(self.beta2).addcmul_(v, v, value=1 - self.beta2)
        first, second = ((1 - beta ** t.double()).to(x.dtype) for beta in (self.beta1, self.beta2))
        x.addcdiv_(lr / first * m, torch.div(s, second).sqrt_().add_(self.eps), value=-1.0)
