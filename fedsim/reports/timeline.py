"""The schedule of a scenario without its training: who works, waits and delivers when, and with what weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from fedsim.core.arrays import Array, Floats, Ints
from fedsim.core.clock import TICKS_PER_SECOND, exact, seconds, ticks
from fedsim.core.errors import InputError
from fedsim.engine.assembly import Assembly, assemble
from fedsim.figures.schedule import Bar, TimesOff
from fedsim.participation.base import Arrival, Dispatch, Ended
from fedsim.participation.record import whole
from fedsim.scenario.sections import Scenario

Rows = dict[str, Any]

MOST_COMBINES, MOST_DELIVERIES = 100_000, 1_000_000
_SHOWN_COMBINES = 20
_KEPT_BARS = 20_000
_SHOWN_TIMES_OFF = 10_000


@dataclass(frozen=True)
class Combine:
    """Round `number` ends at virtual second `time`: what arrives, how old it is in combines, and what it weighs.

    On a graph `clients` are the nodes that computed and `links` those that fired.
    """

    number: int
    time: float
    clients: list[int]
    staleness: list[int]
    weights: list[float]
    links: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class Timeline:
    """What happened up to virtual second `end`.

    Attributes
    ----------
    gossip : whether clients are the nodes of a graph.
    combines : number of combines; `times` when, in seconds ``[combines]``; `first` the first of them in full.
    shortened : whether the schedule was followed for less than the scenario's rounds and seconds; `ended` why it ended
        before them by itself (empty: it did not).
    importance : p_i ``[n]``, what a client's mean weight per combine is to be in an unbiased method; nan: not known.
    delivered : results of each client that were combined ``[n]``; on a graph, rounds in which the node computed.
    staleness, weight : mean staleness of these (nan: none), and mean weight per combine, ``[n]``.
    messages : on a graph, messages that each node sent ``[n]``.
    busy, in_vain, waiting, idle, off : share of `end`, ``[n]``, at work; at work that is never combined; done, not
        combined and not at work again; on, but without work; device off or client gone.
    bars : every job that started before second `bars_until`.
    times_off : ``times_off(client, until)``, stretches of seconds in which its device is off or the client is gone;
        none where there are more than can be drawn.
    names : what the nodes of a graph are called, where a file says it.
    """

    name: str
    mode: str
    gossip: bool
    end: float
    combines: int
    shortened: bool
    ended: str
    times: Floats
    first: list[Combine]
    importance: Floats
    delivered: Ints
    staleness: Floats
    weight: Floats
    messages: Ints
    busy: Floats
    in_vain: Floats
    waiting: Floats
    idle: Floats
    off: Floats
    bars: list[Bar]
    bars_until: float
    times_off: TimesOff
    names: tuple[str, ...] | None = None

    def called(self, client: int) -> str:
        """A client's name, or its number."""
        return str(client) if self.names is None else self.names[client]

    @property
    def clients(self) -> int:
        return len(self.importance)

    def columns(self) -> dict[str, Array]:
        """The table of clients, column by column, each ``[n]``."""
        use = {"busy": self.busy, "in_vain": self.in_vain, "waiting": self.waiting, "idle": self.idle, "off": self.off}
        share = self.delivered / max(self.combines, 1)
        if self.gossip:
            use = {k: use[k] for k in ("busy", "waiting", "idle")}
            return {"computed": self.delivered, "share_of_rounds": share, "messages": self.messages, **use}
        return {
            "delivered": self.delivered,
            "share_of_combines": share,
            "staleness": self.staleness,
            "weight": self.weight,
            "importance": self.importance,
            **use,
        }

    def _name(self, client: int) -> Rows:
        return {} if self.names is None else {"name": self.names[client]}

    def to_json(self) -> Rows:
        """Everything but the bars, as JSON takes it."""
        columns = {k: [_plain(v) for v in column.tolist()] for k, column in self.columns().items()}
        return {
            "name": self.name,
            "mode": self.mode,
            "end": self.end,
            "combines": self.combines,
            "shortened": self.shortened,
            "ended": self.ended,
            "first_combines": [vars(c) for c in self.first],
            "clients": [
                {"client": i, **self._name(i), **dict(zip(columns, row, strict=True))}
                for i, row in enumerate(zip(*columns.values(), strict=True))
            ],
        }


