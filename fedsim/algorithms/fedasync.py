"""FedAsync (arXiv 1903.03934, Algorithm 1): every arriving model is mixed into the server's.

Models are mixed, not deltas: a stale model also pulls the server back. The local objective is regularised towards the
model that was sent, ``f(y) + mu/2 ||y - x_sent||^2`` (the paper's rho). Runs under ``{mode: asynchronous, weights:
identical}``, whose `staleness` is the paper's s: constant, ``{model: polynomial, power: a}`` or ``{model: hinge, a: 10,
b: 4}``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsim.algorithms.base import Aggregate, Effort, Message, NonNegative, Report, Round, State
from fedsim.algorithms.fedprox import FedProx
from fedsim.algorithms.needs import Needs
from fedsim.core.errors import InputError
from fedsim.core.registry import register
from fedsim.core.types import Fraction


@register.algorithm("fedasync")
@dataclass(frozen=True, kw_only=True)
class FedAsync(FedProx):
    """``x = (1 - a) x + a y,  a = alpha * s(staleness)``; direction ``g(y) + mu (y - x_sent)``."""

    needs: ClassVar[Needs] = Needs(
        modes=("asynchronous",),
        why="it mixes one arriving model at a time",
        arrival_weights="identical",
        personal=True,
    )
    mu: NonNegative = 0.005
    alpha: Fraction = 0.6

    def check(self, num_clients: int) -> None:
        super().check(num_clients)
        if self.server_momentum > 0 or self.server_lr != 1.0:
            raise InputError("FedAsync's server has neither a learning rate nor momentum; set alpha", key="server_lr")

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        return {"y": local["x"]}, {}, client

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        assert round.weights is not None
        pull = aggregate(messages["y"]) - round.weights.sum() * state["x"]
        return {**state, "x": state["x"] + self.alpha * pull}
