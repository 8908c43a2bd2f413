"""FedAMD (arXiv 2206.05891, ICML 2023): anchors refresh a cache of large-batch gradients, miners take the local steps.

The published code is the source of the rules (its repository does not run as it is). There the server keeps all v_i;
here each client keeps its own and sends the change, and the server keeps their mean. The first round is the paper's
initialisation: all clients are anchors at the initial model. Weighted with p_i; ``weighting: uniform`` is the paper's.
Clients and server draw the roles from the same keys: x and vbar go to all of the cohort, and each sends one vector.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsim.algorithms.base import Aggregate, Algorithm, Effort, Message, Oracle, Report, Round, ServerAlgorithm, State
from fedsim.algorithms.needs import Needs
from fedsim.algorithms.work import Work
from fedsim.core import rng
from fedsim.core.arrays import Ints
from fedsim.core.errors import InputError
from fedsim.core.oracle import Task
from fedsim.core.registry import register
from fedsim.core.types import BatchSize

_MINER, _ANCHOR = 0, 1
_PROBABILITY = 0.2  # the published code's


@register.algorithm("fedamd")
@dataclass(frozen=True, kw_only=True)
class FedAMD(ServerAlgorithm):
    """Miner: ``g = vbar``, then ``g = g - g_i(y_{k-1}) + g_i(y_k)``, both of the same minibatch; ``y = y - lr g``.

    Anchor: ``v_i = g_i(x; large batch)``. Server: ``x = x + server_lr * sum_miners w_i delta_i`` (weights scaled to sum
    1, x unchanged without miners), then ``vbar = sum_i p_i v_i`` over all clients, from the cache.

    Parameters
    ----------
    anchor_probability : probability that a client of the cohort is an anchor, each by itself (default 0.2).
    anchor_every : instead, all are anchors in rounds 2, 2 + anchor_every, ... and miners in the others.
    large_batch : samples of an anchor's gradient, or ``full``.
    """

    needs: ClassVar[Needs] = Needs(
        modes=("synchronous",),
        why="miners correct vbar at the one model that the whole cohort got",
        begins_with_everybody=True,
        through_aggregate=False,
        steps="own",
    )
    anchor_probability: Annotated[float, Field(gt=0, lt=1)] | None = None
    anchor_every: Annotated[int, Field(ge=2)] | None = None
    large_batch: BatchSize = "full"

    def check(self, num_clients: int) -> None:
        super().check(num_clients)
        if self.anchor_probability is not None and self.anchor_every is not None:
            raise InputError(
                "found both 'anchor_probability' and 'anchor_every', allowed: one of the two", key="anchor_every"
            )
        for name in ("momentum", "relaxed_init"):
            if getattr(self, name) > 0:
                raise InputError(f"miners follow vbar from the model they got: FedAMD has no {name}", key=name)

    def role_of(self, clients: Ints, rounds: Ints, seed: int) -> Ints | None:
        if self.anchor_every is not None:
            anchor = (rounds - 2) % self.anchor_every == 0
        else:
            anchor = rng.uniform(rng.key(seed, "anchor", clients, rounds)) < (self.anchor_probability or _PROBABILITY)
        return np.where(anchor | (rounds == 1), _ANCHOR, _MINER)

    def in_role(self, role: int) -> Algorithm:
        if role == _MINER:
            return self
        keys = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return _Anchor(
            **{**keys, "local_steps": Work.model_validate(1), "local_epochs": None, "batch_size": self.large_batch}
        )

    def evaluated(self, task: Task, clients: Ints, steps: Ints) -> Ints:
        """Two gradients per step but the first, which takes vbar as it is."""
        return 2 * (super().evaluated(task, clients, steps) - super().evaluated(task, clients, np.minimum(steps, 1)))

    def init(self, params: Tensor) -> State:
        return {"x": params, "vbar": torch.zeros_like(params)}

    def init_client(self, params: Tensor) -> State:
        return {"v": torch.zeros_like(params)}

    def broadcast(self, state: State) -> Message:
        return {"x": state["x"], "vbar": state["vbar"]}

    def gradient(self, oracle: Oracle, x: Tensor) -> Tensor:
        """The minibatch gradient of the objective with its weight decay."""
        g = super().gradient(oracle, x)
        return torch.add(g, x, alpha=self.weight_decay) if self.weight_decay > 0 else g

    def local_step(self, oracle: Oracle, local: State, received: Message, client: State) -> State:
        x = local["x"]
        if "g" in local:
            g = local["g"] - self.gradient(oracle, local["previous"]) + self.gradient(oracle, x)
        else:
            g = received["vbar"].expand_as(x)
        return {"x": torch.addcmul(x, g, oracle.lr, value=-1.0), "previous": x, "g": g}

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        return {"sent": local["x"] - received["x"]}, {}, client

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        assert round.weights is not None
        assert round.roles is not None
        x, sent, mines = state["x"], messages["sent"], round.roles == _MINER
        miners = torch.nonzero(mines.squeeze(-1)).squeeze(-1)
        if len(miners):
            weights = round.weights.squeeze(-1)[miners]
            x = x + self.server_lr * aggregate(sent[miners], weights / weights.sum())
        return {"x": x, "vbar": state["vbar"] + (~mines * self.importance(round) * sent).sum(-2)}


@dataclass(frozen=True, kw_only=True)
class _Anchor(FedAMD):
    """What anchors do: ``v_i = g_i(x; large batch)``, of which they send the change."""

    def evaluated(self, task: Task, clients: Ints, steps: Ints) -> Ints:
        return ServerAlgorithm.evaluated(self, task, clients, steps)

    def local_step(self, oracle: Oracle, local: State, received: Message, client: State) -> State:
        return {"x": local["x"], "v": self.gradient(oracle, local["x"])}

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        v = local.get("v", client["v"])  # nothing new of a client that took no step
        return {"sent": v - client["v"]}, {}, {"v": v}
