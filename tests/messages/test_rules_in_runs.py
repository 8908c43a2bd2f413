"""Robust rules in runs: where a run ends, what a resumed one knows, rounds with too few messages, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_rules import TABLE, V

import fedsim
from fedsim.core.errors import InputError
from fedsim.engine.assembly import assemble
from fedsim.scenario.load import parse

Make = Callable[..., Any]
RUN = {"rounds": 60, "dtype": "float64", "device": "cpu", "eval_every": 1000, "trace": True}
COMMUTING = [case for case in TABLE if case[0] not in ("centered_clipping", "fltrust")]


def scenario(b: Any, folder: Path, **more: Any) -> dict[str, Any]:
    """Client i pulls the model towards b_i: delta_i = (b_i - x) / 2."""
    b = np.asarray(b, dtype=float)
    file = folder / "q.npz"
    np.savez(file, A=np.ones_like(b), b=b)
    algorithm = {"name": "fedavg", "lr": 0.5, "local_steps": 1, "weighting": "uniform"}
    return {"data": {"dataset": "quadratic", "file": str(file)}, "algorithm": algorithm, "run": RUN, **more}


def trace(run: fedsim.Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.dir / "trace.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "name,keys,rows,expected", COMMUTING, ids=lambda v: str(v) if isinstance(v, (str, dict)) else ""
)
def test_a_run_ends_at_what_the_rule_makes_of_the_optima(
    name: str, keys: dict[str, Any], rows: torch.Tensor, expected: list[float], tmp_path: Path
) -> None:
    if keys.get("start") == "zero":
        keys = {"nu": 1e-12}  # three steps from zero do not commute with shifts, all the way to the end do
        expected = [0.6900413632, 1.7750046166, 0.3239488343]
    run = fedsim.run(scenario(rows, tmp_path, aggregator={"name": name, **keys}), out=tmp_path / "run")
    assert run.params.tolist() == pytest.approx(expected, abs=1e-6 if name == "geometric_median" else 1e-8)


def test_buckets_are_drawn_anew_in_every_round(tmp_path: Path) -> None:
    aggregator = {"name": "median", "pre": {"name": "bucketing", "s": 2}}
    values = scenario(V, tmp_path, aggregator=aggregator)
    values["run"] = {**RUN, "rounds": 1}
    ends = []
    for seed in range(6):
        ends.append(tuple(fedsim.run({**values, "seed": seed}, out=tmp_path / f"run-{seed}").params.tolist()))
    assert len(set(ends)) > 1
    again = fedsim.run({**values, "seed": 0}, out=tmp_path / "again")
    assert tuple(again.params.tolist()) == ends[0]


STATEFUL = {"name": "centered_clipping", "tau": 0.3, "iters": 2}


@pytest.mark.parametrize("aggregator", [STATEFUL, {**STATEFUL, "pre": {"name": "bucketing", "s": 2}}], ids=str)
@pytest.mark.parametrize("algorithm", ["fedavg", "fednova", "fedcm"])
def test_a_resumed_run_is_an_unbroken_one(algorithm: str, aggregator: dict[str, Any], tmp_path: Path) -> None:
    values = scenario(V, tmp_path, aggregator=aggregator)
    values["algorithm"] = {"name": algorithm, "lr": 0.3, "local_steps": {"model": "uniform", "low": 1, "high": 3}}

    def go(rounds: int, out: str, resume: bool = False) -> fedsim.Run:
        return fedsim.run({**values, "run": {**RUN, "rounds": rounds}}, out=tmp_path / out, resume=resume)

    whole = go(9, "whole")
    go(4, "parts")
    again = go(9, "parts", resume=True)
    assert torch.equal(torch.as_tensor(again.params), torch.as_tensor(whole.params))
    assert again.trace == whole.trace
    fresh = go(4, "parts-alone")
    assert not np.allclose(fresh.params, whole.params)


def test_a_trusted_client_leads(tmp_path: Path) -> None:
    """All honest clients near (1, 1); two pull far away in another direction, two at twenty times the length."""
    b = [[1.0, 1.0], [1.2, 0.9], [0.9, 1.1], [-30.0, 5.0], [5.0, -30.0], [20.0, 20.0], [21.0, 19.0]]
    run = fedsim.run(scenario(b, tmp_path, aggregator={"name": "fltrust", "root": 0}), out=tmp_path / "run")
    assert float(np.abs(np.asarray(run.params) - 1.0).max()) < 0.2


@pytest.mark.parametrize("algorithm", ["fedavg", "fednova", "fedadam", "fedcm", "diff2"])
def test_messages_that_are_not_finite_stop_nobody(algorithm: str, tmp_path: Path) -> None:
    keys = {"name": algorithm, "lr": 0.2, "local_steps": 1}
    if algorithm == "diff2":
        keys = {"name": "diff2", "lr": 0.2}
    attack = {"name": "nan", "attackers": [5, 6]}
    values = {**scenario(V, tmp_path, aggregator={"name": "trimmed_mean", "f": 2}, attack=attack), "algorithm": keys}
    run = fedsim.run(values, out=tmp_path / "run")
    alone = fedsim.run(
        {**scenario(V[:5], tmp_path, aggregator={"name": "trimmed_mean", "f": 0}), "algorithm": keys},
        out=tmp_path / "alone",
    )
    assert np.asarray(run.params).tolist() == pytest.approx(np.asarray(alone.params).tolist(), abs=1e-12)


# --- too few messages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", ["bernoulli", "poisson"])
def test_a_round_with_too_few_messages_is_skipped(sampling: str, tmp_path: Path) -> None:
    participation = {"fraction": 0.5, "sampling": sampling}
    values = scenario(V, tmp_path, aggregator={"name": "trimmed_mean", "f": 2}, participation=participation)
    values["run"] = {**RUN, "rounds": 30, "eval_every": 1}
    run = fedsim.run(values, out=tmp_path / "run")
    rows, losses = trace(run), run.metrics["train_loss"].tolist()
    few = [len(row["clients"]) < 5 for row in rows]
    assert True in few
    assert False in few
    for row, skipped, before, after in zip(rows, few, losses[:-1], losses[1:], strict=True):
        assert (before == after) == skipped
        if skipped and row["clients"]:
            found = len(row["clients"])
            assert row["skipped"] == f"TrimmedMean with f = 2 needs at least 5 messages (2f + 1), found {found}"
        else:
            assert "skipped" not in row


def test_a_run_of_skipped_rounds_says_so(tmp_path: Path) -> None:
    participation = {"fraction": 0.2, "sampling": "bernoulli"}
    values = scenario(V, tmp_path, aggregator={"name": "krum", "f": 2}, participation=participation)
    values["run"] = {**RUN, "rounds": 10}
    run = fedsim.run(values, out=tmp_path / "run")
    assert len(run.warnings) == 1
    assert "had too few messages for the aggregator and were skipped" in run.warnings[0]
    assert run.metrics["bytes_sent"].iloc[-1] > 0  # what was sent was sent


def test_a_round_without_the_trusted_client_is_skipped(tmp_path: Path) -> None:
    system = {"availability": {"model": "table", "active": [[[0, 1]], *[[[0, 2]]] * 6], "repeat": 2}}
    values = scenario(V, tmp_path, aggregator={"name": "fltrust", "root": 0}, system=system)
    values["run"] = {**RUN, "rounds": 6}
    rows = trace(fedsim.run(values, out=tmp_path / "run"))
    assert {0 in row["clients"] for row in rows} == {True, False}
    assert all(("skipped" in row) != (0 in row["clients"]) for row in rows)


BUFFERED = {"mode": "fedbuff", "buffer": 5, "staleness": "constant"}
FAST = {"compute": {"model": "table", "values": [0.1, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5]}}


@pytest.mark.parametrize(
    "name,per_client,last",
    [("median", None, True), ("median", "all", False), ("mean", None, False), ("mean", "last", True)],
)
def test_a_fast_client_has_one_place(name: str, per_client: str | None, last: bool, tmp_path: Path) -> None:
    participation = {**BUFFERED, **({} if per_client is None else {"per_client": per_client})}
    values = scenario(V, tmp_path, aggregator={"name": name}, participation=participation, system=FAST)
    values["run"] = {**RUN, "rounds": 8}
    rows = trace(fedsim.run(values, out=tmp_path / "run"))
    several = [row for row in rows if len(set(row["clients"])) < len(row["clients"])]
    assert several  # client 0 is ten times as fast
    for row in rows:
        left_out = row.get("superseded", [])
        counted = [c for i, c in enumerate(row["clients"]) if i not in left_out]
        assert (len(set(counted)) == len(counted)) == (last or row not in several)
        assert all(row["weights"][i] == 0 for i in left_out)
        for i in left_out:
            same = [j for j, c in enumerate(row["clients"]) if c == row["clients"][i] and j not in left_out]
            assert row["rounds"][same[0]] > row["rounds"][i]


def test_what_is_superseded_moves_nothing(tmp_path: Path) -> None:
    """By hand: every combine is the median of the last result of each client in it, times their weights' sum."""
    values = scenario(V, tmp_path, aggregator={"name": "median"}, participation=BUFFERED, system=FAST)
    values["run"] = {**RUN, "rounds": 12}
    run = fedsim.run(values, out=tmp_path / "run")
    x, models = np.zeros(3), [np.zeros(3)]
    b = V.numpy()
    for row in trace(run):
        left = [i for i in range(len(row["clients"])) if i not in row.get("superseded", [])]
        pulled = [models[len(models) - 1 - row["staleness"][i]] for i in left]
        deltas = [0.5 * (b[row["clients"][i]] - y) for i, y in zip(left, pulled, strict=True)]
        x = x + sum(row["weights"][i] for i in left) * np.median(deltas, axis=0)
        models.append(x)
    assert np.asarray(run.params).tolist() == pytest.approx(x.tolist(), abs=1e-12)


