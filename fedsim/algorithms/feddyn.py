"""FedDyn (ICLR 2021, arXiv 2111.04263, Algorithm 1): dynamic regularisation with a linear term per client.

The paper solves the local problem exactly; like the official code this takes local SGD steps on it. Clients keep g_i
(the paper's gradient of L_i), the server keeps h. Weighted with p_i (1/M for equal sizes) so that the fixed point
minimises sum_i p_i f_i; the official code instead scales alpha per client. ``weighting: uniform`` is the paper's
objective.

FedSpeed and FedSMOO share these rules with another gradient: see `DynamicRegularisation`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.algorithms.base import Aggregate, Effort, Message, Oracle, Positive, Report, Round, ServerAlgorithm, State
from fedsim.algorithms.needs import Needs
from fedsim.core.registry import register
from fedsim.core.rules import Affine
from fedsim.core.types import clip_norm


@dataclass(frozen=True, kw_only=True)
class DynamicRegularisation(ServerAlgorithm):
    """``direction = g(y) - g_i + a (y - x)``, a the `penalty`

    ``g_i = g_i - a (y_K - x)``;  server: ``h = h - a sum_S p_i (y_i - x)``,  ``x = sum_S w_i y_i - h / a``. -g_i / a
    and -h / a are the dual variable of a client and its mean over all clients in FL-Simulator's code.

    Parameters
    ----------
    clipping : what `clip` bounds: ``gradient``, g(y), as everywhere else; ``corrected``, the whole direction before
        weight decay; ``official``, ``g(y) - g_i - a x``, to which ``a y`` is added afterwards, as in FL-Simulator's
        code, where a y is weight decay to the optimiser: while that binds the pull is no longer towards x.
    """

    needs: ClassVar[Needs] = Needs(
        modes=("synchronous",),
        why="the server's h balances one common round; under a clock clients work from different models",
        through_aggregate=False,
        steps="round",
    )
    stepping: ClassVar[tuple[str, ...]] = (*ServerAlgorithm.stepping, "corrected")
    clipping: Literal["gradient", "corrected", "official"] = "gradient"

    @property
    @abstractmethod
    def penalty(self) -> float:
        """Coefficient of the pull towards x."""

    def init(self, params: Tensor) -> State:
        return {"x": params, "h": torch.zeros_like(params)}

    def init_client(self, params: Tensor) -> State:
        return {"g": torch.zeros_like(params)}

    def direction(self, oracle: Oracle, x: Tensor, received: Message, client: State) -> Tensor:
        return self.corrected(oracle.grad(x), x, received, client)

    @property
    def clips_gradient(self) -> bool:
        return self.clipping == "gradient"

    def affine_direction(self, received: Message, client: State) -> Affine | None:
        return Affine(pull=self.penalty, shift=-(client["g"] + self.penalty * received["x"]))

    def corrected(self, g: Tensor, x: Tensor, received: Message, client: State) -> Tensor:
        """``g - g_i + a (y - x)`` with y the local `x`, clipped as `clipping` says."""
        if self.clip is not None and self.clipping == "official":
            return clip_norm(g - client["g"] - self.penalty * received["x"], self.clip) + self.penalty * x
        if self.clip is not None and self.clipping == "corrected":
            return clip_norm(g - client["g"] + self.penalty * (x - received["x"]), self.clip)
        return self.clipped(g) - client["g"] + self.penalty * (x - received["x"])

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        delta = local["x"] - received["x"]
        return {"delta": delta}, {}, {"g": client["g"] - self.penalty * delta}

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        h = state["h"] - self.penalty * (self.importance(round) * messages["delta"]).sum(-2)
        moved = super().combine(state, messages, round, aggregate)
        return {**moved, "x": moved["x"] - h / self.penalty, "h": h}


@register.algorithm("feddyn")
@dataclass(frozen=True, kw_only=True)
class FedDyn(DynamicRegularisation):
    """The rules of `DynamicRegularisation` with the minibatch gradient and a = `alpha`."""

    alpha: Positive = 0.01

    @property
    def penalty(self) -> float:
        return self.alpha
