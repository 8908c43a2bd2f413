"""Clients on a Ray cluster: shards of them in actors, the same numbers as in one process."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.backends.balance import Balance, divided
from fedsim.backends.base import NodeBackend, Saved
from fedsim.backends.guard import Failed
from fedsim.backends.placement import merge_saved, place
from fedsim.backends.ray.calls import Pool, Shards
from fedsim.backends.ray.cluster import Cluster, log
from fedsim.backends.ray.rows import Rows
from fedsim.backends.ray.transport import as_arrays, as_tensor
from fedsim.backends.shard import TABLE, Collected
from fedsim.clients.evaluating import assembled
from fedsim.clients.worker import Worker
from fedsim.core.arrays import Floats, Ints
from fedsim.core.errors import RunError
from fedsim.core.job import Job
from fedsim.core.oracle import Task
from fedsim.core.own_tests import Asked, OwnAnswers
from fedsim.core.row_files import Place, RowStream
from fedsim.core.types import Message

INLINE_BYTES = 2**16
"""Of a broadcast that travels in the calls, as Ray has it below 100 KB; a larger one is put into shared memory once."""
_PART_BYTES = 2**23  # of clients' rows on their way to a file at a time


class RayBackend(Shards):
    """Dispatches to shards and combines what they collect; see `Backend`."""

    nodes_here: NodeBackend | None = None
    shows_kept = True

    def __init__(
        self,
        pool: Pool,
        cluster: Cluster,
        task: Task,
        build: Callable[[Task], Worker],
        load: Any,
        cohort: bool = True,
    ) -> None:
        """Place the clients (`load` ``[n]``: what each costs) and ship their data.

        Of a `cohort` clients can be left out; nodes of a graph only skip their work.
        """
        load = np.asarray(load, dtype=np.float64)
        super().__init__(pool, cluster, task, build, self._place(load, pool.actors))
        if pool.rebalance and len(self.shards) > 1:
            self.balance = Balance(load, self.members)
        self._cohort = cohort
        self.like = task.initial()[:0]
        self.lost = np.empty(0, dtype=np.int64)
        self._widths: dict[str, int] = {}  # of messages, once one has been seen
        self._where: dict[int, int] = {}
        self._pending: dict[int, set[int]] = {}
        self._broadcast: tuple[list[Tensor], Any] | None = None
        self._stateful = not build(task).store.empty
        self._moved_to = ""
        self._failed: dict[Failed, None] = {}  # not told yet, each once
        self._save_begun = self._save_seconds = 0.0  # of the last checkpoint: when it was begun, and what it took

    # --- the backend's side of the loop -------------------------------------------------------------------------------

    def placed(self) -> str:
        if not self._has_something:
            self._forget(None)  # the past is of no use
        self._rebalance()
        return self._moved_to

    def failures(self) -> list[Failed]:
        found, self._failed = list(self._failed), {}
        return found

    def dispatch(self, job: Job) -> None:
        if not self._has_something:
            self._forget(None)
        numbers = job.numbers
        received, size = self._shared(job.received)
        calls = {}
        for k in self.shards:
            rows = np.flatnonzero(self.owner[job.clients] == k)
            if len(rows):
                mine = received if received is not None else as_arrays(_rows(job.received, rows))
                calls[k] = (job.clients[rows], job.rounds[rows], job.steps[rows], numbers[rows], mine)
                wanted = numbers[rows].tolist()
                self._where |= dict.fromkeys(wanted, k)
                self._pending.setdefault(k, set()).update(wanted)
        self._later("dispatch", calls, size)

    def collect(self, jobs: Ints) -> Message:
        missing = [j for j in jobs.tolist() if j not in self._where]
        if missing:
            raise RunError(f"jobs {missing[:5]} were collected before they were dispatched")
        of = np.array([self._where.pop(j) for j in jobs.tolist()], dtype=np.int64)
        places = {k: np.flatnonzero(of == k) for k in self.shards if (of == k).any()}
        if any(j in self._pending.get(k, ()) for j, k in zip(jobs.tolist(), of.tolist(), strict=True)):
            # All pending jobs are computed in one go: by those that deliver now when they are asked, and by the others.
            self._later("compute", {k: () for k in self._pending if k not in places})
            self._pending.clear()
        self._later("collect", {k: (jobs[rows], self._widths) for k, rows in places.items()})
        return self._messages(jobs, places)

    def save(self) -> dict[str, Tensor | RowStream]:
        self._save_begun = time.monotonic()
        answers = self._answers("save", dict.fromkeys(self.shards, ()))
        parts = [{n: as_tensor(v, torch.device("cpu")) for n, v in small.items()} for small, _ in answers.values()]
        merged = merge_saved(parts)
        clients = merged["clients"].numpy()
        rows = {k: np.flatnonzero(self.owner[clients] == k) for k in self.shards}
        having = {k: (clients[mine], mine) for k, mine in rows.items() if len(mine)}
        tables = {name: width for _, widths in answers.values() for name, width in widths.items()}
        streams = {name: self._stream(name, len(clients), tables[name], having) for name in tables if len(clients)}
        return {**merged, **streams}

    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Continue from what `save` of any backend gave, with any number of shards.

        Raises
        ------
        RunError
            The rows of the clients are in a file, where no actor can read them.
        """
        if "slots" in saved:
            raise RunError("this run keeps clients' state on disk: continue it with the backend vectorized")
        self._forget(saved)
        self._locate()
        self._reset(self.shards)

    def _locate(self) -> None:
        """Note where the jobs are that the last checkpoint has."""
        self._where.clear()
        self._pending.clear()
        for k, part in self._parts().items():
            pending, done = ((part[n].tolist() if n in part else []) for n in ("pending.numbers", "done.numbers"))
            self._where |= dict.fromkeys([*pending, *done], k)
            if pending:
                self._pending[k] = set(pending)

    @property
    def wants_checkpoint(self) -> bool:
        """Also where clients are to move: what they keep and have under way goes by the checkpoint's file."""
        due = self.balance is not None and self.balance.due
        return super().wants_checkpoint or (due and self._has_something)

    @property
    def _has_something(self) -> bool:
        """Whether shards have anything that is not in this process."""
        return self._stateful or bool(self._where)

    def _rebalance(self) -> None:
        """Where an actor lags, divide the clients so that all take about the same time.

        It is called where work begins, so that nobody moves after the last round; where anything was done since the
        last checkpoint it waits for the next one.
        """
        balance = self.balance
        if balance is None or not balance.due or not self._at_checkpoint:
            return
        begin, actors, before = time.monotonic(), self._actors(), self.owner
        price = self._save_seconds if self._has_something else 0.0
        owner = balance.better(before, actors, self._placed_again)
        if owner is None:
            return
        self._divide(owner)
        self._locate()
        self._moved_to = hashlib.blake2b(owner.tobytes(), digest_size=8).hexdigest()
        balance.moved(self.members, price + time.monotonic() - begin)
        who = "clients" if self._cohort and self.nodes_here is None else "nodes"
        why = f"the slowest took {balance.before:.2f} times the mean of {max(actors.values()) + 1}"
        # No mere information: it is why a repeated run may have other last bits.
        log.warning(
            "%d of %d %s moved to other actors, since %s; expected from now on: %.2f",
            np.count_nonzero(owner != before), len(owner), who, why, balance.expected,
        )  # fmt: skip

    def kept(self, name: str, clients: Ints) -> Tensor:
        if self._stateful:  # as in one process: how much is computed ahead must not show
            of = {k: clients[self.owner[clients] == k] for k in self.shards}
            self._later("settle", {k: (mine,) for k, mine in of.items() if len(mine)})
        return self._gathered(TABLE + name, clients)

    def own_answers(self, clients: Ints, received: Message, asked: Asked) -> OwnAnswers:
        places = self._places(clients)
        common = all(v.dim() == 1 for v in received.values())
        told = as_arrays(received) if common else {}
        calls = {
            k: (clients[rows], told if common else as_arrays(_rows(received, rows)), asked)
            for k, rows in places.items()
        }
        return self._put_together(places, clients, self._answers("own_answers", calls))

    def _put_together(self, places: Mapping[int, Ints], clients: Ints, parts: Mapping[int, OwnAnswers]) -> OwnAnswers:
        assert self.task.own is not None
        return assembled([(places[k], part) for k, part in parts.items()], self.task.own.sizes[clients])

    def _places(self, clients: Ints) -> dict[int, Ints]:
        """Where among `clients` those of each shard are."""
        found = {k: np.flatnonzero(self.owner[clients] == k) for k in self.shards}
        return {k: rows for k, rows in found.items() if len(rows)}

    def _gathered(self, name: str, clients: Ints, idle: Floats | None = None) -> Tensor:
        """Rows that shards keep of these clients, ``[m, width]`` (see `Shard.kept`)."""
        places = {k: np.flatnonzero(self.owner[clients] == k) for k in self.shards}
        calls = {k: (name, clients[rows], *_of(idle, rows)) for k, rows in places.items() if len(rows)}
        parts = {k: self._tensor(part) for k, part in self._answers("kept", calls).items()}
        whole = self.like.new_empty((len(clients), max((part.shape[-1] for part in parts.values()), default=0)))
        for k, part in parts.items():
            whole[torch.as_tensor(places[k], device=whole.device)] = part
        return whole

    def checkpointed(self, saved: Saved) -> None:
        """A checkpoint was written: what was done before it is not played again."""
        self._forget(saved.clients)
        self._save_seconds = time.monotonic() - self._save_begun

    # --- messages -----------------------------------------------------------------------------------------------------

    def _messages(self, jobs: Ints, places: dict[int, Ints]) -> Message:
        """Rows that stay in the shards.

        Whether anybody was dropped, and messages of one number per client, have to be known at once; otherwise the
        shards are only asked together with the first sum.
        """
        answers: dict[int, Collected] = {}
        if not self._widths or self.pool.drop or 1 in self._widths.values():
            answers = self._answers("collected", dict.fromkeys(places, ()))
            self._widths = dict(next(iter(answers.values())).widths)
        dropped = {n: failed for answer in answers.values() for n, failed in answer.dropped.items()}
        self.lost = np.flatnonzero(np.isin(jobs, list(dropped) if self._cohort else []))
        self._failed.update(dict.fromkeys(dropped.values()))
        keep = np.setdiff1d(np.arange(len(jobs)), self.lost)
        messages: dict[str, Any] = {}
        for name, width in self._widths.items():
            columns = {k: answer.scalars[name] for k, answer in answers.items() if name in answer.scalars}
            messages[name] = (
                self._assembled(columns, places, keep, len(jobs), width)
                if columns
                else self._kept(name, places, keep, len(jobs), width)
            )
        return messages

    def _kept(self, name: str, places: dict[int, Ints], keep: Ints, count: int, width: int) -> Rows:
        """Rows that stay in the shards."""

        def reduce(weights: Tensor) -> Tensor:
            every = np.zeros(count)
            every[keep] = weights.detach().cpu().double().numpy()
            calls = {k: (name, every[rows]) for k, rows in places.items()}
            parts = self._answers("reduce", calls)
            total = self._tensor(parts[min(parts)]).clone()
            for k in sorted(parts)[1:]:  # in the shards' order, so that the same run has the same sum again
                total += self._tensor(parts[k])
            return total

        def fetch() -> Tensor:
            parts = self._answers("rows", dict.fromkeys(places, (name,)))
            return self._assembled(parts, places, keep, count, width)

        return Rows((len(keep), width), self.like, reduce, fetch)

    def _assembled(
        self, parts: Mapping[int, Any], places: dict[int, Ints], keep: Ints, count: int, width: int
    ) -> Tensor:
        whole = self.like.new_empty((count, width))
        for k, rows in parts.items():
            whole[torch.as_tensor(places[k], device=whole.device)] = self._tensor(rows)
        return whole if len(keep) == count else whole[torch.as_tensor(keep, device=whole.device)]

    def _tensor(self, array: Any) -> Tensor:
        return as_tensor(array, self.like.device)

    def _shared(self, received: Message) -> tuple[Any, int]:
        """What all clients received, made ready once as long as it is the same; None where rows differ. And its size.

        Small models travel in the calls, large ones through shared memory.
        """
        values = list(received.values())
        if any(v.dim() > 1 for v in values):
            return None, sum(v.numel() * v.element_size() for v in values)
        if self._broadcast is None or not all(a is b for a, b in zip(self._broadcast[0], values, strict=True)):
            arrays = as_arrays(received)
            size = sum(a.nbytes for a in arrays.values())
            if size > INLINE_BYTES:
                self._broadcast = (values, self._ray.put(arrays))
            else:  # copies: what is changed in place after the call would be changed in the log, too
                self._broadcast = (values, {k: v.copy() for k, v in arrays.items()})
            return self._broadcast[1], size
        return self._broadcast[1], 0

    def _stream(
        self, name: str, count: int, width: int, having: Mapping[int, tuple[Ints, Ints]], idle: Floats | None = None
    ) -> RowStream:
        """Rows ``[count, width]`` that shards keep: the clients that each has, and their rows.

        Shards on this machine write them into the file; those of the others come here, some at a time. `idle` is of
        all clients.
        """

        def parts(place: Place) -> Iterator[tuple[Ints, Any]]:
            near = {k: mine for k, mine in having.items() if self._near[k]}
            self._answers("write", {k: (name, place, *mine, *_of(idle, mine[0])) for k, mine in near.items()})
            for k, (clients, rows) in having.items():
                step = len(rows) if self._near[k] else max(1, _PART_BYTES // place.row_bytes)
                for first in range(0, 0 if self._near[k] else len(rows), step):
                    part = slice(first, first + step)
                    call = (name, clients[part], *_of(idle, clients[part]))
                    yield rows[part], self._answers("kept", {k: call})[k]

        return RowStream((count, width), self.like.dtype, parts)

    def _place(self, load: Any, shards: int) -> Ints:
        return place(load, shards)

    def _placed_again(self, cost: Floats, owner: Ints, at: Mapping[int, int], slowness: Floats) -> Ints:
        return divided(cost, owner, at, slowness)


def _of(idle: Floats | None, rows: Ints) -> tuple[Floats, ...]:
    """What a call is told of `idle`: no None, which stands for a reference there."""
    return () if idle is None else (idle[rows],)


def _rows(received: Message, rows: Ints) -> Message:
    index = torch.as_tensor(rows)
    return {k: v[index.to(v.device)] if v.dim() > 1 else v for k, v in received.items()}
