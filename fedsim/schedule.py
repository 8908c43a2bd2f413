"""Who works when under a virtual clock: generators of events in integer ticks, without any training.

All clients start at time 0. A job is one stretch of local work of one client; jobs carry serial numbers, and ties are
broken by client. A client that delivers pulls the model that its own delivery has already entered.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

Duration = Callable[[int, int], int]
"""``duration(client, k)``: ticks that the client's k-th job (0, 1, ...) takes, at least 1."""


class Started(NamedTuple):
    """Clients pull the current model; job ``jobs[i]`` is the ``indices[i]``-th of ``clients[i]``."""

    tick: int
    jobs: list[int]
    clients: list[int]
    indices: list[int]


class Combined(NamedTuple):
    """The results of these jobs are combined; `staleness` counts the combines since each client pulled."""

    tick: int
    jobs: list[int]
    clients: list[int]
    indices: list[int]
    staleness: list[int]


Step = Started | Combined


class _Clients:
    """What each client is doing: its job, which of its jobs that is, and the model version it pulled."""

    def __init__(self, n: int, duration: Duration) -> None:
        self.job, self.index, self.pulled = [0] * n, [-1] * n, [0] * n
        self.duration = duration
        self.version = self.jobs = 0
        self.heap: list[tuple[int, int]] = []

    def start(self, tick: int, clients: list[int]) -> Started:
        """All `clients` pull the current version and go to work."""
        for c in clients:
            self.job[c], self.pulled[c] = self.jobs, self.version
            self.index[c] += 1
            self.jobs += 1
            heapq.heappush(self.heap, (tick + self.duration(c, self.index[c]), c))
        return Started(tick, [self.job[c] for c in clients], clients, [self.index[c] for c in clients])

    def combine(self, tick: int, clients: list[int]) -> Combined:
        """The results of `clients` make the next version."""
        stale = [self.version - self.pulled[c] for c in clients]
        self.version += 1
        return Combined(tick, [self.job[c] for c in clients], clients, [self.index[c] for c in clients], stale)


def asynchronous(n: int, duration: Duration) -> Iterator[Step]:
    """Every arrival is combined by itself, and its client restarts at once."""
    state = _Clients(n, duration)
    yield state.start(0, list(range(n)))
    heap, job, index, pulled = state.heap, state.job, state.index, state.pulled
    version, jobs = 0, n
    while True:  # written out: ten million of these are to take a minute
        tick, c = heap[0]
        i = index[c]
        yield Combined(tick, [job[c]], [c], [i], [version - pulled[c]])
        version += 1
        i += 1
        job[c], index[c], pulled[c] = jobs, i, version
        yield Started(tick, [jobs], [c], [i])
        jobs += 1
        heapq.heapreplace(heap, (tick + duration(c, i), c))


def fixed_interval(n: int, duration: Duration, window: int) -> Iterator[Step]:
    """FedFix (arXiv 2206.10189): combine at every multiple of `window` ticks what has arrived.

    Who has finished waits for that moment and restarts then. Clients are never interrupted; a window in which nobody
    delivers is a combine of nothing.
    """
    state = _Clients(n, duration)
    yield state.start(0, list(range(n)))
    close = 0
    while True:
        close += window
        done = []
        while state.heap[0][0] <= close:
            done.append(heapq.heappop(state.heap)[1])
            if not state.heap:
                break
        done.sort()
        yield state.combine(close, done)
        if done:
            yield state.start(close, done)


def barrier(n: int, duration: Duration, size: int) -> Iterator[Step]:
    """FedBuff's closed variant in FedFix's code: who has delivered waits until `size` have, then all restart."""
    state = _Clients(n, duration)
    yield state.start(0, list(range(n)))
    while True:
        first = [heapq.heappop(state.heap) for _ in range(size)]
        tick = first[-1][0]
        done = sorted(c for _, c in first)
        yield state.combine(tick, done)
        yield state.start(tick, done)


def buffered(n: int, duration: Duration, size: int, concurrency: int, random: np.random.Generator) -> Iterator[Step]:
    """FedBuff (arXiv 2106.06639): `concurrency` clients work at any time, and every `size` results are combined.

    Whoever finishes is replaced at once by a random idle client (itself, if all others are at work). A client may be in
    a buffer more than once.
    """
    state = _Clients(n, duration)
    order = random.permutation(n).tolist()
    idle, active = order[concurrency:], sorted(order[:concurrency])
    yield state.start(0, active)
    buffer: list[tuple[int, int, int, int]] = []
    while True:
        tick, c = heapq.heappop(state.heap)
        buffer.append((state.job[c], c, state.index[c], state.pulled[c]))
        if len(buffer) == size:
            stale = [state.version - b[3] for b in buffer]
            state.version += 1
            yield Combined(tick, [b[0] for b in buffer], [b[1] for b in buffer], [b[2] for b in buffer], stale)
            buffer.clear()
        if idle:
            place = int(random.integers(len(idle)))
            idle[place], c = c, idle[place]
        yield state.start(tick, [c])


def participation_rates(steps: Iterator[Step], n: int, rounds: int) -> np.ndarray:
    """Share of the first `rounds` combines in which each client delivers (counting repeated deliveries), ``[n]``."""
    counts = np.zeros(n)
    seen = 0
    for step in steps:
        if isinstance(step, Combined):
            for c in step.clients:
                counts[c] += 1
            seen += 1
            if seen == rounds:
                break
    return counts / max(seen, 1)
