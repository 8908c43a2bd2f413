"""Participation on a wall clock: the events of a deployment, made from the answers that really arrive.

Synchronous rounds and gossip keep the schedule of the simulation (the same cohorts, the same draws); only clients that
were given up are taken out of a round. The clocked modes have no schedule to follow: a combine happens when answers are
there (`asynchronous`, `fedbuff`) or every `window` seconds (`fixed_interval`), and what `weights` needs to know of
durations and rates is what was measured so far.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from fedsim.core.arrays import Bools, Floats, Ints
from fedsim.core.clock import TICKS_PER_SECOND, seconds
from fedsim.core.errors import RunError
from fedsim.graphs.mixing import is_symmetric
from fedsim.graphs.mixing_matrix import MixingMatrix
from fedsim.participation.base import Arrival, Dispatch, Event, Participation, Setting
from fedsim.participation.clocked import Clocked
from fedsim.participation.policy import Action, Alert, Arrived, Combine, Lost, Rang, Woke, Work
from fedsim.participation.population import Population, joined

LOG = logging.getLogger("flwr.fedsim")
_LOSSES = 3  # jobs of a client that are lost one after the other before it is left out of a clocked run


class Inbox(Protocol):
    """Where answers arrive."""

    def now(self) -> float:
        """Seconds since the inbox was made."""

    def settle(self, jobs: Ints) -> Bools:
        """Wait for all of `jobs`: which of them delivered; the others were given up."""

    def arrivals(self, until: float | None) -> tuple[list[int], list[int]]:
        """Wait until something arrives or `now` is `until`: jobs that delivered, and jobs that were given up."""

    def wake(self, when: Callable[[], bool]) -> None:
        """From now on `arrivals` ends, too, as soon as `when` says so."""

    def failing(self, jobs: Ints) -> Ints:
        """Wait until all of `jobs` have delivered or one was given up: those that were."""


@dataclass
class RealTime:
    """Events of `participation` as `inbox` lets them happen.

    Parameters
    ----------
    offset : seconds that a resumed run has already taken.
    rounds_done : rounds that each client has already done in a resumed run.
    complete : why no client may be missing from a round, where none may.
    secret : in place of the scenario's seed, which every client knows, decides who takes part (None: the seed does).
    population : who of the clients can be asked; None: all of them, always.
    among_connected : whether cohorts are drawn among those that can be asked when a round begins.
    replaces : seconds of a round in which others are asked in place of clients that failed; 0: nobody is.
    """

    participation: Participation
    inbox: Inbox
    offset: float = 0.0
    rounds_done: dict[int, int] = field(default_factory=dict)
    complete: str | None = None
    secret: int | None = None
    population: Population | None = None
    among_connected: bool = False
    replaces: float = 0.0

    def events(self, setting: Setting, after: int = 0) -> Iterator[Event]:
        """As `Participation.events`; an Arrival's time is seconds of the wall clock."""
        if isinstance(self.participation, Clocked):
            return _ClockedRun(self, self.participation, setting, after).events()
        drawn = setting if self.secret is None else replace(setting, seed=self.secret)
        if self.population is not None and self.among_connected:
            drawn = replace(drawn, connected=self.population.connected)
        return self._waited(drawn, self.participation.events(drawn, after))

    def now(self) -> float:
        return self.offset + self.inbox.now()

    @property
    def _could(self) -> bool:
        """Whether cohorts could be drawn among those that are there, and are not."""
        return self.participation.asks_connected and self.population is not None and not self.among_connected

    def _waited(self, setting: Setting, events: Iterator[Event]) -> Iterator[Event]:
        """The schedule's events, every Arrival when its clients have answered, without those who did not."""
        somebody, asked = False, set[int]()  # in the parts that the round has had so far
        begins = True
        while True:
            if begins and self.population is not None:
                self.population.enough()
            event = next(events, None)
            if event is None:
                return
            begins = isinstance(event, Arrival) and event.closes
            if not isinstance(event, Arrival):
                yield event
                continue
            planned, came = event, np.ones(0, dtype=bool)
            if len(event.clients):  # else nobody was drawn, and nobody is waited for
                event = yield from self._replaced(setting, event)
                came = self.inbox.settle(event.clients if event.jobs is None else event.jobs)
            asked.update(event.clients.tolist())
            somebody = somebody or bool(came.any())
            if event.closes:
                if asked and not somebody:
                    helps = "; population = connected draws cohorts among those that are there" if self._could else ""
                    raise RunError(f"round {event.number}: none of its {len(asked)} clients answered{helps}")
                somebody, asked = False, set()
            if not came.all():
                missing = event.clients[~came].tolist()
                if self.complete is not None:
                    raise RunError(f"round {event.number}: clients {missing} are missing, and {self.complete}")
                LOG.warning("round %d goes on without clients %s", event.number, missing)
                event = _without(event, came)
                if len(planned.clients) < len(came):
                    event = _as_heavy(event, planned)
            yield replace(event, time=self.now())

    def _replaced(self, setting: Setting, event: Arrival) -> Generator[Event, None, Arrival]:
        """Wait for the event's clients, and have others do the work of those that fail; the event with all of them."""
        people, begun, failed = self.population, self.now(), set[int]()
        if people is None or not self.replaces or self.complete is not None or event.jobs is not None:
            return event
        while True:
            lost = self.inbox.failing(np.setdiff1d(event.clients, list(failed)))
            if not len(lost):
                return event
            failed.update(lost.tolist())
            if self.now() - begun > self.replaces:
                continue
            free = people.connected()
            free = np.setdiff1d(np.arange(setting.task.num_clients) if free is None else free, event.clients)
            others = self.participation.in_place(setting, event, lost, free)
            if others is None:
                continue
            LOG.info("round %d: clients %s in place of %s", event.number, others.clients.tolist(), lost.tolist())
            yield Dispatch(others.clients, others.rounds, others.steps, [0] * len(others.clients))
            event = joined(event, others)


