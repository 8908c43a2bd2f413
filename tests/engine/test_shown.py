"""What Python gives of a run, and what a notebook shows of it."""

from __future__ import annotations

import ast
import importlib
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.core.errors import InputError
from fedsim.engine.run_directory import read_jsonl

SCENARIO: dict[str, Any] = {
    "name": "shown",
    "data": {"dataset": "digits", "clients": 3, "limit": 90},
    "model": {"name": "linear"},
    "algorithm": {"name": "fedavg", "lr": 0.1},
    "run": {"rounds": 4, "eval_every": 2, "device": "cpu", "threads": 1},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> fedsim.Run:
    return fedsim.run(SCENARIO, out=tmp_path_factory.mktemp("shown") / "r")


def test_a_run_has_its_scenario(run: fedsim.Run) -> None:
    assert fedsim.Run(str(run.dir)) == run  # type: ignore[arg-type]
    assert run.scenario.resolved() == fedsim.load(run.dir / "scenario.yaml").resolved()
    assert (run.scenario.run.rounds, run.scenario.algorithm.lr) == (4, 0.1)


def test_curves_are_the_columns(run: fedsim.Run) -> None:
    figure = run.plot()
    assert {axes.get_ylabel() for axes in figure.axes if axes.get_visible()} >= {"test accuracy", "train loss"}
    one = run.plot("train_loss", x="bytes_sent")
    (axes,) = [a for a in one.axes if a.get_visible()]
    (line,) = axes.get_lines()
    rows = read_jsonl(run.dir / "metrics.jsonl")
    np.testing.assert_allclose(line.get_ydata(), [r["train_loss"] for r in rows])
    np.testing.assert_allclose(line.get_xdata(), [r["bytes_sent"] for r in rows])
    with pytest.raises(InputError, match="did you mean 'train_loss'"):
        run.plot("trian_loss")


def test_a_notebook_sees_the_first_and_the_last_metrics(run: fedsim.Run) -> None:
    page = run._repr_html_()
    first, *_, last = read_jsonl(run.dir / "metrics.jsonl")
    for row in (first, last):
        assert f"<td>{row['train_loss']:.4g}</td>" in page
    assert "<th>round 0</th><th>round 4</th>" in page
    assert "finished" in page
    assert str(run.dir) in page


def test_a_directory_without_rows_yet_is_shown_too(tmp_path: Path) -> None:
    assert "<span>not finished</span>" in fedsim.Run(tmp_path)._repr_html_()


def test_a_run_without_metrics_yet_has_no_curves(run: fedsim.Run, tmp_path: Path) -> None:
    begun = Path(shutil.copytree(run.dir, tmp_path / "begun"))
    (begun / "metrics.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="found no metrics yet"):
        fedsim.Run(begun).plot()


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a notebook displays, with two names in IPython's place; tests/test_notebooks.py has a real kernel."""
    shown: list[str] = []

    def update(page: dict[str, str], raw: bool) -> None:
        assert raw
        shown.append(page["text/html"])

    def display(page: dict[str, str], raw: bool, display_id: bool) -> Any:
        assert display_id
        update(page, raw)
        return SimpleNamespace(update=update)

    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    return shown


def test_a_notebook_has_a_bar(pages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.engine.shown._PAUSE", 0.0)
    fedsim.run(SCENARIO, out=tmp_path / "r")
    assert [p for p in pages if 'value="3" max="4"' in p]
    last = read_jsonl(tmp_path / "r" / "metrics.jsonl")[-1]
    assert "round 4 of 4" in pages[-1]
    assert f"test accuracy {last['test_accuracy']:.4g}" in pages[-1]
    pages.clear()
    fedsim.run(SCENARIO, out=tmp_path / "quiet", progress=False)
    told: list[int] = []
    fedsim.run(SCENARIO, out=tmp_path / "own", progress=lambda number, _: told.append(number))
    assert pages == []
    assert told == [0, 1, 2, 3, 4]


def test_elsewhere_there_is_no_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    terminal = SimpleNamespace(get_ipython=lambda: SimpleNamespace())  # IPython in a terminal has no kernel
    monkeypatch.setitem(sys.modules, "IPython", terminal)
    fedsim.run(SCENARIO, out=tmp_path / "r")
    assert capsys.readouterr() == ("", "")


def test_the_topology_from_python(tmp_path: Path) -> None:
    named = fedsim.topology("ring", 4)
    assert named.facts["spectral_gap"] == pytest.approx(2 / 3)
    assert named.graph.number_of_edges() == 4
    assert fedsim.topology("ring", 4, weights="lazy").facts["spectral_gap"] == pytest.approx(1 / 3)
    assert fedsim.topology("k_regular", 6, degree=3).graph.degree[0] == 3
    gossip = {**SCENARIO, "topology": {"graph": "ring"}, "algorithm": {"name": "dgd"}}
    of_scenario = fedsim.topology({**gossip, "data": {**SCENARIO["data"], "clients": 4}})
    assert of_scenario.facts["spectral_gap"] == named.facts["spectral_gap"]
    assert "spectral_gap" in named._repr_html_()
    named.plot().savefig(tmp_path / "ring.svg")
    assert named.plot()._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    for wrong, said in (
        (lambda: fedsim.topology(SCENARIO), "has a server"),
        (lambda: fedsim.topology(gossip, 4), "nodes"),
    ):
        with pytest.raises(InputError, match=said):
            wrong()


def test_the_topology_of_a_graph_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The function itself, or its name, of a module in a package too."""
    (tmp_path / "drawn_nets").mkdir()
    (tmp_path / "drawn_nets" / "round.py").write_text(
        "import networkx as nx\n\n\ndef wheel(nodes, seed):\n    return nx.wheel_graph(nodes)\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    wheel = importlib.import_module("drawn_nets.round").wheel
    for what in (wheel, "drawn_nets.round:wheel"):
        assert fedsim.topology(what, 6).graph.number_of_edges() == 10
    with pytest.raises(InputError, match="no such file"):
        fedsim.topology("missing.graphml")


@pytest.mark.parametrize("what", [None, 3, b"x", [SCENARIO], fedsim.Scenario], ids=str)
@pytest.mark.parametrize("of", [fedsim.run, fedsim.plan])
def test_what_is_no_scenario_is_refused(of: Any, what: Any) -> None:
    with pytest.raises(InputError, match=r"^found .*; allowed: a Scenario, a path to its file, or its nested mappings"):
        of(what)


@pytest.mark.parametrize("what", [None, 3, b"x", [SCENARIO], fedsim.Scenario], ids=str)
def test_what_is_no_directory_has_no_report(what: Any) -> None:
    with pytest.raises(InputError, match=r"^found directories of type .*; allowed: a path, or a list of paths"):
        fedsim.report(what)


@pytest.mark.parametrize("nodes", [2.5, "5", True])
def test_a_graph_has_whole_nodes(nodes: Any) -> None:
    with pytest.raises(InputError, match=r"nodes: found .*, allowed: a whole number"):
        fedsim.topology("ring", nodes)


def test_numbers_of_numpy_are_numbers() -> None:
    drawn = fedsim.topology("random_geometric", np.int64(8), radius=np.float64(0.8)).facts  # type: ignore[arg-type]
    assert drawn == fedsim.topology("random_geometric", 8, radius=0.8).facts


def test_a_notebook_shows_every_figure() -> None:
    """All are drawn on the figure that shows itself: matplotlib's own one does not, unless pyplot is imported."""
    package = Path(fedsim.__file__).parent
    bare = [
        f"{file.relative_to(package)}:{node.lineno}"
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Figure"
    ]
    assert bare == [], "use fedsim.figures.drawing.Drawing"


def test_arrays_are_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)).astype(np.float32)
    y = np.where(x[:, 0] > 0, "warm", "cold")
    data = fedsim.data.from_arrays(x, y, clients=3)
    sections = {**SCENARIO, "data": data}
    done = fedsim.run(sections, out="r")
    assert done.metrics["test_accuracy"].iloc[-1] > 0.6  # the sign of one input is the class
    again = fedsim.run("r/scenario.yaml", out="again")
    assert torch.equal(done.params, again.params)
    assert fedsim.data.from_arrays(torch.from_numpy(x), list(y), clients=3) == data  # the same arrays are one file
    assert fedsim.data.from_arrays(x + 1, y, clients=3)["path"] != data["path"]


def test_rows_may_say_whose_they_are(tmp_path: Path) -> None:
    x, y = np.arange(24.0).reshape(12, 2), np.arange(12) % 2
    owner = ["north", "south", "south"] * 4
    data = fedsim.data.from_arrays(x, y, clients=owner, x_test=x, y_test=y, test_clients=owner, folder=tmp_path)
    done = fedsim.run({**SCENARIO, "data": {**data, "local_test": "natural"}}, out=tmp_path / "r")
    assert list(done.clients["client"].unique()) == [0, 1]
    counts = (done.dir / "partition.csv").read_text().splitlines()
    assert ["north" in counts[1], "south" in counts[2]] == [True, True]
    assert ",4" in counts[1]
    assert ",8" in counts[2]


@pytest.mark.parametrize(
    "wrong,said",
    [
        ({"y": [0, 1]}, "different numbers of rows: x 3, y 2"),
        ({"x": [[1.0], [2.0, 3.0], [4.0]]}, "x: cannot be made"),
        ({"x": [None, 1, 2]}, "x: found values of type object"), ({"x_test": [[1.0]]}, "one of x_test and y_test"),
        ({"clients": [0, 0, 1], "partition": {"scheme": "iid"}}, "found partition"),
        ({"clients": [0, 1]}, "different numbers of rows"), ({"test_clients": [0]}, "found test_clients"),
        ({"clients": [0, 0, 1], "x_test": [[1.0]], "y_test": [0]}, "test_clients: missing"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_refused(wrong: dict[str, Any], said: str, tmp_path: Path) -> None:
    given = {"x": [[1.0], [2.0], [3.0]], "y": [0, 1, 0], **wrong}
    with pytest.raises(InputError, match=said):
        fedsim.data.from_arrays(**given, folder=tmp_path / "arrays")
    assert not (tmp_path / "arrays").exists()
