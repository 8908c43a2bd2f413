"""FedAdam, FedYogi, FedAdagrad: adaptive server optimisers on the mean delta.

Source: Reddi et al., arXiv 2003.00295, Algorithm 2.

As in the paper (and FedLab, FL-Simulator) there is no bias correction. ``bias_correction: true`` is Kingma and Ba's,
with the number t of the round; Flower's FedAdam (1.41) corrects with t + 1. The paper wants v_0 >= tau^2, every public
code starts at 0; so does this, and ``initial_accumulator`` sets it.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.algorithms.base import Aggregate, Decay, Message, NonNegative, Positive, Round, ServerAlgorithm, State
from fedsim.algorithms.needs import Needs
from fedsim.core.registry import register


@dataclass(frozen=True, kw_only=True)
class FedOpt(ServerAlgorithm):
    """``m = beta1 m + (1 - beta1) D;  v = second(v, D^2);  x = x + server_lr * m / (sqrt(v) + tau)``

    with D the weighted mean delta.
    """

    needs: ClassVar[Needs] = Needs(personal=True)
    server_lr: Positive = 0.1
    beta1: Decay = 0.9
    tau: Positive = 1e-3
    initial_accumulator: NonNegative = 0.0

    def init(self, params: Tensor) -> State:
        return {"x": params, "m": torch.zeros_like(params), "v": torch.full_like(params, self.initial_accumulator)}

    @abstractmethod
    def second(self, v: Tensor, squared: Tensor) -> Tensor:
        """The next second-moment accumulator."""

    def correction(self, number: int) -> float:
        """Factor on the step of round `number`."""
        return 1.0

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        mean_delta = aggregate(messages["delta"])
        m = self.beta1 * state["m"] + (1 - self.beta1) * mean_delta
        v = self.second(state["v"], mean_delta**2)
        step = self.server_lr * self.correction(round.number) * m / (v.sqrt() + self.tau)
        return {"x": state["x"] + step, "m": m, "v": v}


@register.algorithm("fedadam")
@dataclass(frozen=True, kw_only=True)
class FedAdam(FedOpt):
    """``v = beta2 v + (1 - beta2) D^2``"""

    beta2: Decay = 0.99
    bias_correction: bool = False

    def second(self, v: Tensor, squared: Tensor) -> Tensor:
        return self.beta2 * v + (1 - self.beta2) * squared

    def correction(self, number: int) -> float:
        if not self.bias_correction:
            return 1.0
        return math.sqrt(1 - self.beta2**number) / (1 - self.beta1**number)


@register.algorithm("fedyogi")
@dataclass(frozen=True, kw_only=True)
class FedYogi(FedOpt):
    """``v = v - (1 - beta2) D^2 sign(v - D^2)``"""

    beta2: Decay = 0.99

    def second(self, v: Tensor, squared: Tensor) -> Tensor:
        return v - (1 - self.beta2) * squared * torch.sign(v - squared)


@register.algorithm("fedadagrad")
@dataclass(frozen=True, kw_only=True)
class FedAdagrad(FedOpt):
    """``v = v + D^2``; the paper's beta1 is 0 here."""

    beta1: Decay = 0.0

    def second(self, v: Tensor, squared: Tensor) -> Tensor:
        return v + squared
