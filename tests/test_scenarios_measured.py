"""What measures the shipped scenarios: the curve that it keeps, and what becomes of one that takes too long."""

from __future__ import annotations

import html
import json
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import docs_pages
import pytest
import yaml
from docs_pages import ROOT, SCENARIOS

import fedsim
from fedsim.audit import command as audit
from fedsim.scenario.load import given

SCENARIO: dict[str, Any] = {
    "name": "short",
    "data": {"dataset": "digits", "clients": 3, "limit": 90},
    "model": {"name": "linear"},
    "algorithm": {"name": "fedavg", "lr": 0.1},
    "run": {"rounds": 4, "eval_every": 2, "device": "cpu", "threads": 1},
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return docs_pages.script("benchmarks/scenarios.py")


def test_the_curve_of_a_run(script: ModuleType, tmp_path: Path) -> None:
    run = fedsim.run(SCENARIO, out=tmp_path / "r")
    found = script.curves(tmp_path / "r")
    assert (found["metric"], found["log"]) == ("test accuracy", False)
    (line,) = found["lines"].values()
    assert line == [[r, pytest.approx(a, rel=1e-3)] for r, a in zip([0, 2, 4], run.metrics.test_accuracy, strict=True)]
    assert script.curves(tmp_path / "nothing") == {}


def test_the_curves_of_a_sweep(script: ModuleType, tmp_path: Path) -> None:
    """A line for each group, the mean of its seeds."""
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(SCENARIO), encoding="utf-8")
    grid = {"algorithm.lr": [0.1, 0.5], "seed": [0, 1]}
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"name": "s", "scenario": "base.yaml", "grid": grid}), encoding="utf-8")
    outcomes = fedsim.sweep(file, out=tmp_path / "s")
    lines = script.curves(tmp_path / "s")["lines"]
    assert list(lines) == ["lr=0.1", "lr=0.5"]
    last = [o.run.metrics.test_accuracy.iloc[-1] for o in outcomes if o.run is not None]
    assert lines["lr=0.1"][-1] == [4, pytest.approx((last[0] + last[1]) / 2, rel=1e-3)]


def test_the_sentence_of_an_audit(script: ModuleType, tmp_path: Path) -> None:
    private = {
        **SCENARIO,
        "algorithm": {"name": "diff2", "lr": 0.5, "restart_every": 1, "clip_norm": 1.0},
        "privacy": {"mechanism": "gaussian", "epsilon": 3.0, "delta": 1e-5},
        "audit": {"canaries": {"canaries": 20}},
    }
    report = audit.audit(given(private))
    audit.write(report, tmp_path / "a")
    said = script.verdicts(tmp_path / "a")["found"]
    assert said.startswith("No audit shows the claimed epsilon of 3 to be false")
    assert said in html.unescape((tmp_path / "a" / "audit.html").read_text(encoding="utf-8"))
    assert script.verdicts(tmp_path) == {}


def test_long_ones_are_thinned_and_end_where_they_end(script: ModuleType) -> None:
    kept = script._thinned([(i, i / 1000) for i in range(1001)])
    assert len(kept) <= script.POINTS + 1
    assert (kept[0], kept[-1]) == ([0, 0.0], [1000, 1.0])


def test_one_that_takes_too_long_is_interrupted(script: ModuleType) -> None:
    wall, _, late, failed = script.timed([sys.executable, "-c", "import time; time.sleep(600)"], 1.0)
    assert (late, failed) == (True, "")
    assert wall < 300
    _, used, late, failed = script.timed([sys.executable, "-c", "import sys; sys.exit('no such thing')"], 300.0)
    assert (late, failed) == (False, "no such thing")
    assert used > 0


def test_every_scenario_has_a_command_or_a_reason(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    kinds = {file.name: script.command_of(file) for file in SCENARIOS}
    assert kinds["quickstart.yaml"][3] == "run"
    assert kinds["audit-digits.yaml"][3] == "audit"
    assert kinds["choco-geant.yaml"][3] == "sweep"
    assert kinds["fedavg-mnist.yaml"] == kinds["fedfix-mnist-tuned.yaml"] == "FEDSIM_DATA has no folder mnist"


def test_the_file_has_a_line_for_each(script: ModuleType) -> None:
    found = {"b.yaml": {"seconds": 1.0}, "a.yaml": {"seconds": 2.0, "lines": {"x": [[0, 1.0]]}}}
    text = script.written(found)
    assert json.loads(text) == found
    assert [line[:8] for line in text.splitlines()[1:-1]] == ['"a.yaml"', '"b.yaml"']
    assert script.written(script.kept(text)) == text


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("groups", [1, 3, 20])
def test_a_figure_is_drawn_of_any_number_of_lines(groups: int, log: bool) -> None:
    from xml.etree import ElementTree

    draw = runpy.run_path(str(ROOT / "docs" / "scenarios.py"))["_drawn"]
    lines = {f"<{i}>": [[0, 0.5], [10, 2.0**i]] for i in range(groups)}
    picture = ElementTree.fromstring(draw({"metric": "loss", "log": log, "lines": lines}))
    drawn = picture.findall("{*}polyline")
    assert len(drawn) == groups
    for line in drawn:
        for point in line.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= float(picture.attrib["width"])
            assert 0 <= y <= float(picture.attrib["height"])
