"""A graph's nodes on a Ray cluster: every shard keeps and mixes its own nodes' models.

Only rows that a mixing matrix takes across a boundary between shards travel, from actor to actor; the calling process
never holds ``[n, d]``. Rounds are handed out ahead of the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from fedsim.backends.base import Saved
from fedsim.backends.placement import place_graph, split
from fedsim.backends.ray.calls import LostError, Pool
from fedsim.backends.ray.clients import RayBackend
from fedsim.backends.ray.cluster import Cluster, log
from fedsim.backends.ray.transport import as_array
from fedsim.backends.shard import NodeSums
from fedsim.clients.worker import Worker
from fedsim.core.arrays import Bools, Floats, Ints
from fedsim.core.job import Job
from fedsim.core.oracle import Task
from fedsim.core.row_files import RowStream, Stored
from fedsim.graphs.mixing_matrix import MixingMatrix
from fedsim.graphs.network import Network

_AHEAD = 4  # rounds that may be on their way at a time: enough to keep actors busy, few enough for their memory

_Work = Mapping[int, tuple[Any, ...]]
"""What `Shard.begin` is told, by shard."""


@dataclass(frozen=True)
class _Plan:
    """A mixing matrix by shard, and which shards send to which; shards without a node in it have no part."""

    exchanges: Mapping[int, Any]
    sends: Mapping[int, list[int]]
    receives: Mapping[int, list[int]]
    bytes: int


class RayNodes(RayBackend):
    """Nodes of a graph in shards that cut few of its edges."""

    def __init__(
        self, pool: Pool, cluster: Cluster, task: Task, build: Callable[[Task], Worker], load: Any, network: Network
    ) -> None:
        self._network = network
        self._static: dict[int, _Plan] = {}
        self._saved: Saved | None = None
        self._flying: list[dict[int, Any]] = []
        self._aggregations: int | None = None
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
        of = self.owner[job.clients]
        plan = self._planned(mixing, of, job.clients)
        work: dict[int, tuple[Any, ...]] = {}
        for k in plan.exchanges:
            mine = np.flatnonzero(of == k)
            some = np.searchsorted(self.members[k], job.clients[mine])
            whole = len(some) == len(self.members[k])
            elapsed = None if job.elapsed is None else job.elapsed[mine]
            work[k] = (number, job.rounds[mine], job.steps[mine], plan.exchanges[k], None if whole else some, elapsed)
        self._log.append((work, plan))
        self._log_bytes += 3 * job.steps.nbytes + plan.bytes
        if self._aggregations is None:
            try:
                self._count_aggregations(work, plan)
            except LostError:
                self._recover()
            return
        self._flying.append(self._round(work, plan))
        if len(self._flying) > _AHEAD:
            self._settle(keep=_AHEAD // 2)

    def _planned(self, mixing: MixingMatrix, owner: Ints, nodes: Ints) -> _Plan:
        """The matrix of `nodes`, which `owner` has, by shard; where all links fire it is made and shipped once."""
        matrix = mixing.matrix
        if id(matrix) in self._static:
            return self._static[id(matrix)]
        at_work = np.unique(owner).tolist()
        every = split(matrix, owner, self.pool.actors, nodes)
        parts = {k: every[k] for k in at_work}
        sends = {k: [j for j in at_work if len(parts[k].outgoing[j])] for k in at_work}
        receives = {k: [j for j in at_work if parts[k].incoming[j]] for k in at_work}
        if not any(matrix is base.matrix for base in self._network.mixings):
            return _Plan(parts, sends, receives, 24 * matrix.nnz)
        shipped = {k: self._ray.put(part) for k, part in parts.items()}
        return self._static.setdefault(id(matrix), _Plan(shipped, sends, receives, 0))

    def _round(self, work: _Work, plan: _Plan) -> dict[int, Any]:
        """Hand out a whole round; references to what each shard says at its end."""
        assert self._aggregations is not None
        out = self._begun(work, plan)
        for _ in range(self._aggregations):
            out = self._resumed(plan, out)
        return {k: rows[-1] for k, rows in out.items()}

    def _count_aggregations(self, work: _Work, plan: _Plan) -> None:
        """The first round: how often the algorithm mixes in a round only shows when it does."""
        out, count = self._begun(work, plan), 0
        while not all(self._said([rows[-1] for rows in out.values()])):
            out, count = self._resumed(plan, out), count + 1
        self._aggregations = count

    def _begun(self, work: _Work, plan: _Plan) -> dict[int, list[Any]]:
        return {k: self._many(k, len(plan.sends[k]) + 1, "begin", *arguments) for k, arguments in work.items()}

    def _resumed(self, plan: _Plan, out: dict[int, list[Any]]) -> dict[int, list[Any]]:
        rows = {(j, to): out[j][i] for j in out for i, to in enumerate(plan.sends[j])}
        return {
            k: self._many(k, len(plan.sends[k]) + 1, "resume", *(rows[j, k] for j in plan.receives[k])) for k in out
        }

    def _many(self, k: int, returns: int, method: str, *arguments: Any) -> list[Any]:
        answer = self.host[k].call.options(num_returns=returns).remote(k, method, *arguments)
        return list(answer) if returns > 1 else [answer]

    # --- waiting ------------------------------------------------------------------------------------------------------

    def _settle(self, keep: int = 0) -> None:
        """Wait until at most `keep` rounds are on their way."""
        while len(self._flying) > keep:
            try:
                self._said(list(self._flying[0].values()))
                self._flying.pop(0)
                self._failures = 0
            except LostError:
                self._recover()

    def _said(self, references: list[Any]) -> list[bool]:
        """Whether each shard's round is over."""
        ends = []
        for over, dropped in self._get(references):
            for why in dropped.values():
                log.warning("did not compute in its round: %s", why)
            ends.append(over)
        return ends

    def _affected(self, lost: list[int]) -> list[int]:
        return self.shards  # neighbours have gone on with rows that the lost nodes will never send again

    def _replay(self, shards: list[int]) -> None:
        self._flying.clear()
        self._reset(shards)
        for work, plan in self._log:
            if plan is None:
                self._fill(work)
            elif self._aggregations is None:
                self._count_aggregations(work, plan)
            else:
                self._said(list(self._round(work, plan).values()))

    def merge(self, idle: Floats | None = None) -> None:
        means = {name: as_array(self.mean(name, idle)) for name in self._ask("node_widths")[self.shards[0]]}
        self._log.append((means, None))
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
        """A state of some nodes, ``[m, width]``."""
        self._settle()
        return self._gathered(name, nodes, None if idle is None else idle[nodes])

    def kept(self, name: str, clients: Ints) -> Tensor:
        self._settle()
        return super().kept(name, clients)

    def nodes(self, idle: Floats | None = None) -> dict[str, RowStream]:
        """The nodes' states, shard by shard, each ``[n, width]``."""
        widths = self._ask("node_widths")[self.shards[0]]
        having = {k: (self.members[k], self.members[k]) for k in self.shards}
        return {name: self._stream(name, self.task.num_clients, width, having, idle) for name, width in widths.items()}

    def load_nodes(self, saved: Saved) -> None:
        self.checkpointed(saved)
        self._reset(self.shards)

    def checkpointed(self, saved: Saved) -> None:
        super().checkpointed(saved)
        self._saved = saved

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
