"""FedDyn (ICLR 2021, arXiv 2111.04263, Algorithm 1): dynamic regularisation with a linear term per client.

The paper solves the local problem exactly; like the official code this takes local SGD steps on it. Clients keep g_i
(the paper's gradient of L_i), the server keeps h. Weighted with p_i (1/M for equal sizes) so that the fixed point
minimises sum_i p_i f_i; the official code instead scales alpha per client. ``weighting: uniform`` is the paper's
objective.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedsim.algorithms.base import Aggregate, Effort, Message, Oracle, Positive, Round, ServerAlgorithm, State
from fedsim.registry import register


@register.algorithm("feddyn")
@dataclass(frozen=True, kw_only=True)
class FedDyn(ServerAlgorithm):
    """``direction = g(y) - g_i + alpha (y - x)``

    ``g_i = g_i - alpha (y_K - x)``;  server: ``h = h - alpha sum_S p_i (y_i - x)``,  ``x = sum_S w_i y_i - h / alpha``.
    """

    modes: ClassVar[tuple[str, ...] | None] = ("synchronous",)
    modes_reason: ClassVar[str] = (
        "the server's h balances one common round; under a clock clients work from different models"
    )
    alpha: Positive = 0.01

    def init(self, params: torch.Tensor) -> State:
        return {"x": params, "h": torch.zeros_like(params)}

    def init_client(self, params: torch.Tensor) -> State:
        return {"g": torch.zeros_like(params)}

    def direction(self, oracle: Oracle, x: torch.Tensor, received: Message, client: State) -> torch.Tensor:
        return self.gradient(oracle, x) - client["g"] + self.alpha * (x - received["x"])

    def message(self, local: State, received: Message, client: State, effort: Effort) -> tuple[Message, State]:
        delta = local["x"] - received["x"]
        return {"delta": delta}, {"g": client["g"] - self.alpha * delta}

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        h = state["h"] - self.alpha * (self.importance(round) * messages["delta"]).sum(-2)
        moved = super().combine(state, messages, round, aggregate)
        return {"x": moved["x"] - h / self.alpha, "h": h}
