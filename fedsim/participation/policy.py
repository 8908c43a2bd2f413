"""What a server does when something happens: policies of the modes without rounds, the same in every kind of time.

A policy is told what happens (`Arrived`, `Lost`, `Woke`, `Rang`) and answers with what to do (`Start`, `Combine`,
`Alert`). `schedule` drives it by a virtual clock and `wall_clock` by real clients, so that it is written once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np

_TRIES = 1000
"""Random picks of a client that is on, before all idle clients are asked."""


class Work(NamedTuple):
    """Job `number` of the run, the `nth` (0, 1, ...) of `client`, from the model of version `pulled`."""

    number: int
    client: int
    nth: int
    pulled: int


class Arrived(NamedTuple):
    """The result of a job is there."""

    job: Work


class Lost(NamedTuple):
    """The server has given the job of `client` up."""

    client: int


class Woke(NamedTuple):
    """The device of `client`, which was to start, is on now."""

    client: int


class Rang(NamedTuple):
    """The moment that the policy asked for with `Alert`; all that happened up to it was told before."""


class Start(NamedTuple):
    """These clients pull the present model and go to work; whose device is off is told as `Woke` when it is on."""

    clients: list[int]


class Combine(NamedTuple):
    """The results of these jobs make the next version of the model; none is a round of nobody."""

    jobs: list[Work]


class Alert(NamedTuple):
    """Tell `Rang` at `tick`, in place of any moment asked for before."""

    tick: int


Happened = Arrived | Lost | Woke | Rang
Action = Start | Combine | Alert


class Clock(Protocol):
    """What a policy may ask of the clock that drives it."""

    n: int

    @property
    def tick(self) -> int:
        """The present moment."""

    @property
    def busy(self) -> bool:
        """Whether somebody is at work, or will be without being started."""

    def ready(self, client: int, tick: int) -> int | None:
        """The first tick from `tick` on at which the client can start a job (None: never again, as far as is known)."""

    def may_return(self, client: int) -> bool:
        """Whether a client that is never `ready` again may be all the same: `Policy.came` is told then."""


class Policy(ABC):
    """Base class: everybody starts at once, and the rest is `on`.

    Actions are carried out one after the other while they are iterated over, so `on` may be a generator that looks at
    ``self.clock`` in between. A policy belongs to one run and may remember what it likes.
    """

    clock: Clock

    def begin(self) -> Iterable[Action]:
        """What to do first."""
        return [Start(list(range(self.clock.n)))]

    @abstractmethod
    def on(self, event: Happened) -> Iterable[Action]:
        """What to do when `event` has happened, at ``self.clock.tick``."""

    def came(self, client: int) -> Iterable[Action]:
        """On a wall clock: what to do when `client` can be asked (again), whom nobody has told to start."""
        return []


class EachArrival(Policy):
    """Every arrival is combined by itself, and its client restarts at once."""

    def on(self, event: Happened) -> Iterable[Action]:
        if isinstance(event, Arrived):
            return [Combine([event.job]), Start([event.job.client])]
        return [] if isinstance(event, Rang) else [Start([event.client])]


class Windows(Policy):
    """FedFix (arXiv 2206.10189): combine at every multiple of `window` ticks what has arrived.

    Who has finished, or has been given up, waits for that moment and restarts then. Clients are never interrupted; a
    window in which nobody delivers is a combine of nothing.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self.done, self.others = list[Work](), list[int]()

    def begin(self) -> Iterable[Action]:
        self.close = self.clock.tick + self.window
        yield from super().begin()
        if self.clock.busy:
            yield Alert(self.close)

    def on(self, event: Happened) -> Iterable[Action]:
        if isinstance(event, Arrived):
            self.done.append(event.job)
        elif isinstance(event, Woke) and self.clock.tick < self.close:
            yield Start([event.client])
        elif not isinstance(event, Rang):
            self.others.append(event.client)
        else:
            done, others = sorted(self.done, key=_client), self.others
            self.done, self.others, self.close = [], [], self.close + self.window
            yield Combine(done)
            yield Start(sorted([*(job.client for job in done), *others]))
            if self.clock.busy:
                yield Alert(self.close)


