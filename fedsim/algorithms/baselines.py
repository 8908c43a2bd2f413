"""What federated methods are compared with: every client by itself, and all data in one place.

Neither sends anything, so that no bytes are counted and there is nothing that mechanisms, compressors, attackers or
rules could act on. They run where all data are in one computation, not in a deployment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from fedsim.algorithms.base import (
    Aggregate,
    Algorithm,
    Effort,
    GossipAlgorithm,
    Message,
    Report,
    Round,
    ServerAlgorithm,
    State,
)
from fedsim.algorithms.needs import Needs
from fedsim.core.arrays import Floats, Ints
from fedsim.core.errors import InputError
from fedsim.core.oracle import Plan, Task
from fedsim.core.registry import register
from fedsim.core.rules import Affine
from fedsim.core.types import BatchSize
from fedsim.core.wrapped import WrappedTask

_ALONE = "clients train alone and send nothing"
_POOLED = "all data are in one place and nothing is sent"


@dataclass(frozen=True, kw_only=True)
class Unsent(Algorithm):
    """Mixed into an algorithm of which nothing crosses the network."""

    why: ClassVar[str] = _ALONE

    def received_size(self, received: Message) -> int:
        return 0

    def message_size(self, form: Message) -> int | None:
        return 0

    def check(self, num_clients: int) -> None:
        super().check(num_clients)
        for name, usual in (("server_lr", 1.0), ("relaxed_init", 0.0)):
            found = getattr(self, name, usual)
            if found != usual:
                raise InputError(f"found {found:g}, but {self.why}; allowed: {usual:g}", key=name)

    def check_deployed(self) -> None:
        raise InputError(f"found it, but {self.why}; allowed: fedsim run", key="algorithm.name")


@register.algorithm("local")
@dataclass(frozen=True, kw_only=True)
class Local(Unsent, ServerAlgorithm):
    """``v_i = v_i - lr g_i(v_i)``: every client goes on with its own model, from the common initial one.

    No client ever gets x. For the metrics of one model it is the mean of all clients' models, ``x = sum_i p_i v_i``, as
    on a graph; nothing is sent for it.
    """

    needs: ClassVar[Needs] = Needs(alone=_ALONE, through_aggregate=False, own_size=True)

    def init_client(self, params: Tensor) -> State:
        return {"v": params}

    def broadcast(self, state: State) -> Message:
        return {}

    def start(self, received: Message, client: State) -> State:
        return {"x": client["v"]}

    def affine_direction(self, received: Message, client: State) -> Affine:
        return Affine()  # the minibatch gradient, wherever it starts

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        return {"delta": local["x"] - client["v"]}, {}, {"v": local["x"]}

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        return {"x": state["x"] + (self.importance(round) * messages["delta"]).sum(-2)}

    def personal_model(self, received: Message, client: State) -> Tensor:
        return client["v"]


@register.algorithm("gossip_local")
@dataclass(frozen=True, kw_only=True)
class GossipLocal(Unsent, GossipAlgorithm):
    """`local` on a graph: ``x_i = x_i + delta_i``, and no link is used."""

    needs: ClassVar[Needs] = Needs(alone=_ALONE, linear_mixing=_ALONE, no_merge=_ALONE)

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        return {}, {"x": local["x"]}, client

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        return {"x": messages["x"] + 0.0}


@register.algorithm("centralized")
@dataclass(frozen=True, kw_only=True)
class Centralized(Unsent, ServerAlgorithm):
    """``x = x - lr g(x)`` on the data of all clients in one place, which does the work of a round one step at a time.

    A round evaluates as many sample gradients as one of FedAvg with the same keys and all clients: with `local_epochs`
    that many passes over all data; with `local_steps` the sum of the clients' steps. What they would evaluate in all,
    divided by what one step does here, is rounded to whole steps.
    """

    needs: ClassVar[Needs] = Needs(
        modes=("synchronous",), why=_POOLED, everyone=_POOLED, alone=_POOLED, through_aggregate=False, own_size=True
    )
    why: ClassVar[str] = _POOLED

    def objective(self, task: Task, picked: Floats) -> Task:
        return PooledTask(task)

    def check(self, num_clients: int) -> None:
        super().check(num_clients)
        if self.weighting != "samples":
            raise InputError(f"found '{self.weighting}', but {self.why}; allowed: samples", key="weighting")

    def steps_by_unit(self, task: Task, clients: Ints, rounds: Ints, seed: int) -> tuple[Ints, Ints]:
        """All steps are client 0's."""
        units, per_unit = super().steps_by_unit(task, clients, rounds, seed)
        asked = super().evaluated(task, clients, units * per_unit).sum() / task.passes
        steps = np.where(clients == 0, max(1, round(asked / self._each(task))), 0)
        return steps, np.ones_like(steps)

    def _each(self, task: Task) -> float:
        """Samples of a step, on average."""
        everything, size = int(task.sizes.sum()), self.batch_size
        if size == "full" or task.quadratic:
            return everything
        _, epochs = self.work()
        return everything / -(-everything // size) if epochs else min(size, everything)

    def evaluated(self, task: Task, clients: Ints, steps: Ints) -> Ints:
        found: Ints = np.rint(task.passes * self._each(task) * steps).astype(np.int64)
        return found

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        """``x = x + delta`` of the one that worked."""
        share = round.steps / round.steps.sum()
        return {"x": state["x"] + (share * messages["delta"]).sum(-2)}


class PooledTask(WrappedTask):
    """The same objectives, in which client 0 trains on the data of all clients."""

    def __init__(self, inner: Task) -> None:
        super().__init__(inner)
        self.pool = inner.pooled()

    def plan(self, clients: Ints, rounds: Ints, steps: Ints, batch_size: BatchSize, epochs: bool) -> Plan:
        return self.pool.plan(clients, rounds, steps, batch_size, epochs)
