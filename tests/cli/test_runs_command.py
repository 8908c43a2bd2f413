"""``fedsim runs``: the table of run directories, whatever state they are in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.core.lock import owned, owner
from fedsim.reports.listing import list_runs

SCENARIO: dict[str, Any] = {
    "name": "listed",
    "data": {"dataset": "digits", "clients": 3, "limit": 90},
    "model": {"name": "linear"},
    "algorithm": {"name": "fedprox", "mu": 0.1},
    "run": {"rounds": 2, "eval_every": 1, "device": "cpu", "threads": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of each state: finished, stopped early, interrupted, failed in a sweep, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("states") / "runs"
    fedsim.run(SCENARIO, out=folder / "done")
    stop = {"rounds": 6, "stop": {"metric": "test_loss", "target": 1000.0}}
    fedsim.run({**SCENARIO, "run": {**SCENARIO["run"], **stop}}, out=folder / "early")
    fedsim.run({**SCENARIO, "run": {**SCENARIO["run"], "rounds": 3}}, out=folder / "cut")
    (folder / "cut" / "params.safetensors").unlink()
    rows = (folder / "cut" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "cut" / "metrics.jsonl").write_text("".join(rows[:2]))
    failed = folder / "sweep" / "lr=9"
    failed.mkdir(parents=True)
    for name in ("scenario.yaml", "metrics.jsonl"):
        (failed / name).write_bytes((folder / "cut" / name).read_bytes())
    (failed.parent / "sweep.json").write_text(json.dumps({"runs": [{"run": "lr=9", "error": "it diverged"}]}))
    (folder / "broken").mkdir()
    (folder / "broken" / "metrics.jsonl").write_text("")
    (folder / "broken" / "scenario.yaml").write_text("a: [")
    return folder


@pytest.fixture
def beside(folder: Path) -> Path:
    return folder.parent


def test_every_state_is_told(call: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = call("runs", "--json")
    assert (code, err) == (0, "")
    found = {Path(run["dir"]).name: run for run in json.loads(out)}
    assert {name: run["state"] for name, run in found.items()} == {
        "done": "finished", "early": "stopped", "cut": "interrupted", "lr=9": "failed", "broken": "unreadable",
    }  # fmt: skip
    assert (found["done"]["round"], found["done"]["rounds"]) == (2, 2)
    assert (found["cut"]["round"], found["cut"]["rounds"]) == (1, 3)
    assert found["lr=9"]["why"] == "it diverged"
    assert "scenario.yaml" in found["broken"]["why"]
    assert found["early"]["why"]
    assert (found["done"]["algorithm"], found["done"]["data"]) == ("fedprox", "digits")
    assert found["done"]["metrics"] == json.loads(Path("runs/done/metrics.jsonl").read_text().splitlines()[-1])


def test_the_table_has_a_line_for_each(call: Callable[..., tuple[int, str, str]], folder: Path) -> None:
    lines = call("runs", "runs", "runs/done")[1].splitlines()
    (line,) = (line for line in lines if " runs/done " in line)
    accuracy = fedsim.Run(folder / "done").metrics["test_accuracy"].iloc[-1]
    assert f"test_accuracy {accuracy:.4g} " in line
    assert line.split()[:5] == ["runs/done", "listed", "fedprox", "digits", "2/2"]
    assert line.split()[-1] == "finished"
    assert sum("runs/done" in line for line in lines) == 1


def test_a_run_that_goes_on_is_running(folder: Path) -> None:
    assert owner(folder / "cut") is None
    with owned(folder / "cut"):
        running = {run.dir.name: run for run in list_runs([folder])}["cut"]
        assert running.state == "running"
        assert running.why == owner(folder / "cut")
    lock = folder / "cut" / ".fedsim.lock"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "start": "1", "boot": None, "pids": None}))
    try:
        assert list_runs([folder / "cut"])[0].why == "process 1 on elsewhere"
    finally:
        lock.unlink()
    assert list_runs([folder / "cut"])[0].state == "interrupted"


def test_where_there_is_none(call: Callable[..., tuple[int, str, str]], folder: Path) -> None:
    (folder.parent / "empty").mkdir(exist_ok=True)
    for argument, said in (("empty", "holds no run"), ("nowhere", "no such folder")):
        code, out, err = call("runs", argument)
        assert (code, out) == (2, "")
        assert err.startswith(f"{argument}: {said}")


def test_json_has_null_for_what_is_no_number(call: Callable[..., tuple[int, str, str]], folder: Path) -> None:
    odd = folder.parent / "odd" / "run"
    odd.mkdir(parents=True)
    (odd / "scenario.yaml").write_bytes((folder / "done" / "scenario.yaml").read_bytes())
    row = json.loads((folder / "done" / "metrics.jsonl").read_text().splitlines()[-1])
    (odd / "metrics.jsonl").write_text(json.dumps({**row, "test_loss": float("nan"), "most": float("inf")}) + "\n")

    def refused(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    (found,) = json.loads(call("runs", "odd", "--json")[1], parse_constant=refused)
    assert found["metrics"] == {**row, "test_loss": None, "most": None}