def _as_heavy(event: Arrival, planned: Arrival) -> Arrival:
    """`event` with its weights scaled to the sum of the `planned` one's."""
    if event.weights is None or planned.weights is None or not len(event.clients):
        return event
    return replace(event, weights=event.weights * (planned.weights.sum() / event.weights.sum()))


def _without(event: Arrival, came: Bools) -> Arrival:
    """`event` with only the clients that came; a server's weights are scaled to the same sum.

    On a graph a missing node keeps its model, and its links do not fire.
    """
    missing = event.clients[~came]
    if isinstance(event.mixing, MixingMatrix):
        return replace(_isolated(event, came, event.mixing), missing=missing)
    return replace(event.without(np.flatnonzero(~came), renormalise=True), missing=missing)


def _isolated(event: Arrival, came: Bools, mixing: MixingMatrix) -> Arrival:
    """A gossip round in which no link of the nodes that did not come fired, and they did not compute.

    Their rows of the round's messages are those of idle nodes, which the caller's backend has put there.
    """
    missing = event.clients[~came]
    if not is_symmetric(mixing.matrix):
        raise RunError(
            f"round {event.number}: nodes {missing.tolist()} are missing, and on a directed graph the network average "
            "drifts while a node is away; on-failure = retry waits for them"
        )
    kept: dict[str, Any] = {"steps": np.where(came, event.steps, 0), "mixing": mixing.isolating(~came)}
    if event.compute is not None:
        kept["compute"] = event.compute[~np.isin(event.compute, missing)]
    sends = event.sends
    if event.edges is not None:
        fired = ~np.isin(event.edges, missing).any(-1)
        kept["edges"], sends = event.edges[fired], sends - 2 * int((~fired).sum())
    if event.ticks is not None:
        gone = set(missing.tolist())
        kept["ticks"] = [t for t in event.ticks if gone.isdisjoint(t.nodes)]
    return replace(event, **kept, sends=sends)


