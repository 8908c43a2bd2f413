"""Participation on a wall clock: the events of a deployment, made from the answers that really arrive.

Synchronous rounds and gossip keep the schedule of the simulation (the same cohorts, the same draws); only clients that
were given up are taken out of a round. The clocked modes have no schedule to follow: a combine happens when answers are
there (`asynchronous`, `fedbuff`) or every `window` seconds (`fixed_interval`), and what `weights` needs to know of
durations and rates is what was measured so far.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from fedsim.core import rng
from fedsim.core.arrays import Bools, Floats, Ints
from fedsim.core.clock import TICKS_PER_SECOND
from fedsim.core.errors import RunError
from fedsim.graphs.mixing import is_symmetric
from fedsim.graphs.mixing_matrix import MixingMatrix
from fedsim.participation.base import Arrival, Dispatch, Event, Participation, Setting
from fedsim.participation.clocked import Asynchronous, Clocked, FedBuff, FixedInterval

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


@dataclass
class RealTime:
    """Events of `participation` as `inbox` lets them happen.

    Parameters
    ----------
    offset : seconds that a resumed run has already taken.
    rounds_done : rounds that each client has already done in a resumed run.
    complete : why no client may be missing from a round, where none may.
    secret : in place of the scenario's seed, which every client knows, decides who takes part (None: the seed does).
    """

    participation: Participation
    inbox: Inbox
    offset: float = 0.0
    rounds_done: dict[int, int] = field(default_factory=dict)
    complete: str | None = None
    secret: int | None = None

    def events(self, setting: Setting, after: int = 0) -> Iterator[Event]:
        """As `Participation.events`; an Arrival's time is seconds of the wall clock."""
        if isinstance(self.participation, Clocked):
            return _ClockedRun(self, self.participation, setting, after).events()
        drawn = setting if self.secret is None else replace(setting, seed=self.secret)
        return self._waited(self.participation.events(drawn, after))

    def now(self) -> float:
        return self.offset + self.inbox.now()

    def _waited(self, events: Iterator[Event]) -> Iterator[Event]:
        """The schedule's events, every Arrival when its clients have answered, without those who did not."""
        for event in events:
            if not isinstance(event, Arrival) or len(event.clients) == 0:
                yield event
                continue
            came = self.inbox.settle(event.clients if event.jobs is None else event.jobs)
            if not came.any():
                raise RunError(f"round {event.number}: none of its {len(came)} clients answered")
            if not came.all():
                missing = event.clients[~came].tolist()
                if self.complete is not None:
                    raise RunError(f"round {event.number}: clients {missing} are missing, and {self.complete}")
                LOG.warning("round %d goes on without clients %s", event.number, missing)
                event = _without(event, came)
            yield replace(event, time=self.now())


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


@dataclass
class _Out:
    """A job at work: whose it is, the client's round, the version it pulled, when it was sent."""

    client: int
    round: int
    pulled: int
    since: float


