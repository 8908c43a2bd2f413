"""All clients in this process, as rows of one batched computation, computed when the first result is needed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fedsim.backends.base import BackendDefaults
from fedsim.clients.evaluating import evaluate
from fedsim.clients.worker import Worker
from fedsim.core.arrays import Ints
from fedsim.core.errors import RunError
from fedsim.core.job import Job
from fedsim.core.own_tests import Asked, OwnAnswers
from fedsim.core.types import Message


class Vectorized(BackendDefaults):
    """Dispatching records a job; collecting a client that is not computed yet computes all pending jobs at once."""

    shows_kept = True

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._pending: list[Job] = []
        self._done: dict[int, tuple[Message, int]] = {}
        """The rows that a job was computed among, and which of them is its own: a million views would cost more."""
        self._stateful = not worker.store.empty

    def dispatch(self, job: Job) -> None:
        if self._stateful and any(np.isin(job.clients, other.clients).any() for other in self._pending):
            self.compute()  # a client's next job builds on the state that its last one leaves
        self._pending.append(job)

    def collect(self, jobs: Ints) -> Message:
        if len(self._pending) == 1 and not self._done and np.array_equal(self._pending[0].numbers, jobs):
            return self.worker.run(self._pending.pop())  # a synchronous round: nothing to sort out
        if self._pending and any(j not in self._done for j in jobs.tolist()):
            self.compute()
        missing = [j for j in jobs.tolist() if j not in self._done]
        if missing:
            raise RunError(f"jobs {missing[:5]} were collected before they were dispatched")
        return _stacked([self._done.pop(j) for j in jobs.tolist()])

    def save(self) -> dict[str, Tensor]:
        """Clients' state, and the jobs in flight: what is computed, and what the others received."""
        saved = self.worker.store.save()
        if self._pending:
            job = _merge(self._pending)
            rows = {k: v.expand(len(job.clients), -1) for k, v in job.received.items()}
            saved |= {f"pending.received.{k}": v for k, v in rows.items()}
            for name in ("numbers", "clients", "rounds", "steps"):
                saved[f"pending.{name}"] = torch.as_tensor(getattr(job, name))
        if self._done:
            saved["done.numbers"] = torch.as_tensor(list(self._done))
            saved |= {f"done.message.{k}": v for k, v in _stacked(list(self._done.values())).items()}
        return saved

    def load(self, saved: Mapping[str, Tensor]) -> None:
        saved = dict(saved)  # of a file, each tensor once
        self.worker.store.load(saved)
        device = self.worker.initial.device
        if "pending.numbers" in saved:
            received = {k: v.to(device) for k, v in _under("pending.received.", saved).items()}
            numbers, clients, rounds, steps = (
                saved[f"pending.{name}"].numpy() for name in ("numbers", "clients", "rounds", "steps")
            )
            self._pending = [Job(clients, rounds, steps, received, numbers)]
        if "done.numbers" in saved:
            messages = {k: v.to(device) for k, v in _under("done.message.", saved).items()}
            self._done |= {number: (messages, i) for i, number in enumerate(saved["done.numbers"].tolist())}

    def draw_from(self, word: int) -> None:
        """Jobs that were given before have the noise that they would have had."""
        self.compute()

    def kept(self, name: str, clients: Ints) -> Tensor:
        return self.worker.store.gather(clients)[name]

    def own_answers(self, clients: Ints, received: Message, asked: Asked) -> OwnAnswers:
        if asked.personal:
            self.compute()
        return evaluate(self.worker, clients, received, asked)

    def compute(self) -> None:
        """All pending jobs in one batch."""
        if not self._pending:
            return
        job = _merge(self._pending)
        rows = self.worker.run(job)
        self._pending = []  # only now: what raises has to raise again when its messages are asked for
        self._done |= {number: (rows, i) for i, number in enumerate(job.numbers.tolist())}


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
    return Job(clients, rounds, steps, received, numbers)
