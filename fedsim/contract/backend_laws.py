"""What a place where clients are computed promises: the worker's numbers, whatever is asked for when."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from fedsim.algorithms.scaffold import Scaffold
from fedsim.clients.worker import Worker
from fedsim.contract.bench import CLIENTS, Bench
from fedsim.contract.tools import LawBrokenError, compare
from fedsim.core.errors import RunError
from fedsim.core.job import Job
from fedsim.core.types import Message

Make = Callable[[Worker], Any]
TOLERANCE = 1e-12
_HINT = "a backend changes where clients are computed, never what they compute"


def backend_laws(make: Make) -> Mapping[str, Callable[[], str]]:
    """Laws of the backend that `make` gives for a worker."""
    return {
        "it gives the worker's messages": partial(_messages, make),
        "jobs are told apart by their numbers": partial(_numbers, make),
        "a client's jobs build on each other": partial(_state, make),
        "a resumed one goes on as it was": partial(_resume, make),
        "what was not dispatched is refused": partial(_unknown, make),
    }


def _worker() -> Worker:
    bench = Bench(Scaffold(lr=0.1))
    return Worker(bench.task(bench.noise), bench.algorithm)


def _job(clients: list[int], number: int, jobs: list[int] | None = None) -> Job:
    mine = np.array(clients)
    worker = _worker()
    received = {"x": worker.initial + number, "c": torch.zeros_like(worker.initial)}
    numbers = None if jobs is None else np.array(jobs)
    return Job(mine, np.full(len(mine), number), 1 + mine % 3, received, numbers)


def _used(make: Make, test: Callable[[Any], str]) -> str:
    backend = make(_worker())
    try:
        return test(backend)
    finally:
        backend.close()


def _compare(where: str, expected: Message, found: Message) -> float:
    rows = {k: v if isinstance(v, torch.Tensor) else v.tensor() for k, v in found.items()}
    return compare(where, expected, rows, TOLERANCE, _HINT)


def _messages(make: Make) -> str:
    def test(backend: Any) -> str:
        job = _job(list(range(CLIENTS)), 1)
        expected = _worker().run(job)
        backend.dispatch(job)
        return f"largest difference {_compare('all clients', expected, backend.collect(job.clients)):.1e}"

    return _used(make, test)


def _numbers(make: Make) -> str:
    def test(backend: Any) -> str:
        worker, worst = _worker(), 0.0
        first, second = _job([0, 3, 5], 1, [10, 11, 12]), _job([1, 4], 2, [13, 14])
        expected = {**_by_number(worker.run(first), [10, 11, 12]), **_by_number(worker.run(second), [13, 14])}
        backend.dispatch(first)
        backend.dispatch(second)
        for wanted in ([14, 10], [12], [13, 11]):
            found = backend.collect(np.array(wanted))
            rows = {k: torch.stack([expected[n][k] for n in wanted]) for k in expected[10]}
            worst = max(worst, _compare(f"jobs {wanted}", rows, found))
        return f"largest difference {worst:.1e}"

    return _used(make, test)


def _by_number(messages: Message, numbers: list[int]) -> dict[int, Message]:
    return {n: {k: v[i] for k, v in messages.items()} for i, n in enumerate(numbers)}


def _state(make: Make) -> str:
    def test(backend: Any) -> str:
        worker, worst = _worker(), 0.0
        for number in (1, 2, 3):
            job = _job([2, 4], number, [2 * number, 2 * number + 1])
            expected = worker.run(job)
            backend.dispatch(job)
            worst = max(worst, _compare(f"round {number}", expected, backend.collect(job.numbers)))
        return f"largest difference {worst:.1e}"

    return _used(make, test)


def _resume(make: Make) -> str:
    """Saved with a job under way, loaded into a fresh backend."""

    def test(backend: Any) -> str:
        worker = _worker()
        first, second = _job([0, 2, 4], 1, [1, 2, 3]), _job([1, 2], 2, [4, 5])
        worker.run(first)
        expected = worker.run(second)
        backend.dispatch(first)
        backend.collect(first.numbers)
        backend.dispatch(second)
        saved = backend.save()
        other = make(_worker())
        try:
            other.load({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in saved.items()})
            worst = _compare("the job that was under way", expected, other.collect(second.numbers))
        finally:
            other.close()
        return f"largest difference {worst:.1e}"

    return _used(make, test)


def _unknown(make: Make) -> str:
    def test(backend: Any) -> str:
        try:
            backend.collect(np.array([0]))
        except RunError as error:
            return str(error)
        raise LawBrokenError("collecting a job that was never dispatched gave something, allowed: a RunError")

    return _used(make, test)
