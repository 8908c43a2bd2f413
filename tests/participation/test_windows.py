"""Communication over time: which rounds a window has, what fires in them, and what a merge of all nodes is.

What is asked of windows, merges and peers at random, and where it is tried (here, where no file is named):

* the rounds of a window, exactly: `test_a_window_has_these_rounds`; links in and outside it:
  `test_links_fire_as_a_window_says_and_elsewhere_as_ever`; in continuous time: test_stretches;
* with equal Hessians the mean model is that of parallel SGD: `test_with_equal_hessians_the_mean_model_is_parallel_sgd`,
  and test_peers, where pulls break that;
* how far pulls move the mean, and how fast pairs and pulls bring nodes together: test_peers;
* after a merge nodes are equal and the mean is where it was: `test_all_nodes_are_the_mean_after_a_merge_which_moves_it_
  nowhere`; measured models are those that would be merged: `test_a_merge_is_what_was_measured_without_it`;
* evaluating changes nothing: `test_evaluating_changes_nothing`;
* one merge at the end is one-shot FedAvg, and one in every round FedAvg: `test_merging_once_at_the_end_is_one_shot_
  fedavg`, `test_merging_in_every_round_is_fedavg`;
* a run resumed at any round, also after a final merge, is the unbroken one:
  `test_a_run_that_was_merged_at_its_end_goes_on_unmerged`; on Ray: test_ray_contract;
* traced runs replay: test_reference_gossip, test_stretches;
* what is refused: `test_what_cannot_be_is_refused_before_anything_is_written`, and test_peers;
* the shipped scenario shows what it is for: `test_nodes_that_meet_rarely_are_good_once_they_merge`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.core.errors import InputError
from fedsim.participation.windows import Merge, Schedule, Window
from fedsim.reports.numbers import size

Make = Callable[..., Any]
N = 6


def window(**keys: Any) -> Window:
    return Window.model_validate({"merge": True, **keys})


@pytest.mark.parametrize(
    ("begins", "until", "rounds", "first", "last"),
    [
        (0.9, 0.95, 300, 271, 285),
        (0.1, 0.15, 300, 31, 45),
        (0.5, 0.55, 300, 151, 165),
        (271, 286, 300, 271, 285),
        (0.999, 1.0, 300, 300, 300),
        (0.0, 0.07, 100, 1, 7),  # 0.07 * 100 is 7.000000000000001 in binary
        (0.29, 1.0, 100, 30, 100),  # and 0.29 * 100 is 28.999999999999996
        (5, 1.0, 10, 5, 10),
        (8, 99, 10, 8, 10),
    ],
)
def test_a_window_has_these_rounds(begins: float, until: float, rounds: int, first: int, last: int) -> None:
    made = window(**{"from": begins, "until": until})
    assert made.span(rounds) == (first, last)
    merged = [k for k in range(1, rounds + 1) if Schedule([made], rounds).merges(k)]
    assert merged == list(range(first, last + 1))


@pytest.mark.parametrize(
    ("windows", "key", "words"),
    [
        ([(0.9991, 0.9999)], "0.until", "selects none of the run's 300 rounds"),
        ([(5, 5)], "0.until", "selects none"),
        ([(301, 400)], "0.until", "selects none"),
        ([(1, 11), (10, 12)], "1.from", "both have round 10"),
        ([(10, 12), (0.0, 0.1)], "0.from", "both have round 10"),
    ],
)
def test_windows_that_cannot_be_are_refused(windows: list[tuple[Any, Any]], key: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        Schedule([window(**{"from": a, "until": b}) for a, b in windows], 300)
    assert caught.value.problems[0].key == key


def test_levels_go_from_the_first_round_to_the_last() -> None:
    def levels(links: Any) -> list[float | None]:
        schedule = Schedule([Window.model_validate({"from": 3, "until": 8, "links": links})], 10)
        return [schedule.links(k) for k in range(1, 11)]

    rest = [None, None], [None, None, None]
    assert levels(0.25) == [*rest[0], *[0.25] * 5, *rest[1]]
    assert levels({"linear": [0, 1]}) == [*rest[0], 0.0, 0.25, 0.5, 0.75, 1.0, *rest[1]]
    cosine = levels({"model": "cosine", "first": 1, "last": 0})
    assert cosine[2:7] == pytest.approx([1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0])


def test_a_ramp_goes_over_the_window_as_it_is_written() -> None:
    """A run that ends before its window does begins the ramp that a longer run finishes."""
    ramp = [Window.model_validate({"from": 1, "until": 7, "links": {"linear": [0, 1]}})]
    assert [Schedule(ramp, 3).links(k) for k in (1, 2, 3)] == [Schedule(ramp, 6).links(k) for k in (1, 2, 3)]


def test_when_a_merge_is_due() -> None:
    def rounds(merge: Any) -> list[int]:
        return [k for k in range(1, 11) if Merge.model_validate(merge).due(k)]

    assert rounds("never") == rounds("final") == []
    assert rounds({"every": 4}) == [4, 8]
    assert rounds({"rounds": [9, 2]}) == [2, 9]


@pytest.mark.parametrize("merge", ["never", "final", {"every": 4}, {"rounds": [9, 2, 2, 30]}])
def test_merges_are_counted_without_going_through_the_rounds(merge: Any) -> None:
    windows = [window(**{"from": 3, "until": 6}), window(**{"from": 0.8, "until": 1.0})]
    schedule, made = Schedule(windows, 20), Merge.model_validate(merge)
    one_by_one = sum(schedule.merges(k) or made.due(k) for k in range(1, 21)) + made.final
    assert schedule.merges_in(made) == one_by_one
    assert Schedule([], 10**18).merges_in(Merge.model_validate({"every": 2})) == 5 * 10**17


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def go(quadratic: Make, tmp_path: Path) -> Make:
    problem = quadratic(n=N, d=4, x0=np.zeros(4))

    def run(out: str = "run", resume: bool = False, more: Any = None, **participation: Any) -> Any:
        keys: dict[str, Any] = {
            "data": problem.section(),
            "algorithm": {"name": "dfedavg", "lr": 0.05, "local_steps": 2, "batch_size": "full"},
            "topology": {"graph": "ring"},
            "participation": {"mode": "gossip", "links": 0.5, **participation},
            "run": {"rounds": 20, "dtype": "float64", "trace": True, "eval_every": 1},
        }
        for section, values in (more or {}).items():
            keys[section] = {**keys.get(section, {}), **values}
        return fedsim.run(keys, out=tmp_path / out, resume=resume)

    run.problem = problem  # type: ignore[attr-defined]
    return run


def edges(run: Any) -> list[Any]:
    return [row["edges"] for row in run.trace]


def test_links_fire_as_a_window_says_and_elsewhere_as_ever(go: Make) -> None:
    plain = go("plain")
    windows = [{"from": 5, "until": 8, "links": 1}, {"from": 0.5, "until": 0.6, "links": 0}]
    scheduled = go("scheduled", schedule=windows)
    for number, (before, after) in enumerate(zip(edges(plain), edges(scheduled), strict=True), 1):
        if number in (5, 6, 7):
            assert len(after) == N
        elif number in (11, 12):
            assert after == []
        else:
            assert after == before


POISSON = {"mode": "poisson", "links": 2.0, "window": 1.5}


@pytest.mark.parametrize(("mode", "algorithm"), [({}, "dspodfl"), ({}, "dfedavg"), (POISSON, "dspodfl")])
def test_all_nodes_are_the_mean_after_a_merge_which_moves_it_nowhere(go: Make, mode: Any, algorithm: str) -> None:
    more = {"algorithm": {"name": algorithm, "local_steps": 1}}
    plain, merged = (go(f"{k}", **mode, **merge, more=more) for k, merge in enumerate([{}, {"merge": {"rounds": [7]}}]))
    assert [row.get("merge") for row in merged.trace] == [None] * 6 + [True] + [None] * 13
    before, after = (run.metrics.set_index("round") for run in (plain, merged))
    assert after.loc[7, "consensus_distance"] == 0.0 < before.loc[7, "consensus_distance"]
    assert after.loc[7, "optimum_distance"] == pytest.approx(before.loc[7, "optimum_distance"], abs=1e-13)
    assert after.loc[:6].drop(columns="wall").equals(before.loc[:6].drop(columns="wall"))
    assert after.loc[8, "optimum_distance"] != before.loc[8, "optimum_distance"]
    one_message = 4 * 8
    assert after.loc[7, "bytes_sent"] - before.loc[7, "bytes_sent"] == N * (N - 1) * one_message


def test_merging_all_that_nodes_mix_keeps_what_tracks_gradients(go: Make) -> None:
    run = go(
        links=1,
        merge={"every": 3},
        more={"algorithm": {"name": "gradient_tracking", "local_steps": 1}, "run": {"rounds": 400}},
    )
    assert run.metrics["optimum_distance"].iloc[-1] < 1e-8


def test_merging_in_every_round_is_fedavg(go: Make, tmp_path: Path) -> None:
    gossip = go(links=0, merge={"every": 1})
    server = fedsim.run(
        {
            "data": go.problem.section(),  # type: ignore[attr-defined]
            "algorithm": {
                "name": "fedavg", "lr": 0.05, "local_steps": 2, "batch_size": "full", "weighting": "uniform",
            },
            "run": {"rounds": 20, "dtype": "float64"},
        },
        out=tmp_path / "server",
    )  # fmt: skip
    assert torch.allclose(gossip.params, server.params.expand(N, -1), rtol=0, atol=1e-12)


def test_merging_once_at_the_end_is_one_shot_fedavg(go: Make, tmp_path: Path) -> None:
    gossip = go(links=0, merge="final")
    server = fedsim.run(
        {
            "data": go.problem.section(),  # type: ignore[attr-defined]
            "algorithm": {
                "name": "fedavg", "lr": 0.05, "local_steps": 40, "batch_size": "full", "weighting": "uniform",
            },
            "run": {"rounds": 1, "dtype": "float64"},
        },
        out=tmp_path / "server",
    )  # fmt: skip
    assert torch.allclose(gossip.params, server.params.expand(N, -1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("participation", [
    {"links": 0}, {"links": 0.3}, {"links": 0, "schedule": [{"from": 3, "until": 5, "links": 1}]},
    {"links": 0.1, "schedule": [{"from": 0.9, "until": 0.95, "merge": True}], "merge": "final"},
])  # fmt: skip
def test_with_equal_hessians_the_mean_model_is_parallel_sgd(
    quadratic: Make, tmp_path: Path, participation: dict[str, Any]
) -> None:
    """Doubly stochastic mixing: whatever the schedule, the mean takes the steps of one node that has all data."""
    problem = quadratic(n=N, d=3, dense=False, A=np.tile([1.0, 2.0, 0.5], (N, 1)), x0=np.ones(3))
    sections = {
        "data": problem.section(), "topology": {"graph": "ring"}, "run": {"rounds": 20, "dtype": "float64"},
        "algorithm": {"name": "dfedavg", "lr": 0.1, "local_steps": 3, "batch_size": "full"},
        "participation": {"mode": "gossip", **participation},
    }  # fmt: skip
    mean = fedsim.run(sections, out=tmp_path / "run").params.mean(0)
    x, optimum = np.ones(3), problem.optimum()
    for _ in range(60):
        x = x - 0.1 * np.array([1.0, 2.0, 0.5]) * (x - optimum)
    assert np.abs(mean.numpy() - x).max() < 1e-12


DIGITS: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": N, "partition": {"scheme": "dirichlet", "alpha": 0.1}},
    "model": {"name": "linear"}, "algorithm": {"name": "dfedavg", "lr": 0.1, "local_steps": 2, "batch_size": 16},
    "topology": {"graph": "ring"},
}  # fmt: skip
_MODES: dict[str, dict[str, Any]] = {
    "gossip": {"mode": "gossip", "links": 0.3}, "poisson": {"mode": "poisson", "links": 0.3}
}  # fmt: skip


@pytest.fixture
def digits(tmp_path: Path) -> Make:
    def run(out: str, mode: str, eval_every: int = 1, **participation: Any) -> Any:
        algorithm = {**DIGITS["algorithm"], "name": "dfedavg" if mode == "gossip" else "dspodfl"}
        keys = {**DIGITS, "algorithm": algorithm, "participation": {**_MODES[mode], **participation}}
        keys["run"] = {"rounds": 6, "eval_every": eval_every, "dtype": "float64"}
        return fedsim.run(keys, out=tmp_path / out)

    return run


@pytest.mark.parametrize("mode", _MODES)
def test_a_merge_is_what_was_measured_without_it(digits: Make, mode: str) -> None:
    """Metrics of the mean model say before a merge what the nodes are after it."""
    plain, merged = digits("plain", mode), digits("merged", mode, merge={"rounds": [4]})
    before, after = (run.metrics.set_index("round").loc[4] for run in (plain, merged))
    for name in ("train_loss", "test_loss", "test_accuracy"):
        assert after[name] == pytest.approx(before[name], abs=1e-12)
    assert after["node_accuracy"] == pytest.approx(after["test_accuracy"], abs=1e-12)
    assert before["node_accuracy"] < before["test_accuracy"] - 0.05
    assert after["consensus_distance"] == 0.0 < before["consensus_distance"]


@pytest.mark.parametrize("mode", _MODES)
def test_evaluating_changes_nothing(digits: Make, mode: str) -> None:
    keys = {"merge": {"rounds": [3]}}
    often, once = digits("often", mode, **keys), digits("once", mode, eval_every=6, **keys)
    assert torch.equal(often.params, once.params)
    assert (len(often.metrics), len(once.metrics)) == (7, 2)
    last = [run.metrics.drop(columns="wall").iloc[-1] for run in (often, once)]
    assert last[0].equals(last[1])


# --- the end, and going on --------------------------------------------------------------------------------------------


def test_a_final_merge_is_a_row_of_its_own_and_all_that_is_saved(go: Make) -> None:
    plain, final = go("plain"), go("final", merge="final")
    rows, merged = plain.metrics.drop(columns="wall"), final.metrics.drop(columns="wall")
    assert merged.iloc[:-1].drop(columns="merged").equals(rows)
    last = merged.iloc[-1]
    assert last["merged"] is True or last["merged"] == 1.0
    assert (last["round"], last["consensus_distance"]) == (20, 0.0)
    assert last["optimum_distance"] == pytest.approx(rows["optimum_distance"].iloc[-1], abs=1e-13)
    assert last["bytes_sent"] - rows["bytes_sent"].iloc[-1] == N * (N - 1) * 4 * 8
    assert torch.equal(final.params, final.params[:1].expand(N, -1))
    assert torch.allclose(final.params[0], plain.params.mean(0), rtol=0, atol=1e-15)


@pytest.mark.parametrize("stop", [8, 9, 19, 20, 24])
def test_a_run_that_was_merged_at_its_end_goes_on_unmerged(go: Make, stop: int) -> None:
    keys = {"merge": "final", "schedule": [{"from": 6, "until": 9, "links": 0.9, "merge": True}]}
    whole = go("whole", **keys, more={"run": {"rounds": 24}})
    go("parts", **keys, more={"run": {"rounds": stop}})
    for _ in range(2):  # a finished run that is resumed is as it was
        parts = go("parts", resume=True, **keys, more={"run": {"rounds": 24}})
        assert torch.equal(parts.params, whole.params)
        assert parts.metrics.drop(columns="wall").equals(whole.metrics.drop(columns="wall"))


def test_a_run_in_the_middle_of_a_ramp_goes_on_up_it(go: Make) -> None:
    keys = {"schedule": [{"from": 3, "until": 15, "links": {"cosine": [0, 1]}}]}
    whole = go("whole", **keys)
    go("parts", **keys, more={"run": {"rounds": 8}})
    parts = go("parts", resume=True, **keys)
    assert torch.equal(parts.params, whole.params)
    assert parts.trace == whole.trace


@pytest.mark.parametrize(
    ("algorithm", "vectors"), [("dfedavg", 1), ("gradient_tracking", 2), ("choco", 1), ("deepsqueeze", 1), ("beer", 2)]
)
def test_a_merge_sends_whole_models_and_is_planned(go: Make, algorithm: str, vectors: int) -> None:
    more: dict[str, Any] = {"algorithm": {"name": algorithm, "local_steps": 1}, "run": {"rounds": 5}}
    if algorithm in ("choco", "deepsqueeze", "beer"):
        more["compression"] = {"name": "top_k", "k": 1}
    sent = [
        go(f"{k}", links=1, more=more, **keys).metrics["bytes_sent"].iloc[-1]
        for k, keys in enumerate([{}, {"merge": {"rounds": [3]}}, {"merge": "final"}])
    ]
    assert sent[1] - sent[0] == sent[2] - sent[0] == N * (N - 1) * vectors * 4 * 8
    assert Merge.model_validate({"rounds": [3]}).due(3)


@pytest.mark.parametrize(
    "participation",
    [
        {"links": 0, "schedule": [{"from": 15, "until": 18, "links": 1}]},
        {"schedule": [{"from": 3, "until": 6, "links": 0, "merge": True}, {"from": 0.5, "until": 1.0, "links": 0.9}]},
        {"mode": "poisson", "schedule": [{"from": 3, "until": 6, "links": 0, "merge": True}]},
    ],
)
def test_a_plan_counts_what_windows_send(go: Make, participation: Any) -> None:
    more = {"algorithm": {"name": "dspodfl"}}
    run = go(**participation, more=more)
    last, facts = run.metrics.iloc[-1], fedsim.plan(fedsim.load(run.dir / "scenario.yaml"))
    assert facts["messages"]["sent in all"] == f"about {size(int(last['bytes_sent']))}"
    assert facts["work"]["sample gradients in all"] == f"about {int(last['gradients']):,}"


def test_windows_that_are_fractions_tie_a_run_to_its_rounds(go: Make) -> None:
    keys = {"schedule": [{"from": 0.5, "until": 0.6, "links": 1}]}
    go(**keys)
    with pytest.raises(InputError, match=r"found 30, allowed with --resume: 20, .* fractions of the run would move"):
        go(resume=True, **keys, more={"run": {"rounds": 30}})
    go(resume=True, **keys)


@pytest.mark.parametrize(
    ("more", "participation", "key", "words"),
    [
        ({}, {"schedule": [{"from": 2, "until": 4}]}, "participation.schedule.0", "changes nothing"),
        ({}, {"schedule": [{"from": 2, "until": 2, "merge": True}]}, "participation.schedule.0.until", "none of the"),
        ({}, {"schedule": [{"from": 2, "until": 4, "links": 1.5}]}, "participation.schedule.0.links", "less than"),
        ({}, {"schedule": [{"from": 0.2, "until": 2.5, "merge": True}]}, "participation.schedule.0.until", "allowed"),
        ({}, {"schedule": [{"from": 2, "til": 4, "merge": True}]}, "participation.schedule.0.til", "until"),
        ({}, {"merge": {"rounds": []}}, "participation.merge", "at least 1"),
        ({}, {"merge": {"rounds": [99]}}, "participation.merge", "in none of the run's 20 rounds"),
        ({}, {"merge": {"every": 21}}, "participation.merge", "in none of the run's 20 rounds"),
        ({"privacy": {"mechanism": "muffliato", "noise_multiplier": 1.0, "clip_norm": 1.0}},
         {"links": 1, "schedule": [{"from": 2, "until": 7, "links": 0}]}, "participation.schedule", "every round"),
        ({}, {"merge": "sometimes"}, "participation.merge", "allowed: never, final"),
        ({}, {"merge": {"every": 0}}, "participation.merge", "greater than"),
        ({"algorithm": {"name": "dgd", "local_steps": 1}}, {"schedule": [{"from": 2, "until": 4, "links": 1}]},
         "participation.schedule.0.links", "uses every link in every round"),
        ({"aggregator": {"name": "nna", "f": 1}}, {"merge": "final"}, "participation.merge", "'nna' would not protect"),
        ({"privacy": {"mechanism": "decor", "noise_multiplier": 1.0, "clip_norm": 1.0}},
         {"merge": "final"}, "participation.merge", "which 'decor' does not count"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(
    go: Make, tmp_path: Path, more: Any, participation: Any, key: str, words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        go(more=more, **participation)
    assert key in [p.key for p in caught.value.problems]
    assert not (tmp_path / "run").exists()


def test_a_server_has_nothing_to_merge(go: Make) -> None:
    with pytest.raises(InputError, match="merge"):
        go(more={"algorithm": {"name": "fedavg"}, "participation": {"mode": "synchronous", "links": 1}}, merge="final")


def test_what_was_asked_for_is_written_down(go: Make) -> None:
    keys = {"schedule": [{"from": 0.5, "until": 19, "links": {"linear": [0, 1]}}], "merge": {"every": 5}}
    run = go(**keys)
    written = fedsim.load(run.dir / "scenario.yaml")
    assert written.to_yaml() == (run.dir / "scenario.yaml").read_text(encoding="utf-8")
    json.dumps(written.participation.schedule[0].model_dump())  # type: ignore[attr-defined]
    assert written.participation.schedule[0].span(20) == (11, 18)  # type: ignore[attr-defined]


# --- the phenomenon ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_nodes_that_meet_rarely_are_good_once_they_merge(tmp_path: Path) -> None:
    """The scenario that is shipped, three seeds: bounds with room to what was found."""
    shipped = Path(__file__).parents[2] / "scenarios" / "single-merge-digits.yaml"
    cases: dict[str, dict[str, Any]] = {
        "none": {"participation.links": 0},
        "sparse": {},
        "early": {"participation.schedule": [{"from": 0.05, "until": 0.15, "merge": True}]},
        "late": {"participation.schedule": [{"from": 0.85, "until": 0.95, "merge": True}]},
        "server": {"participation.merge": {"every": 1}},
    }
    node, merged = {}, {}
    for name, keys in cases.items():
        found = []
        for seed in range(3):
            given = {"seed": seed, "run.eval_every": 100, **keys}
            scenario = fedsim.load(shipped, [f"{key}={json.dumps(value)}" for key, value in given.items()])
            rows = fedsim.run(scenario, out=tmp_path / f"{name}-{seed}").metrics
            last = rows[rows["round"] == 100]
            found.append((last["node_accuracy"].iloc[0], last["test_accuracy"].iloc[-1]))
            assert last["node_accuracy"].iloc[-1] == pytest.approx(last["test_accuracy"].iloc[-1], abs=0.003)
        node[name], merged[name] = np.mean(found, axis=0)
    assert merged["sparse"] - node["sparse"] >= 0.15
    assert merged["sparse"] - merged["none"] >= 0.15
    assert node["late"] > node["early"]
    assert merged["server"] - merged["sparse"] <= 0.12