def follow(scenario: Scenario, assembly: Assembly | None = None) -> Timeline:
    """Make the schedule of the scenario's rounds (and seconds), without training.

    Long schedules are followed for `MOST_COMBINES` combines or `MOST_DELIVERIES` results.

    Raises
    ------
    InputError
        The scenario's parts do not fit together.
    """
    try:
        return _Follower(scenario, assembly or assemble(scenario)).follow()
    except InputError as error:
        raise scenario.document.locate(error) from None


class _Follower:
    """What every client is doing, in ticks, and the totals so far."""

    def __init__(self, scenario: Scenario, assembly: Assembly) -> None:
        self.scenario, self.assembly, self.task = assembly.settled(scenario), assembly, assembly.task
        self.durations = assembly.durations
        self.n = self.task.num_clients
        # Of the job each client is at or has done last: its serial number, and its ticks. Not combined yet: in `open`.
        self.job: dict[int, int] = {}
        self.start, self.finish = [0] * self.n, [0] * self.n
        self.open: set[int] = set()
        self.busy, self.vain, self.waiting = [0] * self.n, [0] * self.n, [0] * self.n
        self.last_vain: dict[int, tuple[int, int]] = {}
        self.delivered, self.messages = np.zeros(self.n, dtype=np.int64), np.zeros(self.n, dtype=np.int64)
        self.stale, self.weight = np.zeros(self.n), np.zeros(self.n)
        self.bars: dict[int, Bar] = {}
        self.bars_until: int | None = None
        self.serial = 0

    def follow(self) -> Timeline:
        s = self.scenario
        limit = None if s.run.seconds is None else ticks(s.run.seconds)
        now, shortened, ended = 0, False, ""
        times: list[float] = []
        first: list[Combine] = []
        parts: list[Arrival] = []
        for event, tick in self._timed():
            if len(times) >= s.run.rounds or (limit is not None and tick > limit):
                break
            if isinstance(event, Dispatch):
                self._begin(event)
                continue
            if isinstance(event, Ended):
                now, ended = max(now, tick), event.reason
                break
            if len(times) >= MOST_COMBINES or self.delivered.sum() >= MOST_DELIVERIES:
                shortened = True
                break
            self._deliver(event, tick)
            parts.append(event)
            if not event.closes:
                continue
            now = tick
            times.append(seconds(tick))
            if len(first) < _SHOWN_COMBINES:
                first.append(_combine(whole(parts), times[-1]))
            parts.clear()
        if limit is not None and len(times) < s.run.rounds and not shortened and not ended:
            now = limit
        self._close(now)
        return self._timeline(max(now, 1), times, first, shortened, ended)

    def _timed(self) -> Iterator[tuple[Dispatch | Arrival | Ended, int]]:
        """Every event and its tick."""
        s, a = self.scenario, self.assembly
        for event in s.participation.events(a.setting(s)):
            yield event, event.start if isinstance(event, Dispatch) else round(event.time * TICKS_PER_SECOND)

    def _time_on(self, client: int, start: int, end: int) -> int:
        return max(end - start, 0) if self.durations is None else self.durations.time_on(client, start, end)

    def _times_off(self, client: int, until: float) -> list[tuple[float, float]]:
        if self.durations is None:
            return []
        found = list(
            islice(self.durations.times_off(client, round(exact(until) * TICKS_PER_SECOND)), _SHOWN_TIMES_OFF + 1)
        )
        if len(found) > _SHOWN_TIMES_OFF:  # nobody could tell them apart
            return []
        return [(seconds(a), seconds(b)) for a, b in found]

    def _begin(self, event: Dispatch) -> None:
        tick, clients = event.start, event.clients.tolist()
        for c in [*clients, *(lost.client for lost in event.in_vain)]:
            if c in self.open:  # its last result is still in a buffer
                self.waiting[c] += self._time_on(c, self.finish[c], tick)
                self.open.remove(c)
        jobs = range(self.serial, self.serial + len(clients)) if event.jobs is None else event.jobs.tolist()
        self.serial += len(clients)
        for c, j, end, steps in zip(clients, jobs, event.ends, event.steps.tolist(), strict=True):
            if steps == 0:
                continue
            self.start[c], self.finish[c] = tick, end
            self.busy[c] += self._time_on(c, tick, end)
            self.open.add(c)
            self.job[c] = j
            if self.bars_until is None:
                self.bars[j] = Bar(c, seconds(tick), seconds(end))
        for lost in event.in_vain:
            self.vain[lost.client] += self._time_on(lost.client, lost.start, lost.end)
            self.last_vain[lost.client] = lost.start, lost.end
            if self.bars_until is None and lost.end > lost.start:
                self.bars[-1 - len(self.bars)] = Bar(
                    lost.client, seconds(lost.start), seconds(lost.end), kind="in vain"
                )
        if self.bars_until is None and len(self.bars) > _KEPT_BARS:
            self.bars_until = tick + 1

    def _deliver(self, event: Arrival, tick: int) -> None:
        computed = event.clients[event.steps > 0] if event.mixing is not None else event.clients
        jobs = [self.job[c] for c in computed.tolist()] if event.jobs is None else event.jobs.tolist()
        for c, j in zip(computed.tolist(), jobs, strict=True):
            if j in self.bars:
                self.bars[j] = self.bars[j]._replace(combined=seconds(tick))
            if self.job[c] == j and c in self.open:
                self.waiting[c] += self._time_on(c, self.finish[c], tick)
                self.open.remove(c)
        np.add.at(self.delivered, computed, 1)
        if event.edges is not None:
            np.add.at(self.messages, event.edges.reshape(-1), 1)
        np.add.at(self.stale, event.clients, event.staleness)
        if event.weights is not None:
            np.add.at(self.weight, event.clients, event.weights)

    def _close(self, end: int) -> None:
        """Count what is still open up to tick `end`."""
        for c in self.open:
            self.busy[c] -= self._time_on(c, max(end, self.start[c]), self.finish[c])
            self.waiting[c] += self._time_on(c, self.finish[c], end)
        for c, (start, stop) in self.last_vain.items():
            self.vain[c] -= self._time_on(c, max(end, start), stop)

    def _timeline(self, end: int, times: list[float], first: list[Combine], shortened: bool, ended: str) -> Timeline:
        s = self.scenario
        gossip = self.assembly.network is not None
        uniform = gossip or getattr(s.algorithm, "weighting", "samples") != "samples"
        mode = s.names["participation"]
        on = [self._time_on(c, 0, end) for c in range(self.n)]
        idle = [o - b - v - w for o, b, v, w in zip(on, self.busy, self.vain, self.waiting, strict=True)]
        off = [end - o for o in on]
        shares = (np.array([t / end for t in use]) for use in (self.busy, self.vain, self.waiting, idle, off))
        busy, vain, waiting, idle_share, off_share = shares
        network = self.assembly.network
        return Timeline(
            names=None if network is None else network.topology.names,
            name=s.name,
            mode=mode,
            gossip=gossip,
            end=seconds(end),
            combines=len(times),
            shortened=shortened,
            ended=ended,
            times=np.array(times),
            first=first,
            importance=np.full(self.n, 1.0 / self.n) if uniform else np.asarray(self.task.importance, dtype=np.float64),
            delivered=self.delivered,
            staleness=np.where(self.delivered > 0, self.stale / np.maximum(self.delivered, 1), np.nan),
            weight=self.weight / max(len(times), 1),
            messages=self.messages,
            busy=busy,
            in_vain=vain,
            waiting=waiting,
            idle=idle_share,
            off=off_share,
            bars=list(self.bars.values()),
            bars_until=seconds(end if self.bars_until is None else min(end, self.bars_until)),
            times_off=self._times_off,
        )


def _combine(event: Arrival, time: float) -> Combine:
    if event.mixing is not None:
        compute = [] if event.compute is None else event.compute.tolist()
        return Combine(event.number, time, compute, [], [], [] if event.edges is None else event.edges.tolist())
    weights = [] if event.weights is None else event.weights.tolist()
    return Combine(event.number, time, event.clients.tolist(), event.staleness.tolist(), weights)


def _plain(value: float) -> float | None:
    """JSON has no nan."""
    return value if value == value else None
