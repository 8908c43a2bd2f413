"""Who works when under a virtual clock: generators of events in integer ticks, without any training.

A job is one stretch of local work of one client; jobs carry serial numbers, and ties are broken by client. All clients
start at time 0, or as soon as their device is on. A client that delivers pulls the model that its own delivery has
already entered. A job may be lost: then its client starts anew when the server gives the job up, if it is still there.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np

_ARRIVES, _LOST, _WAKES = 0, 1, 2
_TRIES = 1000
"""Random picks of a client that is on, before all idle clients are asked."""
_IN_VAIN, _IN_VAIN_EACH = 100_000, 100
"""Lost jobs in a row, at least in all and for every client, after which nothing is going to arrive."""


class Fate(NamedTuple):
    """What becomes of a job, in ticks.

    The device works on it until `end`; the server has the result, or gives it up, at `heard`. `sent`: the result, or
    what never arrives of it, was sent.
    """

    end: int
    heard: int
    arrives: bool
    sent: bool = True


class Jobs(Protocol):
    """How long clients work and when they can."""

    def fate(self, client: int, index: int, tick: int) -> Fate:
        """What becomes of the client's job number `index` (0, 1, ...) if it starts at `tick`."""

    def ready(self, client: int, tick: int) -> int | None:
        """The first tick from `tick` on at which the client can start a job (None: never again)."""


class Steady:
    """Clients that are always on, and jobs that all arrive: ``duration(client, k)`` ticks, at least 1."""

    def __init__(self, duration: Callable[[int, int], int]) -> None:
        self.duration = duration

    def fate(self, client: int, index: int, tick: int) -> Fate:
        end = tick + self.duration(client, index)
        return Fate(end, end, True)

    def ready(self, client: int, tick: int) -> int | None:
        return tick


class Started(NamedTuple):
    """Clients pull the current model; job ``jobs[i]`` is the ``indices[i]``-th of ``clients[i]``."""

    tick: int
    jobs: list[int]
    clients: list[int]
    indices: list[int]
    fates: list[Fate]


class Combined(NamedTuple):
    """The results of these jobs are combined; `staleness` counts the combines since each client pulled."""

    tick: int
    jobs: list[int]
    clients: list[int]
    indices: list[int]
    staleness: list[int]


class Stopped(NamedTuple):
    """Nothing more will arrive, and why. The last step of a schedule that ends."""

    tick: int
    reason: str


Step = Started | Combined | Stopped


class _Clients:
    """What each client is doing: its job, which of its jobs that is, and the model version it pulled."""

    def __init__(self, n: int, jobs: Jobs) -> None:
        self.job, self.index, self.pulled = [0] * n, [-1] * n, [0] * n
        self.fate, self.ready = jobs.fate, jobs.ready
        self.version = self.jobs = self.tick = self.in_vain = 0
        self.most_in_vain = max(_IN_VAIN, _IN_VAIN_EACH * n)
        self.heap: list[tuple[int, int, int]] = []

    def pop(self) -> tuple[int, int, int]:
        """The next (tick, client, what happens)."""
        found = heapq.heappop(self.heap)
        self.tick = found[0]
        self.in_vain += found[2] == _LOST
        return found

    def start(self, tick: int, clients: list[int]) -> Started:
        """All `clients` pull the current version and go to work."""
        fates = []
        for c in clients:
            self.job[c], self.pulled[c] = self.jobs, self.version
            self.index[c] += 1
            self.jobs += 1
            fate = self.fate(c, self.index[c], tick)
            fates.append(fate)
            heapq.heappush(self.heap, (fate.heard, c, _ARRIVES if fate.arrives else _LOST))
        return Started(tick, [self.job[c] for c in clients], clients, [self.index[c] for c in clients], fates)

    def again(self, tick: int, clients: Iterable[int]) -> Iterator[Started]:
        """Those of `clients` that are on go to work, the others as soon as they are; who has left never does."""
        on = []
        for c in clients:
            at = self.ready(c, tick)
            if at == tick:
                on.append(c)
            elif at is not None:
                heapq.heappush(self.heap, (at, c, _WAKES))
        if on:
            yield self.start(tick, on)

    def combine(self, tick: int, clients: list[int]) -> Combined:
        """The results of `clients` make the next version."""
        stale = [self.version - self.pulled[c] for c in clients]
        self.version += 1
        self.in_vain = 0
        return Combined(tick, [self.job[c] for c in clients], clients, [self.index[c] for c in clients], stale)

    @property
    def alive(self) -> bool:
        """Whether somebody is or will be at work, and not everything is lost."""
        return bool(self.heap) and self.in_vain < self.most_in_vain

    def stop(self) -> Stopped:
        """Why there is nothing more to come."""
        if self.heap:
            return Stopped(self.tick, f"the last {self.in_vain:,} jobs were lost, every one of them")
        return Stopped(self.tick, "no client is left that could deliver")


def asynchronous(n: int, jobs: Jobs) -> Iterator[Step]:
    """Every arrival is combined by itself, and its client restarts at once."""
    return _always_arriving(n, jobs.duration) if isinstance(jobs, Steady) else _asynchronous(n, jobs)


def _asynchronous(n: int, jobs: Jobs) -> Iterator[Step]:
    state = _Clients(n, jobs)
    yield from state.again(0, range(n))
    while state.alive:
        tick, c, kind = state.pop()
        if kind == _ARRIVES:
            yield state.combine(tick, [c])
        yield from state.again(tick, [c])
    yield state.stop()


