"""Local solvers: how a client moves along the directions that its algorithm gives; ``algorithm.solver: {name: adam}``.

Formulas and defaults are those of ``torch.optim``, so that one client alone does what PyTorch's optimiser does. A
solver's state lies apart from the algorithm's own: no name of one means anything to the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from fedsim.core.fields import PartOf
from fedsim.core.registry import Part, register
from fedsim.core.rules import AdamRule, HeavyBall, Rule
from fedsim.core.types import Decay, NonNegative, Positive, State


@dataclass(frozen=True, kw_only=True)
class LocalSolver(Part, ABC):
    """Base class of local solvers.

    Parameters
    ----------
    weight_decay : L2 coefficient: ``weight_decay * x`` is added to every direction.
    state : ``round``, what it remembers ends with the client's round; ``kept``, a client keeps it for its next one.
    """

    weight_decay: NonNegative = 0.0
    state: Literal["round", "kept"] = "round"

    def start(self, x: Tensor) -> State:
        """What it remembers before the first step at `x` ``[..., d]``: rows ``[..., d]`` or ``[..., 1]``."""
        return {}

    @abstractmethod
    def step(self, x: Tensor, v: Tensor, lr: Tensor, state: State) -> tuple[Tensor, State]:
        """The next `x` and state after one step along the direction `v` (descent is ``- v``); `lr` is ``[..., 1]``."""

    def weight_sum(self, steps: Tensor) -> Tensor | None:
        """Sum of the weights with which the directions of that many steps enter ``(x - y_K) / lr``.

        None where a round's change is no weighted sum of its directions.
        """
        return None

    @property
    def in_place(self) -> bool:
        """Whether a step is ``x - lr v`` and nothing else, so that the gradient may be subtracted where x lies."""
        return False

    @property
    def rule(self) -> Rule | None:
        """What a step is, where a rule says it and what is remembered lasts for a round."""
        return None

    def decayed(self, x: Tensor, v: Tensor) -> Tensor:
        """``v + weight_decay x``"""
        return torch.add(v, x, alpha=self.weight_decay) if self.weight_decay > 0 else v


Solver = Annotated[LocalSolver, PartOf("solver", "solver")]
"""The key of an algorithm."""


@register.solver("sgd")
@dataclass(frozen=True, kw_only=True)
class SGD(LocalSolver):
    """``b = momentum b + v;  x = x - lr b``, heavy ball: an algorithm's keys `momentum`, `weight_decay`."""

    momentum: Decay = 0.0

    def start(self, x: Tensor) -> State:
        return {"b": _zeros(x)} if self.momentum > 0 else {}

    def step(self, x: Tensor, v: Tensor, lr: Tensor, state: State) -> tuple[Tensor, State]:
        v = self.decayed(x, v)
        if self.momentum == 0:
            return torch.addcmul(x, v, lr, value=-1.0), state
        b = torch.add(v, state["b"], alpha=self.momentum)
        return torch.addcmul(x, b, lr, value=-1.0), {"b": b}

    def weight_sum(self, steps: Tensor) -> Tensor | None:
        """The number of steps; with momentum r ``sum_{j=1..K} (1 - r^j) / (1 - r)`` (FedNova, arXiv 2007.07481)."""
        if not self._known:
            return None
        if self.momentum == 0:
            return steps
        return None if self.state == "kept" else self._ball(steps)

    def _ball(self, steps: Tensor) -> Tensor:
        r = self.momentum
        return (steps - r * (1 - r**steps) / (1 - r)) / (1 - r)

    @property
    def in_place(self) -> bool:
        return self.momentum == 0 and self.weight_decay == 0 and self._known

    @property
    def _known(self) -> bool:
        """Whether steps are the ones of this module: whoever derives from it may take others."""
        ours = [[getattr(kind, name) for kind in (SGD, Nesterov)] for name in ("start", "step", "decayed")]
        return all(getattr(type(self), own[0].__name__) in own for own in ours)

    @property
    def rule(self) -> Rule | None:
        known = type(self) in (SGD, Nesterov) and (self.state == "round" or self.momentum == 0)
        nesterov = isinstance(self, Nesterov) and self.momentum > 0
        return HeavyBall(momentum=self.momentum, decay=self.weight_decay, nesterov=nesterov) if known else None


