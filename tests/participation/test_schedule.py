"""Schedules against tables worked out by hand, and what holds for any durations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import islice
from typing import Any

import numpy as np
import pytest

from fedsim.core import rng
from fedsim.core.clock import ticks
from fedsim.core.errors import InputError
from fedsim.devices.system import Durations, SystemSection
from fedsim.participation import schedule
from fedsim.participation.fates import jobs_of
from fedsim.participation.policy import Barrier, Buffer, EachArrival, Windows
from fedsim.participation.schedule import Combined, Started, Steady, Step

F80 = [Fraction(1), Fraction(11, 15), Fraction(7, 15), Fraction(1, 5)]
TAU = [ticks(t) for t in F80]


@Steady
def constant(client: int, _index: int) -> int:
    return TAU[client]


def drawn(client: int, index: int) -> int:
    """Durations of 1 to 12 ticks, so that ties are frequent."""
    return 1 + int(12 * rng.scalar_uniform(rng.scalar_key(5, "durations"), client, index))


def combines(steps: Iterator[Step], count: int) -> list[Combined]:
    return list(islice((s for s in steps if isinstance(s, Combined)), count))


def table(steps: Iterator[Step], count: int) -> list[list[int]]:
    """One row per combine: the model each client delivers for, -1 where it is absent."""
    rows = []
    for number, step in enumerate(combines(steps, count)):
        row = [-1] * 4
        for client, stale in zip(step.clients, step.staleness, strict=True):
            row[client] = number - stale
        rows.append(row)
    return rows


def times(steps: Iterator[Step], count: int) -> list[int]:
    return [step.tick for step in combines(steps, count)]


def test_fixed_interval_entry_for_entry() -> None:
    window = ticks(0.5)
    expected = [[-1, -1, 0, 0], [0, 0, 1, 1], [-1, -1, 2, 2], [2, 2, 3, 3]]
    assert table(schedule.steps(Windows(window), 4, constant), 4) == expected
    assert times(schedule.steps(Windows(window), 4, constant), 4) == [ticks(t) for t in (0.5, 1.0, 1.5, 2.0)]


def test_asynchronous_entry_for_entry() -> None:
    expected = [(3, 0), (3, 1), (2, 0), (3, 2), (1, 0), (3, 4), (2, 3), (0, 0), (3, 6)]
    moments = [F80[3], 2 * F80[3], F80[2], 3 * F80[3], F80[1], 4 * F80[3], 2 * F80[2], Fraction(1), Fraction(1)]
    steps = combines(schedule.steps(EachArrival(), 4, constant), 9)
    assert [(s.clients[0], n - s.staleness[0]) for n, s in enumerate(steps)] == expected
    assert [s.tick for s in steps] == [ticks(t) for t in moments]
    assert all(len(s.clients) == 1 for s in steps)


def test_barrier_entry_for_entry() -> None:
    expected = [[-1, -1, 0, 0], [-1, 0, -1, 1], [-1, -1, 1, 2], [0, -1, -1, 3], [-1, -1, 3, 4], [-1, 2, -1, 5],
                [-1, -1, 5, 6]]  # fmt: skip
    moments = [7, 11, 14, 17, 21, 24, 28]  # fifteenths of a second
    assert table(schedule.steps(Barrier(2), 4, constant), 7) == expected
    assert times(schedule.steps(Barrier(2), 4, constant), 7) == [ticks(Fraction(t, 15)) for t in moments]


def test_the_fastest_of_twenty_delivers_in_every_window() -> None:
    """In floating point it misses a tenth of its windows, for 0.2 + 0.2 + 0.2 > 0.6."""
    tau = [ticks(1 - Fraction(4, 5) * Fraction(i, 19)) for i in range(20)]
    steps = combines(schedule.steps(Windows(ticks(0.2)), 20, Steady(lambda c, _: tau[c])), 500)
    assert all(19 in s.clients and s.staleness[s.clients.index(19)] == 0 for s in steps)


MODES: dict[str, Callable[[Callable[[int, int], int]], Iterator[Step]]] = {
    "asynchronous": lambda d: schedule.steps(EachArrival(), 6, Steady(d)),
    "fixed_interval": lambda d: schedule.steps(Windows(5), 6, Steady(d)),
    "barrier": lambda d: schedule.steps(Barrier(3), 6, Steady(d)),
    "fedbuff": lambda d: schedule.steps(Buffer(3, 4, np.random.default_rng(1)), 6, Steady(d)),
    "fedbuff, one client at work": lambda d: schedule.steps(Buffer(2, 1, np.random.default_rng(1)), 6, Steady(d)),
    "fedbuff, a buffer beyond all clients": lambda d: schedule.steps(
        Buffer(9, 6, np.random.default_rng(1)), 6, Steady(d)
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_laws_of_every_schedule(mode: str) -> None:
    """Jobs start and end once, after their duration; time never runs back; staleness counts the combines between."""
    pulled: dict[int, int] = {}
    began: dict[int, tuple[int, int, int]] = {}
    made = dict.fromkeys(range(6), 0)
    number = now = 0
    for step in islice(MODES[mode](drawn), 600):
        assert step.tick >= now
        now = step.tick
        if isinstance(step, Started):
            for job, client, index in zip(step.jobs, step.clients, step.indices, strict=True):
                assert job not in began
                assert index == made[client]
                made[client] += 1
                began[job], pulled[job] = (step.tick, client, index), number
            continue
        assert isinstance(step, Combined)
        for job, client, index, stale in zip(step.jobs, step.clients, step.indices, step.staleness, strict=True):
            start, who, which = began[job]
            assert (who, which) == (client, index)
            assert start + drawn(client, index) <= step.tick
            assert stale == number - pulled.pop(job)
        number += 1
    assert number > 50
    assert min(made.values()) > 3


@pytest.mark.parametrize("concurrency", [1, 3, 6])
def test_fedbuff_keeps_its_concurrency_at_every_instant(concurrency: int) -> None:
    steps = [s for s in islice(schedule.steps(Buffer(4, concurrency, np.random.default_rng(0)), 6, Steady(drawn)), 800)
             if isinstance(s, Started)]  # fmt: skip
    spans = [(s.tick, s.tick + drawn(c, i), c) for s in steps for c, i in zip(s.clients, s.indices, strict=True)]
    horizon = steps[-1].tick  # jobs that start later are not listed
    for instant in range(horizon):
        working = [c for start, end, c in spans if start <= instant < end]
        assert len(working) == concurrency
        assert len(set(working)) == concurrency  # nobody has two jobs at once
    assert {c for _, _, c in spans} == set(range(6))


def test_fedbuff_replaces_by_random_idle_clients() -> None:
    steps = combines(schedule.steps(Buffer(1, 2, np.random.default_rng(0)), 10, Steady(lambda *_: 5)), 20_000)
    counts = np.bincount([s.clients[0] for s in steps], minlength=10)
    assert np.abs(counts / 20_000 - 0.1).max() < 0.01


def test_buffers_may_hold_a_client_twice() -> None:
    fast_first = Steady(lambda c, _: 1 if c == 0 else 100)
    first = combines(schedule.steps(Buffer(4, 3, np.random.default_rng(0)), 3, fast_first), 1)[0]
    assert first.clients == [0, 0, 0, 0]
    assert first.indices == [0, 1, 2, 3]
    assert len(set(first.jobs)) == 4
    assert first.staleness == [0, 0, 0, 0]


def test_ties_are_broken_by_client() -> None:
    equal = Steady(lambda *_: 7)
    assert [s.clients for s in combines(schedule.steps(EachArrival(), 3, equal), 6)] == [[0], [1], [2]] * 2
    assert [s.clients for s in combines(schedule.steps(Barrier(2), 4, equal), 4)] == [[0, 1], [2, 3]] * 2
    assert [s.staleness for s in combines(schedule.steps(Barrier(2), 4, equal), 4)] == [[0, 0], [1, 1], [1, 1], [1, 1]]


def test_windows_in_which_nobody_delivers() -> None:
    steps = combines(schedule.steps(Windows(4), 2, Steady(lambda *_: 10)), 6)
    assert [s.clients for s in steps] == [[], [], [0, 1]] * 2
    assert steps[2].staleness == [2, 2]


def test_rates_count_deliveries() -> None:
    rates, _ = schedule.participation_rates(schedule.steps(Windows(ticks(0.5)), 4, constant), 4, 100)
    assert rates.tolist() == [0.5, 0.5, 1.0, 1.0]
    fast_first = Steady(lambda c, _: 1 if c == 0 else 100)
    buffered = schedule.steps(Buffer(4, 3, np.random.default_rng(0)), 3, fast_first)
    assert schedule.participation_rates(buffered, 3, 10)[0].tolist() == [4.0, 0.0, 0.0]


def test_the_fast_way_of_steady_jobs_is_the_general_one() -> None:
    """`asynchronous` writes out jobs that all arrive; other jobs with the same fates make the same steps."""

    class General:
        fate, ready = Steady(drawn).fate, Steady(drawn).ready

    fast, general = (list(islice(schedule.steps(EachArrival(), 6, jobs), 2000)) for jobs in (Steady(drawn), General()))
    assert fast == general


LAWS: dict[str, dict[str, Any]] = {
    "drawn": {"compute": {"model": "lognormal", "sigma": 0.5}, "jitter": {"model": "exponential", "mean": 0.1}},
    "ties": {"compute": 1.0},
    "some at once": {"compute": {"model": "uniform", "low": 0.0, "high": 1.0}},
    "far apart": {"compute": {"model": "lognormal", "sigma": 3.0}},
    "by steps": {"compute": {"model": "lognormal", "sigma": 0.5}, "per": "step"},
    "too late for arrays": {"compute": 1.0, "jitter": {"model": "pareto", "alpha": 0.05, "low": 1e-3, "cap": 1e14}},
}


@pytest.mark.parametrize("n", [1, 2, 7, 40, 333])
@pytest.mark.parametrize("law", LAWS)
def test_stretches_of_arrivals_are_what_one_by_one_makes(law: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    durations = Durations(SystemSection.model_validate(LAWS[law]), n, seed=5)
    late: list[int] = []
    one_by_one = schedule._Arriving.one_by_one
    monkeypatch.setattr(
        schedule._Arriving, "one_by_one", lambda own, duration: late.append(own.version) or one_by_one(own, duration)
    )
    found = []
    for many in (1, 10**9):
        monkeypatch.setattr(schedule, "_MANY", many)
        jobs = jobs_of(durations, lambda client, index: 1 + (client + index) % 3)
        found.append(list(islice(schedule.steps(EachArrival(), n, jobs), 4001)))
    assert found[0] == found[1]
    assert len(late) == 2 if law.startswith("too late") else len(late) == 1  # else arrays hold every tick
    whole = [v for step in found[0] for v in (step.tick, *step.jobs, *step.clients, *step.indices)]
    assert {type(v) for v in whole} == {int}
    assert {type(v) for step in found[0] if isinstance(step, Combined) for v in step.staleness} == {int}


def test_a_stretch_has_no_more_arrivals_than_there_are_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a few are much faster than all others, up to the sixteenth part of all they would arrive too often."""
    monkeypatch.setattr(schedule, "_MANY", 1)
    asked = []

    def durations(clients: Any, _indices: Any) -> list[int]:
        asked.append(len(clients))
        return [10 if c < 5 else 10_000_000 for c in clients.tolist()]

    steps = schedule.steps(EachArrival(), 200, Steady(lambda c, _: 10 if c < 5 else 10_000_000, durations))
    found = combines(steps, 1000)
    assert [step.clients for step in found] == [[c] for c in range(5)] * 200
    assert [step.tick for step in found] == [10 * (1 + i // 5) for i in range(1000)]
    assert sum(asked) < 200 + 40 * 200 + 3 * 1000  # tries while the stretch is found out, and then not twice as much


def test_a_jitter_that_is_no_time_is_refused_by_name_in_stretches_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_MANY", 1)
    section = SystemSection.model_validate({"jitter": {"model": "exponential", "mean": 1e16}})
    steps = schedule.steps(EachArrival(), 50, jobs_of(Durations(section, 50, seed=0), lambda *_: 1))
    with pytest.raises(InputError, match=r"a jitter of client \d+ of .* allowed: at most 1e\+15"):
        list(islice(steps, 100))
