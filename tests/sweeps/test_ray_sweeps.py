"""Sweeps side by side on Ray Tune: the numbers of one after another, resumed without repeating, stopped early."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

import fedsim
from fedsim.core.errors import InputError
from fedsim.sweeps.axes import Axis
from fedsim.sweeps.files import points
from fedsim.sweeps.tune import Together

SCENARIO: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 4, "limit": 100},
    "model": {"name": "linear"},
    "algorithm": {"name": "fedavg", "lr": 0.1, "batch_size": 10},
    "run": {"rounds": 4, "eval_every": 1, "device": "cpu", "threads": 1},
}


def write(folder: Path, **sweep: Any) -> Path:
    (folder / "s.yaml").write_text(yaml.safe_dump(SCENARIO))
    (folder / "w.yaml").write_text(yaml.safe_dump({"name": "together", "scenario": "s.yaml", **sweep}, sort_keys=False))
    return folder / "w.yaml"


def test_random_axes_are_keyed_and_meet_the_grid(tmp_path: Path) -> None:
    random = {"algorithm.lr": {"log_uniform": [0.01, 1.0]}, "algorithm.local_steps": {"integers": [1, 3]}}
    _, found = points(write(tmp_path, random=random, samples=5, grid={"seed": [0, 1]}))
    assert len(found) == 10
    drawn = [(p.changes["algorithm.lr"], p.changes["algorithm.local_steps"]) for p in found]
    assert drawn[::2] == drawn[1::2]  # the seeds of a sample share its values
    assert len(set(drawn)) == 5
    assert all(0.01 <= lr <= 1.0 and steps in (1, 2, 3) for lr, steps in drawn)
    _, more = points(write(tmp_path, random=random, samples=7, grid={"seed": [0, 1]}))
    assert [p.label for p in more[:10]] == [p.label for p in found]  # more samples keep the ones that were there
    _, other = points(write(tmp_path, random=random, samples=5, seed=1))
    assert {p.changes["algorithm.lr"] for p in other}.isdisjoint({lr for lr, _ in drawn})


def test_laws_of_random_axes() -> None:
    draws = [Axis(integers=[2, 4]).draw(0, "k", i) for i in range(300)]
    assert set(draws) == {2, 3, 4}
    assert {Axis(choice=["a", "b"]).draw(0, "k", i) for i in range(50)} == {"a", "b"}
    uniform = [Axis(uniform=[1, 3]).draw(0, "k", i) for i in range(500)]
    assert 1.9 < sum(uniform) / 500 < 2.1


@pytest.mark.parametrize(
    "sweep,key,says",
    [
        ({"random": {"algorithm.lr": {"uniform": [2, 1]}}}, "random.algorithm.lr", "low <= high"),
        ({"random": {"algorithm.lr": {"uniform": [1, 2], "choice": [1]}}}, "random.algorithm.lr", "exactly one of"),
        ({"random": {"algorithm.lr": {"normal": [0, 1]}}}, "random.algorithm.lr.normal", "unknown key"),
        ({"random": {"algorithm.lr": {"uniform": [-2, -1]}}}, "algorithm.lr", "greater than 0"),
        ({"samples": 3}, "samples", "without random axes"),
        ({"stop": {"factor": 1}}, "stop.factor", "greater than or equal to 2"),
    ],
)
def test_wrong_axes(tmp_path: Path, sweep: dict[str, Any], key: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        points(write(tmp_path, **sweep))
    assert caught.value.problems[0].key == key
    assert says in str(caught.value)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_side_by_side_is_one_after_another(tmp_path: Path) -> None:
    cases = {
        "a": None,
        "crowded": {"data.clients": 101},
        "diverges": {"algorithm.lr": 1e38, "algorithm.local_steps": 9},
    }
    file = write(tmp_path, cases=cases, grid={"seed": [0, 1]})
    alone = fedsim.sweep(file, out=tmp_path / "alone")
    told: list[Any] = []
    ended: list[Any] = []
    together = fedsim.sweep(
        file, out=tmp_path / "ray", together=Together(parallel=2),
        told=lambda point, row: told.append((point.label, row["round"])),
        ended=lambda outcome: ended.append((outcome.point.label, outcome.status)),
    )  # fmt: skip
    for one, other in zip(alone, together, strict=True):
        assert one.point.label == other.point.label
        assert type(one.error) is type(other.error)
        if one.run is not None and other.run is not None:
            assert torch.equal(one.run.params, other.run.params)
    assert "found 101 clients" in str(together[2].error)
    assert [number for label, number in told if label == "a_seed=0"] == [0, 1, 2, 3, 4]
    assert sorted(ended) == [
        (f"{case}_seed={seed}", "finished" if case == "a" else "failed") for case in cases for seed in (0, 1)
    ]
    table = pd.read_parquet(tmp_path / "ray" / "metrics.parquet")
    assert len(table[table["run"] == "a_seed=0"]) == 5
    assert len(pd.read_csv(tmp_path / "ray" / "summary.csv")) == 6

    # Resumed: what finished is not run again, what failed only on request.
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "ray").glob("*/params.safetensors")}
    told.clear()
    again = fedsim.sweep(
        file, out=tmp_path / "ray", resume=True, retry=False, together=Together(parallel=2),
        ended=lambda outcome: told.append(outcome),
    )  # fmt: skip
    assert told == []
    assert [str(o.error) for o in again] == [str(o.error) for o in together]
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "ray").glob("*/params.safetensors")} == times


@pytest.mark.parametrize("together", [None, pytest.param(Together(parallel=2), marks=pytest.mark.ray)])
def test_a_changed_sweep_takes_the_place_of_the_one_before(
    tmp_path: Path, together: Together | None, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    if together is not None:
        request.getfixturevalue("ray_session")
    fedsim.sweep(write(tmp_path, grid={"seed": [0, 1]}), out=tmp_path / "out", together=together)
    changed = write(tmp_path, grid={"seed": [0, 1]}, set={"data.clients": 5})
    for outcome in fedsim.sweep(changed, out=tmp_path / "out", together=together):
        assert outcome.run is not None, outcome.error
        assert yaml.safe_load((outcome.dir / "scenario.yaml").read_text())["data"]["clients"] == 5
        assert outcome.run.metrics["round"].iloc[-1] == 4
    assert caplog.text.count("of another scenario: this run takes its place") == 2


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_bad_runs_are_stopped_early(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        set={"run.rounds": 27},
        grid={"algorithm.lr": [0.5, 0.3, 1e-6, 2e-6, 3e-6, 4e-6]},
        stop={"metric": "test_accuracy", "grace": 3, "factor": 3},
    )
    outcomes = fedsim.sweep(file, out=tmp_path / "ray", together=Together(parallel=1))
    rounds = [json.loads((o.dir / "metrics.jsonl").read_text().splitlines()[-1])["round"] for o in outcomes]
    assert rounds[0] == 27
    assert min(rounds[2:]) < 27
    assert all(o.error is None for o in outcomes)
