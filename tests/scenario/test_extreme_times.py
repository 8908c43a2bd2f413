"""Extreme but valid times, rates and probabilities: followed at once, or refused with their key; never an endless loop.

Every case is planned, its schedule is followed, and it is run. Before, each of these loops went on for ever or ended in
an overflow.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.core.errors import FedsimError, InputError
from fedsim.reports.timeline import follow
from fedsim.scenario.load import given

SECONDS = 60
LONG = 1e14
EXPONENTIAL = {"model": "exponential", "mean": 1.0}
ON_OFF = {"model": "on_off", "on": EXPONENTIAL, "off": EXPONENTIAL}
KEPT = {"model": "on_off", "on": 1.0, "off": 1.0, "redraw": False}
PERIODIC = {"model": "periodic", "period": 1e-9}
TABLE = {"model": "table", "active": [[[0.0, 0.5]]] * 4, "repeat": 1.0}
OVERFLOWING = {"model": "pareto", "alpha": 1e-3, "low": 1.0, "cap": 1e308}

SERVER = {"algorithm": {"name": "fedavg", "lr": 0.1}}
GRAPH = {"algorithm": {"name": "dspodfl", "lr": 0.1}, "topology": {"graph": "ring"}}
SYNCHRONOUS: dict[str, Any] = {"mode": "synchronous"}
ASYNCHRONOUS: dict[str, Any] = {"mode": "asynchronous", "weights": "identical"}
FEDBUFF: dict[str, Any] = {"mode": "fedbuff", "buffer": 2}
ESTIMATED: dict[str, Any] = {"mode": "asynchronous", "weights": "estimated", "pilot": 20}
WINDOWS: dict[str, Any] = {"mode": "fixed_interval", "window": 1e-9, "weights": "identical"}
MODES = {
    "synchronous": SYNCHRONOUS, "asynchronous": ASYNCHRONOUS, "fedbuff": FEDBUFF, "estimated": ESTIMATED,
    "fixed_interval": WINDOWS,
}  # fmt: skip


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """An AssertionError after so many seconds of a processor, whatever else the machine does."""

    def ring(*_: Any) -> None:
        raise AssertionError(f"no answer within {seconds} s")

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def answers(sections: dict[str, Any], folder: Path) -> list[str]:
    """What `plan`, ``plan --schedule`` and `run` say of it: ``ok``, or the key and the sentence."""
    values = {
        "data": {"dataset": "digits", "clients": 4, "limit": 120},
        "model": {"name": "linear"},
        "run": {"rounds": 3, "eval_every": 3, "device": "cpu", "threads": 1} | sections.pop("run", {}),
        **sections,
    }
    found = []

    def schedule(scenario: fedsim.Scenario) -> None:
        timeline = follow(scenario)
        for client in range(4):
            timeline.times_off(client, timeline.bars_until)

    def run(scenario: fedsim.Scenario) -> None:
        try:
            fedsim.run(scenario, out=folder / "run")
        except InputError:
            assert not (folder / "run").exists()
            raise

    for ask in (fedsim.plan, schedule, run):
        try:
            with within(SECONDS):
                ask(given(values))
            found.append("ok")
        except FedsimError as error:
            found.append(str(error))
    return found


def both(one: dict[str, Any], *others: dict[str, Any]) -> dict[str, Any]:
    for other in others:
        one = {**one, **other}
    return dict(one)


def system(**section: Any) -> dict[str, Any]:
    return {"system": section}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("policy", ["pause", "void"])
def test_a_job_longer_than_a_device_can_be_followed(mode: str, policy: str, tmp_path: Path) -> None:
    section = system(compute=LONG, availability={**ON_OFF, "policy": policy})
    for answer in answers(both(SERVER, {"participation": MODES[mode]}, section), tmp_path):
        assert answer.startswith("system.availability: client ")
        assert "would go on and off more than 1,000,000 times" in answer


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("availability", [KEPT, PERIODIC, TABLE], ids=["kept", "periodic", "table"])
def test_patterns_that_repeat_take_jobs_of_any_length(mode: str, availability: Any, tmp_path: Path) -> None:
    section = system(compute=LONG, availability=availability)
    planned, *others = answers(both(SERVER, {"participation": MODES[mode]}, section), tmp_path)
    nobody = "participation: nobody delivers in the first 10,000 rounds: look at "
    assert planned.startswith(nobody) if mode == "fixed_interval" else planned == "ok"
    assert others == ["ok"] * 2


TOO_LONG = {
    "compute": (SERVER, {}, system(compute=1e30), "system.compute"),
    "a law's draw": (SERVER, {}, system(compute={"model": "uniform", "low": 1e307, "high": 1e308}), "system.compute"),
    "link": (SERVER, {}, system(network={"bandwidth": 1e-300}), "system.network"),
    "jitter": (SERVER, {}, system(jitter=OVERFLOWING), "system.jitter"),
    "jitter on the clock": (SERVER, ASYNCHRONOUS, system(jitter=OVERFLOWING), "system.jitter"),
    "departure": (SERVER, {}, system(departure=1e300), "system.departure"),
    "kept": (SERVER, {}, system(availability={**KEPT, "off": 1e300}), "system.availability"),
    "drawn": (SERVER, ESTIMATED, system(availability={**ON_OFF, "on": 1e300}), "system.availability"),
    "period": (SERVER, {}, system(availability={"model": "periodic", "period": 1e30}), "availability.period"),
    "interval": (SERVER, {}, system(availability={**TABLE, "active": [[[0.0, 1e30]]] * 4}), "availability.active"),
    "deadline": (SERVER, {**SYNCHRONOUS, "deadline": 1e30}, {}, "participation.deadline"),
    "timeout": (SERVER, {**ASYNCHRONOUS, "timeout": 1e300}, {}, "participation.timeout"),
    "window": (SERVER, {**WINDOWS, "window": 1e300}, {}, "participation.window"),
    "seconds": (SERVER, {}, {"run": {"seconds": 1e300}}, "run.seconds"),
    "pilot": (SERVER, {**ESTIMATED, "pilot": 10**12}, {}, "participation.pilot"),
    "buffer": (SERVER, {**FEDBUFF, "buffer": 10**12}, {}, "participation.buffer"),
    "a graph's compute": (GRAPH, {}, system(compute=1e300), "system.compute"),
    "clocks": (GRAPH, {"mode": "poisson", "compute": 1e30}, {}, "participation.window"),
    "links' clocks": (GRAPH, {"mode": "poisson", "links": 1e12}, {}, "participation.window"),
    "a poisson window": (GRAPH, {"mode": "poisson", "window": LONG}, {}, "participation.window"),
    "a poisson run": (GRAPH, {"mode": "poisson"}, {"run": {"rounds": 10**9, "seconds": 3.0}}, "participation.window"),
}


@pytest.mark.parametrize("name", TOO_LONG)
def test_what_is_beyond_all_bounds_is_refused(name: str, tmp_path: Path) -> None:
    base, participation, sections, key = TOO_LONG[name]
    mode = {"participation": participation} if participation else {}
    for answer in answers(both(base, mode, sections), tmp_path):
        assert key in answer.split(" ")[0]
        assert "allowed: " in answer


EXTREME = {
    "nobody in a draw": (SERVER, {**SYNCHRONOUS, "fraction": 1e-300, "sampling": "bernoulli"}, {}),
    "hardly anybody": (SERVER, {**SYNCHRONOUS, "fraction": 1e-9, "sampling": "bernoulli"}, {}),
    "over-selection": (SERVER, {**SYNCHRONOUS, "fraction": 0.5, "over_selection": 1e308}, {}),
    "a long wait": (SERVER, SYNCHRONOUS, system(compute=1e15)),
    "a long run": (SERVER, SYNCHRONOUS, {"run": {"seconds": 1e15}}),
    "a short run": (SERVER, SYNCHRONOUS, {"run": {"seconds": 1e-308}}),
    "short work": (SERVER, ASYNCHRONOUS, system(compute=1e-300)),
    "slow links": (GRAPH, {"mode": "poisson", "links": 1e-300}, {}),
}


@pytest.mark.parametrize("name", EXTREME)
def test_what_is_extreme_is_followed(name: str, tmp_path: Path) -> None:
    base, participation, sections = EXTREME[name]
    assert answers(both(base, {"participation": participation}, sections), tmp_path) == ["ok"] * 3


NOBODY = {
    "an early deadline": (SERVER, {**SYNCHRONOUS, "deadline": 1e-300}),
    "a short window": (SERVER, {**WINDOWS, "window": 1e-300}),
    "slow clocks": (GRAPH, {"mode": "poisson", "compute": 1e-300, "links": 1e-300}),
    "a short poisson window": (GRAPH, {"mode": "poisson", "window": 1e-300}),
}


@pytest.mark.parametrize("name", NOBODY)
def test_where_nobody_delivers_the_plan_says_so(name: str, tmp_path: Path) -> None:
    base, participation = NOBODY[name]
    planned, *others = answers(both(base, {"participation": participation}), tmp_path)
    assert planned.startswith("participation: nobody delivers in the first 10,000 rounds: look at ")
    assert others == ["ok"] * 2
