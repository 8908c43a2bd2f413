"""A run in which nobody takes part says so, once while it runs and at its end."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import fedsim
from fedsim.cli.app import app
from fedsim.scenario.load import parse

Make = Callable[..., Any]
NOBODY: dict[str, dict[str, Any]] = {
    "a deadline below every job": {"participation": {"mode": "synchronous", "deadline": 0.1}},
    "sampling that draws nobody": {"participation": {"mode": "synchronous", "sampling": "poisson", "fraction": 1e-6}},
    "dropout": {"participation": {"mode": "synchronous", "dropout": 0.9999999}},
    "a window before the first arrival": {"participation": {"mode": "fixed_interval", "window": 0.001}},
    "a timeout below every job": {
        "participation": {"mode": "fixed_interval", "window": 1.0, "timeout": 0.1, "weights": "identical"}
    },
    "nodes that never compute": {
        "participation": {"mode": "gossip", "compute": 0.0, "links": 0.0}, "topology": {"graph": "ring"},
        "algorithm": {"name": "dspodfl"},
    },
    "clocks that never tick": {
        "participation": {"mode": "poisson", "compute": 0.0, "links": 0.0}, "topology": {"graph": "ring"},
        "algorithm": {"name": "dspodfl"},
    },
}  # fmt: skip
SOMEBODY: dict[str, dict[str, Any]] = {
    "everybody": {"participation": {"mode": "synchronous"}},
    "rounds of nobody now and then": {"participation": {"mode": "synchronous", "sampling": "poisson", "fraction": 0.3}},
    "averaging alone": {
        "participation": {"mode": "gossip", "compute": 0.0}, "topology": {"graph": "ring"},
        "algorithm": {"name": "dspodfl"},
    },
}  # fmt: skip


def sections(quadratic: Make, more: dict[str, Any], rounds: int = 14) -> dict[str, Any]:
    made = {
        "data": quadratic(n=4).section(), "algorithm": {"name": "fedavg"},
        "run": {"rounds": rounds, "eval_every": rounds, "device": "cpu"},
    }  # fmt: skip
    return {**made, **more}


@pytest.mark.parametrize("name", NOBODY)
def test_it_is_said(name: str, tmp_path: Path, quadratic: Make, caplog: pytest.LogCaptureFixture) -> None:
    made = sections(quadratic, NOBODY[name])
    with caplog.at_level(logging.WARNING, "fedsim"):
        run = fedsim.run(made, out=tmp_path / "run")
    said = [r.getMessage() for r in caplog.records]
    assert [text.split(":")[0] for text in said] == ["round 10", "nobody took part in any of the 14 rounds"]
    assert run.warnings == said[1:]
    again = fedsim.run(made, out=tmp_path / "run", resume=True)  # nothing is left to do, and it is still so
    assert again.warnings == run.warnings


@pytest.mark.parametrize("name", SOMEBODY)
def test_otherwise_it_is_not(name: str, tmp_path: Path, quadratic: Make, caplog: pytest.LogCaptureFixture) -> None:
    run = fedsim.run(sections(quadratic, SOMEBODY[name]), out=tmp_path / "run")
    assert run.warnings == []
    assert not caplog.records


def test_most_rounds_of_nobody(tmp_path: Path, quadratic: Make) -> None:
    rare = {"participation": {"mode": "synchronous", "sampling": "poisson", "fraction": 0.05}}
    run = fedsim.run(sections(quadratic, rare, rounds=60), out=tmp_path / "run")
    assert len(run.warnings) == 1
    assert run.warnings[0].startswith("nobody took part in ")
    assert " of the 60 rounds" in run.warnings[0]
    assert "any of" not in run.warnings[0]


def test_the_command_line_says_it_too(tmp_path: Path, quadratic: Make) -> None:
    file = tmp_path / "scenario.yaml"
    file.write_text(parse(sections(quadratic, NOBODY["dropout"])).to_yaml())
    result = CliRunner().invoke(app, ["run", str(file), "--out", str(tmp_path / "run"), "--json"])
    assert result.exit_code == 0
    assert "nobody took part in any of the 14 rounds" in json.loads(result.stdout)["warnings"][0]
