"""FedSpeed (arXiv 2302.10429, ICLR 2023) and FedSMOO (arXiv 2305.11584, ICML 2023): dual corrections and ascent steps.

The rules are FedDyn's (`DynamicRegularisation`) with a = 1 / lambda and another gradient. Paper (Algorithm 1, as others
restate it) and official code of FedSpeed differ. The paper's server averages the amended models ``y_K - lambda g_i`` of
the round's clients, the code adds the mean dual variable of all clients, which is the same only if all take part: under
partial participation the first does not converge for different objectives, so the second is the default here (``dual:
active`` is the paper's). The paper perturbs by rho g and merges with alpha; the code normalises the ascent and has no
alpha, which is the default here too. The code's ``lamb`` multiplies (y - x): lamb = 1 / lambda, its 0.1 is lambda = 10.

FedSMOO's s leaves out the term of the last local perturbations, as in FL-Simulator's code, which says why: it is small.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fedsim.algorithms.base import (
    Aggregate,
    Effort,
    Message,
    NonNegative,
    Oracle,
    Positive,
    Report,
    Round,
    ServerAlgorithm,
    State,
)  # fmt: skip
from fedsim.algorithms.feddyn import DynamicRegularisation
from fedsim.algorithms.needs import Needs
from fedsim.algorithms.sam import SharpnessAware
from fedsim.core.registry import register
from fedsim.core.rules import unit
from fedsim.core.types import Probability


@register.algorithm("fedspeed")
@dataclass(frozen=True, kw_only=True)
class FedSpeed(SharpnessAware, DynamicRegularisation):
    """``direction = (1 - alpha) g(y) + alpha g(y + e) - g_i + (y - x) / lambda``,  ``e = rho g(y) / ||g(y)||``

    ``g_i = g_i - (y_K - x) / lambda``;  server: ``x = sum_S w_i y_i - lambda h``,  ``h = sum_i p_i g_i`` over all
    clients; with ``dual: active``  ``x = sum_S w_i (y_i - lambda g_i)``.

    Source: Sun et al., ICLR 2023, arXiv 2302.10429, Algorithm 1.

    Parameters
    ----------
    lambda : inverse of the coefficient of the pull towards x.
    alpha : share of the gradient at the perturbed point.
    dual : whose dual variables the server averages.
    """

    lambda_: Positive = 10.0
    alpha: Probability = 1.0
    dual: Literal["all", "active"] = "all"

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return replace(DynamicRegularisation.needs, through_aggregate=self.dual == "active")

    @property
    def penalty(self) -> float:
        return 1.0 / self.lambda_

    @property
    def ascent_share(self) -> float:
        return self.alpha

    def init(self, params: Tensor) -> State:
        return super().init(params) if self.dual == "all" else {"x": params}

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        message, stays, kept = super().message(local, received, client, effort)
        if self.dual == "active":  # the amended model
            message = {"delta": message["delta"] - self.lambda_ * kept["g"]}
        return message, stays, kept

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        if self.dual == "active":
            return ServerAlgorithm.combine(self, state, messages, round, aggregate)
        return super().combine(state, messages, round, aggregate)


@register.algorithm("fedsmoo")
@dataclass(frozen=True, kw_only=True)
class FedSMOO(DynamicRegularisation):
    """``e = rho u / ||u||,  u = g(y) - mu_i - s;  mu_i = mu_i + e - s;  direction = g(y + e) - g_i + (y - x) / lambda``

    with FedDyn's g_i and h; server: ``s = rho m / ||m||``, m = sum_S w_i mu_i. Clients send delta and mu_i, the server
    sends x and s.

    Source: Sun et al., ICML 2023, arXiv 2305.11584.

    Parameters
    ----------
    lambda : inverse of the coefficient of the pull towards x, as in FedSpeed.
    rho : length of the ascent step; 0 is none, and then this is FedDyn.
    """

    lambda_: Positive = 10.0
    rho: NonNegative = 0.1

    @property
    def penalty(self) -> float:
        return 1.0 / self.lambda_

    @property
    def calls_per_step(self) -> int:
        return 2 if self.rho > 0 else 1

    def init(self, params: Tensor) -> State:
        return {**super().init(params), "s": torch.zeros_like(params)}

    def init_client(self, params: Tensor) -> State:
        return {**super().init_client(params), "mu": torch.zeros_like(params)}

    def broadcast(self, state: State) -> Message:
        return {"x": state["x"], "s": state["s"]}

    def start(self, received: Message, client: State) -> State:
        return {"x": received["x"], "mu": client["mu"]}

    def local_step(self, oracle: Oracle, local: State, received: Message, client: State) -> State:
        if self.rho == 0:
            return super().local_step(oracle, local, received, client)
        x, mu, s = local["x"], local["mu"], received["s"]
        e = self.rho * unit(oracle.grad(x) - mu - s)
        after = self.step(oracle, local, self.corrected(oracle.grad(x + e), x, received, client))
        return {**after, "mu": mu + e - s}

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        message, stays, kept = super().message(local, received, client, effort)
        return {**message, "mu": local["mu"]}, stays, {**kept, "mu": local["mu"]}

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        moved = super().combine(state, messages, round, aggregate)
        return {**moved, "s": self.rho * unit(aggregate(messages["mu"]))}
