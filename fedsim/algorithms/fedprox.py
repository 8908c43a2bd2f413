"""FedProx (arXiv 1812.06127, Algorithm 2): FedAvg with a proximal term in the local objective.

The paper's unequal local work is ``local_epochs: {model: uniform, low: 1, high: 20}`` or the ``stragglers`` of the
participation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedsim.algorithms.base import Message, NonNegative, Oracle, State
from fedsim.algorithms.clipping import PulledDirection
from fedsim.algorithms.fedavg import FedAvg
from fedsim.core.registry import register
from fedsim.core.rules import Affine


@register.algorithm("fedprox")
@dataclass(frozen=True, kw_only=True)
class FedProx(PulledDirection, FedAvg):
    """``direction = g(x) + mu (x - x_received)``; the paper tunes mu in {0.001, 0.01, 0.1, 0.5, 1}: no default."""

    mu: NonNegative = 0.01

    def direction(self, oracle: Oracle, x: torch.Tensor, received: Message, client: State) -> torch.Tensor:
        return self.pulled(self.gradient(oracle, x), x, received["x"], self.mu)

    def affine_direction(self, received: Message, client: State) -> Affine:
        return Affine(pull=self.mu, shift=-self.mu * received["x"]) if self.mu > 0 else Affine()
