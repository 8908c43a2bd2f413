"""Clocked runs that are interrupted, resumed, planned, or end at a virtual second."""

from __future__ import annotations

import json
import os
import signal
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from clocked import ASYNC, DIGITS, F80, MODES, Make

import fedsim
from fedsim.engine.assembly import assemble
from fedsim.engine.run_directory import read_jsonl
from fedsim.participation.base import Arrival, Dispatch
from fedsim.scenario.load import parse


def resumable(mode: str, rounds: int = 30, **run: Any) -> dict[str, Any]:
    return {
        "data": DIGITS,
        "model": {"name": "linear"},
        "algorithm": {"name": "fedavg", "lr": 0.05, "local_steps": 2, "batch_size": 8, "server_momentum": 0.5},
        "participation": MODES[mode],
        "system": {**F80} if mode != "fedbuff" else {**F80, "jitter": {"model": "exponential", "mean": 0.3}},
        "run": {"rounds": rounds, "eval_every": 7, "device": "cpu", "threads": 1, "trace": True, **run},
    }


def metrics(run: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "wall"} for row in read_jsonl(run.dir / "metrics.jsonl")]


def in_flight(folder: Path) -> int:
    from safetensors.torch import load_file

    saved = load_file(folder / "checkpoint" / "clients.safetensors")
    return sum(len(saved[k]) for k in ("pending.numbers", "done.numbers") if k in saved)


@pytest.mark.parametrize("after", [4, 14, 17])
@pytest.mark.parametrize("mode", MODES)
def test_interrupted_with_jobs_in_flight(mode: str, after: int, tmp_path: Path) -> None:
    def interrupt(number: int, _row: object) -> None:
        if number == after:
            os.kill(os.getpid(), signal.SIGINT)

    whole = fedsim.run(resumable(mode), out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fedsim.run(resumable(mode), out=tmp_path / "parts", progress=interrupt)
    assert json.loads((tmp_path / "parts" / "checkpoint" / "progress.json").read_text())["round"] == after
    assert in_flight(tmp_path / "parts") > 0
    parts = fedsim.run(resumable(mode), out=tmp_path / "parts", resume=True)
    assert torch.equal(parts.params, whole.params)
    assert parts.trace == whole.trace
    assert metrics(parts) == metrics(whole)


@pytest.mark.parametrize("mode", MODES)
def test_more_rounds(mode: str, tmp_path: Path) -> None:
    whole = fedsim.run(resumable(mode), out=tmp_path / "whole")
    for rounds in (5, 13, 30):
        parts = fedsim.run(resumable(mode, rounds), out=tmp_path / "parts", resume=True)
    assert torch.equal(parts.params, whole.params)
    assert parts.trace == whole.trace
    assert metrics(parts) == metrics(whole)


@pytest.mark.parametrize("mode", [*MODES, "synchronous"])
def test_seconds_end_a_run(mode: str, tmp_path: Path) -> None:
    participation = MODES.get(mode, {"mode": "synchronous"})
    limited = {**resumable("asynchronous", 1000, seconds=3.0), "participation": participation}
    run = fedsim.run(limited, out=tmp_path / "limited")
    rounds = len(run.trace)
    assert 3 <= rounds < 100
    assert run.trace[-1]["time"] <= 3.0
    last = metrics(run)[-1]
    assert (last["round"], last["time"]) == (rounds, run.trace[-1]["time"])
    counted = fedsim.run(
        {**limited, "run": {k: v for k, v in limited["run"].items() if k != "seconds"} | {"rounds": rounds + 1}},
        out=tmp_path / "counted",
    )
    assert counted.trace[:-1] == run.trace
    assert counted.trace[-1]["time"] > 3.0
    shorter = {**limited, "run": {**limited["run"], "rounds": rounds}}
    assert torch.equal(fedsim.run(shorter, out=tmp_path / "shorter").params, run.params)
    assert json.loads((tmp_path / "limited" / "checkpoint" / "progress.json").read_text())["round"] == rounds
    again = fedsim.run(limited, out=tmp_path / "limited", resume=True)
    assert torch.equal(again.params, run.params)
    assert metrics(again)[-1] == last
    assert len(metrics(again)) == len({row["round"] for row in metrics(again)})


def test_seconds_before_the_first_arrival(tmp_path: Path) -> None:
    for resume in (False, True):
        run = fedsim.run(resumable("barrier", 10, seconds=0.1), out=tmp_path / "run", resume=resume)
        assert [row["round"] for row in metrics(run)] == [0]


def test_planning_a_run_whose_first_window_is_empty(quadratic: Make) -> None:
    from fedsim.reports.plan import plan

    scenario = {
        "data": quadratic(n=3).section(), "algorithm": {"name": "fedavg"}, "run": {"device": "cpu"},
        "participation": {"mode": "fixed_interval", "window": 0.1}, "system": F80,
    }  # fmt: skip
    assert "clients in the first round" in json.dumps(plan(parse(scenario)))


def test_events_continue_after_any_round(quadratic: Make) -> None:
    scenario = parse({"data": quadratic(n=2).section(), "algorithm": {"name": "fedavg"}, "participation": ASYNC})
    a = assemble(scenario)
    stream = scenario.participation.events(a.setting(scenario), 5)
    first = list(islice(stream, 4))  # round 6 on, and nothing of what went before
    assert [type(e) for e in first] == [Dispatch, Arrival, Dispatch, Arrival]
    assert [e.number for e in first if isinstance(e, Arrival)] == [6, 7]
