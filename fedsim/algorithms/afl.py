"""Agnostic federated learning (Mohri, Sivek and Suresh, ICML 2019, arXiv 1902.00146): the worst mixture of clients.

``min_x max_lambda sum_i lambda_i F_i(x)`` over the simplex, by the paper's Stochastic-AFL (figure 2): x descends with
the weights lambda, and lambda climbs along the losses of the same x and is projected on the simplex. Every client is a
domain of its own, as in the code beside q-FFL (github.com/litian96/fair_flearn).

It differs from both in three things. Clients take `local_steps` where the paper takes one. The model is the last x, and
not the mean of all of them. A cohort may be part of the clients: its losses are scaled by M / |S|, so that lambda moves
along an unbiased estimate, and x moves with the weights ``lambda_i / sum_S lambda_j``, whatever the sampling's own are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.algorithms.base import Aggregate, Effort, Message, NonNegative, Report, Round, State
from fedsim.algorithms.needs import Needs
from fedsim.algorithms.reported_loss import ReportsLoss
from fedsim.core.errors import RunError
from fedsim.core.registry import register

_LAMBDA = "lambda"


@register.algorithm("afl")
@dataclass(frozen=True, kw_only=True)
class AFL(ReportsLoss):
    """``x = x + server_lr * sum_S lambda_i delta_i / sum_S lambda_j``;  ``lambda = P(lambda + lambda_lr M / |S| F)``

    P projects on the simplex; F has the losses F_i(x) of the cohort, and 0 for the others.

    Parameters
    ----------
    lambda_lr : step along the losses; with 0 the weights stay as they are at first, and it is FedAvg.
    weighting : lambda at first: ``uniform``, 1 / M each, or ``samples``, clients' shares of the data.
    """

    needs: ClassVar[Needs] = Needs(
        modes=("synchronous",),
        why="lambda climbs along losses that clients have with one and the same model",
        through_aggregate=False,
    )
    lambda_lr: NonNegative = 0.1
    weighting: Literal["samples", "uniform"] = "uniform"

    def of_clients(self, importance: Tensor) -> State:
        uniform = torch.full_like(importance, 1.0 / len(importance))
        return {_LAMBDA: importance if self.weighting == "samples" else uniform}

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        return {"delta": local["x"] - received["x"], "loss": self.loss_of(effort)}, {}, client

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        assert round.clients is not None
        weights, cohort = state[_LAMBDA].squeeze(-1), round.clients
        own, lost = weights[cohort], messages["loss"].squeeze(-1)
        if self.lambda_lr > 0 and not bool(lost.isfinite().all()):
            beyond = cohort[~lost.isfinite()][:3].tolist()
            found = f"found losses that are no finite numbers, of clients {', '.join(map(str, beyond))}"
            raise RunError(f"{found}: there is no step along them; lower algorithm.lr, or set run.dtype: float64")
        x, total = state["x"], own.sum()
        if bool(total > 0):  # nobody of the cohort weighs anything: x stays
            x = torch.add(x, aggregate(messages["delta"], own / total), alpha=self.server_lr)
        if self.lambda_lr > 0:
            climb = self.lambda_lr * round.num_clients / len(cohort) * lost
            weights = on_simplex(weights.index_add(0, cohort, climb))
        return {**state, "x": x, _LAMBDA: weights.unsqueeze(-1)}


def on_simplex(v: Tensor) -> Tensor:
    """The point of ``{w >= 0, sum w = 1}`` nearest to v ``[n]`` (Duchi et al., ICML 2008, figure 1)."""
    high = v.sort(descending=True).values
    above = (high.cumsum(0) - 1.0) / torch.arange(1, len(v) + 1, dtype=v.dtype, device=v.device)
    last = int((high > above).sum()) - 1
    return (v - above[last]).clamp_min(0.0)
