"""FedCM (Xu et al., arXiv 2106.10874): clients mix their gradient with the server's last mean direction.

As in FL-Simulator's code there is no momentum beside it and the direction begins at 0; unlike there, every client's
delta is divided by its own number of steps, not by client 0's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.algorithms.base import Aggregate, Message, Oracle, Round, ServerAlgorithm, State
from fedsim.algorithms.clipping import ClippedDirection
from fedsim.algorithms.needs import Needs
from fedsim.core.registry import register
from fedsim.core.rules import Affine
from fedsim.core.types import Fraction


@register.algorithm("fedcm")
@dataclass(frozen=True, kw_only=True)
class FedCM(ClippedDirection, ServerAlgorithm):
    """``direction = alpha g(y) + (1 - alpha) d``;  server: ``d = -sum_S w_i delta_i / (K_i lr)`` of the last round.

    The server knows K_i and lr, so clients send delta alone; the server sends x and d. With local momentum K_i is
    replaced by ||a_i||_1 (see `step_weight_sum`), so that d stays a weighted mean of directions.

    Parameters
    ----------
    alpha : share of the client's own gradient.
    """

    needs: ClassVar[Needs] = Needs(
        modes=("synchronous",), why="d is the mean direction of one common round", steps="linear"
    )
    alpha: Fraction = 0.1

    def init(self, params: Tensor) -> State:
        return {"x": params, "d": torch.zeros_like(params)}

    def broadcast(self, state: State) -> Message:
        return {"x": state["x"], "d": state["d"]}

    def direction(self, oracle: Oracle, x: Tensor, received: Message, client: State) -> Tensor:
        return self.alpha * self.gradient(oracle, x) + (1 - self.alpha) * received["d"]

    def affine_direction(self, received: Message, client: State) -> Affine | None:
        return Affine(scale=self.alpha, shift=(1 - self.alpha) * received["d"])

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        moved = super().combine(state, messages, round, aggregate)
        per_step = round.lr * self.step_weight_sum(round.steps).clamp_min(1.0)
        return {**moved, "d": aggregate(-messages["delta"] / per_step)}
