"""A graph's nodes on a Ray cluster: every shard keeps and mixes its own nodes' models.

Only rows that a mixing matrix takes across a boundary between shards travel, from actor to actor; the calling process
never holds ``[n, d]``. Rounds are handed out ahead of the answers. In continuous time a round has many levels of events
of few nodes: they are gathered and handed out together (`levels`), so that a call is made where shards need rows of
each other, and an actor computes the levels in between on its own. No actor waits for another one: a call whose rows
are not there yet waits in Ray, and fails with the actor that was to send them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
from scipy import sparse
from torch import Tensor

from fedsim.backends.base import Saved
from fedsim.backends.levels import Level, regrouped
from fedsim.backends.placement import place_graph, split
from fedsim.backends.ray.calls import LostError, Pool
from fedsim.backends.ray.clients import RayBackend
from fedsim.backends.ray.cluster import Cluster
from fedsim.backends.ray.transport import as_array
from fedsim.backends.shard import WHOLE, NodeSums, Part
from fedsim.clients.worker import Worker
from fedsim.core.arrays import Bools, Floats, Ints
from fedsim.core.job import Job
from fedsim.core.oracle import Task
from fedsim.core.own_tests import Asked, OwnAnswers
from fedsim.core.row_files import RowStream, Stored
from fedsim.graphs.mixing_matrix import MixingMatrix
from fedsim.graphs.network import Network

_AHEAD = 4  # works that may be on their way at a time: enough to keep actors busy, few enough for their memory
_EVERY = 4  # levels of continuous time of which one mixes nodes of different shards: see docs/cluster.md
_TOGETHER = 2**17  # events of nodes in continuous time that are handed out together


@dataclass(frozen=True)
class _Meeting:
    """Which shards send rows to which where nodes mix; those that neither send nor receive are not in it."""

    sends: Mapping[int, list[int]]
    receives: Mapping[int, list[int]]


@dataclass(frozen=True)
class _Plan:
    """A mixing matrix by shard, of those that have a node in it, and what they send each other."""

    exchanges: Mapping[int, Any]
    meeting: _Meeting
    bytes: int


@dataclass(frozen=True)
class _Work:
    """What some shards do in one go: what each is told, and where they need rows of each other on the way."""

    told: Mapping[int, tuple[str, Any]]
    meetings: Sequence[_Meeting]


_Answers = dict[int, list[Any]]
"""References to what a call returns, by shard."""


class RayNodes(RayBackend):
    """Nodes of a graph in shards that cut few of its edges."""

    def __init__(
        self, pool: Pool, cluster: Cluster, task: Task, build: Callable[[Task], Worker], load: Any, network: Network
    ) -> None:
        self._network = network
        self._static: dict[int, _Plan] = {}
        self._saved: Saved | None = None
        self._flying: list[tuple[_Work, dict[int, Any]]] = []
        self._aggregations: int | None = None
        self._levels: list[Level] = []
        self._number = 0
        self._told: set[tuple[int, int, int | None]] = set()  # who failed since the last checkpoint, and in which work
        self._job: Job | None = None
        run = build(task).pipeline.run
        self._attackers = list(run.attackers or ())
        self._honest = task.num_clients if run.honest is None else len(run.honest)
        super().__init__(pool, cluster, task, build, load)
        self.nodes_here = self
        self._reset(self.shards)

    # --- rounds -------------------------------------------------------------------------------------------------------

    def dispatch(self, job: Job) -> None:
        self._job = job  # done by `mix`

    def mix(self, number: int, mixing: MixingMatrix) -> None:
        """The local work that was dispatched last, and mixing, in round `number`."""
        assert self._job is not None
        job, self._job = self._job, None
        if number != self._number:
            self._hand_out_levels()
        self._number = number
        self._levels.append(Level(job.clients, job.rounds, job.steps, job.elapsed, mixing.matrix))
        gathers = job.elapsed is not None and (self._aggregations is not None or len(self.shards) == 1)
        if not gathers or sum(len(level.nodes) for level in self._levels) > _TOGETHER:
            self._hand_out_levels()

    def _hand_out_levels(self) -> None:
        """Hand out what was gathered: of continuous time many levels of a round, else a round."""
        levels, self._levels = self._levels, []
        if len(levels) > 1:
            levels = regrouped(levels, self.owner, _EVERY)
        parts: dict[int, list[Part]] = {}
        meetings = []
        for level in levels:
            of = self.owner[level.nodes]
            plan = self._planned(level.matrix, of, level.nodes, len(levels) == 1)
            for k, exchange in plan.exchanges.items():
                mine = np.flatnonzero(of == k)
                some = np.searchsorted(self.members[k], level.nodes[mine])
                whole = len(some) == len(self.members[k])
                elapsed = None if level.elapsed is None else level.elapsed[mine]
                own = level.rounds[mine], level.steps[mine], exchange, None if whole else some, elapsed
                parts.setdefault(k, []).append(Part(self._number, *own))
            if plan.meeting.sends:
                meetings.append(plan.meeting)
            self._log_bytes += 3 * level.steps.nbytes + plan.bytes
        if levels:
            told = {k: ("begin", mine[0]) if len(levels) == 1 else ("follow", (mine,)) for k, mine in parts.items()}
            self._hand_out(_Work(told, meetings))

    def _hand_out(self, work: _Work) -> None:
        self._log.append(work)
        if self._aggregations is None and work.meetings:
            try:
                self._count_aggregations(work)
            except LostError:
                self._recover()
            return
        self._flying.append((work, self._round(work)))
        if len(self._flying) > _AHEAD:
            self._wait(_AHEAD // 2)

    def _planned(self, matrix: sparse.csr_array, owner: Ints, nodes: Ints, ship: bool) -> _Plan:
        """The matrix of `nodes`, which `owner` has, by shard; where all links fire it is made and shipped once."""
        if ship and id(matrix) in self._static:
            return self._static[id(matrix)]
        at_work = np.unique(owner).tolist()
        every = split(matrix, owner, self.pool.actors, nodes)
        parts = {k: every[k] for k in at_work}
        meet = [k for k in at_work if not parts[k].alone]
        sends = {k: [j for j in meet if len(parts[k].outgoing[j])] for k in meet}
        receives = {k: [j for j in meet if parts[k].incoming[j]] for k in meet}
        meeting = _Meeting(sends, receives)
        if not ship or not any(matrix is base.matrix for base in self._network.mixings):
            return _Plan(parts, meeting, 24 * matrix.nnz)
        shipped = {k: self._ray.put(part) for k, part in parts.items()}
        return self._static.setdefault(id(matrix), _Plan(shipped, meeting, 0))

    def _round(self, work: _Work) -> dict[int, Any]:
        """Hand out a whole work; references to what each shard says at its end."""
        count = self._aggregations or 0  # where it is not known, nobody needs rows of others
        ahead: dict[int, list[int]] = {k: [] for k in work.told}
        for meeting in work.meetings:
            for k, peers in meeting.sends.items():
                ahead[k] += [len(peers) + 1] * count
        returns = {k: iter([*sizes, 1]) for k, sizes in ahead.items()}
        out = {k: self._many(k, next(returns[k]), *told) for k, told in work.told.items()}
        for meeting in work.meetings:
            for _ in range(count):
                out |= self._resumed(meeting, out, returns)
        return {k: rows[-1] for k, rows in out.items()}

    def _count_aggregations(self, work: _Work) -> None:
        """The first work in which shards meet: how often the algorithm mixes only shows when it does."""
        (meeting,) = work.meetings
        returns = {k: repeat(len(meeting.sends.get(k, ())) + 1) for k in work.told}
        out, count = {k: self._many(k, next(returns[k]), *told) for k, told in work.told.items()}, 0
        self._said([rows[-1] for k, rows in out.items() if k not in meeting.sends])
        out = {k: out[k] for k in meeting.sends}
        while not all(over for over, _ in self._said([rows[-1] for rows in out.values()])):
            out, count = self._resumed(meeting, out, returns), count + 1
        self._aggregations = count

    def _resumed(self, meeting: _Meeting, out: _Answers, returns: Mapping[int, Iterator[int]]) -> _Answers:
        """Hand out rows to all that meet; what they return, by shard."""
        rows = {(j, to): out[j][i] for j, peers in meeting.sends.items() for i, to in enumerate(peers)}
        return {
            k: self._many(k, next(returns[k]), "resume", [rows[j, k] for j in senders])
            for k, senders in meeting.receives.items()
        }

    def _many(self, k: int, returns: int, method: str, arguments: Any) -> list[Any]:
        answer = self.host[k].call.options(num_returns=returns).remote(k, returns, method, *arguments)
        return list(answer) if returns > 1 else [answer]

    # --- waiting ------------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Wait until everything is done."""
        self._hand_out_levels()
        self._wait(0)

    def _wait(self, keep: int) -> None:
        """Wait until at most `keep` works are on their way."""
        while len(self._flying) > keep:
            try:
                work, last = self._flying[0]
                said = self._said(list(last.values()))
                self._flying.pop(0)
                self._failures = 0
                self._learn({k: [(s, self._at_work(work, k))] for k, (_, s) in zip(last, said, strict=True)})
            except LostError:
                self._recover()

    def _said(self, references: list[Any]) -> list[tuple[bool, float]]:
        """Whether each shard's work is over, and the seconds that it took so far."""
        ends = []
        for over, dropped, seconds in self._get(references):
            for failed in dropped:
                whose = failed.client, failed.work, failed.round
                if whose not in self._told:  # work that is done again after a loss fails again
                    self._told.add(whose)
                    self._failed[failed] = None
            ends.append((over, seconds))
        return ends

    def _at_work(self, work: _Work, k: int) -> Ints | None:
        """The nodes of a shard that worked, each as often as it did; None: all of them, once."""
        method, arguments = work.told[k]
        some = [part.some for part in ([arguments] if method == "begin" else arguments[0])]
        if len(some) == 1 and some[0] is None:
            return None
        return np.concatenate([self.members[k] if s is None else self.members[k][s] for s in some])

    def _forget(self, snapshot: Mapping[str, Any] | None) -> None:
        super()._forget(snapshot)
        self._told.clear()

    def _affected(self, lost: list[int]) -> list[int]:
        return self.shards  # neighbours have gone on with rows that the lost nodes will never send again

    def _replay(self, shards: list[int]) -> None:
        self._flying.clear()
        self._reset(shards)
        for work in self._log:
            if not isinstance(work, _Work):
                self._fill(work)
            elif self._aggregations is None and work.meetings:
                self._count_aggregations(work)
            else:
                self._said(list(self._round(work).values()))

    def merge(self, idle: Floats | None = None) -> None:
        means = {name: as_array(self.mean(name, idle)) for name in self._ask("node_widths")[self.shards[0]]}
        self._log.append(means)
        self._log_bytes += sum(row.nbytes for row in means.values())
        try:
            self._fill(means)
        except LostError:
            self._recover()

    def _fill(self, means: Mapping[str, Any]) -> None:
        self._get([self._send(k, ("fill", (means,))) for k in self.shards])

    # --- state --------------------------------------------------------------------------------------------------------

    def mean(self, name: str = "x", idle: Floats | None = None, among: Bools | None = None) -> Tensor:
        """Mean over the honest nodes (of those in `among`), ``[d]``."""
        parts = self._ask("node_sum", name, idle=idle, among=among)
        total = self._tensor(parts[self.shards[0]]).clone()
        for k in self.shards[1:]:
            total += self._tensor(parts[k])
        return total / self._count(among)

    def _count(self, among: Bools | None) -> int:
        """How many honest nodes are measured."""
        return self._honest if among is None else int((among & ~np.isin(np.arange(len(among)), self._attackers)).sum())

    def facts(
        self, centre: Tensor, idle: Floats | None = None, among: Bools | None = None
    ) -> tuple[float, float | None, float | None]:
        """Of the honest nodes (of those in `among`) the mean squared distance to `centre`, and their own models' mean
        and lowest accuracy."""
        parts: list[NodeSums] = [
            part for part in self._ask("node_facts", as_array(centre), idle=idle, among=among).values() if part.count
        ]
        n, models = self._count(among), {part.common for part in parts}
        distance = 0.0 if len(models) == 1 and "" not in models else sum(part.distance for part in parts) / n
        accuracies = [part.accuracies for part in parts if part.accuracies is not None]
        if len(accuracies) < len(parts):
            return distance, None, None
        return distance, sum(accuracies) / n, min(part.lowest for part in parts if part.lowest is not None)

    def rows(self, name: str, nodes: Ints, idle: Floats | None = None) -> Tensor:
        """A state of some nodes, ``[m, width]``; under ``x`` their own models."""
        self._settle()
        name = WHOLE + name if name == "x" and self.task.sharing.params.own else name
        return self._gathered(name, nodes, None if idle is None else idle[nodes])

    def nodes_answers(self, clients: Ints, asked: Asked, idle: Floats | None = None) -> OwnAnswers:
        """What the models of these nodes say of their own test rows."""
        self._settle()
        places = self._places(clients)
        flowing: dict[int, tuple[Floats, ...]] = {k: () if idle is None else (idle[self.members[k]],) for k in places}
        calls = {k: (clients[rows], asked, *flowing[k]) for k, rows in places.items()}
        return self._put_together(places, clients, self._answers("nodes_answers", calls))

    def kept(self, name: str, clients: Ints) -> Tensor:
        self._settle()
        return super().kept(name, clients)

    def nodes(self, idle: Floats | None = None) -> dict[str, RowStream]:
        """The nodes' states, shard by shard, each ``[n, width]``."""
        widths = self._ask("node_widths")[self.shards[0]]
        having = {k: (self.members[k], self.members[k]) for k in self.shards}
        return {name: self._stream(name, self.task.num_clients, width, having, idle) for name, width in widths.items()}

    def models(self, idle: Floats | None = None) -> dict[str, RowStream]:
        self._settle()
        having = {k: (self.members[k], self.members[k]) for k in self.shards}
        widths = {"x": self.task.dim} | {name: v.shape[-1] for name, v in self.task.carried.items()}
        return {k: self._stream(WHOLE + k, self.task.num_clients, width, having, idle) for k, width in widths.items()}

    def draw_from(self, word: int) -> None:
        self._settle()
        super().draw_from(word)

    def load_nodes(self, saved: Saved) -> None:
        self._saved = saved
        self._forget(saved.clients)
        self._reset(self.shards)

    def checkpointed(self, saved: Saved) -> None:
        self._saved = saved
        super().checkpointed(saved)

    def save(self) -> dict[str, Tensor | RowStream]:
        self._settle()
        return super().save()

    def _ask(
        self, method: str, *arguments: Any, idle: Floats | None = None, among: Bools | None = None
    ) -> dict[int, Any]:
        """What all shards say after all rounds that are on their way; each is told `idle` and `among` of its own
        nodes."""
        self._settle()
        told = [idle] if among is None else [idle, among]
        if idle is None and among is None:
            told = []
        none = np.empty(0)  # None stands for an array on its way; nodes flow for no virtual seconds of none
        mine = {k: tuple(none if rows is None else rows[self.members[k]] for rows in told) for k in self.shards}
        return self._answers(method, {k: (*arguments, *mine[k]) for k in self.shards})

    def _reset(self, shards: list[int]) -> None:
        parts, saved = self._parts(), self._saved
        calls = []
        for k in shards:
            nodes = {}
            if saved is not None:
                nodes = {n: Stored(saved.state.place(n), self.members[k]) for n in saved.state}
            calls.append(self._send(k, ("reset", (self._sendable(k, parts.get(k, {})), self._sendable(k, nodes)))))
            if saved is None:
                calls.append(self._send(k, ("start", ())))
            elif not self._near[k]:
                self._get([calls.pop()])  # one shard's rows at a time pass through this process
        self._get(calls)

    def _place(self, load: Any, shards: int) -> Ints:
        return place_graph(load, self._network.mixings[0].matrix, shards)

    def _placed_again(self, cost: Floats, owner: Ints, at: Mapping[int, int], slowness: Floats) -> Ints:
        actors = list(at.values())
        part = np.array([1 / (slowness[at[k]] * actors.count(at[k])) for k in range(self.pool.actors)])
        return place_graph(cost, self._network.mixings[0].matrix, self.pool.actors, part)

    def _divide(self, owner: Ints) -> None:
        self._static.clear()
        super()._divide(owner)

    @property
    def _has_something(self) -> bool:
        return True