@register.solver("nesterov")
@dataclass(frozen=True, kw_only=True)
class Nesterov(SGD):
    """``b = momentum b + v;  x = x - lr (v + momentum b)``"""

    momentum: Decay = 0.9

    def step(self, x: Tensor, v: Tensor, lr: Tensor, state: State) -> tuple[Tensor, State]:
        if self.momentum == 0:
            return super().step(x, v, lr, state)
        v = self.decayed(x, v)
        b = torch.add(v, state["b"], alpha=self.momentum)
        return torch.addcmul(x, torch.add(v, b, alpha=self.momentum), lr, value=-1.0), {"b": b}

    def _ball(self, steps: Tensor) -> Tensor:
        return steps + self.momentum * super()._ball(steps)


@register.solver("adam")
@dataclass(frozen=True, kw_only=True)
class Adam(LocalSolver):
    """``m = beta1 m + (1 - beta1) v;  s = beta2 s + (1 - beta2) v^2;  x = x - lr mhat / (sqrt(shat) + eps)``

    mhat and shat are m and s over ``1 - beta^t``, t the number of the step (Kingma and Ba, arXiv 1412.6980). With
    `amsgrad` the largest s of all steps takes its place in shat (Reddi et al., arXiv 1904.09237, in PyTorch's form).
    """

    beta1: Decay = 0.9
    beta2: Decay = 0.999
    eps: Positive = 1e-8
    amsgrad: bool = False

    def start(self, x: Tensor) -> State:
        kept = {"m": _zeros(x), "s": _zeros(x), "t": _zeros(x[..., :1])}
        return {**kept, "top": _zeros(x)} if self.amsgrad else kept

    def step(self, x: Tensor, v: Tensor, lr: Tensor, state: State) -> tuple[Tensor, State]:
        return self._step(x, self.decayed(x, v), lr, state)

    @property
    def rule(self) -> Rule | None:
        known = type(self) in (Adam, AdamW) and self.state == "round" and not self.amsgrad
        decay, shrink = (0.0, self.weight_decay) if isinstance(self, AdamW) else (self.weight_decay, 0.0)
        rule = AdamRule(decay=decay, beta1=self.beta1, beta2=self.beta2, eps=self.eps, shrink=shrink)
        return rule if known else None

    def _step(self, x: Tensor, v: Tensor, lr: Tensor, state: State) -> tuple[Tensor, State]:
        t = state["t"] + 1
        m = torch.lerp(state["m"], v, 1 - self.beta1)
        s = torch.mul(state["s"], self.beta2).addcmul_(v, v, value=1 - self.beta2)
        first, second = ((1 - beta ** t.double()).to(x.dtype) for beta in (self.beta1, self.beta2))
        after = {"m": m, "s": s, "t": t}
        if self.amsgrad:
            after["top"] = torch.maximum(state["top"], s)
        below = torch.div(after.get("top", s), second).sqrt_().add_(self.eps)
        return torch.addcdiv(x, lr / first * m, below, value=-1.0), after


@register.solver("adamw")
@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """``x = (1 - lr weight_decay) x``, then Adam's step (Loshchilov and Hutter, arXiv 1711.05101)."""

    weight_decay: NonNegative = 0.01

    def step(self, x: Tensor, v: Tensor, lr: Tensor, state: State) -> tuple[Tensor, State]:
        return self._step(x * (1 - lr * self.weight_decay), v, lr, state)


@register.solver("adagrad")
@dataclass(frozen=True, kw_only=True)
class Adagrad(LocalSolver):
    """``s = s + v^2;  x = x - lr v / (sqrt(s) + eps)``, s from `initial_accumulator` (Duchi et al., JMLR 2011)."""

    eps: Positive = 1e-10
    initial_accumulator: NonNegative = 0.0

    def start(self, x: Tensor) -> State:
        return {"s": _zeros(x) + self.initial_accumulator}

    def step(self, x: Tensor, v: Tensor, lr: Tensor, state: State) -> tuple[Tensor, State]:
        v = self.decayed(x, v)
        s = torch.addcmul(state["s"], v, v)
        return torch.addcdiv(x, lr * v, s.sqrt().add_(self.eps), value=-1.0), {"s": s}


def _zeros(x: Tensor) -> Tensor:
    """Zeros of the shape of `x` that take no memory."""
    return x.new_zeros(()).expand_as(x)
