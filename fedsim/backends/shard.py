"""One shard of a run: some clients' data, what they keep, and on a graph their own models; what an actor holds.

Nothing here knows where it runs. Tensors come and go as numpy arrays.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.backends.balance import Spent, Stopwatch, seconds_since
from fedsim.backends.guard import Failed, Guard
from fedsim.backends.in_process import Vectorized
from fedsim.backends.placement import Exchange
from fedsim.backends.ray.transport import as_array, as_arrays, as_tensor, as_tensors
from fedsim.clients.evaluating import asked_about
from fedsim.clients.mixing import Mixing
from fedsim.clients.personal import own_models
from fedsim.clients.round import begin, describe, finish, flowed, initial
from fedsim.clients.round import some as some_of
from fedsim.clients.worker import Worker
from fedsim.core.arrays import Array, Bools, Floats, Ints
from fedsim.core.errors import RunError
from fedsim.core.job import Contribution, Job
from fedsim.core.oracle import Task
from fedsim.core.own_tests import Asked, OwnAnswers
from fedsim.core.row_files import Place, Stored
from fedsim.core.types import Message, State, agree
from fedsim.graphs.mixing_matrix import MixingMatrix, repeated

Arrays = dict[str, Array]

TABLE = "table."
"""Names of tables of clients' rows in a checkpoint begin so."""
WHOLE = "whole."
"""So begin the names of what nodes' own models are made of, with what stays with them: ``x``, and what they carry."""
_DROPPED = "done.dropped"  # of jobs that are done in a checkpoint: 0, or, where they are left out, the client and 2
_PART_BYTES = 2**25  # that are made ready to be written at a time


@dataclass(frozen=True)
class Collected:
    """What a shard tells of the rows it keeps: their widths by name, and jobs that were dropped with their reason.

    `scalars` are the messages of one number per client, ``[m, 1]``: sent at once, they cost less than asking for them.
    """

    widths: Mapping[str, int]
    scalars: Mapping[str, Array]
    dropped: Mapping[int, Failed] = field(default_factory=dict)


@dataclass(frozen=True)
class NodeSums:
    """Of a shard's honest nodes: how many there are, sums over them, and what is common to all.

    `distance` are squared distances to a centre, `accuracies` their own models', `lowest` the smallest of these, and
    `common` is a digest of their model where all have the same one ("": they differ).
    """

    count: int = 0
    distance: float = 0.0
    common: str = ""
    accuracies: float | None = None
    lowest: float | None = None


class Part(NamedTuple):
    """Local work of all nodes of a shard, or of `some` (positions), in round `number`, and their mixing.

    `exchange` is of the mixing matrix of those nodes; in continuous time `elapsed` are virtual seconds since their last
    events.
    """

    number: int
    rounds: Ints
    steps: Ints
    exchange: Exchange
    some: Ints | None = None
    elapsed: Floats | None = None