class _ClockedRun:
    """One run of a clocked mode: versions, jobs at work, and what was measured."""

    def __init__(self, clock: RealTime, mode: Clocked, setting: Setting, after: int) -> None:
        task, algorithm = setting.task, setting.server
        self.clock, self.mode, self.task, self.algorithm, self.seed = clock, mode, task, algorithm, setting.seed
        self.n, self.version, self.serial = task.num_clients, after, 0
        share = task.importance if algorithm.weighting == "samples" else np.ones(self.n)
        self.p = share / share.sum()
        self.out: dict[int, _Out] = {}
        self.done: dict[int, tuple[_Out, float]] = {}
        self.last = [clock.rounds_done.get(c, 0) for c in range(self.n)]
        self.losses, self.left_out = [0] * self.n, set[int]()
        self.seconds, self.answers, self.delivered = np.zeros(self.n), np.zeros(self.n), np.zeros(self.n)

    def events(self) -> Iterator[Event]:
        if isinstance(self.mode, Asynchronous):
            return self._asynchronous()
        if isinstance(self.mode, FixedInterval):
            return self._fixed_interval(self.mode)
        assert isinstance(self.mode, FedBuff)
        return self._barrier(self.mode) if self.mode.restart == "barrier" else self._buffered(self.mode)

    # --- the modes ----------------------------------------------------------------------------------------------------

    def _asynchronous(self) -> Iterator[Event]:
        yield self._start(range(self.n))
        while True:
            fresh, lost = self._arrivals(None)
            for job in fresh:
                client = self.done[job][0].client
                yield self._combine([job])
                yield self._start([client])
            yield from self._again(lost)

    def _fixed_interval(self, mode: FixedInterval) -> Iterator[Event]:
        yield self._start(range(self.n))
        close = self.clock.now()
        while True:
            close += mode.window
            jobs: list[int] = []
            while True:
                fresh, lost = self._arrivals(close)
                jobs += fresh
                yield from self._again(lost)
                if self.clock.now() >= close:
                    break
            clients = [self.done[j][0].client for j in jobs]
            yield self._combine(jobs)
            if clients:
                yield self._start(sorted(clients))

    def _barrier(self, mode: FedBuff) -> Iterator[Event]:
        yield self._start(range(self.n))
        jobs: list[int] = []
        while True:
            fresh, lost = self._arrivals(None)
            jobs += fresh
            yield from self._again(lost)
            while len(jobs) >= mode.buffer:
                first, jobs = jobs[: mode.buffer], jobs[mode.buffer :]
                clients = [self.done[j][0].client for j in first]
                yield self._combine(first)
                yield self._start(sorted(clients))

    def _buffered(self, mode: FedBuff) -> Iterator[Event]:
        random = rng.generator(self.seed, "fedbuff")
        order = random.permutation(self.n).tolist()
        concurrency = mode.concurrency or self.n
        idle: list[int] = order[concurrency:]
        yield self._start(sorted(order[:concurrency]))
        jobs: list[int] = []

        def successor(client: int) -> int:
            """A random idle client, or `client` itself where all others are at work."""
            if not idle:
                return client
            place = int(random.integers(len(idle)))
            chosen = idle.pop(place)
            if client not in self.left_out:
                idle.insert(place, client)
            return chosen

        while True:
            fresh, lost = self._arrivals(None)
            for job in fresh:
                client = self.done[job][0].client
                jobs.append(job)
                if len(jobs) == mode.buffer:
                    yield self._combine(jobs)
                    jobs = []
                yield self._start([successor(client)])
            again = [c for job_of in lost if (c := successor(job_of)) not in self.left_out]
            if again:
                yield self._start(again)

    # --- what they share ----------------------------------------------------------------------------------------------

    def _start(self, clients: Any) -> Dispatch:
        """These clients pull the present version."""
        who = np.array(list(clients), dtype=np.int64)
        jobs = np.arange(self.serial, self.serial + len(who), dtype=np.int64)
        self.serial += len(who)
        for job, c in zip(jobs.tolist(), who.tolist(), strict=True):
            self.last[c] += 1
            self.out[job] = _Out(c, self.last[c], self.version, self.clock.now())
        rounds = np.array([self.last[c] for c in who.tolist()], dtype=np.int64)
        now = round(self.clock.now() * TICKS_PER_SECOND)
        return Dispatch(who, rounds, self._steps(who, rounds), [now] * len(who), jobs, now)

    def _again(self, lost: list[int]) -> Iterator[Dispatch]:
        """Clients whose job was lost start anew from the present version."""
        clients = [c for c in lost if c not in self.left_out]
        if clients:
            yield self._start(clients)

    def _arrivals(self, until: float | None) -> tuple[list[int], list[int]]:
        """Jobs that delivered, and clients whose job was lost."""
        if until is None and not self.out:
            raise RunError(f"round {self.version + 1}: too few clients are left to fill the buffer")
        limit = None if until is None else until - self.clock.offset
        fresh, given_up = self.clock.inbox.arrivals(limit)
        now = self.clock.now()
        for job in fresh:
            one = self.out.pop(job)
            self.done[job] = (one, now - one.since)
            self.seconds[one.client] += now - one.since
            self.answers[one.client] += 1
            self.losses[one.client] = 0
        lost = [self.out.pop(job).client for job in given_up]
        for client in lost:
            self.losses[client] += 1
            if self.losses[client] >= _LOSSES:
                self.left_out.add(client)
                LOG.warning("client %d lost %d jobs in a row; it is left out from now on", client, _LOSSES)
        if len(self.left_out) == self.n:
            raise RunError(f"nobody is left after round {self.version}: every client lost {_LOSSES} jobs in a row")
        return fresh, lost

    def _combine(self, jobs: list[int]) -> Arrival:
        """`jobs` make the next version; they are summed in the order of their clients, whenever each arrived."""
        jobs = sorted(jobs, key=lambda j: (self.done[j][0].client, j))
        found = [self.done.pop(j) for j in jobs]
        clients = np.array([one.client for one, _ in found], dtype=np.int64)
        rounds = np.array([one.round for one, _ in found], dtype=np.int64)
        stale = np.array([self.version - one.pulled for one, _ in found], dtype=np.int64)
        np.add.at(self.delivered, clients, 1)
        self.version += 1
        omega = self._weights()[clients] * self.mode.staleness.factor(stale)
        steps = self._steps(clients, rounds)
        return Arrival(
            self.version, self.clock.now(), clients, rounds, steps, stale, len(clients), omega,
            jobs=np.array(jobs, dtype=np.int64), seconds=[round(seconds, 3) for _, seconds in found],
        )  # fmt: skip

    def _weights(self) -> Floats:
        """d_i of every client ``[n]`` from what was measured up to now."""
        tau = rates = None
        if self.mode.weights == "debiased":
            waiting = {one.client: self.clock.now() - one.since for one in self.out.values()}
            known = [
                self.seconds[c] / self.answers[c] if self.answers[c] else waiting.get(c, 0.0) for c in range(self.n)
            ]
            tau = [max(1, round(s * TICKS_PER_SECOND)) for s in known]
        elif self.mode.weights == "estimated":
            rates = np.where(self.delivered > 0, self.delivered, 1.0) / self.version
        return self.mode.arrival_weights(self.n, self.p, tau, rates)

    def _steps(self, clients: Ints, rounds: Ints) -> Ints:
        return self.algorithm.steps(self.task, clients, rounds, self.seed)
