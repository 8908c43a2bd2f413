"""When devices are on: every model against a brute-force walk through its own stretches, and shares by hand."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from fedsim.core.clock import TICKS_PER_SECOND, ticks
from fedsim.core.errors import InputError
from fedsim.core.fields import make_part
from fedsim.devices.availability import Presence
from fedsim.devices.system import SystemSection

LAW = {"model": "uniform", "low": 0.2, "high": 2.0}
MODELS: dict[str, dict[str, Any]] = {
    "drawn anew": {"model": "on_off", "on": LAW, "off": LAW},
    "kept": {"model": "on_off", "on": LAW, "off": 0.5, "redraw": False},
    "periodic": {"model": "periodic", "period": 3.0, "duty": 0.4},
    "table": {"model": "table", "active": [[[0.5, 1.0], [2.0, 2.75]], [[0.0, 3.0]]], "repeat": 4.0},
    "table, once": {"model": "table", "active": [[[0.5, 1.0], [2.0, 2.75]], [[0.0, 50.0]]]},
}
S = TICKS_PER_SECOND


def presence(n: int = 2, seed: int = 0, **section: Any) -> Presence:
    made = make_part(SystemSection, {"availability": section})
    found: Presence = made.availability.presence(n, seed)
    return found


def intervals(p: Presence, client: int, until: int) -> list[tuple[int, int]]:
    """All stretches on before tick `until`."""
    found, tick = [], 0
    while tick < until:
        on, stop = p.stretch(client, tick)
        stop = until if stop is None else min(stop, until)
        assert stop > tick
        if on:
            found.append((tick, stop))
        tick = stop
    return found


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("client", [0, 1])
def test_questions_agree_with_the_intervals(model: str, client: int) -> None:
    p, horizon = presence(**MODELS[model]), 60 * S
    spans = intervals(p, client, horizon)
    random = np.random.default_rng(0)
    for tick in random.integers(0, 20 * S, 200).tolist():  # in any order, back and forth
        later = [(max(a, tick), b) for a, b in spans if b > tick]
        assert p.wake(client, tick) == (later[0][0] if later else None)
        assert p.stretch(client, tick)[0] == (bool(later) and later[0][0] == tick)
        end = tick + int(random.integers(1, 10 * S))
        assert p.time_on(client, tick, end) == sum(max(min(b, end) - a, 0) for a, b in later)
        work = int(random.integers(1, 4 * S))
        found = p.finish(client, tick, work)
        total = sum(b - a for a, b in later)
        if found is None:
            assert total < work
        else:
            assert p.time_on(client, tick, found) == work
            assert p.stretch(client, found - 1)[0]


def test_long_work_on_a_cycle_does_not_take_long() -> None:
    p = presence(model="periodic", period=0.01, duty=0.5, spread=0.0)
    assert p.finish(0, 0, ticks(1_000_000.0)) == ticks(2_000_000.0) - ticks(0.005)


def test_a_day_is_on_for_its_duty() -> None:
    p = presence(n=400, model="periodic", period=100.0, duty=0.3)
    for client in range(400):
        assert p.time_on(client, 0, 1000 * S) == 300 * S
    on = [p.stretch(c, 0)[0] for c in range(400)]
    assert abs(np.mean(on) - 0.3) < 4 * np.sqrt(0.21 / 400)
    together = presence(n=5, model="periodic", period=100.0, duty=0.3, spread=0.0)
    assert [together.stretch(c, 0) for c in range(5)] == [(True, 30 * S)] * 5


def test_times_follow_their_laws() -> None:
    """Exponential times of mean 1 and 3: on a quarter of the time, and a quarter of the devices at any moment."""
    on, off = {"model": "exponential", "mean": 1.0}, {"model": "exponential", "mean": 3.0}
    p = presence(n=500, model="on_off", on=on, off=off)
    spans = intervals(p, 0, 4000 * S)[1:-1]
    lengths = np.array([b - a for a, b in spans]) / S
    gaps = np.array([b[0] - a[1] for a, b in pairwise(spans)]) / S
    assert len(spans) > 800
    assert lengths.mean() == pytest.approx(1.0, abs=5 / np.sqrt(len(lengths)))
    assert gaps.mean() == pytest.approx(3.0, abs=15 / np.sqrt(len(gaps)))
    for second in (20, 40):
        share = np.mean([p.stretch(c, second * S)[0] for c in range(500)])
        assert share == pytest.approx(0.25, abs=4 * np.sqrt(0.1875 / 500))


STATIONARY: dict[str, tuple[Any, Any, float, float, float]] = {
    # on, off, their means, and E[on^2] / (2 E[on]): how long a device that is on at time 0 stays on
    "exponential": ({"model": "exponential", "mean": 2.0}, {"model": "exponential", "mean": 1.0}, 2.0, 1.0, 2.0),
    "uniform": ({"model": "uniform", "low": 0.0, "high": 6.0}, 1.0, 3.0, 1.0, 2.0),
    "fixed on": (1.5, {"model": "exponential", "mean": 4.0}, 1.5, 4.0, 0.75),
    "heavy": (
        {"model": "lognormal", "scale": 1.0, "sigma": 1.0}, {"model": "exponential", "mean": 1.0}, np.exp(0.5), 1.0,
        np.exp(2.0) / (2 * np.exp(0.5)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STATIONARY)
def test_time_0_is_a_moment_like_any_other(name: str) -> None:
    """At time 0 the share that is on is E on / (E on + E off), and so it is at any later moment."""
    on, off, mean_on, mean_off, rest = STATIONARY[name]
    n = 4000
    p = presence(n=n, model="on_off", on=on, off=off)
    share = mean_on / (mean_on + mean_off)
    error = np.sqrt(share * (1 - share) / n)
    for second in (0, 1, 7):
        found = np.mean([p.stretch(c, second * S)[0] for c in range(n)])
        assert abs(found - share) < 4 * error, second
    states = [p.stretch(c, 0) for c in range(n)]
    left = np.array([until / S for is_on, until in states if is_on and until is not None])
    assert abs(left.mean() - rest) < 4 * left.std() / np.sqrt(len(left))


def test_clients_keep_their_times_or_draw_them_anew() -> None:
    kept = intervals(presence(**MODELS["kept"]), 0, 100 * S)[1:-1]
    anew = intervals(presence(**MODELS["drawn anew"]), 0, 100 * S)[1:-1]
    assert len({b - a for a, b in kept}) == 1
    assert len({b - a for a, b in anew}) == len(anew)
    other = intervals(presence(**MODELS["kept"]), 1, 100 * S)[1:-1]
    assert other[0][1] - other[0][0] != kept[0][1] - kept[0][0]


def test_questions_far_back_are_answered_again() -> None:
    """Only the last moments are remembered; earlier ones are drawn again, and are the same."""
    p = presence(**MODELS["drawn anew"])
    early = intervals(p, 0, 5 * S)
    p.stretch(0, 5000 * S)
    assert intervals(p, 0, 5 * S) == early
    assert presence(**MODELS["drawn anew"]).stretch(0, 5000 * S) == p.stretch(0, 5000 * S)


@pytest.mark.parametrize(
    "section,message",
    [
        ({"model": "diurnal"}, r"found 'diurnal'|diurnal"),
        ({"model": "on_off", "on": 1.0}, "availability.*off: missing"),
        ({"model": "on_off", "on": -1.0, "off": 1.0}, "availability.*on"),
        ({"model": "periodic", "duty": 0.0}, "availability.*duty: found 0.0, allowed: greater than 0"),
        ({"model": "periodic", "policy": "wait"}, "policy: found 'wait', allowed: 'pause' or 'void'"),
        ({"model": "table", "active": [[[1.0, 0.5]]]}, r"active: .*client 0: found \[\[1.0, 0.5\]\], allowed"),
        ({"model": "table", "active": [[[0.0, 2.0], [1.0, 3.0]]]}, "allowed: .start, end. that ascend"),
        ({"model": "periodic", "perid": 3.0}, "unknown key .did you mean 'period'"),
    ],
    ids=str,
)
def test_wrong_sections(section: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_part(SystemSection, {"availability": section})


@pytest.mark.parametrize(
    "section,message",
    [
        ({"model": "table", "active": [[[0.0, 2.0]]]}, r"active: found 1 lists, allowed: 2 \(one per client\)"),
        ({"model": "table", "active": [[[0.0, 2.0]], []], "repeat": 1.0}, "repeat: found 1.0, allowed: at least 2"),
        ({"model": "on_off", "on": {"model": "linear", "fastest": 0.5}, "off": 1.0}, "on: found linear.*redraw: false"),
        ({"model": "on_off", "on": 1.0, "off": {"model": "trace", "file": "x"}}, "off: found a trace"),
    ],
    ids=str,
)
def test_sections_that_do_not_fit_the_clients(section: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        presence(**section)
