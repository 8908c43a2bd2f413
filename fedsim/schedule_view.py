"""The schedule of a server scenario without its training: who works, waits and delivers when, and with what weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsim.algorithms.base import ServerAlgorithm
from fedsim.assembly import Assembly, assemble
from fedsim.asynchronous import Clocked
from fedsim.clock import TICKS_PER_SECOND, seconds, ticks
from fedsim.config import Scenario
from fedsim.errors import InputError
from fedsim.figures.schedule import Bar
from fedsim.participation import Arrival, Dispatch, Event
from fedsim.schedule import Started

Floats = npt.NDArray[np.float64]
Rows = dict[str, Any]

MOST_COMBINES, MOST_DELIVERIES = 100_000, 1_000_000
_SHOWN_COMBINES, _SHOWN_CLIENTS, _SHOWN_IN_ROW = 20, 40, 5
_KEPT_BARS = 20_000
_QUANTILES = (("smallest", 0.0), ("25 %", 0.25), ("median", 0.5), ("75 %", 0.75), ("largest", 1.0))


@dataclass(frozen=True)
class Combine:
    """Round `number` ends at virtual second `time`: what arrives, how old it is in combines, and what it weighs."""

    number: int
    time: float
    clients: list[int]
    staleness: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Timeline:
    """What happened up to virtual second `end`.

    Attributes
    ----------
    combines : number of combines; `times` when, in seconds ``[combines]``; `first` the first of them in full.
    shortened : whether the schedule was followed for less than the scenario's rounds and seconds.
    importance : p_i ``[n]``, what a client's mean weight per combine is to be in an unbiased method.
    delivered : results of each client that were combined ``[n]``.
    staleness, weight : mean staleness of these (nan: none), and mean weight per combine, ``[n]``.
    busy, waiting, idle : share of `end` at work; done, not combined and not at work again; the rest, ``[n]``. Clients
        of a synchronous round that never report (drop-outs, after a deadline) count as idle in it.
    bars : every job that started before second `bars_until`.
    """

    name: str
    mode: str
    end: float
    combines: int
    shortened: bool
    times: Floats
    first: list[Combine]
    importance: Floats
    delivered: npt.NDArray[np.int64]
    staleness: Floats
    weight: Floats
    busy: Floats
    waiting: Floats
    idle: Floats
    bars: list[Bar]
    bars_until: float

    @property
    def clients(self) -> int:
        return len(self.importance)

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """The table of clients, column by column, each ``[n]``."""
        return {
            "delivered": self.delivered,
            "share_of_combines": self.delivered / max(self.combines, 1),
            "staleness": self.staleness,
            "weight": self.weight,
            "importance": self.importance,
            "busy": self.busy,
            "waiting": self.waiting,
            "idle": self.idle,
        }

    def to_json(self) -> Rows:
        """Everything but the bars, as JSON takes it."""
        columns = {k: [_plain(v) for v in column.tolist()] for k, column in self.columns().items()}
        return {
            "name": self.name,
            "mode": self.mode,
            "end": self.end,
            "combines": self.combines,
            "shortened": self.shortened,
            "first_combines": [vars(c) for c in self.first],
            "clients": [
                {"client": i, **dict(zip(columns, row, strict=True))}
                for i, row in enumerate(zip(*columns.values(), strict=True))
            ],
        }


def follow(scenario: Scenario, assembly: Assembly | None = None) -> Timeline:
    """Make the schedule of the scenario's rounds (and seconds), without training.

    Long schedules are followed for `MOST_COMBINES` combines or `MOST_DELIVERIES` results.

    Raises
    ------
    InputError
        A gossip scenario, which has no clients of a server; or the scenario's parts do not fit together.
    """
    if not isinstance(scenario.algorithm, ServerAlgorithm):
        raise scenario.document.locate(
            InputError(
                "found a gossip scenario; allowed with --schedule, which shows clients of a server: synchronous, "
                "asynchronous, fixed_interval, fedbuff",
                key="algorithm.name" if "mode" not in scenario.document.values.get("participation", {})
                else "participation.mode",
            )
        )  # fmt: skip
    try:
        return _Follower(scenario, assembly or assemble(scenario)).follow()
    except InputError as error:
        raise scenario.document.locate(error) from None


class _Follower:
    """What every client is doing, in ticks, and the totals so far."""

    def __init__(self, scenario: Scenario, assembly: Assembly) -> None:
        assert assembly.durations is not None
        self.scenario, self.task, self.durations = scenario, assembly.task, assembly.durations
        self.n = self.task.num_clients
        self.steps: dict[tuple[int, int], int] = {}
        # Of the job each client is at or has done last: its serial number, and its ticks. Not combined yet: in `open`.
        self.job: dict[int, int] = {}
        self.start, self.finish = [0] * self.n, [0] * self.n
        self.open: set[int] = set()
        self.busy, self.waiting = [0] * self.n, [0] * self.n
        self.delivered = np.zeros(self.n, dtype=np.int64)
        self.stale, self.weight = np.zeros(self.n), np.zeros(self.n)
        self.bars: dict[int, Bar] = {}
        self.bars_until: int | None = None
        self.serial = 0

    def follow(self) -> Timeline:
        run = self.scenario.run
        limit = None if run.seconds is None else ticks(run.seconds)
        now, shortened = 0, False
        times: list[float] = []
        first: list[Combine] = []
        for event, tick in self._timed():
            if len(times) >= run.rounds or (limit is not None and tick > limit):
                break
            if isinstance(event, Dispatch):
                self._begin(event, tick)
                continue
            if len(times) >= MOST_COMBINES or self.delivered.sum() >= MOST_DELIVERIES:
                shortened = True
                break
            self._deliver(event, tick)
            now = tick
            times.append(seconds(tick))
            if len(first) < _SHOWN_COMBINES:
                weights = [] if event.weights is None else event.weights.tolist()
                first.append(
                    Combine(event.number, times[-1], event.clients.tolist(), event.staleness.tolist(), weights)
                )
        if limit is not None and len(times) < run.rounds and not shortened:
            now = limit
        self._close(now)
        return self._timeline(max(now, 1), times, first, shortened)

    def _timed(self) -> Iterator[tuple[Event, int]]:
        """Every event and its tick. Between two combines clients start at ticks that only the schedule itself knows."""
        s = self.scenario
        events = s.participation.events(self.task, s.algorithm, s.seed, 0, None, self.durations)
        if isinstance(s.participation, Clocked):
            schedule = s.participation.steps(self.n, self._duration, s.seed)
            for event in events:
                if isinstance(event, Dispatch):  # the schedule asks for the durations of these next
                    for c, r, k in zip(
                        event.clients.tolist(), event.rounds.tolist(), event.steps.tolist(), strict=True
                    ):
                        self.steps[c, r - 1] = k
                step = next(schedule)
                assert isinstance(step, Started) == isinstance(event, Dispatch)
                yield event, step.tick
            return
        now = 0
        for event in events:
            if isinstance(event, Arrival):
                now = round(event.time * TICKS_PER_SECOND)
            yield event, now

    def _duration(self, client: int, index: int) -> int:
        return self.durations.of(client, index, self.steps.pop((client, index)))

    def _begin(self, event: Dispatch, tick: int) -> None:
        for c, r, k in zip(event.clients.tolist(), event.rounds.tolist(), event.steps.tolist(), strict=True):
            if c in self.open:  # its last result is still in a buffer
                self.waiting[c] += tick - self.finish[c]
            self.start[c], self.finish[c] = tick, tick + self.durations.of(c, r - 1, k)
            self.busy[c] += self.finish[c] - tick
            self.open.add(c)
        clients = event.clients.tolist()
        jobs = range(self.serial, self.serial + len(clients)) if event.jobs is None else event.jobs.tolist()
        self.serial += len(clients)
        for c, j in zip(clients, jobs, strict=True):
            self.job[c] = j
            if self.bars_until is None:
                self.bars[j] = Bar(c, seconds(self.start[c]), seconds(self.finish[c]))
        if self.bars_until is None and len(self.bars) > _KEPT_BARS:
            self.bars_until = tick + 1

    def _deliver(self, event: Arrival, tick: int) -> None:
        jobs = [self.job[c] for c in event.clients.tolist()] if event.jobs is None else event.jobs.tolist()
        for c, j in zip(event.clients.tolist(), jobs, strict=True):
            if j in self.bars:
                self.bars[j] = self.bars[j]._replace(combined=seconds(tick))
            if self.job[c] == j and c in self.open:
                self.waiting[c] += tick - self.finish[c]
                self.open.remove(c)
        np.add.at(self.delivered, event.clients, 1)
        np.add.at(self.stale, event.clients, event.staleness)
        if event.weights is not None:
            np.add.at(self.weight, event.clients, event.weights)

    def _close(self, end: int) -> None:
        """Count what is still open up to tick `end`."""
        for c in self.open:
            self.busy[c] -= self.finish[c] - max(min(self.finish[c], end), self.start[c])
            self.waiting[c] += max(end - self.finish[c], 0)

    def _timeline(self, end: int, times: list[float], first: list[Combine], shortened: bool) -> Timeline:
        s = self.scenario
        uniform = getattr(s.algorithm, "weighting", "samples") != "samples"
        mode = s.document.values.get("participation", {}).get("mode", "synchronous")
        return Timeline(
            name=s.name,
            mode=str(mode),
            end=seconds(end),
            combines=len(times),
            shortened=shortened,
            times=np.array(times),
            first=first,
            importance=np.full(self.n, 1.0 / self.n) if uniform else np.asarray(self.task.importance, dtype=np.float64),
            delivered=self.delivered,
            staleness=np.where(self.delivered > 0, self.stale / np.maximum(self.delivered, 1), np.nan),
            weight=self.weight / max(len(times), 1),
            busy=np.array([b / end for b in self.busy]),
            waiting=np.array([w / end for w in self.waiting]),
            idle=np.array([(end - b - w) / end for b, w in zip(self.busy, self.waiting, strict=True)]),
            bars=list(self.bars.values()),
            bars_until=seconds(end if self.bars_until is None else min(end, self.bars_until)),
        )


def combine_rows(timeline: Timeline) -> tuple[list[str], list[tuple[str, ...]]]:
    """Header and rows of the table of the first combines."""
    rows: list[tuple[str, ...]] = [
        (
            str(c.number),
            f"{c.time:.6g}",
            _some(c.clients, str),
            _some(c.staleness, str, " …"),
            _some(c.weights, _short, " …"),
        )
        for c in timeline.first
    ]
    return ["combine", "time (s)", "clients", "staleness", "weights"], rows


def client_rows(timeline: Timeline) -> tuple[list[str], list[tuple[str, ...]]]:
    """Header and rows of the table of clients; quantiles over them where they are many."""
    columns = timeline.columns()
    header = ["delivered", "per combine", "staleness", "weight per combine", "p_i", "busy", "waiting", "idle"]
    if timeline.clients <= _SHOWN_CLIENTS:
        values = list(zip(*(v.tolist() for v in columns.values()), strict=True))
        return ["client", *header], [(str(i), *map(_short, row)) for i, row in enumerate(values)]
    found = [
        [float(np.quantile(v[np.isfinite(v)], q)) if np.isfinite(v).any() else np.nan for v in columns.values()]
        for _, q in _QUANTILES
    ]
    rows = [(name, *map(_short, row)) for (name, _), row in zip(_QUANTILES, found, strict=True)]
    return ["over clients", *header], rows


def headline(timeline: Timeline) -> str:
    """One sentence about the whole schedule."""
    cut = f"; only the first {timeline.combines:,} combines were followed" if timeline.shortened else ""
    return (
        f"{timeline.name}: {timeline.mode}, {timeline.clients} clients, {timeline.combines:,} combines of "
        f"{int(timeline.delivered.sum()):,} results in {timeline.end:.6g} virtual seconds{cut}"
    )


def _some(values: list[Any], text: Any, rest: str = " and {} more") -> str:
    """The first values, and how many more there are."""
    more = len(values) - _SHOWN_IN_ROW
    if more <= 1:
        return ", ".join(map(text, values)) or "none"
    return ", ".join(map(text, values[:_SHOWN_IN_ROW])) + rest.format(more)


def _short(value: float) -> str:
    return "" if value != value else f"{value:.3g}" if isinstance(value, float) else f"{value:,}"


def _plain(value: float) -> float | None:
    """JSON has no nan."""
    return value if value == value else None
