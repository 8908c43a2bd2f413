"""Modes named by ``pkg.mod:Name`` go wherever fedsim's own go: plans, schedules, runs, resumed runs, reports, Ray."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import fedsim
from fedsim.cli.app import app
from fedsim.core.errors import InputError, RunError
from fedsim.reports.timeline import follow
from fedsim.scenario.load import parse

Make = Callable[..., Any]
SPEEDS = {"compute": {"model": "linear", "slowest": 1.0, "fastest": 0.2}}
SERVER = {
    "Half": {"mode": "own_modes:Half", "weights": "identical", "patience": 0.7},
    "Half, estimated": {"mode": "own_modes:Half", "weights": "estimated", "patience": 0.7, "pilot": 500},
    "Shifts": {"mode": "own_modes:Shifts", "size": 4},
}
GOSSIP = {"Turns": {"mode": "own_modes:Turns"}}
MODES = {**SERVER, **GOSSIP}


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def sections(name: str, quadratic: Make, rounds: int = 12, **more: Any) -> dict[str, Any]:
    gossip = name in GOSSIP
    made: dict[str, Any] = {
        "data": quadratic(n=6).section(),
        "algorithm": {"name": "dgd" if gossip else "fedavg", "lr": 0.1},
        "participation": MODES[name],
        "run": {"rounds": rounds, "eval_every": 4, "trace": True, "device": "cpu"},
    }
    made |= {"topology": {"graph": "ring"}} if gossip else {"system": SPEEDS}
    return {**made, **more}


def rows(run: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "wall"} for row in run.metrics.to_dict("records")]


@pytest.mark.parametrize("name", MODES)
def test_run_and_resume(name: str, tmp_path: Path, quadratic: Make) -> None:
    def interrupt(number: int, _row: object) -> None:
        if number == 5:
            os.kill(os.getpid(), signal.SIGINT)

    made = sections(name, quadratic)
    whole = fedsim.run(made, out=tmp_path / "whole")
    assert [row["round"] for row in whole.trace] == list(range(1, 13))
    assert whole.metrics["train_loss"].iloc[-1] < whole.metrics["train_loss"].iloc[0]
    with pytest.raises(KeyboardInterrupt):
        fedsim.run(made, out=tmp_path / "parts", progress=interrupt)
    parts = fedsim.run(made, out=tmp_path / "parts", resume=True)
    assert torch.equal(parts.params, whole.params)
    assert parts.trace == whole.trace
    assert rows(parts) == rows(whole)
    assert ("staleness_mean" in whole.metrics) == name.startswith("Half")


@pytest.mark.parametrize("name", MODES)
def test_plan_schedule_and_report(name: str, tmp_path: Path, quadratic: Make) -> None:
    scenario = parse(sections(name, quadratic))
    file = tmp_path / "scenario.yaml"
    file.write_text(scenario.to_yaml())
    done = fedsim.run(scenario, out=tmp_path / "run")
    for command in (["plan", str(file)], ["plan", str(file), "--schedule", "--json"], ["report", str(done.dir)]):
        result = CliRunner().invoke(app, command, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        if "--json" in command:
            combines = json.loads(result.stdout)["first_combines"]
            assert [c["time"] for c in combines] == [row["time"] for row in done.trace]
    if name in SERVER:
        assert "<h2>Schedule</h2>" in (done.dir / "report.html").read_text()


def test_half_combines_at_half_of_the_clients_or_when_it_has_waited(tmp_path: Path, quadratic: Make) -> None:
    mode = {**MODES["Half"], "patience": 0.45}
    run = fedsim.run(sections("Half", quadratic, rounds=40, participation=mode), out=tmp_path / "run")
    last = 0.0
    for row in run.trace:
        assert len(row["clients"]) == 3 or row["time"] == pytest.approx(last + 0.45)
        assert len(row["clients"]) <= 3
        assert row["time"] <= last + 0.45 + 1e-9
        last = row["time"]
    assert {len(row["clients"]) for row in run.trace} > {3}


def test_what_a_mode_forgets_is_a_sentence_before_anything_is_written(tmp_path: Path, quadratic: Make) -> None:
    made = sections("Shifts", quadratic, participation={"mode": "own_modes:Forgetful"})
    with pytest.raises(InputError, match="made a Dispatch with 0 ends for 2 clients"):
        follow(parse(made))
    with pytest.raises(InputError, match="made a Dispatch with 0 ends for 2 clients"):
        fedsim.run(made, out=tmp_path / "run")
    with pytest.raises(InputError, match="policy"):
        parse(sections("Shifts", quadratic, participation={"mode": "own_modes:Unfinished"}))
    closed = sections("Half", quadratic, participation={"mode": "own_modes:Half"})  # debiased needs a closed form
    with pytest.raises(InputError, match="Half has no closed form; allowed: estimated, identical"):
        fedsim.run(closed, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path, quadratic: Make) -> None:
    turns = {
        "data": quadratic(n=4).section(), "algorithm": {"name": "dspodfl"}, "participation": {"mode": "poisson"},
        "topology": {"graph": "sequence", "graphs": [{"graph": "ring"}, {"graph": "star"}]},
    }  # fmt: skip
    never = {"mode": "fixed_interval", "window": 0.01, "weights": "estimated", "pilot": 10}
    for made, message in (
        (turns, "topology: neighbours that change"),
        (sections("Shifts", quadratic, participation=never), "participation.pilot: client 0 delivers in none of"),
    ):
        with pytest.raises(InputError, match=message):
            fedsim.run(made, out=tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_half_on_real_clients(tmp_path: Path, quadratic: Make) -> None:
    pytest.importorskip("flwr")
    from flower_loopback import Deployment

    scenario = sections("Half", quadratic, rounds=6)
    scenario |= {"data": quadratic(n=4, d=3).section()}
    deployed = Deployment(tmp_path / "app", scenario, 4)
    for client in (1, 2, 3):
        deployed.grid.nodes[100 + client].delay = 3.0
    run = deployed.run()
    assert len(run.trace) == 6
    assert all(len(row["clients"]) <= 2 for row in run.trace)
    alone = [row for row in run.trace if len(row["clients"]) < 2]
    assert alone
    assert run.trace[0]["clients"] == [0]  # the others take longer than its patience
    assert run.trace[0]["time"] == pytest.approx(0.7, abs=0.5)
    assert np.isfinite(run.metrics["train_loss"]).all()


def test_shifts_on_real_clients(tmp_path: Path, quadratic: Make) -> None:
    pytest.importorskip("flwr")
    from flower_loopback import Deployment

    scenario = {**sections("Shifts", quadratic, rounds=5), "system": {}}
    run = Deployment(tmp_path / "app", scenario, 6).run()
    here = fedsim.run(scenario, out=tmp_path / "here")
    assert [row["clients"] for row in run.trace] == [row["clients"] for row in here.trace]
    assert torch.equal(run.params, here.params)


@pytest.mark.ray
@pytest.mark.parametrize("name", MODES)
def test_on_ray(name: str, tmp_path: Path, quadratic: Make) -> None:
    pytest.importorskip("ray")
    made = sections(name, quadratic)
    made["run"]["dtype"] = "float64"
    here = fedsim.run(made, out=tmp_path / "here")
    there = fedsim.run({**made, "backend": {"name": "ray", "actors": 2}}, out=tmp_path / "there")
    assert torch.allclose(there.params, here.params, rtol=1e-12, atol=1e-12)
    assert there.trace == here.trace


def test_a_mode_that_runs_dry_is_no_finished_run(quadratic: Make, tmp_path: Path) -> None:
    scenario = {**sections("Shifts", quadratic), "participation": {"mode": "own_modes:RunsDry"}}
    with pytest.raises(RunError, match="no more events after round 3 of 12"):
        fedsim.run(scenario, out=tmp_path / "run")