class _SuspendedError(Exception):
    """`combine` needs rows of other shards before it can go on."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values


class Shard:
    """The computation of `clients`.

    Parameters
    ----------
    task : with the data of these clients.
    build : makes the worker.
    clients : ascending client numbers.
    drop : leave clients out whose work raises, instead of failing.
    mixing : on a graph, how nodes mix.
    """

    def __init__(
        self, task: Task, build: Callable[[Task], Worker], clients: Ints, drop: bool, mixing: Mixing | None = None
    ) -> None:
        self.task, self.clients, self._build, self._drop = task, clients, build, drop
        self._how = mixing or Mixing()
        self.reset({})

    # --- what clients keep --------------------------------------------------------------------------------------------

    def draw_from(self, word: int) -> None:
        """From now on draw noise from `word`, also that of jobs that were given before and are not computed yet."""
        self.guard.worker.draw_from(word)

    def reset(self, saved: Mapping[str, Array | Stored], nodes: Mapping[str, Array | Stored] | None = None) -> None:
        """Start from what `save` gave (nothing: from the beginning), and from these states of the graph's nodes.

        What is in a file is read here.
        """
        self.guard = Guard(self._build(self.task), self._drop)
        self.algorithm = self.guard.worker.algorithm
        self.device = self.task.device
        self._watch = Stopwatch(self.guard, self.clients)
        self.backend = Vectorized(self._watch)  # type: ignore[arg-type]
        self._kept: Message = {}
        if saved:
            loaded = {k: _read(v, torch.device("cpu")) for k, v in saved.items()}
            self.backend.load(loaded)
            if _DROPPED in loaded:
                for number, lost in zip(loaded["done.numbers"].tolist(), loaded[_DROPPED].tolist(), strict=True):
                    if lost:  # 1: of a checkpoint that does not say whose job it was
                        self.guard.dropped[number] = Failed(lost - 2, "its work raised before the last checkpoint")
        self.state = {k: _read(v, self.device) for k, v in (nodes or {}).items()}
        self._aggregations: int | None = None
        self._parts: deque[Part] = deque()
        self._why: list[Failed] = []
        self._broken: Exception | None = None
        self._busy = 0.0

    def spent(self) -> Spent:
        """What clients' jobs took that were computed since this was last asked."""
        spent, self._watch.spent = self._watch.spent, []
        return spent

    def save(self) -> tuple[Arrays, dict[str, int]]:
        """What has to survive but for tables of clients' rows, and those tables' widths; see `kept`."""
        saved = self.backend.save()
        if self._drop and "done.numbers" in saved:
            known = self.guard.dropped
            lost = [known[n].client + 2 if n in known else 0 for n in saved["done.numbers"].tolist()]
            saved[_DROPPED] = torch.as_tensor(lost, dtype=torch.int64)
        tables = {k: v.shape[-1] for k, v in saved.items() if k.startswith(TABLE)}
        return as_arrays({k: v for k, v in saved.items() if k not in tables}), tables

    def kept(self, name: str, clients: Ints, idle: Floats | None = None) -> Array:
        """Rows of some of the clients, ``[m, width]``: of a table that they keep, or of a state of the nodes, after it
        has flowed for `idle` ``[m]`` virtual seconds."""
        if name.startswith(TABLE):
            return as_array(self.guard.worker.store.gather(clients)[name.removeprefix(TABLE)])
        rows = torch.as_tensor(np.searchsorted(self.clients, clients), device=self.device)
        if name.startswith(WHOLE):
            models, d = self._models(flowed(self.algorithm, some_of(self.state, rows), idle), clients), self.task.dim
            return as_array(models[:, :d] if name == WHOLE + "x" else models[:, d:])
        if idle is None:
            return as_array(self.state[name][rows])
        return as_array(flowed(self.algorithm, some_of(self.state, rows), idle)[name])

    def own_answers(self, clients: Ints, received: Arrays, asked: Asked) -> OwnAnswers:
        """What the models of some of the clients say of their own test rows, of what they `received`."""
        return self.backend.own_answers(clients, as_tensors(received, self.device), asked)

    def nodes_answers(self, clients: Ints, asked: Asked, idle: Floats | None = None) -> OwnAnswers:
        """The same of some of the nodes, after all have flowed for `idle` virtual seconds."""
        state, rows = flowed(self.algorithm, self.state, idle), np.searchsorted(self.clients, clients)
        return self.backend.own_answers(clients, asked_about(self.algorithm, state, rows, asked), asked)

    def write(self, name: str, place: Place, clients: Ints, rows: Ints, idle: Floats | None = None) -> None:
        """Write what `kept` gives into those rows of a file, some at a time."""
        step = max(1, _PART_BYTES // place.row_bytes)
        for first in range(0, len(clients), step):
            part = slice(first, first + step)
            place.write(rows[part], self.kept(name, clients[part], None if idle is None else idle[part]))

    # --- clients of a server ------------------------------------------------------------------------------------------

    def dispatch(self, clients: Ints, rounds: Ints, steps: Ints, numbers: Ints, received: Arrays) -> None:
        self.backend.dispatch(Job(clients, rounds, steps, as_tensors(received, self.device), numbers))

    def compute(self) -> None:
        """Compute what is pending, as far as there is room for results."""
        self.backend.advance()

    def settle(self, clients: Ints) -> None:
        """Do what these clients have under way, where that changes what they keep."""
        self.backend.settle(clients)

    def collect(self, numbers: Ints, widths: Mapping[str, int]) -> None:
        """Have the messages of these jobs ready, until the next call.

        Raises
        ------
        RunError
            They are not of the same form as those before, `widths` (empty: there were none).
        """
        self._kept = self.backend.collect(numbers)
        self._dropped = {n: self.guard.dropped.pop(n) for n in numbers.tolist() if n in self.guard.dropped}
        found = {k: v.shape[-1] for k, v in self._kept.items()}
        if widths and found != widths:
            raise RunError(f"clients sent {found} after {widths}: an algorithm's messages have one form in all rounds")

    def collected(self) -> Collected:
        """What there is to know about what was collected last."""
        widths = {k: v.shape[-1] for k, v in self._kept.items()}
        return Collected(
            widths, {k: as_array(self._kept[k]) for k, width in widths.items() if width == 1}, self._dropped
        )

    def reduce(self, name: str, weights: Array) -> Array:
        """``sum_i w_i row_i`` of what was collected, ``[d]``."""
        rows = self._kept[name]
        return as_array(torch.as_tensor(weights, dtype=rows.dtype, device=rows.device) @ rows)

    def rows(self, name: str) -> Array:
        """What was collected, ``[m, d]``."""
        return as_array(self._kept[name])

    # --- nodes of a graph ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Give every node the initial model."""
        self.state = initial(self.algorithm, self.task, len(self.clients))

    def begin(self, *part: Any) -> tuple[Any, ...]:
        """The work of one `Part`; see `follow`."""
        return self.follow([Part(*part)])

    def follow(self, parts: Sequence[Part]) -> tuple[Any, ...]:
        """One work after the other, up to where rows of other shards are needed; see `resume`."""
        self._parts = deque(parts)
        return self._unless_broken(self._onwards)

    def resume(self, *incoming: Array) -> tuple[Any, ...]:
        """Go on with the rows of the shards that send some, in their order, up to where rows are needed again.

        Returns what `begin` returns: rows for each shard that is sent some, of the exchange that has to be made now
        (none once everything is over), and at the end whether it is over and then why clients were dropped, and the
        seconds that the work has taken here so far.
        """
        return self._unless_broken(lambda: self._mixed_with(incoming))

    def _unless_broken(self, work: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
        """Once something has raised, whatever was to follow it raises the same."""
        if self._broken is not None:
            raise self._broken
        begin = time.perf_counter()
        try:
            *rows, (over, why) = work()
        except Exception as error:
            self._broken = error
            raise
        self._busy += seconds_since(begin, self.device)
        busy = self._busy
        if over:
            self._busy = 0.0
        return (*rows, (over, why, busy))

    def _onwards(self) -> tuple[Any, ...]:
        while self._parts:
            self._enter(self._parts.popleft())
            if not self._combined():
                return self._outgoing()
        why, self._why = self._why, []
        return ((True, why),)

    def _enter(self, part: Part) -> None:
        """The local work of a round."""
        number, rounds, steps, exchange, some, elapsed = part
        self._some = None if some is None else torch.as_tensor(some, device=self.device)
        clients = self.clients if some is None else self.clients[some]
        self.state = flowed(self.algorithm, self.state, elapsed, self._some)
        received = begin(self.algorithm, self.state, self._some)
        messages = self.guard.run(Job(clients, rounds, steps, received))
        dropped = dict(self.guard.dropped)
        self.guard.dropped.clear()
        if dropped:
            steps = np.where(np.isin(clients, list(dropped)), 0, steps)
        self._why += [failed._replace(round=number) for failed in dropped.values()]
        event = Contribution(number, clients, rounds, steps)
        pipeline = self.guard.worker.pipeline
        self._messages = messages
        self._round = describe(self.algorithm, self.task, event)
        matrix = MixingMatrix(exchange.matrix(), self.device, exchange.dense)
        self._exchange, self._mixing = exchange, self._how.exchange(matrix, exchange.nodes, pipeline, event)
        self._mixed: list[Tensor] = []

    def _mixed_with(self, incoming: Sequence[Array]) -> tuple[Any, ...]:
        halo = [as_tensor(rows, self.device) for rows in incoming]
        self._values: Tensor = self._mixing(torch.cat([self._values, *halo]))
        self._left: int = self._left - 1
        if self._left:
            return self._outgoing()
        self._mixed.append(self._values)
        return self._onwards() if self._combined() else self._outgoing()

    def _combined(self) -> bool:
        """Run `combine`; False where it needs rows that are not here yet.

        Each time it starts from its beginning, with what it has aggregated so far at hand: methods of an algorithm
        change nothing that they are given.
        """
        handed, alone = 0, self._exchange.alone

        def aggregate(values: Tensor) -> Tensor:
            nonlocal handed
            if alone:
                return repeated(self._mixing, self._how.exchanges)(values)
            if handed == len(self._mixed):
                raise _SuspendedError(values)
            handed += 1
            # `combine` may work in place on what it gets; it is needed again where more is to come.
            return self._mixed[handed - 1] if handed == self._aggregations else self._mixed[handed - 1].clone()

        try:
            self.state = finish(self.algorithm, self.state, self._messages, self._round, aggregate, self._some)
        except _SuspendedError as suspended:
            self._values, self._left = suspended.values, self._how.exchanges
            return False
        if not alone:
            self._aggregations = len(self._mixed)
        self._messages, self._mixed = {}, []
        return True

    def _outgoing(self) -> tuple[Any, ...]:
        """The rows that other shards need, and that this one is not at the end."""
        send = [torch.as_tensor(rows, device=self.device) for rows in self._exchange.outgoing if len(rows)]
        return (*[as_array(self._values[rows]) for rows in send], (False, []))

    def node_sum(self, name: str, idle: Floats | None = None, among: Bools | None = None) -> Array:
        """Sum over the honest nodes (of those in `among`), ``[d]``, after they have flowed for `idle` virtual
        seconds."""
        return as_array(self._honest(idle, among)[1][name].sum(0))

    def fill(self, rows: Arrays) -> None:
        """Give every node these states, ``[d]`` by name."""
        self.state = {k: as_tensor(rows[k], self.device).expand(len(self.clients), -1).clone() for k in self.state}

    def node_facts(self, centre: Array, idle: Floats | None = None, among: Bools | None = None) -> NodeSums:
        """About the honest nodes, of those in `among`."""
        clients, state = self._honest(idle, among)
        x, shared = state["x"], self.task.sharing.params
        if not len(x):
            return NodeSums()
        right, asked = self.task.correct(self._models(state, clients)), self.task.test_samples
        middle = shared.common(as_tensor(centre, self.device)[: self.task.dim])
        distance = float((x - middle).pow_(2).sum(-1).sum())
        common = hashlib.blake2b(np.ascontiguousarray(as_array(x[0])).tobytes()).hexdigest() if agree(x) else ""
        if right is None:
            return NodeSums(len(x), distance, common)
        accuracy = float(right.sum()) / (len(x) * asked)
        return NodeSums(len(x), distance, common, accuracy * len(x), float(right.min()) / asked)

    def _honest(self, idle: Floats | None, among: Bools | None) -> tuple[Ints, State]:
        """The nodes that do not attack, of those in `among` (None: of all), and their states."""
        attackers = self.guard.worker.pipeline.run.attackers
        state = flowed(self.algorithm, self.state, idle)
        if not attackers and among is None:
            return self.clients, state
        honest = ~np.isin(self.clients, attackers or ())
        looked_at = np.flatnonzero(honest if among is None else honest & among)
        return self.clients[looked_at], some_of(state, torch.as_tensor(looked_at, device=self.device))

    def _models(self, state: State, clients: Ints) -> Tensor:
        """Nodes' own models ``[m, d + b]``, with what stays with them."""
        return own_models(self.task, state, self.guard.worker.store.gather(clients))

    def node_widths(self) -> dict[str, int]:
        return {k: v.shape[-1] for k, v in self.state.items()}


def _read(value: Array | Stored, device: torch.device) -> Tensor:
    """A tensor of its own."""
    return as_tensor(value.read(), device) if isinstance(value, Stored) else as_tensor(value, device).clone()
