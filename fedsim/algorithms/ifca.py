"""IFCA, iterative federated clustering (Ghosh, Chung, Yin and Ramchandran, arXiv 2006.04088, Algorithm 1).

The server has k models and sends all of them. A client takes the one that loses least on its own data, trains it, and
sends the change and which one it was; the server moves every model by what its own clients sent. Nobody is told who is
in which cluster.

The paper's two variants are `averaging`. ``models`` (option II, the default here and in its experiments with neural
networks) divides by the weights of a cluster's own clients. ``gradients`` (option I) divides by those of the whole
round; the paper's clients then take one step. The paper weighs all clients alike: ``weighting: uniform``.

The paper begins with k random models, or with several restarts. Here the first begins where the task does, and the
others beside it, at a distance that is drawn from keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsim.algorithms.base import Aggregate, Effort, Message, NonNegative, Report, Round, ServerAlgorithm, State
from fedsim.algorithms.needs import Needs
from fedsim.core import rng
from fedsim.core.arrays import Floats
from fedsim.core.errors import InputError
from fedsim.core.oracle import Task
from fedsim.core.registry import register
from fedsim.core.types import BatchSize, Count

CLUSTER = "cluster"
"""In a message and in the server's state the number of a client's model, from 0 on; -1: it has chosen none yet."""
CHANGED = "changed"
"""In the server's state the share of the last round's clients that chose another model than in their round before."""


@register.algorithm("ifca")
@dataclass(frozen=True, kw_only=True)
class IFCA(ServerAlgorithm):
    """``j_i = argmin_j F_i(x_j)``;  ``x_j = x_j + server_lr * sum_{j_i = j} w_i delta_i / sum_{j_i = j} w_i``

    A model that nobody chose stays as it is. With ``models: 1`` it is FedAvg. The model that is reported as the run's
    own, and written as its parameters, is that of the cluster that most clients of the last round chose.

    Parameters
    ----------
    models : k, how many the server has.
    loss_samples : samples of a client that the k losses are estimated on, drawn anew in every round, or ``full``.
    averaging : ``models``, as above; ``gradients``, without the division.
    spread : model j > 1 begins at ``x + spread r z_j``, z_j standard normal, r the root mean square of x (1 if it is
        0).
    initial_seed : of the keys of z_j, for restarts that differ in nothing else.
    """

    needs: ClassVar[Needs] = Needs(
        linear_mixing="every model is the mean of its own clients' messages, and a rule would compare those of others"
    )
    models: Count = 2
    loss_samples: BatchSize = "full"
    averaging: Literal["models", "gradients"] = "models"
    spread: NonNegative = 1.0
    initial_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    def check(self, num_clients: int) -> None:
        super().check(num_clients)
        if self.models > 1 and self.spread == 0:
            raise InputError("found 0, with which all models would stay alike; allowed: above 0", key="spread")
        if self.models > 1 and self.relaxed_init > 0:
            message = f"found {self.relaxed_init}, but a client's last round may have ended with another model"
            raise InputError(f"{message}; allowed: 0", key="relaxed_init")

    def objective(self, task: Task, picked: Floats) -> Task:
        if self.models > 1 and task.carried:
            message = "found a model whose training changes buffers, which would be the same for all clusters"
            raise InputError(f"{message}; allowed: model.batch_norm: group, or another model without", key="model")
        return task

    # --- the models ---------------------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """Of the models in the state."""
        return ("x",) if self.models == 1 else tuple(f"model_{j}" for j in range(1, self.models + 1))

    def init(self, params: Tensor) -> State:
        if self.models == 1:
            return {"x": params}
        models = {name: self._begins(params, j) for j, name in enumerate(self.names)}
        return {"x": params, **models, CHANGED: torch.zeros_like(params[..., :1])}

    def _begins(self, x: Tensor, j: int) -> Tensor:
        if j == 0:
            return x.clone()
        drawn = rng.normal(rng.key(self.initial_seed, "ifca", j, np.arange(x.shape[-1])))
        z = torch.as_tensor(drawn, dtype=x.dtype, device=x.device)
        r = x.square().mean(-1, keepdim=True).sqrt()
        return x + self.spread * torch.where(r > 0, r, torch.ones_like(r)) * z

    def of_clients(self, importance: Tensor) -> State:
        return {} if self.models == 1 else {CLUSTER: torch.full_like(importance, -1.0)}

    # --- a client -----------------------------------------------------------------------------------------------------

    def broadcast(self, state: State) -> Message:
        """All models; the first is called x, as everywhere."""
        return {"x" if j == 0 else k: state[k] for j, k in enumerate(self.names)}

    @property
    def evaluates_on(self) -> BatchSize | None:
        return self.loss_samples if self.models > 1 else None

    @property
    def candidates(self) -> tuple[str, ...]:
        return ("x", *self.names[1:])

    def choose(self, received: Message, losses: Tensor) -> Message:
        """``x = x_j,  j = argmin_j F_i(x_j)``, of equal ones the first; a loss that is no number is never the least."""
        if self.models == 1:
            return received
        x, least = received["x"], torch.nan_to_num(losses[..., :1], nan=torch.inf)
        chosen = torch.zeros_like(least)
        for j, name in enumerate(self.candidates[1:], 1):
            better = losses[..., j : j + 1] < least
            x, least = torch.where(better, received[name], x), torch.where(better, losses[..., j : j + 1], least)
            chosen = torch.where(better, torch.full_like(chosen, j), chosen)
        return {**{k: v for k, v in received.items() if k not in self.candidates}, "x": x, CLUSTER: chosen}

    @property
    def choices(self) -> tuple[str, ...]:
        return (CLUSTER,) if self.models > 1 else ()

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        x, delta = local["x"], local["x"] - received["x"]
        if self.models == 1:
            return {"delta": delta}, {}, client
        return {"delta": delta, CLUSTER: received.get(CLUSTER, torch.zeros_like(x[..., :1]))}, {}, client

    def personal_model(self, received: Message, client: State) -> Tensor:
        """The model that a client chose."""
        return received["x"]

    # --- the server ---------------------------------------------------------------------------------------------------

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        if self.models == 1:
            return {**state, "x": torch.add(state["x"], aggregate(messages["delta"]), alpha=self.server_lr)}
        assert round.weights is not None
        assert round.clients is not None
        weights, chosen, after = round.weights.squeeze(-1), messages[CLUSTER], dict(state)
        sizes = []
        for j, name in enumerate(self.names):
            rows = torch.nonzero(chosen.squeeze(-1) == j).squeeze(-1)
            sizes.append(len(rows))
            mass = weights[rows].sum()
            if mass > 0:
                scale = weights.sum() / mass if self.averaging == "models" else torch.ones_like(mass)
                mean = aggregate(messages["delta"][rows], weights[rows] * scale)
                after[name] = torch.add(state[name], mean, alpha=self.server_lr)
        before = state[CLUSTER][round.clients]
        known = before >= 0
        changed = ((before != chosen) & known).sum() / known.sum().clamp_min(1)
        return {
            **after,
            "x": after[self.names[int(np.argmax(sizes))]].clone(),
            CLUSTER: state[CLUSTER].index_copy(0, round.clients, chosen),
            CHANGED: changed.to(state["x"].dtype).reshape(1),
        }
