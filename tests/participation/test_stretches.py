"""Schedules and merges in continuous time: when clocks tick, what a merge is, and what must not change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import continuous_loops as loops
from reference.poisson_loop import replay
from scipy import stats
from scipy.integrate import quad

import fedsim
from fedsim.core.clock import TICKS_PER_SECOND
from fedsim.core.errors import InputError
from fedsim.participation.stretches import Stretch, Timetable
from fedsim.participation.windows import NEVER, Merge

Make = Callable[..., Any]
N = 6


def timetable(windows: list[dict[str, Any]], rounds: int = 20, length: float = 1.0) -> Timetable:
    return Timetable([Stretch.model_validate(w) for w in windows], rounds, round(length * TICKS_PER_SECOND))


# --- clocks -----------------------------------------------------------------------------------------------------------

_THREE = [
    {"from": 2, "until": 5, "links": 4.0},
    {"from": 0.25, "until": 9, "links": {"linear": [0.5, 3.0]}},
    {"from": 10, "until": 15, "links": {"cosine": [2.0, 0.0]}},
    {"from": 15, "until": 17, "links": 0},
]


def rate(t: float, own: float) -> float:
    """Of a link at virtual second t, with the windows above."""
    if 2 < t <= 5:
        return 4.0
    if 5 < t <= 9:
        return 0.5 + 2.5 * (t - 5) / 4
    if 10 < t <= 15:
        return 2.0 - 2.0 * (1 - np.cos(np.pi * (t - 10) / 5)) / 2
    return 0.0 if 15 < t <= 17 else own


def test_a_gap_is_used_up_by_the_rates_that_a_link_has() -> None:
    random = np.random.default_rng(0)
    last = np.sort(random.uniform(0, 18, 60))
    gaps, own = random.exponential(size=60), random.uniform(0.2, 2.0, 60)
    ticks = (last * TICKS_PER_SECOND).astype(np.int64)
    found = timetable(_THREE).after(ticks, gaps, TICKS_PER_SECOND / own)
    assert (found > ticks).all()
    for a, b, gap, r in zip(ticks / TICKS_PER_SECOND, found / TICKS_PER_SECOND, gaps, own, strict=True):
        breaks = [t for t in (2, 5, 9, 10, 15, 17) if a < t < b]
        assert quad(rate, a, b, (r,), points=breaks or None, epsabs=1e-11)[0] == pytest.approx(gap, abs=1e-8)


def test_a_link_that_is_silent_goes_on_where_it_was() -> None:
    table = timetable([{"from": 3, "until": 7, "links": 0}])
    second = np.array([TICKS_PER_SECOND])
    for gap, expected in ((1.5, 2.5), (2.0, 3.0), (2.5, 7.5)):
        assert table.after(second, np.array([gap]), 1.0 * second).tolist() == [round(expected * TICKS_PER_SECOND)]
    never = timetable([{"from": 3, "until": 7, "links": 2.0}]).after(second, np.array([9.0]), np.array([np.inf]))
    assert never[0] > 2**61  # a link without a rate of its own ticks in windows alone
    assert timetable([{"from": 3, "until": 7, "links": 2.0}]).after(second, np.array([1.0]), np.array([np.inf])) == [
        round(3.5 * TICKS_PER_SECOND)
    ]


def test_fractions_are_exact_and_half_open() -> None:
    table = timetable([{"from": 0.07, "until": 0.29, "links": 1.0}], rounds=100)
    assert table.spans() == [(7.0, 29.0)]
    merged = timetable([{"from": 0.9, "until": 0.95, "merge": True}], rounds=300)
    assert [k for k in range(1, 301) if merged.merges(k)] == list(range(271, 286))
    assert merged.merges_in(NEVER) == 15
    assert merged.merges_in(Merge.model_validate({"rounds": [271, 1]})) == 16
    halves = timetable([{"from": 2, "until": 4, "merge": True}], rounds=20, length=0.5)
    assert [k for k in range(1, 21) if halves.merges(k)] == [5, 6, 7, 8]


@pytest.mark.parametrize(
    ("windows", "key", "words"),
    [
        ([{"from": 5, "until": 5, "links": 1}], "0.until", "which has no time of the run's 20 virtual seconds"),
        ([{"from": 20, "until": 30, "links": 1}], "0.until", "no time"),
        ([{"from": 1, "until": 6, "links": 1}, {"from": 5, "until": 9, "links": 1}], "1.from", "windows 0 and 1"),
        ([{"from": 0.999, "until": 0.9999, "merge": True}], "0.merge", "no round of 1 seconds ends in the window"),
    ],
)
def test_windows_that_cannot_be_are_refused(windows: Any, key: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        timetable(windows)
    assert caught.value.problems[0].key == key


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def go(quadratic: Make, tmp_path: Path) -> Make:
    problem = quadratic(n=N, d=3, x0=np.zeros(3))

    def run(out: str = "run", resume: bool = False, more: Any = None, **participation: Any) -> Any:
        keys: dict[str, Any] = {
            "data": problem.section(), "algorithm": {"name": "dspodfl", "lr": 0.05}, "topology": {"graph": "ring"},
            "participation": {"mode": "poisson", "links": 1.0, **participation},
            "run": {"rounds": 20, "dtype": "float64", "trace": True, "eval_every": 1},
        }  # fmt: skip
        for section, values in (more or {}).items():
            keys[section] = values if section == "algorithm" else {**keys.get(section, {}), **values}
        return fedsim.run(keys, out=tmp_path / out, resume=resume)

    run.problem = problem  # type: ignore[attr-defined]
    return run


def events(run: Any) -> list[Any]:
    return [e for row in run.trace for e in row["events"]]


def test_links_tick_as_a_window_says_and_before_it_as_ever(go: Make) -> None:
    plain = go("plain", links=3.0)
    run = go(links=3.0, schedule=[{"from": 5, "until": 10, "links": 0}, {"from": 10, "until": 15, "links": 40.0}])
    counts = [len(row["edges"]) for row in run.trace]
    assert counts[5:10] == [0] * 5
    assert sum(counts[10:15]) == pytest.approx(40 * 5 * N, abs=4 * np.sqrt(40 * 5 * N))
    assert run.trace[:5] == plain.trace[:5]
    assert [row["compute"] for row in run.trace] == [row["compute"] for row in plain.trace]  # nodes' clocks are theirs
    assert sum(counts[15:]) == pytest.approx(3 * 5 * N, abs=4 * np.sqrt(3 * 5 * N))


def test_gaps_of_a_ramp_are_exponential_in_what_the_rate_comes_to(go: Make) -> None:
    run = go(links=0, schedule=[{"from": 0.0, "until": 1.0, "links": {"linear": [0, 20]}}])
    first = np.array([e[0] for e in events(run) if len(e) == 3])
    assert len(first) == pytest.approx(200 * N, abs=4 * np.sqrt(200 * N))
    assert stats.kstest(np.sort((first / 20) ** 2), "uniform").pvalue > 1e-3


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dspodfl": (
        {"name": "dspodfl", "lr": 0.05},
        {"pair_weight": "half", "merge": {"rounds": [7, 12]},
         "schedule": [{"from": 3, "until": 0.4, "links": {"cosine": [3.0, 0.2]}}]},
    ),
    "acid": (
        {"name": "acid", "lr": 0.05, "momentum": 0.5},
        {"schedule": [{"from": 3, "until": 6, "links": 4.0, "merge": True}, {"from": 0.5, "until": 14, "links": 0}]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_trace_replays(go: Make, case: str) -> None:
    algorithm, keys = CASES[case]
    run = go(**keys, more={"algorithm": algorithm})
    problem, merged = go.problem, [row["round"] for row in run.trace if row.get("merge")]  # type: ignore[attr-defined]
    assert merged == ([7, 12] if case == "dspodfl" else [4, 5, 6])
    if case == "dspodfl":
        import networkx as nx

        expected = replay(run.trace, problem, nx.cycle_graph(N), lr=0.05, half=True)
    else:
        chi_1, chi_2 = loops.chi(N, [(i, (i + 1) % N) for i in range(N)], 1.0)
        told = [e for row in run.trace for e in [*row["events"], *([[row["time"]]] if row.get("merge") else [])]]
        expected = loops.acid(
            told, problem.grad, np.zeros((N, 3)), 0.05, 1 / (2 * np.sqrt(chi_1 * chi_2)), np.sqrt(chi_1 / chi_2) / 2,
            20.0, 0.5,
        )[:, 0]  # fmt: skip
    assert np.abs(run.params.numpy() - expected).max() < 1e-10


@pytest.mark.parametrize("case", CASES)
def test_resuming_and_the_length_of_rounds_change_nothing(go: Make, case: str) -> None:
    algorithm, keys = CASES[case]
    more = {"algorithm": algorithm, "data": {"noise": 0.2}}
    whole = go("whole", **keys, more=more)
    seconds: dict[str, list[dict[str, Any]]] = {"dspodfl": [{"until": 8}], "acid": [{}, {"from": 10}]}
    in_seconds = {**keys, "schedule": [w | s for w, s in zip(keys["schedule"], seconds[case], strict=True)]}
    for stop in (7, 8) if case == "dspodfl" else (11, 14):
        go(f"stopped-{stop}", **in_seconds, more={**more, "run": {"rounds": stop}})
        parts = go(f"stopped-{stop}", resume=True, **in_seconds, more=more)
        assert torch.equal(parts.params, whole.params)
        assert parts.trace == whole.trace
        assert parts.metrics.drop(columns="wall").equals(whole.metrics.drop(columns="wall"))
    if case == "dspodfl":
        halves = go("halves", **{**keys, "merge": {"rounds": [14, 24]}}, window=0.5,
                    more={**more, "run": {"rounds": 40}})  # fmt: skip
        assert torch.equal(halves.params, whole.params)
        assert events(halves) == events(whole)


def test_windows_that_are_fractions_tie_a_run_to_its_rounds(go: Make) -> None:
    go(**CASES["dspodfl"][1])
    with pytest.raises(InputError, match="fractions of the run would move; virtual seconds would not"):
        go(resume=True, **CASES["dspodfl"][1], more={"run": {"rounds": 30}})


@pytest.mark.parametrize("graph", ["ring", "complete"])
def test_a_merge_costs_all_messages_and_a_delay_where_all_are_linked(go: Make, graph: str) -> None:
    plain, merged = (
        go(f"{k}", **keys, more={"topology": {"graph": graph}})
        for k, keys in enumerate([{}, {"schedule": [{"from": 4, "until": 6, "merge": True}]}])
    )
    before, after = plain.metrics.iloc[-1], merged.metrics.iloc[-1]
    assert after["bytes_sent"] - before["bytes_sent"] == 2 * N * (N - 1) * 3 * 8
    more = after["delay_transmission"] - before["delay_transmission"]
    assert more == pytest.approx(2 if graph == "complete" else 0)
    assert merged.metrics["consensus_distance"].iloc[[5, 6]].tolist() == [0.0, 0.0]


def test_what_was_asked_for_is_written_down(go: Make) -> None:
    run = go(**CASES["dspodfl"][1])
    written = fedsim.load(run.dir / "scenario.yaml")
    assert written.to_yaml() == (run.dir / "scenario.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("more", "participation", "key", "words"),
    [
        ({}, {"schedule": [{"from": 5, "until": 25, "links": -1}]}, "participation.schedule.0.links", "greater than"),
        ({}, {"schedule": [{"from": 2, "until": 4}]}, "participation.schedule.0", "changes nothing"),
        ({}, {"schedule": [{"from": 10**9, "until": 10**10, "links": 1}]}, "participation.schedule.0.from", "at most"),
        ({}, {"schedule": [{"from": 2.5, "until": 4, "links": 1}]}, "participation.schedule.0.from", "allowed"),
        ({}, {"schedule": [{"from": 30, "until": 40, "links": 1}]}, "participation.schedule.0.until", "no time"),
        ({}, {"schedule": [{"from": 3, "until": 4, "links": 1e9}]}, "participation.window", "tick some"),
        ({"algorithm": {"name": "dadao"}}, {"links": "auto", "schedule": [{"from": 2, "until": 4, "links": 9}]},
         "participation.schedule.0.links", "steps follow from the usual ones"),
        ({"algorithm": {"name": "dadao"}}, {"links": "auto", "schedule": [{"from": 2, "until": 4, "merge": True}]},
         "participation.schedule", "found a merge, but every node of DADAO"),
        ({"algorithm": {"name": "acid", "lr": 0.05}},
         {"schedule": [{"from": 2, "until": 4, "links": {"linear": [0, 3]}}]},
         "participation.schedule.0.links", "allowed: 0, at least 1, or algorithm.eta: 0"),
        ({"privacy": {"mechanism": "dp_sgd", "noise_multiplier": 1.0, "clip_norm": 1.0}},
         {"schedule": [{"from": 2, "until": 4, "merge": True}]}, "participation.schedule", "does not count"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(
    go: Make, tmp_path: Path, more: Any, participation: Any, key: str, words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        go(more=more, **participation)
    assert key in [p.key for p in caught.value.problems]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("links", [0, 2.0, {"linear": [1.0, 5.0]}])
def test_acid_takes_windows_in_which_it_does_not_drift_apart(go: Make, links: Any) -> None:
    run = go(schedule=[{"from": 2, "until": 8, "links": links}], more={"algorithm": {"name": "acid", "lr": 0.05}})
    assert run.metrics["consensus_distance"].iloc[-1] < 1.0