class _ClockedRun:
    """The clock that drives the policy of a clocked mode: versions, jobs at work, and what was measured."""

    def __init__(self, clock: RealTime, mode: Clocked, setting: Setting, after: int) -> None:
        task, algorithm = setting.task, setting.server
        self.clock, self.mode, self.task, self.algorithm, self.seed = clock, mode, task, algorithm, setting.seed
        self.n, self.version, self.serial = task.num_clients, after, 0
        self.aggregator = setting.aggregator
        share = task.importance if algorithm.weighting == "samples" else np.ones(self.n)
        self.p = share / share.sum()
        self.out: dict[int, Work] = {}
        self.since: dict[int, float] = {}
        self.took: dict[int, float] = {}
        self.alarm: int | None = None
        self.last = [clock.rounds_done.get(c, 0) for c in range(self.n)]
        self.losses = [0] * self.n
        self.left_out: dict[int, int | None] = {}
        """Clients that lost too many jobs, and the connection that they had then: another one may do better."""
        self.asleep = set[int]()
        """Clients that are to start as soon as they can be asked."""
        self.people = clock.population
        self.away = set[int]()
        """Clients that could not be asked when it was looked last."""
        if self.people is not None:
            clock.inbox.wake(lambda: any(self._awake(c) for c in self.away))
        self.began = clock.now()
        self.seconds, self.answers, self.delivered = np.zeros(self.n), np.zeros(self.n), np.zeros(self.n)

    @property
    def tick(self) -> int:
        return round(self.clock.now() * TICKS_PER_SECOND)

    @property
    def busy(self) -> bool:
        return bool(self.out) or any(c not in self.left_out for c in self.asleep)

    def ready(self, client: int, tick: int) -> int | None:
        return tick if self._awake(client) else None

    def may_return(self, client: int) -> bool:
        return self.people is not None and not self._awake(client)

    def _awake(self, client: int) -> bool:
        """Whether `client` can be asked."""
        people = self.people
        if client not in self.left_out:
            return people is None or people.here(client)
        return people is not None and people.node(client) not in (None, self.left_out[client])

    def events(self) -> Iterator[Event]:
        """Let the policy answer to what really happens."""
        policy = self.mode.policy(self.n, self.seed)
        policy.clock = self
        yield from self._do(policy.begin())
        while True:
            fresh, lost, back = self._arrivals()
            for client in back:
                woken = client in self.asleep
                self.asleep.discard(client)
                yield from self._do(policy.on(Woke(client)) if woken else policy.came(client))
            for job in fresh:
                yield from self._do(policy.on(Arrived(job)))
            for client in lost:
                yield from self._do(policy.on(Lost(client)))
            if self.alarm is not None and self.tick >= self.alarm:
                self.alarm = None
                yield from self._do(policy.on(Rang()))

    def _do(self, actions: Iterable[Action]) -> Iterator[Event]:
        for action in actions:
            if isinstance(action, Alert):
                self.alarm = action.tick
            elif isinstance(action, Combine):
                yield self._combine(action.jobs)
            else:
                awake = [c for c in action.clients if self._awake(c)]
                self.asleep.update(c for c in action.clients if c not in awake)
                if awake:
                    yield self._start(awake)

    def _start(self, clients: list[int]) -> Dispatch:
        """These clients pull the present version."""
        now, since = self.tick, self.clock.now()
        jobs = list(range(self.serial, self.serial + len(clients)))
        self.serial += len(clients)
        for job, c in zip(jobs, clients, strict=True):
            if self.left_out.pop(c, self) is not self:
                self.losses[c] = 0
            self.last[c] += 1
            self.out[job] = Work(job, c, self.last[c] - 1, self.version)
            self.since[job] = since
        who, rounds = np.array(clients, dtype=np.int64), np.array([self.last[c] for c in clients], dtype=np.int64)
        return Dispatch(who, rounds, self._steps(who, rounds), [now] * len(who), np.array(jobs, dtype=np.int64), now)

    def _arrivals(self) -> tuple[list[Work], list[int], list[int]]:
        """Wait: jobs that delivered, clients whose job was lost, and those that can be asked again."""
        too_few = RunError(f"round {self.version + 1}: too few clients are left to fill the buffer")
        idle, people = self.alarm is None and not self.out, self.people
        if people is None and idle:
            raise too_few
        if people is not None:
            people.enough(0 if self.out else 1)
            self.away |= {c for c in range(self.n) if not self._awake(c)} | self.asleep
        limit = None if self.alarm is None else seconds(self.alarm) - self.clock.offset
        if people is not None and idle:
            limit = self.clock.inbox.now() + people.patience
        numbers, given_up = self.clock.inbox.arrivals(limit)
        now = self.clock.now()
        fresh = [self.out.pop(job) for job in numbers]
        for job in fresh:
            self.took[job.number] = now - self.since.pop(job.number)
            self.seconds[job.client] += self.took[job.number]
            self.answers[job.client] += 1
            self.losses[job.client] = 0
        lost = [self.out.pop(job).client for job in given_up]
        for number, client in zip(given_up, lost, strict=True):
            del self.since[number]
            self.losses[client] += 1
            if self.losses[client] >= _LOSSES:
                self.left_out[client] = None if self.people is None else self.people.node(client)
                LOG.warning("client %d lost %d jobs in a row; it is left out from now on", client, _LOSSES)
        if len(self.left_out) == self.n:
            raise RunError(f"nobody is left after round {self.version}: every client lost {_LOSSES} jobs in a row")
        busy = {job.client for job in self.out.values()} | {job.client for job in fresh} | set(lost)
        back = sorted(c for c in self.away - busy if self._awake(c))
        self.away = {c for c in self.away if not self._awake(c)}
        if idle and not back:
            raise too_few
        return fresh, lost, back

    def _combine(self, jobs: list[Work]) -> Arrival:
        """`jobs` make the next version; they are summed in the order of their clients, whenever each arrived."""
        jobs = sorted(jobs, key=lambda job: (job.client, job.number))
        clients = np.array([job.client for job in jobs], dtype=np.int64)
        rounds = np.array([job.nth + 1 for job in jobs], dtype=np.int64)
        stale = np.array([self.version - job.pulled for job in jobs], dtype=np.int64)
        np.add.at(self.delivered, clients, 1)
        self.version += 1
        omega = self._weights()[clients] * self.mode.staleness.factor(stale)
        steps = self._steps(clients, rounds)
        arrival = Arrival(
            self.version, self.clock.now(), clients, rounds, steps, stale, len(clients), omega,
            jobs=np.array([job.number for job in jobs], dtype=np.int64),
            seconds=[round(self.took.pop(job.number), 3) for job in jobs],
        )  # fmt: skip
        return self.mode.arrived(arrival, self.aggregator)

    def _weights(self) -> Floats:
        """d_i of every client ``[n]`` from what was measured up to now."""
        tau = rates = None
        if self.mode.weights == "debiased":
            waiting = {job.client: self.clock.now() - self.since[job.number] for job in self.out.values()}
            ever = self.clock.now() - self.began  # of who was never there: it has not delivered for so long
            known = [
                self.seconds[c] / self.answers[c] if self.answers[c] else waiting.get(c, ever) for c in range(self.n)
            ]
            tau = [max(1, round(s * TICKS_PER_SECOND)) for s in known]
        elif self.mode.weights == "estimated":
            rates = np.where(self.delivered > 0, self.delivered, 1.0) / self.version
        return self.mode.arrival_weights(self.n, self.p, tau, rates)

    def _steps(self, clients: Ints, rounds: Ints) -> Ints:
        return self.algorithm.steps(self.task, clients, rounds, self.seed)
