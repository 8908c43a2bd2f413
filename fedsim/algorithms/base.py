"""What an algorithm is: arithmetic on the last axis, in seven small methods.

Every tensor has shape ``[..., d]``; leading axes are clients. The same lines serve one client, a shard and all nodes of
a graph. In code ``delta = x_local - x_received``, so descent is ``+ delta``.

Conventions fixed once for all algorithms: `clip` bounds each minibatch gradient before anything is added to it;
correction terms come next; weight decay is added last, as ``weight_decay * x``; momentum accumulates that sum and
starts from zero in every round.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms.client import ClientHalf, change, for_solver, of_algorithm, of_solver, reads_change
from fedsim.algorithms.needs import Needs
from fedsim.algorithms.round import Before, Effort, Report, Round, Sampling, Surroundings
from fedsim.core.arrays import Floats, Ints
from fedsim.core.errors import InputError
from fedsim.core.oracle import CARRIED, Oracle, Task
from fedsim.core.returned import by_row
from fedsim.core.sharing import EVERYTHING, Sharing
from fedsim.core.types import Aggregate, Count, Decay, Message, NonNegative, Positive, State, message_bytes

_LAST = "last"  # what a client keeps for `relaxed_init`: its parameters at the end of its last round


@dataclass(frozen=True, kw_only=True)
class Algorithm(ClientHalf):
    """Base class of every algorithm: the client's half, the server's (or every node's), and what they need."""

    setting: ClassVar[Literal["server", "gossip"]]
    needs: ClassVar[Needs] = Needs()
    """Read it of an instance: where it depends on the keys, a class makes it a property."""

    # --- what an algorithm may define ---------------------------------------------------------------------------------

    def init(self, params: Tensor) -> State:
        """State of the server, ``params [d]``, or of all nodes of a graph, ``params [n, d]``."""
        return {"x": params}

    def of_clients(self, importance: Tensor) -> State:
        """What a server keeps about every client beside `init`, rows ``[n, 1]``; importance ``[n, 1]`` sums to 1."""
        return {}

    def broadcast(self, state: State) -> Message:
        """What clients receive."""
        return {"x": state["x"]}

    @abstractmethod
    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        """The next state, from the messages of the round's clients: at the server, or at every node of a graph."""

    def check(self, num_clients: int) -> None:
        """Raise InputError where the keys do not fit together or do not fit the scenario."""

    def settled(self, task: Task, alpha: float | None) -> Self:
        """The algorithm with what it takes from the data, such as a step size from theory; itself if nothing.

        `alpha` says how contractive its compressor is on a message, where it has one and that is known.
        """
        return self

    def flow(self, state: State, elapsed: Tensor) -> State:
        """What becomes of nodes' states ``[m, d]`` in `elapsed` ``[m, 1]`` virtual seconds in which nothing happens.

        `elapsed` is float64. An algorithm that has a flow says so in `needs`.
        """
        return state

    def placed(self, run: Surroundings) -> Self:
        """The algorithm with what it takes from the graph and its links' rates in the place of keys that are ``auto``.

        Raises
        ------
        InputError
            It cannot find that out, or the run is none that it can do; keys are whole (``algorithm.mu``).
        """
        return self

    def facts(self) -> Mapping[str, Any]:
        """What else there is to know about it once it is settled: constants, by name."""
        return {}

    def objective(self, task: Task, picked: Floats) -> Task:
        """The objectives as local steps see them; `picked` ``[n]`` is how likely each client is in a cohort of one.

        It may wrap `task`. What takes work is done when a gradient is first asked for: ``fedsim plan`` trains nothing.

        Raises
        ------
        InputError
            Keys do not fit these objectives.
        """
        return task

    def before(self, task: Task) -> Before:
        """What is computed and sent before round 1; `task` is what `objective` gave."""
        return Before()

    def centre(self, state: State) -> Tensor:
        """Under a server the model ``[d]`` that is evaluated."""
        return state["x"]

    @property
    def sampling(self) -> Sampling | None:
        """Which states of a run are samples that are kept; None: none is."""
        return None

    @property
    def tokens(self) -> int | None:
        """How many models walk from client to client, each by itself; None: a cohort works from one model."""
        return None

    def check_deployed(self) -> None:
        """Raise InputError where a client that has its own data alone cannot do its half."""

    @property
    def compresses(self) -> Mapping[str, Any]:
        """Further keys of its own compressor; see `fedsim.messages.memory.OwnCompressor`."""
        return {}

    def received_size(self, received: Message) -> int:
        """Bytes of what a client receives under a server."""
        return message_bytes(received)

    def message_size(self, form: Message) -> int | None:
        """Bytes of one client's message in all exchanges of a round, where its tensors take more; see `needs`."""
        return None

    # --- what a client's round looks like to the engine ---------------------------------------------------------------

    def fresh_client(self, params: Tensor) -> State:
        """All that a client keeps between rounds, before its first one: `init_client` and what the engine adds."""
        return self._with_solver(self.init_client(params), self.local_solver.start(params))

    def receive(self, received: Message, client: State) -> Message:
        """What a client works from: what was sent to it, or that changed by what it keeps."""
        return received

    def begin(self, received: Message, client: State) -> State:
        """`start`, and what the solver remembers of the client's last round."""
        return {**self.start(received, client), **for_solver(of_solver(client))}

    @cached_property
    def sends_change(self) -> bool:
        """As the client's half has it; not where a class begins or reports in a way of its own."""
        reports = type(self).report in (Algorithm.report, ServerAlgorithm.report)
        return super().sends_change and reports and type(self).begin is Algorithm.begin

    def report(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        """`message`, and what the engine adds to what is kept."""
        travels, stays, kept = self.message(of_algorithm(local), received, of_algorithm(client), effort)
        return travels, stays, self._with_solver(kept, of_solver(local))

    def _with_solver(self, kept: State, remembered: State) -> State:
        return {**kept, **for_solver(remembered)} if self.local_solver.state == "kept" else kept

    def check_train(self) -> None:
        """Raise InputError where phases of local work do not go with other keys, or with what is made of steps."""
        if self.train is None:
            return
        for name in ("local_steps", "local_epochs"):
            if getattr(self, name) is not None:
                raise InputError(f"found beside train, whose phases have {name[6:]} of their own", key=name)
        if len({phase.epochs is None for phase in self.train}) > 1:
            raise InputError("found steps in one phase and epochs in another, allowed: the same in all", key="train")
        if self.needs.steps in ("own", "linear"):
            why = "takes its local steps by its own rule" if self.needs.steps == "own" else "divides by local steps"
            raise InputError(f"{type(self).__name__} {why}, of all parameters; allowed: no such key", key="train")
        if self.local_solver.state == "kept":
            raise InputError("found kept beside train, whose phases start anew; allowed: round", key="solver.state")

    def check_solver(self) -> None:
        """Raise InputError where the solver does not go with other keys, or with what the algorithm makes of steps."""
        if self.solver is None:
            return
        for name in ("momentum", "weight_decay"):
            if getattr(self, name) > 0:
                raise InputError(f"found beside solver, allowed: solver.{name} where the solver has it", key=name)
        if self.needs.steps == "own":
            message = f"{type(self).__name__} takes its local steps by its own rule; allowed: no such key"
            raise InputError(message, key="solver")
        if self.needs.steps == "round" and self.solver.state == "kept":
            found = f"found 'kept', but {type(self).__name__} corrects directions anew in every round"
            raise InputError(f"{found}, and those of the last one lead astray; allowed: round", key="solver.state")
        if self.needs.steps == "linear" and self.solver.weight_sum(torch.ones(1)) is None:
            raise InputError(
                f"{type(self).__name__} divides a client's change by the sum of its steps' weights, which this solver "
                "does not have; allowed: sgd or nesterov, with state: round",
                key="solver",
            )

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
        return self.calls_per_step * task.passes * task.samples_per_step(clients, steps, self.batch_size, epochs)

    def gradients(self, task: Task, clients: Ints, rounds: Ints, steps: Ints) -> int:
        """Sample gradients that a round evaluates in all, whatever its clients' roles."""
        return sum(
            int(algorithm.evaluated(task, clients[rows], steps[rows]).sum())
            for algorithm, rows in self.by_role(clients, rounds, task.seed)
        )


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
    server_lr: Positive = 1.0
    weighting: Literal["samples", "uniform"] = "samples"
    relaxed_init: NonNegative = 0.0

    def fresh_client(self, params: Tensor) -> State:
        kept = super().fresh_client(params)
        if self.relaxed_init == 0:
            return kept
        if _LAST in kept:
            raise InputError(f"{type(self).__name__} keeps '{_LAST}', as relaxed_init does", key="relaxed_init")
        return {**kept, _LAST: params}

    def receive(self, received: Message, client: State) -> Message:
        """``x = x + relaxed_init (x - w_K)``"""
        if self.relaxed_init == 0:
            return received
        x = received["x"]
        return {**received, "x": x + self.relaxed_init * (x - client[_LAST])}

    def report(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        travels, stays, kept = super().report(local, received, client, effort)
        return travels, stays, ({**kept, _LAST: local["x"]} if self.relaxed_init > 0 else kept)

    @cached_property
    def sends_change(self) -> bool:
        return self.relaxed_init == 0 and super().sends_change

    @reads_change
    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        return {"delta": change(local, received)}, {}, client

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
    usual: ClassVar[Mapping[str, Any]] = {}
    """The participation mode that goes with it, and keys of that mode, where a scenario does not have them."""

    @property
    def pair(self) -> float | None:
        """In continuous time: its own weight of the other node when two nodes mix; None: the mode's `pair_weight`."""
        return None

    def link_rate(self, chi_1: float, chi_2: float) -> float | None:
        """In continuous time: the least rate of every link, on a graph with these constants; None: it needs none."""
        return None

    def other_rates(self, ends: tuple[float, float], usual: Floats) -> str | None:
        """In continuous time: why links that tick at the rates `usual` cannot all have another one for some time.

        It goes from the first to the second of `ends`. None: they can.
        """
        return None

    def period(self, compute_probability: Floats) -> int:
        """Links are used in every `period`-th round only."""
        return 1

    def mixings(self) -> int:
        """How often nodes mix, one exchange after the other, where `combine` aggregates once."""
        return 1

    def waits_for_all(self) -> bool:
        """Whether nodes wait for all their neighbours, or for all but as many as their rule tolerates."""
        return True


__all__ = [
    "Aggregate", "Algorithm", "Count", "Decay", "Effort", "GossipAlgorithm", "Message", "NonNegative", "Oracle",
    "Positive", "Report", "Round", "ServerAlgorithm", "State", "Surroundings",
]  # fmt: skip


def one_message(algorithm: Algorithm, task: Task, gossip: bool) -> tuple[Message, Message]:
    """What one client receives and what crosses the network from it (of zero work, which has the same form): rows."""
    received, travels, _ = _of_model(algorithm, task.initial(), gossip, task.sharing)
    carried = {k: v.unsqueeze(0) for k, v in task.common_carried.items()}
    return {**received, **carried}, {**travels, **carried}


def numbers_of(algorithm: Algorithm, task: Task, gossip: bool) -> tuple[str, ...]:
    """Names of what is one number per client in a message, and in what stays with the server of it.

    The form for a model of one parameter does not tell, so that a model of two takes its place.
    """
    x = task.initial()
    _, travels, stays = _of_model(algorithm, x.repeat(2) if len(x) == 1 else x, gossip, EVERYTHING)
    return tuple(k for k, v in {**stays, **travels}.items() if v.shape[-1] == 1)


def _of_model(algorithm: Algorithm, x: Tensor, gossip: bool, sharing: Sharing) -> tuple[Message, Message, Message]:
    """What is received, what travels, and what else is said of the work, of one client with the model `x`."""
    common = sharing.params.common(x)
    state = algorithm.init(common.unsqueeze(0) if gossip else common)
    models = algorithm.tokens or 1
    by_row(state, None, models, common, algorithm, "init")
    sent = by_row(algorithm.broadcast(state), None, models, common, algorithm, "broadcast")
    received = {k: v.reshape(-1, v.shape[-1])[:1] for k, v in sent.items()}
    client = algorithm.init_client(x.unsqueeze(0))
    by_row(client, None, 1, x, algorithm, "init_client")
    one = x.new_ones((1, 1))
    whole = {**received, "x": x.unsqueeze(0)} if sharing.params.own else received
    start = algorithm.start(whole, client)
    by_row(start, None, 1, x, algorithm, "start")
    travels, stays, _ = algorithm.message(start, whole, client, Effort(one, one, one))
    by_row(travels, None, 1, x, algorithm, "message")
    return received, sharing.common(travels, CARRIED), sharing.common(stays, CARRIED)
