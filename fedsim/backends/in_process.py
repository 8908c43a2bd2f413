"""All clients in this process, as rows of one batched computation, computed when the first result is needed.

On a virtual clock very many clients may be at work at a time. What they received is one row for all that began with the
same model, while a result is a row for each: so only as many are computed ahead as memory is set aside for, those first
that end first. When a job is computed changes no number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedsim.backends.base import BackendDefaults
from fedsim.backends.under_way import ends_of, packed, unpacked
from fedsim.clients.evaluating import evaluate
from fedsim.clients.worker import Worker
from fedsim.core.arrays import Ints
from fedsim.core.errors import RunError
from fedsim.core.job import Job
from fedsim.core.own_tests import Asked, OwnAnswers
from fedsim.core.types import Message

_AHEAD_BYTES = 2**30
"""What results may take that nobody has asked for yet: for each as much as for its parameters, twice."""


class Vectorized(BackendDefaults):
    """Dispatching records a job; collecting a client that is not computed yet computes the pending jobs at once."""

    shows_kept = True

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._pending: list[Job] = []
        self._done: dict[int, _Batch] = {}
        self._most = max(1, _AHEAD_BYTES // (2 * max(worker.initial.nbytes, 1)))
        self._stateful = not worker.store.empty

    def dispatch(self, job: Job) -> None:
        self.settle(job.clients)  # a client's next job builds on the state that its last one leaves
        self._pending.append(job)

    def collect(self, jobs: Ints) -> Message:
        if len(self._pending) == 1 and not self._done and np.array_equal(self._pending[0].numbers, jobs):
            return self.worker.run(self._pending.pop())  # a synchronous round: nothing to sort out
        wanted = [j for j in jobs.tolist() if j not in self._done]
        if self._pending and wanted:
            self.advance(wanted)
        missing = [j for j in wanted if j not in self._done]
        if missing:
            raise RunError(f"jobs {missing[:5]} were collected before they were dispatched")
        return _stacked([self._done.pop(j).taken(j) for j in jobs.tolist()])

    def save(self) -> dict[str, Tensor]:
        """Clients' state, and the jobs in flight: what is computed, and what the others received."""
        saved = self.worker.store.save()
        saved |= packed(self._pending)
        if self._done:
            saved["done.numbers"] = torch.as_tensor(list(self._done))
            rows = _stacked([batch.row(number) for number, batch in self._done.items()])
            saved |= {f"done.message.{k}": v for k, v in rows.items()}
        return saved

    def load(self, saved: Mapping[str, Tensor]) -> None:
        saved = dict(saved)  # of a file, each tensor once
        self.worker.store.load(saved)
        device = self.worker.initial.device
        self._pending = unpacked(saved, device)
        if "done.numbers" in saved:
            messages = {k: v.to(device) for k, v in _under("done.message.", saved).items()}
            done = saved["done.numbers"].tolist()
            self._done |= dict.fromkeys(done, _Batch(messages, done))

    def settle(self, clients: Ints) -> None:
        """Do what these clients have under way, where that changes what they keep."""
        if self._stateful:
            given = [n for job in self._pending for n in job.numbers[np.isin(job.clients, clients)].tolist()]
            if given:
                self.advance(given)

    def kept(self, name: str, clients: Ints) -> Tensor:
        self.settle(clients)  # how much is computed ahead must not show
        return self.worker.store.gather(clients)[name]

    def own_answers(self, clients: Ints, received: Message, asked: Asked) -> OwnAnswers:
        if asked.personal:
            self.compute()
        return evaluate(self.worker, clients, received, asked)

    def compute(self) -> None:
        """All pending jobs in one batch."""
        if self._pending:
            self._run(self._pending, [])

    def advance(self, wanted: Sequence[int] = ()) -> None:
        """Compute the pending jobs `wanted`, and as many of the others as there is room for."""
        room, under_way = self._most - len(self._done), sum(len(job.clients) for job in self._pending)
        if under_way <= room:
            self.compute()
            return
        numbers = np.concatenate([job.numbers for job in self._pending])
        chosen = np.isin(numbers, wanted) if len(wanted) != 1 else numbers == wanted[0]
        if room >= self._most // 4:  # for less, going through all of them again and again would take longest
            ends = np.concatenate([ends_of(job) for job in self._pending])
            chosen[np.lexsort((ends, ~chosen))[:room]] = True
        now, later, last = [], [], 0
        for job in self._pending:
            first, last = last, last + len(job.clients)
            mark = chosen[first:last]
            count = int(np.count_nonzero(mark))
            if count:
                now.append(job.of(np.flatnonzero(mark)) if count < len(mark) else job)
            if count < len(mark):
                later.append(job.of(np.flatnonzero(~mark)) if count else job)
        if now:
            self._run(now, later)

    def _run(self, jobs: list[Job], later: list[Job]) -> None:
        job = _merge(jobs)
        rows = self.worker.run(job)
        self._pending = later  # only now: what raises has to raise again when its messages are asked for
        numbers = job.numbers.tolist()
        self._done |= dict.fromkeys(numbers, _Batch(rows, numbers))


class _Batch:
    """Rows that were computed together; where less than half of them are left, the others are given up.

    A row is not a tensor of its own, since a million views would cost more than their numbers.
    """

    def __init__(self, rows: Message, numbers: Sequence[int]) -> None:
        self.rows, self.size = rows, len(numbers)
        self.places = {number: i for i, number in enumerate(numbers)}

    def row(self, number: int) -> tuple[Message, int]:
        """The rows that a job was computed among, and which of them is its own."""
        return self.rows, self.places[number]

    def taken(self, number: int) -> tuple[Message, int]:
        """The same, for the last time."""
        found = self.rows, self.places.pop(number)
        if 2 * len(self.places) < self.size and self.places:
            index = torch.as_tensor(list(self.places.values()), device=next(iter(self.rows.values())).device)
            self.rows, self.size = {k: v[index] for k, v in self.rows.items()}, len(self.places)
            self.places = {left: i for i, left in enumerate(self.places)}
        return found


def _stacked(found: list[tuple[Message, int]]) -> Message:
    """Rows out of several results as one, ``[m, d]`` each."""
    return {k: torch.stack([rows[k][i] for rows, i in found]) for k in found[0][0]}


def _under(prefix: str, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)}


def _merge(jobs: list[Job]) -> Job:
    """Several jobs as one; what each received becomes rows."""
    if len(jobs) == 1:
        return jobs[0]
    received = {k: torch.cat([j.received[k].expand(len(j.clients), -1) for j in jobs]) for k in jobs[0].received}
    clients, rounds, steps, numbers = (
        np.concatenate([getattr(j, k) for j in jobs]) for k in ("clients", "rounds", "steps", "numbers")
    )
    return Job(clients, rounds, steps, received, numbers, ends=np.concatenate([ends_of(job) for job in jobs]))