# --- refusals ---------------------------------------------------------------------------------------------------------

CLOCK = {"system": {"compute": 1.0}}
REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("krum of too few", {"aggregator": {"name": "krum", "f": 3}}, "aggregator",
     r"Krum with f = 3 needs at least 9 messages \(2f \+ 3\), found 7 in the largest round; allowed: a smaller f"),
    ("a cohort that is too small", {"aggregator": {"name": "krum", "f": 1}, "participation": {"clients_per_round": 4}},
     "aggregator", "needs at least 5 messages .* found 4 in the largest round"),
    ("bulyan", {"aggregator": {"name": "bulyan", "f": 2}}, "aggregator", "needs at least 11 messages"),
    ("trimmed mean", {"aggregator": {"name": "trimmed_mean", "f": 4}}, "aggregator", "needs at least 9 messages"),
    ("nnm", {"aggregator": {"name": "median", "pre": {"name": "nnm", "f": 4}}}, "aggregator", "NNM with f = 4"),
    ("buckets", {"aggregator": {"name": "krum", "f": 1, "pre": {"name": "bucketing", "s": 2}}}, "aggregator",
     "found 4 of 7 messages"),
    ("a buffer", {"aggregator": {"name": "krum", "f": 1}, "participation": {"mode": "fedbuff", "buffer": 4}},
     "aggregator", "found 4"),
    ("one client has one place of a buffer",
     {"aggregator": {"name": "krum", "f": 3}, "participation": {"mode": "fedbuff", "buffer": 20}}, "aggregator",
     "found 7"),
    ("asynchronous", {"aggregator": {"name": "median"}, "participation": {"mode": "asynchronous"}, **CLOCK},
     "aggregator.name", "with mode asynchronous every message is combined by itself"),
    ("root beyond the clients", {"aggregator": {"name": "fltrust", "root": 7}}, "aggregator.root",
     "found client 7, allowed: 0 to 6"),
    ("a trusted client that attacks",
     {"aggregator": {"name": "fltrust", "root": 2}, "attack": {"name": "sign_flip", "attackers": [1, 2]}},
     "aggregator.root", "found client 2, which attacks; allowed: an honest client"),
    ("fltrust with a part of the clients",
     {"aggregator": {"name": "fltrust", "root": 0}, "participation": {"fraction": 0.5}}, "participation.fraction",
     "all clients have to take part in every round: fltrust compares"),
    ("fltrust on a clock",
     {"aggregator": {"name": "fltrust", "root": 0}, "participation": {"mode": "fixed_interval", "window": 1.0}},
     "participation.mode", "fltrust compares all messages"),
    ("secagg",
     {"aggregator": {"name": "median"},
      "privacy": {"mechanism": "dp_fedavg", "clip_norm": 1.0, "noise_multiplier": 1.0, "trust": "secagg"}},
     "aggregator.name", "with secagg the server sees sums of messages only"),
    *((f"{name} and {mechanism}",
       {"aggregator": {"name": name, **keys},
        "privacy": {"mechanism": mechanism, "clip_norm": 1.0, "noise_multiplier": 1.0}}, "aggregator.name", "mean")
      for name, keys in (("median", {}), ("krum", {"f": 1}), ("geometric_median", {}))
      for mechanism in ("dp_fedavg", "dp_ftrl")),
]  # fmt: skip


