"""The page of runs with attackers: honest accuracy against the gap that attackers leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.reports.attackers import _point
from fedsim.reports.groups import Group, Record
from fedsim.scenario.load import load

BASE: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 8, "limit": 300}, "model": {"name": "linear"},
    "algorithm": {"name": "dpsgd", "lr": 0.1, "batch_size": 16},
    "run": {"rounds": 2, "eval_every": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    found = []
    for graph in ("torus", "complete"):
        for name in ("dissensus", "label_flip"):
            topology = {"graph": "k_regular", "degree": 4} if graph == "torus" else {"graph": graph}
            scenario = {**BASE, "topology": topology, "attack": {"name": name, "attackers": [1]}}
            found.append(fedsim.run(scenario, out=folder / f"{graph}-{name}").dir)
    return found


def test_the_figure_of_attacked_graphs(runs: list[Path], tmp_path: Path) -> None:
    page = fedsim.report(runs, out=tmp_path / "report.html")
    text = Path(page).read_text(encoding="utf-8")
    assert "<h2" in text
    assert "Attackers" in text
    assert "node accuracy of honest nodes against the honest gap, 2 attacks" in text
    assert list(tmp_path.rglob("attackers.png"))


def test_its_numbers_are_those_of_the_files(runs: list[Path]) -> None:
    for folder in runs:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        record = Record(folder, load(folder / "scenario.yaml").resolved(), "", rows, True)
        point = _point(Group("one", [record]), "node_accuracy")
        assert point is not None
        assert point.value == rows[-1]["node_accuracy"]
        assert point.gap == json.loads((folder / "attack.json").read_text())["honest_gap"]
        assert (point.rule, point.placement) == ("mean", "given")


def test_a_single_run_says_who_attacks(runs: list[Path], tmp_path: Path) -> None:
    text = Path(fedsim.report(runs[:1], out=tmp_path / "report.html")).read_text(encoding="utf-8")
    found = json.loads((runs[0] / "attack.json").read_text())
    assert "Attackers</h2>" in text
    for cell in ("dissensus", "mean", f"{found['delta_max']:.4g}", f"{found['honest_gap']:.4g}", "yes"):
        assert f">{cell}</td>" in text
    assert "over honest clients and nodes alone" in text


def test_no_figure_without_attackers(tmp_path: Path) -> None:
    found = []
    for graph in ("ring", "complete"):
        found.append(fedsim.run({**BASE, "topology": {"graph": graph}}, out=tmp_path / graph).dir)
    text = Path(fedsim.report(found, out=tmp_path / "report.html")).read_text(encoding="utf-8")
    assert "honest gap" not in text
