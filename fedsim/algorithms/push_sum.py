"""Push-sum: stochastic gradient push (SGP) and Push-DIGing, on directed graphs.

On a directed graph a node knows how many it sends to, and seldom that the weights of what it hears sum to 1. Push-sum
(Kempe, Dobra and Gehrke 2003) asks for weights that sum to 1 over what a node *sends*, the columns of the matrix. Sums
over all nodes are kept then, and the mean is not: nodes that hear more get more. So every node mixes a number, its
weight w, in the same way, begins with 1, and divides by it. ``sum_i w_i = n`` in every round, whichever links fail, as
long as a sender keeps what a lost message would have carried.

The state is the divided model x, where gradients are taken and which is measured; what travels is ``w x``, so a node
without neighbours or work changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.algorithms.base import Aggregate, Effort, GossipAlgorithm, Message, Oracle, Report, Round, State
from fedsim.algorithms.gradient_tracking import GradientTracking
from fedsim.algorithms.needs import Needs
from fedsim.core.registry import register

_WEIGHTS = "models and weights are divided by each other, which must have been mixed alike"
_MERGE = "a node's model counts with its weight, which a mean of models would forget"


@register.algorithm("sgp")
@dataclass(frozen=True, kw_only=True)
class SGP(GossipAlgorithm):
    """``u_i = w_i x_i + delta_i;  w_i = sum_j c_ij w_j;  x_i = sum_j c_ij u_j / w_i``, c column stochastic.

    Stochastic gradient push (Assran et al., arXiv 1811.10792, Algorithm 1), where delta_i is one step
    ``-lr g_i(x_i)``; several local steps are our extension, delta_i is then the whole local change. On a symmetric
    matrix all w are 1 and it is `dfedavg`.
    """

    needs: ClassVar[Needs] = Needs(columns=True, linear_mixing=_WEIGHTS, no_merge=_MERGE)

    def init(self, params: Tensor) -> State:
        return {"x": params, "w": params.new_ones((*params.shape[:-1], 1))}

    def broadcast(self, state: State) -> Message:
        return {"x": state["x"], "w": state["w"]}

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        x, w = received["x"], received["w"]
        return {"u": w * x + (local["x"] - x), "w": w}, {}, client

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        w = aggregate(messages["w"])
        return {"x": aggregate(messages["u"]) / w, "w": w}


@register.algorithm("push_diging")
@dataclass(frozen=True, kw_only=True)
class PushDIGing(GradientTracking):
    """``u = w x - lr y;  w = C w;  x+ = C u / w;  y+ = C y + g(x+) - g(x)``, C column stochastic.

    Push-DIGing (Nedic, Olshevsky and Shi, arXiv 1607.03218, Algorithm 2), in the adapt-then-combine form of
    `gradient_tracking`, which it is on a symmetric matrix. The y sum to the gradients in every round, and the exact
    optimum is reached with a constant step, on graphs that change, too.
    """

    needs: ClassVar[Needs] = replace(GradientTracking.needs, columns=True, no_merge=_MERGE)

    def init(self, params: Tensor) -> State:
        return {**super().init(params), "w": params.new_ones((*params.shape[:-1], 1))}

    def broadcast(self, state: State) -> Message:
        return {**super().broadcast(state), "w": state["w"]}

    def start(self, received: Message, client: State) -> State:
        return {**super().start(received, client), "u": received["w"] * received["x"]}

    def local_step(self, oracle: Oracle, local: State, received: Message, client: State) -> State:
        after = super().local_step(oracle, local, received, client)
        return {**after, "x": local["x"], "u": torch.addcmul(local["u"], after["y"], oracle.lr, value=-1.0)}

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        return {"u": local["u"], "y": local["y"], "w": received["w"]}, {}, {"g": local["g"]}

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        w = aggregate(messages["w"])
        return {"x": aggregate(messages["u"]) / w, "y": aggregate(messages["y"]), "w": w}