class Barrier(Policy):
    """FedBuff's closed variant in FedFix's code: who has delivered waits until `size` have, then all restart.

    Who has been given up restarts at once, for otherwise a buffer might never fill.
    """

    def __init__(self, size: int) -> None:
        self.size, self.done = size, list[Work]()

    def on(self, event: Happened) -> Iterable[Action]:
        if not isinstance(event, Arrived):
            return [] if isinstance(event, Rang) else [Start([event.client])]
        self.done.append(event.job)
        if len(self.done) < self.size:
            return []
        done, self.done = sorted(self.done, key=_client), []
        return [Combine(done), Start([job.client for job in done])]


class Buffer(Policy):
    """FedBuff (arXiv 2106.06639): `concurrency` clients work at any time, and every `size` results are combined.

    Whoever finishes or is given up is replaced at once by a random idle client that is on (by itself, if there is
    none); if nobody is on, by the first who will be. A client may be in a buffer more than once.
    """

    def __init__(self, size: int, concurrency: int, random: np.random.Generator) -> None:
        self.size, self.concurrency, self.random = size, concurrency, random
        self.idle, self.buffer = list[int](), list[Work]()
        self.open = 0  # places at work that nobody is known to take

    def begin(self) -> Iterable[Action]:
        order, tick = self.random.permutation(self.clock.n).tolist(), self.clock.tick
        active = [c for c in order if self.clock.ready(c, tick) == tick][: self.concurrency]
        taken = set(active)
        self.idle = [c for c in order if c not in taken]
        return [*([Start(sorted(active))] if active else []), *self._book(self.concurrency - len(active))]

    def on(self, event: Happened) -> Iterable[Action]:
        if isinstance(event, Rang):
            return []
        if isinstance(event, Woke):
            return [Start([event.client])]
        found: list[Action] = []
        if isinstance(event, Lost):
            client = event.client
        else:
            client = event.job.client
            self.buffer.append(event.job)
            if len(self.buffer) == self.size:
                found.append(Combine(self.buffer))
                self.buffer = []
        place = self._pick()
        if place is not None:
            self.idle[place], client = client, self.idle[place]
        elif self.clock.ready(client, self.clock.tick) != self.clock.tick:
            self.idle.append(client)
            return [*found, *self._book(1)]
        found.append(Start([client]))
        return found

    def came(self, client: int) -> Iterable[Action]:
        if self.open == 0 or client not in self.idle:
            return []
        self.open -= 1
        self.idle.remove(client)
        return [Start([client])]

    def _pick(self) -> int | None:
        """The place of a random client among the idle ones that are on (None: none is)."""
        idle, ready, tick = self.idle, self.clock.ready, self.clock.tick
        for _ in range(min(_TRIES, 4 * len(idle))):
            place = int(self.random.integers(len(idle)))
            if ready(idle[place], tick) == tick:
                return place
        on = [place for place, c in enumerate(idle) if ready(c, tick) == tick]
        return on[int(self.random.integers(len(on)))] if on else None

    def _book(self, slots: int) -> list[Action]:
        """The first `slots` of the idle clients to come on will start then; who never will is forgotten."""
        if slots == 0:
            return []
        tick = self.clock.tick
        wakes = sorted((at, c) for c in self.idle if (at := self.clock.ready(c, tick)) is not None)
        self.idle = [c for _, c in wakes[slots:]] + [c for c in self.idle if self._unknown(c, tick)]
        booked = [c for _, c in wakes[:slots]]
        self.open += slots - len(booked)
        return [Start(booked)] if booked else []

    def _unknown(self, client: int, tick: int) -> bool:
        return self.clock.ready(client, tick) is None and self.clock.may_return(client)


def _client(job: Work) -> int:
    return job.client
