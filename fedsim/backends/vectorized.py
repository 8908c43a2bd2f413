"""All clients in this process, as rows of one batched computation, computed when the first result is needed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedsim.errors import RunError
from fedsim.task import Ints
from fedsim.types import Message
from fedsim.worker import Job, Worker


class Vectorized:
    """Dispatching records a job; collecting a client that is not computed yet computes all pending jobs at once."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._pending: list[Job] = []
        self._done: dict[int, tuple[Message, int]] = {}

    def dispatch(self, job: Job) -> None:
        self._pending.append(job)

    def collect(self, clients: Ints) -> Message:
        if len(self._pending) == 1 and not self._done and np.array_equal(self._pending[0].clients, clients):
            return self.worker.run(self._pending.pop())  # a synchronous round: nothing to sort out
        if any(int(c) not in self._done for c in clients) and self._pending:
            job = _merge(self._pending)
            self._pending.clear()
            result = self.worker.run(job)
            self._done.update({int(c): (result, i) for i, c in enumerate(job.clients)})
        missing = [int(c) for c in clients if int(c) not in self._done]
        if missing:
            raise RunError(f"clients {missing[:5]} were collected before they were dispatched")
        rows = [self._done.pop(int(c)) for c in clients]
        return {k: torch.stack([message[k][i] for message, i in rows]) for k in rows[0][0]}

    def save(self) -> dict[str, Tensor]:
        return self.worker.store.save()

    def load(self, saved: dict[str, Tensor]) -> None:
        self.worker.store.load(saved)


def _merge(jobs: list[Job]) -> Job:
    """Several jobs as one; what each received becomes rows."""
    if len(jobs) == 1:
        return jobs[0]
    received = {k: torch.cat([j.received[k].expand(len(j.clients), -1) for j in jobs]) for k in jobs[0].received}
    clients, rounds, steps = (np.concatenate([getattr(j, k) for j in jobs]) for k in ("clients", "rounds", "steps"))
    return Job(clients, rounds, steps, received)