@pytest.mark.parametrize("more,key,message", [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_what_is_refused(more: dict[str, Any], key: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        fedsim.run(scenario(V, tmp_path, **more), out=tmp_path / "run")
    assert key in [p.key for p in caught.value.problems]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("aggregator", [STATEFUL, {"name": "fltrust", "root": 0},
                                        {"name": "median", "pre": {"name": "bucketing", "s": 2}}], ids=str)  # fmt: skip
def test_rules_of_a_servers_rounds_are_no_rules_of_nodes(aggregator: dict[str, Any], tmp_path: Path) -> None:
    values = scenario(V, tmp_path, aggregator=aggregator, topology={"graph": "complete"})
    values["algorithm"] = {"name": "dgd", "lr": 0.1}
    with pytest.raises(InputError, match="on a graph"):
        parse(values)


@pytest.mark.parametrize("mechanism", ["dp_sgd", "local_dp"])
def test_a_rule_is_post_processing_of_what_clients_made_private(mechanism: str) -> None:
    keys = {"sampling_rate": 0.3} if mechanism == "dp_sgd" else {}
    values = {
        "data": {"dataset": "synthetic", "clients": 7, "iid": True, "dimension": 3, "num_classes": 2,
                 "max_samples": 20},
        "model": {"name": "linear"},
        "algorithm": {"name": "fedavg", "lr": 0.1, "local_steps": 1},
        "aggregator": {"name": "multi_krum", "f": 2, "pre": "nnm"},
        "privacy": {"mechanism": mechanism, "clip_norm": 1.0, "noise_multiplier": 1.0, **keys},
    }  # fmt: skip
    assert assemble(parse(values)).privacy.claims


# --- what a plan says -------------------------------------------------------------------------------------------------


def test_a_plan_says_what_a_rule_withstands_and_costs(tmp_path: Path) -> None:
    aggregator = {"name": "multi_krum", "f": 1, "pre": "nnm"}
    participation = {"fraction": 0.9, "sampling": "bernoulli"}
    values = scenario(V, tmp_path, aggregator=aggregator, participation=participation)
    del values["algorithm"]["weighting"]
    found = fedsim.plan(values)["aggregator"]
    assert found["attackers that it withstands"] == "1 of 7 messages"
    assert found["messages that it needs"] == 5
    assert found["distances per round"] == "42 of 3 numbers"
    assert [note.split(":")[0].split(",")[0] for note in found["notes"]] == [
        "weights are ignored", "rounds with fewer than 5 messages are skipped",
    ]  # fmt: skip
    values["algorithm"]["weighting"] = "uniform"
    assert fedsim.plan({**values, "participation": {}})["aggregator"].get("notes") is None
    assert "aggregator" not in fedsim.plan(scenario(V, tmp_path))
