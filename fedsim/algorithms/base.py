"""What an algorithm is: arithmetic on the last axis, in seven small methods.

Every tensor has shape ``[..., d]``; leading axes are clients. The same lines serve one client, a shard and all nodes of
a graph. In code ``delta = x_local - x_received``, so descent is ``+ delta``.

Conventions fixed once for all algorithms: `clip` bounds each minibatch gradient before anything is added to it;
correction terms come next; weight decay is added last, as ``weight_decay * x``; momentum accumulates that sum and
starts from zero in every round.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms.work import Decaying, LocalWork, LrDecay, Work
from fedsim.core.arrays import Floats, Ints
from fedsim.core.oracle import Oracle, Task
from fedsim.core.registry import Part
from fedsim.core.types import (
    Aggregate,
    BatchSize,
    Count,
    Decay,
    Message,
    NonNegative,
    Positive,
    State,
    clip_norm,
)

Report = tuple[Message, Message, State]
"""What crosses the network, what stays with the node that made it, what the client keeps; see `Algorithm.message`."""

_ONE_STEP = Work(fixed=1)
_LAST = "last"  # what a client keeps for `relaxed_init`: its parameters at the end of its last round


@dataclass(frozen=True)
class Effort:
    """The local work behind each row's message: `steps` done and the learning rate used, both ``[m, 1]``."""

    steps: Tensor
    lr: Tensor