def _always_arriving(n: int, duration: Callable[[int, int], int]) -> Iterator[Step]:
    """The same for `Steady` jobs, written out: ten million of these are to take a minute."""
    state = _Clients(n, Steady(duration))
    yield state.start(0, list(range(n)))
    heap = [(tick, c) for tick, c, _ in state.heap]  # a heap still
    job, index, pulled = state.job, state.index, state.pulled
    version, started = 0, n
    while True:
        tick, c = heap[0]
        i = index[c]
        yield Combined(tick, [job[c]], [c], [i], [version - pulled[c]])
        version += 1
        i += 1
        job[c], index[c], pulled[c] = started, i, version
        end = tick + duration(c, i)
        yield Started(tick, [started], [c], [i], [Fate(end, end, True)])
        started += 1
        heapq.heapreplace(heap, (end, c))


def fixed_interval(n: int, jobs: Jobs, window: int) -> Iterator[Step]:
    """FedFix (arXiv 2206.10189): combine at every multiple of `window` ticks what has arrived.

    Who has finished, or has been given up, waits for that moment and restarts then. Clients are never interrupted; a
    window in which nobody delivers is a combine of nothing.
    """
    state = _Clients(n, jobs)
    yield from state.again(0, range(n))
    close = 0
    while state.heap:
        close += window
        done, others = [], []
        while state.heap and state.heap[0][0] <= close:
            tick, c, kind = state.pop()
            if kind == _ARRIVES:
                done.append(c)
            elif kind == _WAKES and tick < close:
                yield state.start(tick, [c])
            else:
                others.append(c)
        done.sort()
        yield state.combine(close, done)
        state.tick = close
        yield from state.again(close, sorted(done + others))
    yield state.stop()


def barrier(n: int, jobs: Jobs, size: int) -> Iterator[Step]:
    """FedBuff's closed variant in FedFix's code: who has delivered waits until `size` have, then all restart.

    Who has been given up restarts at once, for otherwise a buffer might never fill.
    """
    state = _Clients(n, jobs)
    yield from state.again(0, range(n))
    done: list[int] = []
    while state.alive:
        tick, c, kind = state.pop()
        if kind != _ARRIVES:
            yield from state.again(tick, [c])
            continue
        done.append(c)
        if len(done) == size:
            done.sort()
            yield state.combine(tick, done)
            yield from state.again(tick, done)
            done = []
    yield state.stop()


def buffered(n: int, jobs: Jobs, size: int, concurrency: int, random: np.random.Generator) -> Iterator[Step]:
    """FedBuff (arXiv 2106.06639): `concurrency` clients work at any time, and every `size` results are combined.

    Whoever finishes or is given up is replaced at once by a random idle client that is on (by itself, if there is
    none); if nobody is on, by the first who will be. A client may be in a buffer more than once.
    """
    state = _Clients(n, jobs)
    order = random.permutation(n).tolist()
    active = [c for c in order if state.ready(c, 0) == 0][:concurrency]
    taken = set(active)
    idle = [c for c in order if c not in taken]
    if active:
        yield state.start(0, sorted(active))
    _book(state, 0, idle, concurrency - len(active))
    buffer: list[tuple[int, int, int, int]] = []
    while state.alive:
        tick, c, kind = state.pop()
        if kind == _WAKES:
            yield state.start(tick, [c])
            continue
        if kind == _ARRIVES:
            buffer.append((state.job[c], c, state.index[c], state.pulled[c]))
        if len(buffer) == size:
            stale = [state.version - b[3] for b in buffer]
            state.version += 1
            state.in_vain = 0
            yield Combined(tick, [b[0] for b in buffer], [b[1] for b in buffer], [b[2] for b in buffer], stale)
            buffer.clear()
        place = _pick(state, tick, idle, random)
        if place is not None:
            idle[place], c = c, idle[place]
        elif state.ready(c, tick) != tick:
            idle.append(c)
            _book(state, tick, idle, 1)
            continue
        yield state.start(tick, [c])
    yield state.stop()


def _pick(state: _Clients, tick: int, idle: list[int], random: np.random.Generator) -> int | None:
    """The place of a random client among the `idle` ones that are on (None: none is)."""
    for _ in range(min(_TRIES, 4 * len(idle))):
        place = int(random.integers(len(idle)))
        if state.ready(idle[place], tick) == tick:
            return place
    on = [place for place, c in enumerate(idle) if state.ready(c, tick) == tick]
    return on[int(random.integers(len(on)))] if on else None


def _book(state: _Clients, tick: int, idle: list[int], slots: int) -> None:
    """The first `slots` of the `idle` clients to come on will start then; who never will is forgotten."""
    if slots == 0:
        return
    wakes = sorted((at, c) for c in idle if (at := state.ready(c, tick)) is not None)
    for at, c in wakes[:slots]:
        heapq.heappush(state.heap, (at, c, _WAKES))
    idle[:] = [c for _, c in wakes[slots:]]


def participation_rates(steps: Iterator[Step], n: int, rounds: int) -> tuple[np.ndarray, int]:
    """How often each client delivers per combine in the first `rounds` combines ``[n]``, and the tick of the last."""
    counts = np.zeros(n)
    seen = tick = 0
    for step in steps:
        tick = step.tick
        if isinstance(step, Combined):
            for c in step.clients:
                counts[c] += 1
            seen += 1
            if seen == rounds:
                break
    return counts / max(seen, 1), tick
