"""SCAFFOLD (arXiv 1910.06378, Algorithm 1) with control variates, option II (default) or option I.

Option II divides by the learning rate actually used and, with local momentum, by ||a_i||_1 instead of the number of
steps, so that c_i stays a weighted mean of gradients; the paper has no momentum. The control variates are weighted with
the clients' importance p_i (1/M for equal sizes), so that the fixed point is the minimiser of sum_i p_i f_i; the
paper's uniform objective is ``weighting: uniform``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from fedsim.algorithms.base import Aggregate, Effort, Message, Oracle, Report, Round, ServerAlgorithm, State
from fedsim.algorithms.clipping import ClippedDirection
from fedsim.algorithms.needs import Needs
from fedsim.core.registry import register
from fedsim.core.rules import Affine

_WHY = "the control variates are corrections for one common model; under a clock clients work from different ones"


@register.algorithm("scaffold")
@dataclass(frozen=True, kw_only=True)
class Scaffold(ClippedDirection, ServerAlgorithm):
    """``direction = g_i(y) - c_i + c``

    ``c_i+ = c_i - c + (x - y_K) / (K lr)`` (option II), or the minibatch gradient at x (option I; of the first local
    minibatch); ``x = x + server_lr * sum_S w_i delta_i``;
    ``c = c + sum_S p_i (c_i+ - c_i)``, |S|/M times the cohort's mean for uniform p. Upload and download are 2 d.
    """

    needs: ClassVar[Needs] = Needs(modes=("synchronous",), why=_WHY, through_aggregate=False, steps="linear")
    option: Literal[1, 2] = 2

    def init(self, params: torch.Tensor) -> State:
        return {"x": params, "c": torch.zeros_like(params)}

    def init_client(self, params: torch.Tensor) -> State:
        return {"c": torch.zeros_like(params)}

    def broadcast(self, state: State) -> Message:
        return {"x": state["x"], "c": state["c"]}

    def local_step(self, oracle: Oracle, local: State, received: Message, client: State) -> State:
        g = self.gradient(oracle, local["x"])
        after = self.step(oracle, local, g - client["c"] + received["c"])
        if self.option == 1 and "g" not in local:  # the first local step evaluates the gradient at x itself
            after["g"] = g + self.local_solver.weight_decay * local["x"]
        return after

    def affine_direction(self, received: Message, client: State) -> Affine | None:
        return Affine(shift=received["c"] - client["c"]) if self.option == 2 else None  # 1 keeps a gradient as well

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        delta = local["x"] - received["x"]
        if self.option == 1:
            c = local.get("g", client["c"])
        else:
            per_step = effort.lr * self.step_weight_sum(effort.steps).clamp_min(1.0)
            c = client["c"] - received["c"] - delta / per_step
        return {"delta": delta, "c": c - client["c"]}, {}, {"c": c}

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        moved = super().combine(state, messages, round, aggregate)
        return {**moved, "c": state["c"] + (self.importance(round) * messages["c"]).sum(-2)}
