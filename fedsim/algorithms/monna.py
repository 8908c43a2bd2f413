"""MoNNA: momentum of local gradients, and mixing that leaves attackers' models out.

Source: Farhadkhani et al., arXiv 2209.10931 (ICML 2023), in the form of the authors' code
(LPD-EPFL/robust-collaborative-learning): the momentum is damped by its own factor, and half-step models are exchanged.
The paper's rule is nearest-neighbour averaging; which one nodes use says the section ``aggregator`` (``nna``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.algorithms.base import Aggregate, Effort, GossipAlgorithm, Message, Oracle, Report, Round, State
from fedsim.algorithms.needs import Needs
from fedsim.core.errors import InputError
from fedsim.core.registry import register
from fedsim.core.types import Count, Decay


@register.algorithm("monna")
@dataclass(frozen=True, kw_only=True)
class MoNNA(GossipAlgorithm):
    """``m_i = beta m_i + (1 - beta) g_i(x_i)``, ``y_i = x_i - lr m_i``, then `exchanges` times ``y_i = R(y_j)``.

    m_i starts at 0 and lives through the whole run. More than one local step is our extension. ClippedGossip's form
    (arXiv 2202.01545) has ``dampening: 0`` and the rule ``clipped_gossip``.

    Source: Farhadkhani et al., ICML 2023, arXiv 2209.10931.

    Parameters
    ----------
    beta : the factor of the momentum.
    dampening : gradients enter it times 1 minus this (default: `beta`).
    exchanges : how often nodes mix in a round, K.
    wait : ``all``, a node waits for all its neighbours. ``quorum``, for all but f, as many as its rule tolerates, and
        attackers always come in time: of the honest ones f are left out, drawn anew in every exchange. With `nna` a
        node of n then averages n - 2 f messages of n - f, as in the authors' asynchronous form.
    """

    needs: ClassVar[Needs] = Needs(steps="own")
    beta: Decay = 0.99
    dampening: Decay | None = None
    exchanges: Count = 1
    wait: Literal["all", "quorum"] = "all"

    def check(self, num_clients: int) -> None:
        super().check(num_clients)
        if self.momentum > 0:
            message = f"found {self.momentum}, which would restart in every round; allowed: 0, and beta for the one of"
            raise InputError(f"{message} the whole run", key="momentum")

    def mixings(self) -> int:
        return self.exchanges

    def waits_for_all(self) -> bool:
        return self.wait == "all"

    def init_client(self, params: Tensor) -> State:
        return {"m": torch.zeros_like(params)}

    def start(self, received: Message, client: State) -> State:
        return {"x": received["x"], "m": client["m"]}

    def local_step(self, oracle: Oracle, local: State, received: Message, client: State) -> State:
        """``m = beta m + (1 - dampening) (g(x) + weight_decay x),  x = x - lr m``"""
        x, m = local["x"], local["m"]
        g = self.gradient(oracle, x)
        if self.weight_decay > 0:
            g = torch.add(g, x, alpha=self.weight_decay)
        damped = 1.0 - (self.beta if self.dampening is None else self.dampening)
        m = torch.add(self.beta * m, g, alpha=damped)
        return {"x": torch.addcmul(x, m, oracle.lr, value=-1.0), "m": m}

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        return {"x": local["x"]}, {}, {"m": local["m"]}

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        return {**state, "x": aggregate(messages["x"])}
