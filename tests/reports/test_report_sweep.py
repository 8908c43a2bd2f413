"""What a report says of a sweep: accuracy against cost, the Pareto front, heat maps of two axes."""

from __future__ import annotations

from pathlib import Path

import networkx
import yaml

import fedsim
from fedsim.reports.report import write_report
from fedsim.reports.tradeoffs import pareto

SCENARIO = {
    "data": {"dataset": "digits", "clients": 6, "limit": 90},
    "model": {"name": "linear"},
    "algorithm": {"name": "dpsgd", "lr": 0.1, "batch_size": 10},
    "topology": {"graph": "ring"},
    "run": {"rounds": 2, "eval_every": 1, "device": "cpu", "threads": 1},
}


def test_the_pareto_front() -> None:
    assert pareto([1.0, 2.0, 3.0, 1.5], [0.5, 0.4, 0.9, 0.7]) == [0, 3, 2]
    assert pareto([1.0, 1.0], [0.2, 0.3]) == [1]


def swept(folder: Path, **sweep: object) -> str:
    (folder / "s.yaml").write_text(yaml.safe_dump(SCENARIO))
    (folder / "w.yaml").write_text(yaml.safe_dump({"scenario": "s.yaml", **sweep}, sort_keys=False))
    fedsim.sweep(folder / "w.yaml", out=folder / "out")
    return write_report([folder / "out"]).read_text()


def test_topologies_are_compared_by_gap_and_bytes(tmp_path: Path) -> None:
    graphs = {"graph": {"topology.graph": "path"}, "b": None, "c": {"topology.graph": "complete"}}
    text = swept(tmp_path, cases=graphs, grid={"seed": [0, 1]})
    assert "Accuracy against cost" in text
    assert (tmp_path / "out" / "figures" / "tradeoffs.png").stat().st_size > 10_000
    assert "Two axes" not in text
    assert all(f"</svg>{number} {case}</span>" in text for number, case in ((1, "graph"), (2, "b"), (3, "c")))
    assert text.index("graph</span>") < text.index("b</span>")  # the sweep's order, not that of the folders


def test_axes_of_words_make_a_heat_map_too(tmp_path: Path) -> None:
    text = swept(tmp_path, grid={"topology.graph": ["ring", "complete"], "algorithm.batch_size": ["full", 10]})
    assert "node_accuracy over algorithm.batch_size and topology.graph" in text


def test_two_axes_make_a_heat_map(tmp_path: Path) -> None:
    text = swept(tmp_path, grid={"algorithm.lr": [0.05, 0.1], "algorithm.batch_size": [5, 10]})
    assert "Two axes" in text
    assert (tmp_path / "out" / "figures" / "heatmap.png").exists()


def test_a_key_that_some_runs_lack_is_no_axis(tmp_path: Path) -> None:
    networkx.write_graphml(networkx.wheel_graph(6), tmp_path / "wheel.graphml")
    file = {"topology": {"graph": "file", "path": "wheel.graphml"}}
    text = swept(tmp_path, cases={"a": None, "b": {"topology.graph": "complete"}, "c": file})
    assert "topology.path" in text
    assert "Two axes" not in text