@dataclass(frozen=True)
class Round:
    """What `combine` may know of a round.

    `weights` ``[m, 1]`` are the aggregation weights (None for gossip, where a mixing matrix aggregates); `importance`
    ``[m, 1]`` are the p_i of these clients in the global objective (they sum to 1 over all `num_clients`); `steps` and
    `lr` ``[m, 1]`` tell the local work; `staleness` ``[m, 1]`` counts combines since each client pulled its model;
    `roles` ``[m, 1]`` are the numbers of the clients' roles (None where all do the same).
    """

    number: int
    num_clients: int
    importance: Tensor
    steps: Tensor
    lr: Tensor
    weights: Tensor | None = None
    staleness: Tensor | None = None
    roles: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Algorithm(Part, ABC):
    """Base class of every algorithm; its fields are its YAML keys.

    Parameters
    ----------
    lr : local learning rate.
    local_steps, local_epochs : local work per round, one of the two (default: one step). A number, a list (one per
        client), or ``{uniform: [lo, hi]}``.
    batch_size : samples per local step, or ``full`` for the client's whole data.
    momentum : heavy-ball momentum of the local solver, reset every round.
    weight_decay : L2 coefficient added to every local step.
    clip : bound on the norm of each minibatch gradient.
    lr_decay : factor per round, or a schedule (see `LrDecay`).
    """

    setting: ClassVar[Literal["server", "gossip"]]
    lr: Positive = 0.1
    local_steps: LocalWork | None = None
    local_epochs: LocalWork | None = None
    batch_size: BatchSize = 32
    momentum: Decay = 0.0
    weight_decay: NonNegative = 0.0
    clip: Positive | None = None
    lr_decay: Decaying = LrDecay(exponential=1.0)  # noqa: RUF009 - frozen

    # --- what an algorithm may define ---------------------------------------------------------------------------------

    def init(self, params: Tensor) -> State:
        """State of the server, ``params [d]``, or of all nodes of a graph, ``params [n, d]``."""
        return {"x": params}

    def init_client(self, params: Tensor) -> State:
        """What a client keeps between rounds, as rows ``[m, d]`` (or ``[m, 1]``).

        `params` ``[m, d]`` gives shape and device.
        """
        return {}

    def broadcast(self, state: State) -> Message:
        """What clients receive."""
        return {"x": state["x"]}

    def direction(self, oracle: Oracle, x: Tensor, received: Message, client: State) -> Tensor:
        """The descent direction of one local step (what most papers change): the minibatch gradient."""
        return self.gradient(oracle, x)

    def local_step(self, oracle: Oracle, local: State, received: Message, client: State) -> State:
        """``v = momentum v + direction + weight_decay x;  x = x - lr v``."""
        return self.step(oracle, local, self.direction(oracle, local["x"], received, client))

    def step(self, oracle: Oracle, local: State, v: Tensor) -> State:
        """One step of the local solver along the direction `v`: weight decay, momentum, learning rate."""
        x = local["x"]
        if self.weight_decay > 0:
            v = torch.add(v, x, alpha=self.weight_decay)
        if self.momentum > 0:
            v = torch.add(v, local["v"], alpha=self.momentum) if "v" in local else v
            return {**local, "x": torch.addcmul(x, v, oracle.lr, value=-1.0), "v": v}
        return {**local, "x": torch.addcmul(x, v, oracle.lr, value=-1.0)}

    @abstractmethod
    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        """What comes of a client's local work: what it sends, what stays with it, what it keeps for its next round.

        What is sent crosses the network and is what bytes count. What stays reaches `combine` without crossing it: only
        a node of a graph has it, which combines for itself. Under a server it is empty. Names are in one of the two.
        """

    @abstractmethod
    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        """The next state, from the messages of the round's clients: at the server, or at every node of a graph."""

    def start(self, received: Message, client: State) -> State:
        """What local work starts from."""
        return {"x": received["x"]}

    def check(self, num_clients: int) -> None:
        """Raise InputError where the keys do not fit together or do not fit the scenario."""

    # --- what a client's round looks like to the engine ---------------------------------------------------------------

    def fresh_client(self, params: Tensor) -> State:
        """All that a client keeps between rounds, before its first one: `init_client` and what the engine adds."""
        return self.init_client(params)

    def receive(self, received: Message, client: State) -> Message:
        """What a client works from: what was sent to it, or that changed by what it keeps."""
        return received

    def report(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        """`message`, and what the engine adds to what is kept."""
        return self.message(local, received, client, effort)

    def role_of(self, clients: Ints, rounds: Ints, seed: int) -> Ints | None:
        """Numbers of the clients' roles ``[m]``, drawn from keys; None where all clients do the same."""
        return None

    def in_role(self, role: int) -> Algorithm:
        """The algorithm as the clients of a role run it."""
        return self

    def by_role(self, clients: Ints, rounds: Ints, seed: int) -> list[tuple[Algorithm, Ints]]:
        """The rows of a round divided by role: the algorithm that they run, and their numbers."""
        roles = self.role_of(clients, rounds, seed)
        if roles is None:
            return [(self, np.arange(len(clients)))]
        return [(self.in_role(role), np.flatnonzero(roles == role)) for role in np.unique(roles).tolist()]

    def steps_by_unit(self, task: Task, clients: Ints, rounds: Ints, seed: int) -> tuple[Ints, Ints]:
        """Units of local work (steps or epochs) of each client in its round, and the steps in a unit, ``[m]`` each."""
        units, per_unit = np.empty(len(clients), dtype=np.int64), np.ones(len(clients), dtype=np.int64)
        for algorithm, rows in self.by_role(clients, rounds, seed):
            work, epochs = algorithm.work()
            units[rows] = work.of(clients[rows], rounds[rows], seed)
            if epochs:
                per_unit[rows] = task.steps_per_epoch(clients[rows], algorithm.batch_size)
        return units, per_unit

    def steps(self, task: Task, clients: Ints, rounds: Ints, seed: int) -> Ints:
        """Local steps of each client in its round, ``[m]``, whatever its role."""
        units, per_unit = self.steps_by_unit(task, clients, rounds, seed)
        return units * per_unit

    @property
    def calls_per_step(self) -> int:
        """Minibatch gradients that one local step evaluates."""
        return 1

    def evaluated(self, task: Task, clients: Ints, steps: Ints) -> Ints:
        """Sample gradients that ``steps[i]`` local steps of ``clients[i]`` evaluate, ``[m]``."""
        _, epochs = self.work()
        return self.calls_per_step * task.samples_per_step(clients, steps, self.batch_size, epochs)

    def gradients(self, task: Task, clients: Ints, rounds: Ints, steps: Ints) -> int:
        """Sample gradients that a round evaluates in all, whatever its clients' roles."""
        return sum(
            int(algorithm.evaluated(task, clients[rows], steps[rows]).sum())
            for algorithm, rows in self.by_role(clients, rounds, task.seed)
        )

    # --- shared by all ------------------------------------------------------------------------------------------------

    def gradient(self, oracle: Oracle, x: Tensor) -> Tensor:
        """The minibatch gradient at `x`, clipped where `clip` says so."""
        return self.clipped(oracle.grad(x))

    def clipped(self, g: Tensor) -> Tensor:
        """`g`, shortened to the norm `clip` where there is one."""
        return g if self.clip is None else clip_norm(g, self.clip)

    @property
    def is_plain_sgd(self) -> bool:
        """Whether a local step is ``x - lr g(x)`` and nothing else, so that the engine may take it in place."""
        same = all(
            getattr(type(self), name) is getattr(Algorithm, name)
            for name in ("start", "local_step", "step", "direction", "gradient")
        )
        return same and self.momentum == 0 and self.weight_decay == 0 and self.clip is None

    def work(self) -> tuple[Work, bool]:
        """The local work and whether it counts epochs."""
        if self.local_epochs is not None:
            return self.local_epochs, True
        return self.local_steps or _ONE_STEP, False

    def lr_at(self, rounds: Ints) -> Floats:
        """Local learning rate of rounds 1, 2, ..."""
        return self.lr * self.lr_decay.factor(np.asarray(rounds) - 1)

    def step_weight_sum(self, steps: Tensor) -> Tensor:
        """||a_i||_1: the sum of the weights with which a round's directions enter ``(x - y_K) / lr``.

        Without momentum it is the number of steps; with momentum r, sum_{j=1..K} (1 - r^j) / (1 - r) (FedNova, arXiv
        2007.07481).
        """
        if self.momentum == 0:
            return steps
        r = self.momentum
        return (steps - r * (1 - r**steps) / (1 - r)) / (1 - r)


@dataclass(frozen=True, kw_only=True)
class ServerAlgorithm(Algorithm):
    """A server broadcasts, clients report ``delta``, the server steps along their weighted mean.

    Parameters
    ----------
    server_lr : the server's step along the aggregated delta.
    weighting : ``samples`` weighs clients by their share of the data, ``uniform`` alike.
    relaxed_init : relaxed initialisation (FedInit, arXiv 2306.05706): a client starts from ``x + relaxed_init (x -
        w_K)``, w_K where its last round ended (the initial model before its first), and that start takes the place of x
        in all it computes, as in FL-Simulator's code. 0 is off; a client then keeps no w_K.
    """

    setting: ClassVar[Literal["server", "gossip"]] = "server"
    modes: ClassVar[tuple[str, ...] | None] = None
    modes_reason: ClassVar[str] = ""
    """Participation modes under which the algorithm makes sense (None: all), and why not the others."""
    everyone: ClassVar[str | None] = None
    """Why all clients have to take part in every round, where they have to."""
    arrival_weights: ClassVar[str | None] = None
    """The only `weights` of a clocked participation that make sense, where there is only one."""
    begins_with_everybody: ClassVar[bool] = False
    """Whether all clients take part in the first round, whatever the cohorts of the others."""

    server_lr: Positive = 1.0
    weighting: Literal["samples", "uniform"] = "samples"
    relaxed_init: NonNegative = 0.0

    def fresh_client(self, params: Tensor) -> State:
        kept = self.init_client(params)
        return {**kept, _LAST: params} if self.relaxed_init > 0 else kept

    def receive(self, received: Message, client: State) -> Message:
        """``x = x + relaxed_init (x - w_K)``"""
        if self.relaxed_init == 0:
            return received
        x = received["x"]
        return {**received, "x": x + self.relaxed_init * (x - client[_LAST])}

    def report(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        travels, stays, kept = self.message(local, received, client, effort)
        return travels, stays, ({**kept, _LAST: local["x"]} if self.relaxed_init > 0 else kept)

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        return {"delta": local["x"] - received["x"]}, {}, client

    def importance(self, round: Round) -> Tensor:
        """p_i ``[m, 1]`` of the round's clients in the objective: their share, or 1 / M for ``weighting: uniform``."""
        if self.weighting == "samples":
            return round.importance
        return torch.full_like(round.importance, 1.0 / round.num_clients)

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        """``x = x + server_lr * sum_i w_i delta_i``"""
        return {**state, "x": state["x"] + self.server_lr * aggregate(messages["delta"])}


@dataclass(frozen=True, kw_only=True)
class GossipAlgorithm(Algorithm):
    """Nodes of a graph mix what their neighbours send; there is no server."""

    setting: ClassVar[Literal["server", "gossip"]] = "gossip"
    indicators: ClassVar[Mapping[str, Literal["sporadic", "always"]]] = {"compute": "sporadic", "links": "sporadic"}
    """Whether the scenario's probabilities decide who computes and which links fire, or everything always does."""

    needs_symmetric: ClassVar[bool] = False
    """Whether the mixing matrix must be symmetric, so that a directed graph is refused."""

    in_continuous_time: ClassVar[bool] = False
    """Whether a node's work and a link's mixing make sense one at a time, without a round (``mode: poisson``)."""

    def period(self, compute_probability: Floats) -> int:
        """Links are used in every `period`-th round only."""
        return 1


__all__ = [
    "Aggregate", "Algorithm", "Count", "Decay", "Effort", "GossipAlgorithm", "Message", "NonNegative", "Oracle",
    "Positive", "Report", "Round", "ServerAlgorithm", "State",
]  # fmt: skip


def one_message(algorithm: Algorithm, task: Task, gossip: bool) -> tuple[Message, Message]:
    """What one client receives and what crosses the network from it (of zero work, which has the same form): rows."""
    x = task.initial()
    state = algorithm.init(x.unsqueeze(0) if gossip else x)
    received = {k: v.reshape(1, -1) for k, v in algorithm.broadcast(state).items()}
    client = algorithm.init_client(x.unsqueeze(0))
    one = x.new_ones((1, 1))
    travels, _, _ = algorithm.message(algorithm.start(received, client), received, client, Effort(one, one))
    return received, travels
