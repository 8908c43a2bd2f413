"""q-FFL (Li et al., ICLR 2020, arXiv 1905.10497), solved by q-FedAvg, Algorithm 2: clients that lose more weigh more.

The objective is ``sum_i p_i F_i(x)^(q + 1) / (q + 1)``: with q = 0 it is FedAvg's, with a large q the worst client's.
The step needs no tuning for q, since h_i bounds the curvature of ``F_i^(q + 1) / (q + 1)``.

The paper draws clients with probability p_i and takes the plain mean of the cohort: ``sampling: weighted``, without
repetition in the official code (github.com/litian96/fair_flearn), which draws uniformly by default. Here cohorts are
weighed as FedAvg's: by p_i, or alike (``weighting: uniform``). Numerator and denominator are divided by L, so that with
q = 0 the step is FedAvg's with the same weights. The official code adds 1e-10 to the loss, and so does this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.algorithms.base import Aggregate, Effort, Message, NonNegative, Positive, Report, Round, State
from fedsim.algorithms.needs import Needs
from fedsim.algorithms.reported_loss import ReportsLoss
from fedsim.core.errors import RunError
from fedsim.core.registry import register
from fedsim.core.types import dot

_NO_LOSS = 1e-10  # is added to losses: one of 0 has no power q - 1 below 0


@register.algorithm("qffl")
@dataclass(frozen=True, kw_only=True)
class QFFL(ReportsLoss):
    """``x = x + server_lr * sum_i w_i F_i^q delta_i / sum_i w_i h_i``,  ``h_i = F_i^q + q F_i^(q-1) L |delta_i|^2``

    Parameters
    ----------
    q : 0 is FedAvg; the larger, the more do clients weigh that lose more.
    lipschitz : L, an upper bound of the curvature of the F_i (default: 1 / lr of the round, the paper's estimate).
    """

    needs: ClassVar[Needs] = Needs(
        modes=("synchronous",), why="losses are compared that clients have with one and the same model"
    )
    q: NonNegative = 1.0
    lipschitz: Positive | None = None

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        """``F_i^q delta_i`` and ``h_i``"""
        delta, loss = local["x"] - received["x"], self.loss_of(effort) + _NO_LOSS
        if self.q > 0 and bool((loss < 0).any()):
            raise RunError(f"q-FFL takes powers of losses, and found {float(loss.min()):g}; allowed: a loss from 0 on")
        L = 1.0 / effort.lr if self.lipschitz is None else torch.full_like(effort.lr, self.lipschitz)
        weight = loss**self.q
        h = weight + self.q * loss ** (self.q - 1) * L * dot(delta, delta)
        return {"weighted": weight * delta, "h": h}, {}, client

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        h = aggregate(messages["h"])
        if not bool(((h != 0) & h.isfinite()).all()):
            found = f"found {float(h):g} for the cohort's sum of h_i: with q = {self.q:g} the losses to the power of q"
            allowed = "allowed: a smaller q, or run.dtype: float64 (a smaller lr, where the run diverges)"
            raise RunError(f"{found} are beyond what {_name(h)} holds; {allowed}")
        step = aggregate(messages["weighted"]) / h
        return {**state, "x": torch.add(state["x"], step, alpha=self.server_lr)}


def _name(v: Tensor) -> str:
    return str(v.dtype).removeprefix("torch.")
