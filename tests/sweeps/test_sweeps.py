"""Sweeps: every case times every point of the grid, each in its own directory, compared in one table."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

import fedsim
from fedsim.cli.app import main
from fedsim.cli.sweep_view import print_summary
from fedsim.core.errors import InputError, RunError
from fedsim.sweeps.files import _label, points

SCENARIO: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 4, "limit": 100},
    "model": {"name": "linear"},
    "algorithm": {"name": "fedavg", "lr": 0.1, "batch_size": 10},
    "run": {"rounds": 3, "eval_every": 1, "device": "cpu", "threads": 1},
}
SWEEP: dict[str, Any] = {
    "name": "compare",
    "scenario": "s.yaml",
    "set": {"algorithm.local_steps": 2},
    "cases": {
        "plain": None,
        "proximal": {"algorithm.name": "fedprox", "algorithm.mu": 0.5},
        "ring": {"algorithm.name": "dgd", "topology": {"graph": "ring"}},
    },
    "grid": {"algorithm.lr": [0.1, 0.5], "seed": [0, 1]},
}


def write(folder: Path, **changes: Any) -> Path:
    (folder / "s.yaml").write_text(yaml.safe_dump(SCENARIO))
    (folder / "w.yaml").write_text(yaml.safe_dump({**SWEEP, **changes}, sort_keys=False))
    return folder / "w.yaml"


def test_cases_times_grid(tmp_path: Path) -> None:
    name, found = points(write(tmp_path))
    assert name == "compare"
    assert [p.label for p in found] == [
        f"{case}_lr={lr}_seed={seed}" for case in ("plain", "proximal", "ring") for lr in (0.1, 0.5) for seed in (0, 1)
    ]
    resolved = found[6].scenario.resolved()
    assert found[6].changes == {"case": "proximal", "algorithm.lr": 0.5, "seed": 0}
    assert resolved["name"] == "compare-proximal_lr=0.5_seed=0"
    assert (resolved["algorithm"]["name"], resolved["algorithm"]["mu"], resolved["algorithm"]["lr"]) == (
        "fedprox",
        0.5,
        0.5,
    )
    assert all(p.scenario.resolved()["algorithm"]["local_steps"] == 2 for p in found)
    assert found[-1].scenario.resolved()["topology"] == {"graph": "ring"}
    assert len({p.scenario.hash() for p in found}) == 12


def test_settings_change_what_the_sweep_leaves_alone(tmp_path: Path) -> None:
    _, found = points(write(tmp_path), ["run.rounds=9", "algorithm.momentum=0.5"])
    first = found[0].scenario.resolved()
    assert (first["run"]["rounds"], first["algorithm"]["momentum"], first["algorithm"]["lr"]) == (9, 0.5, 0.1)


def test_settings_come_after_what_the_sweep_sets_for_all(tmp_path: Path) -> None:
    _, found = points(write(tmp_path), ["algorithm.local_steps=5"])
    assert {p.scenario.resolved()["algorithm"]["local_steps"] for p in found} == {5}


@pytest.mark.parametrize(
    "setting, where",
    [("algorithm.lr=7", "grid"), ("algorithm={name: fedavg}", "cases.ring"), ("algorithm.name=fedprox", "cases")],
)
def test_settings_that_would_be_lost_are_refused(tmp_path: Path, setting: str, where: str) -> None:
    with pytest.raises(InputError, match=rf"--set: .*the sweep's '{where}.*' changes algorithm.*allowed: keys that it"):
        points(write(tmp_path), [setting])


def test_a_rung_that_no_run_reaches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"stop\.grace: found 4, but runs have 3 rounds at most.*allowed: 1 to 3"):
        points(write(tmp_path, stop={"grace": 4}))
    points(write(tmp_path, stop={"grace": 3}))


def test_graphs_that_do_not_fit_the_clients_are_found_before_the_first_run(tmp_path: Path) -> None:
    (tmp_path / "g.csv").write_text("a,b\nb,c\nc,d\n")
    cases = {"cube": {"topology": {"graph": "hypercube"}}, "file": {"topology": {"graph": "file", "path": "g.csv"}},
             "tree": {"topology": {"graph": "random_tree"}}}  # fmt: skip
    grid = {"data.clients": [4, 6], "seed": [0, 1]}
    with pytest.raises(InputError) as error:
        points(write(tmp_path, cases=cases, grid=grid, set={"algorithm.name": "dgd"}))
    cube, file = (str(problem) for problem in error.value.problems)
    assert "w.yaml:" in cube
    assert "needs a power of two; found 6 nodes" in cube
    assert cube.endswith("(in 'cube_clients=6_seed=0', 'cube_clients=6_seed=1')")
    assert "g.csv has 4 nodes, but there are 6 clients" in file
    assert file.endswith("(in 'file_clients=6_seed=0', 'file_clients=6_seed=1')")


def test_a_sweep_without_cases_or_grid(tmp_path: Path) -> None:
    assert points(write(tmp_path, cases={}))[1][0].label == "lr=0.1_seed=0"
    assert [p.label for p in points(write(tmp_path, grid={}))[1]] == ["plain", "proximal", "ring"]
    assert [p.label for p in points(write(tmp_path, cases={}, grid={}))[1]] == ["run"]


def test_labels_are_names_of_folders(tmp_path: Path) -> None:
    grid = {"model.name": ["linear", "mlp"], "participation": [{"fraction": 0.5}, {"clients_per_round": 2}]}
    _, found = points(write(tmp_path, cases={"../a b": None}, grid=grid))
    assert [p.label for p in found] == [
        "a-b_model=linear_participation=-fraction-0.5", "a-b_model=linear_participation=-clients_per_round-2",
        "a-b_model=mlp_participation=-fraction-0.5", "a-b_model=mlp_participation=-clients_per_round-2",
    ]  # fmt: skip


def test_every_run_equals_the_run_of_its_scenario_alone(tmp_path: Path) -> None:
    grid = {"algorithm.lr": [0.1, 0.5]}
    outcomes = fedsim.sweep(write(tmp_path, grid=grid), out=tmp_path / "out")
    assert [o.dir for o in outcomes] == [tmp_path / "out" / o.point.label for o in outcomes]
    for o in outcomes:
        assert o.run is not None
        alone = fedsim.run(o.dir / "scenario.yaml", out=tmp_path / "alone" / o.point.label)
        assert torch.equal(o.run.params, alone.params)
    table = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert list(table["run"]) == [o.point.label for o in outcomes]
    assert list(table["case"]) == ["plain", "plain", "proximal", "proximal", "ring", "ring"]
    assert list(table["algorithm.lr"]) == [0.1, 0.5] * 3
    assert list(table["round"]) == [3] * 6
    assert list(table["train_loss"]) == pytest.approx([o.run.metrics["train_loss"].iloc[-1] for o in outcomes if o.run])
    best = [o.run.metrics["test_accuracy"].max() for o in outcomes if o.run]
    assert list(table["test_accuracy_best"]) == pytest.approx(best)
    mean = [o.run.metrics["test_accuracy"].iloc[-10:].mean() for o in outcomes if o.run]
    assert list(table["test_accuracy_mean_of_last_10"]) == pytest.approx(mean)
    assert table["error"].isna().all()
    recorded = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert recorded["name"] == "compare"
    assert [r["run"] for r in recorded["runs"]] == list(table["run"])


def test_a_run_that_fails_does_not_end_the_others(tmp_path: Path) -> None:
    cases = {
        "diverges": {"algorithm.lr": 1e38, "algorithm.local_steps": 50},
        "crowded": {"data.clients": 101},
        "fine": None,
    }
    outcomes = fedsim.sweep(write(tmp_path, cases=cases, grid={}), out=tmp_path / "out")
    diverges, crowded, fine = outcomes
    assert (diverges.run, crowded.run) == (None, None)
    assert isinstance(diverges.error, RunError)
    assert isinstance(crowded.error, InputError)
    assert fine.run is not None
    assert fine.run.metrics["round"].iloc[-1] == 3
    table = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert [isinstance(e, str) for e in table["error"]] == [True, True, False]
    assert "diverged" in table["error"][0]
    assert "found 101 clients for 100 training rows" in table["error"][1]


def test_resume_keeps_finished_runs_and_continues_the_others(tmp_path: Path) -> None:
    file = write(tmp_path, grid={})
    whole = fedsim.sweep(file, out=tmp_path / "whole")

    def stop_in_the_second(_point: object, index: int, _count: int) -> Any:
        def stop(number: int, _row: object) -> None:
            if (index, number) == (1, 2):
                raise KeyboardInterrupt

        return stop

    with pytest.raises(KeyboardInterrupt):
        fedsim.sweep(file, out=tmp_path / "parts", started=stop_in_the_second)
    first = tmp_path / "parts" / "plain" / "params.safetensors"
    before = first.stat().st_mtime_ns
    resumed = fedsim.sweep(file, out=tmp_path / "parts", resume=True)
    assert first.stat().st_mtime_ns == before
    assert [o.run is not None for o in resumed] == [True] * 3
    for a, b in zip(resumed, whole, strict=True):
        assert a.run is not None
        assert b.run is not None
        assert torch.equal(a.run.params, b.run.params)
    assert len(pd.read_csv(tmp_path / "parts" / "summary.csv")) == 3
    again = fedsim.sweep(file, out=tmp_path / "parts")  # without resume all are run anew
    assert first.stat().st_mtime_ns > before
    assert again[0].run is not None


def call(monkeypatch: pytest.MonkeyPatch, *argv: str) -> object:
    monkeypatch.setattr(sys, "argv", ["fedsim", *argv])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_the_command_compares_and_its_exit_code_tells_the_worst(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    write(tmp_path, grid={})
    assert call(monkeypatch, "sweep", "w.yaml") == 0
    captured = capsys.readouterr()
    assert "[2/3] proximal" in captured.out
    assert "node accuracy" in " ".join(captured.out.split())
    assert (tmp_path / "sweeps" / "compare" / "ring" / "topology.graphml").exists()
    write(tmp_path, grid={}, cases={"bad": {"algorithm.lr": 1e38, "algorithm.local_steps": 50}, "fine": None})
    assert call(monkeypatch, "sweep", "w.yaml", "--json") == 1
    captured = capsys.readouterr()
    assert [row["run"] for row in json.loads(captured.out)] == ["bad", "fine"]
    assert captured.err.startswith("bad: the run diverged")
    write(tmp_path, grid={}, cases={"crowded": {"data.clients": 101}, "fine": None})
    assert call(monkeypatch, "sweep", "w.yaml", "--json") == 2
    assert "crowded: w.yaml:7: data.clients: found 101 clients" in capsys.readouterr().err


def test_tables_hold_values_of_several_kinds_and_long_labels_fit_a_folder(tmp_path: Path) -> None:
    grid = {"algorithm.batch_size": [16, "full"], "participation": [{"fraction": 0.5}, {"clients_per_round": 2}]}
    file = write(tmp_path, cases={"x" * 200: None}, grid=grid, set={"run.rounds": 1})
    outcomes = fedsim.sweep(file, out=tmp_path / "out")
    assert [o.status for o in outcomes] == ["finished"] * 4
    assert len({o.point.label for o in outcomes}) == 4
    assert all(len(o.point.label) <= 90 for o in outcomes)
    table = pd.read_parquet(tmp_path / "out" / "metrics.parquet")
    assert table.columns[0] == "run"
    assert set(table["algorithm.batch_size"]) == {"16", "full"}
    assert set(table["participation"]) == {'{"fraction": 0.5}', '{"clients_per_round": 2}'}


def test_tables_are_up_to_date_while_runs_are_under_way(tmp_path: Path) -> None:
    file = write(tmp_path, grid={})
    seen: list[list[str]] = []
    fedsim.sweep(
        file, out=tmp_path / "out",
        ended=lambda _: seen.append(list(pd.read_csv(tmp_path / "out" / "summary.csv")["status"])),
    )  # fmt: skip
    assert seen[0] == ["finished"]
    assert len(pd.read_csv(tmp_path / "out" / "summary.csv")) == 3


def test_a_run_that_failed_after_its_parameters_were_written_stays_failed(tmp_path: Path) -> None:
    file = write(tmp_path, cases={"a": None, "b": None}, grid={})
    outcomes = fedsim.sweep(file, out=tmp_path / "out")
    book = json.loads((tmp_path / "out" / "sweep.json").read_text())
    book["runs"][0] |= {"status": "failed", "error": "everybody left"}
    (tmp_path / "out" / "sweep.json").write_text(json.dumps(book))
    again = fedsim.sweep(file, out=tmp_path / "out", resume=True, retry=False)
    assert [str(o.error) for o in again] == ["everybody left", "None"]
    assert outcomes[0].status == "finished"


def test_the_summary_fits_the_terminal() -> None:
    from rich.console import Console

    rows = [
        {"run": "exponential-dpsgd_seed=0", "status": status, "round": 400, "test_accuracy": 0.875, "train_loss": 0.123,
         "node_accuracy": 0.81, "bytes_sent": 123_456_789, "time": 12.5, "test_accuracy_best": 0.9, "error": "x" * 200}
        for status in ("finished", "failed")
    ]  # fmt: skip
    for width in (60, 80, 200):
        console = Console(width=width, record=True, file=io.StringIO())
        print_summary(console, "sweeps/x", rows)
        lines = console.export_text().splitlines()
        assert any("exponential-dpsgd_seed=0" in line and "failed" in line and "0.875" in line for line in lines)
        assert ("best" in "".join(lines)) == (width == 200)
        assert any("more columns" in line for line in lines) == (width < 200)


def test_labels_say_whose_value_it_is() -> None:
    """Keys of two sections that end alike are not taken for one another."""
    assert _label("", {"algorithm.name": "fedavg", "model.name": "mlp"}) == "algorithm=fedavg_model=mlp"
    assert _label("", {"algorithm.lr": 0.1, "seed": 3}) == "lr=0.1_seed=3"
    assert _label("a", {"algorithm.lr": 0.1, "attack.lr": 2}) == "a_algorithm.lr=0.1_attack.lr=2"
