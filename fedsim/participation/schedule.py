"""A virtual clock that drives a policy: who works when, in integer ticks, without any training.

A job is one stretch of local work of one client; jobs carry serial numbers, and ties are broken by client. All clients
start at time 0, or as soon as their device is on. A client that delivers pulls the model that its own delivery has
already entered. A job may be lost: then its client starts anew when the server gives the job up, if it is still there.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np

from fedsim.core.arrays import Ints
from fedsim.participation.policy import Action, Alert, Arrived, Combine, EachArrival, Lost, Policy, Rang, Woke, Work

_ARRIVES, _LOST, _WAKES = 0, 1, 2
_IN_VAIN, _IN_VAIN_EACH = 100_000, 100
"""Lost jobs in a row, at least in all and for every client, after which nothing is going to arrive."""
_MANY = 10_000
"""Clients from which on what always arrives is made in stretches, in each of which one in `_PART` of them arrive."""
_PART = 16
_LATEST = 2**62
"""The last tick in arrays."""
_RINGS = 1000
"""Moments in a row that a policy waited for while nobody was at work, after which nothing is going to happen."""


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
    """Clients that are always on, and jobs that all arrive: ``duration(client, k)`` ticks, at least 1.

    `durations` gives those of many jobs ``[m]`` at once, where there is a faster way than one after the other.
    """

    def __init__(
        self, duration: Callable[[int, int], int], durations: Callable[[Ints, Ints], list[int]] | None = None
    ) -> None:
        self.duration = duration
        self.durations = durations or self._each

    def _each(self, clients: Ints, indices: Ints) -> list[int]:
        return [self.duration(c, i) for c, i in zip(clients.tolist(), indices.tolist(), strict=True)]

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


def steps(policy: Policy, n: int, jobs: Jobs) -> Iterator[Step]:
    """What `policy` does with the jobs of n clients."""
    if type(policy) is EachArrival and isinstance(jobs, Steady):
        return _always_arriving(n, jobs)
    return _VirtualClock(n, jobs).run(policy)


class _VirtualClock:
    """What each client is doing: its job, which of its jobs that is, and the model version it pulled."""

    def __init__(self, n: int, jobs: Jobs) -> None:
        self.n = n
        self.job, self.index, self.pulled = [0] * n, [-1] * n, [0] * n
        self.fate, self.ready = jobs.fate, jobs.ready
        self.version = self.jobs = self.tick = self.in_vain = self.rings = 0
        self.most_in_vain = max(_IN_VAIN, _IN_VAIN_EACH * n)
        self.heap: list[tuple[int, int, int]] = []
        self.alarm: int | None = None

    @property
    def busy(self) -> bool:
        return bool(self.heap)

    def may_return(self, client: int) -> bool:
        return False

    def run(self, policy: Policy) -> Iterator[Step]:
        """Let things happen in their order, ties by client, until nothing more will."""
        policy.clock = self
        heap, on = self.heap, policy.on
        actions: Iterable[Action] | None = policy.begin()
        while actions is not None:
            for action in actions:
                if isinstance(action, Combine):
                    yield self.combine(action.jobs)
                elif isinstance(action, Alert):
                    self.alarm = max(action.tick, self.tick)
                elif (started := self.again(action.clients)) is not None:
                    yield started
            if self.alarm is not None and not (heap and heap[0][0] <= self.alarm):
                self.rings = 0 if heap else self.rings + 1
                self.tick, self.alarm = self.alarm, None
                actions = on(Rang()) if self.rings <= _RINGS else None
            elif heap and self.in_vain < self.most_in_vain:
                self.tick, c, kind = heapq.heappop(heap)
                if kind == _ARRIVES:
                    actions = on(Arrived(Work(self.job[c], c, self.index[c], self.pulled[c])))
                else:
                    self.in_vain += kind == _LOST
                    actions = on(Lost(c) if kind == _LOST else Woke(c))
            else:
                actions = None
        yield self.stop()

    def again(self, clients: Iterable[int]) -> Started | None:
        """Those of `clients` that are on go to work, the others as soon as they are; who has left never does."""
        on, tick, ready = [], self.tick, self.ready
        for c in clients:
            at = ready(c, tick)
            if at == tick:
                on.append(c)
            elif at is not None:
                heapq.heappush(self.heap, (at, c, _WAKES))
        return self.start(on) if on else None

    def start(self, clients: list[int]) -> Started:
        """All `clients` pull the current version and go to work."""
        fates, tick = [], self.tick
        for c in clients:
            self.job[c], self.pulled[c] = self.jobs, self.version
            self.index[c] += 1
            self.jobs += 1
            fate = self.fate(c, self.index[c], tick)
            fates.append(fate)
            heapq.heappush(self.heap, (fate.heard, c, _ARRIVES if fate.arrives else _LOST))
        return Started(tick, [self.job[c] for c in clients], clients, [self.index[c] for c in clients], fates)

    def combine(self, jobs: list[Work]) -> Combined:
        """These results make the next version."""
        stale = [self.version - job.pulled for job in jobs]
        self.version += 1
        self.in_vain = 0
        return Combined(
            self.tick, [job.number for job in jobs], [job.client for job in jobs], [job.nth for job in jobs], stale
        )

    def stop(self) -> Stopped:
        """Why there is nothing more to come."""
        if self.heap:
            return Stopped(self.tick, f"the last {self.in_vain:,} jobs were lost, every one of them")
        return Stopped(self.tick, "no client is left that could deliver")


def _always_arriving(n: int, jobs: Steady) -> Iterator[Step]:
    """`EachArrival` for `Steady` jobs, written out: ten million of these are to take half a minute."""
    everybody, none = list(range(n)), np.zeros(n, dtype=np.int64)
    ends = jobs.durations(np.arange(n), none)
    yield Started(0, everybody, everybody, [0] * n, [Fate(end, end, True) for end in ends])
    state = _Arriving(ends)
    if n >= _MANY:
        yield from state.in_stretches(jobs.durations)
    yield from state.one_by_one(jobs.duration)


class _Arriving:
    """Clients that are all at work: when the job of each ends, which job it is, and the version that it pulled."""

    def __init__(self, ends: list[int]) -> None:
        n = len(ends)
        self.ends, self.job, self.index, self.pulled = ends, list(range(n)), [0] * n, [0] * n
        self.version, self.started = 0, n

    def one_by_one(self, duration: Callable[[int, int], int]) -> Iterator[Step]:
        """All arrivals from here on."""
        heap = [(tick, c) for c, tick in enumerate(self.ends)]
        heapq.heapify(heap)
        job, index, pulled = self.job, self.index, self.pulled
        version, started = self.version, self.started
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

    def in_stretches(self, durations: Callable[[Ints, Ints], list[int]]) -> Iterator[Step]:
        """The same of very many clients, until a tick comes that is too large for arrays.

        What happens up to some tick is found for all clients at once and put in order: a heap of a million lies in no
        cache.
        """
        if max(self.ends) > _LATEST:
            return
        ends, job, index, pulled = (np.array(v) for v in (self.ends, self.job, self.index, self.pulled))
        version, started = self.version, self.started
        part, width = len(ends) // _PART, _LATEST
        while True:
            first = int(ends.min())
            last = min(int(np.partition(ends, part)[part]), first + width)
            while (made := _up_to(last, ends, index, durations)) is None:  # a few are much faster than all others
                last = (first + last) // 2
            if not made:
                break
            width = min(2 * (last - first) + 1, _LATEST)
            client, tick, nth, end, before = (np.concatenate(column) for column in zip(*made, strict=True))
            order = np.lexsort((client, tick))
            place = np.empty_like(order)
            place[order] = np.arange(len(order))
            earlier, again = place[before], before >= 0  # who arrived in this stretch before pulled what that made
            done = np.where(again, started + earlier, job[client])
            stale = version + place - np.where(again, version + 1 + earlier, pulled[client])
            columns = (v[order].tolist() for v in (tick, client, done, nth, stale, end))
            for number, (t, c, j, i, s, e) in enumerate(zip(*columns, strict=True), started):
                yield Combined(t, [j], [c], [i], [s])
                yield Started(t, [number], [c], [i + 1], [Fate(e, e, True)])
            parts = np.split(place, np.cumsum([len(who) for who, *_ in made])[:-1])
            for (who, _, which, until, _), own in zip(made, parts, strict=True):  # of a client the last one counts
                ends[who], index[who], job[who], pulled[who] = until, which + 1, started + own, version + 1 + own
            version, started = version + len(order), started + len(order)
        self.ends, self.job, self.index, self.pulled = (v.tolist() for v in (ends, job, index, pulled))
        self.version, self.started = version, started


_Arrivals = tuple[Ints, Ints, Ints, Ints, Ints]
"""Of clients, ``[k]`` each: who, when, which of its jobs, when the next one ends, and the place of its arrival before
that one among all (-1: there is none)."""


def _up_to(last: int, ends: Ints, index: Ints, durations: Callable[[Ints, Ints], list[int]]) -> list[_Arrivals] | None:
    """All arrivals up to the tick `last`, first those of which the jobs that are going on end, then those of the jobs
    after them, and so on; none where a tick would be too large, None where there are more of them than clients."""
    made: list[_Arrivals] = []
    who = np.flatnonzero(ends <= last)
    tick, nth, before, count = ends[who], index[who], np.full(len(who), -1), 0
    while len(who):
        if count + len(who) > len(ends):
            return None
        taken = durations(who, nth + 1)
        if last + max(taken) > _LATEST:
            return []
        end = tick + np.array(taken)
        made.append((who, tick, nth, end, before))
        again = end <= last
        before, count = count + np.flatnonzero(again), count + len(who)
        who, tick, nth = who[again], end[again], nth[again] + 1
    return made


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
