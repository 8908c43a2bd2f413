"""Sections as a table: a row is all that a section needs, and every part is made once and kept as a part."""

from __future__ import annotations

import ast
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from data_makers import save_quadratic

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.fields import dump_part
from fedsim.core.types import Positive
from fedsim.data.partition import Dirichlet
from fedsim.engine.assembly import assemble
from fedsim.graphs.generators import Graph
from fedsim.messages.aggregators import Aggregator, Mean
from fedsim.models.build import MLP, Model, OwnModel
from fedsim.scenario import load as loading
from fedsim.scenario import schema as schemas
from fedsim.scenario import sections
from fedsim.scenario.load import parse
from fedsim.scenario.sections import SECTIONS, Scenario
from fedsim.scenario.table import ABSENT, PartSection

ROOT = Path(__file__).parents[2]
SERVER: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 4, "limit": 100, "partition": {"scheme": "dirichlet", "alpha": 1}},
    "model": {"name": "mlp", "hidden": [8]},
    "algorithm": {"name": "fedavg"},
    "audit": {"loss": None},
}
OWN_PARTS = """\
import networkx as nx
from torch import nn
from fedsim.models.build import Model

made = []

def net(input_shape, num_outputs, width=3):
    made.append(width)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, num_outputs))

def wheel(n, seed, spokes=2):
    return nx.cycle_graph(n)
"""


def test_every_part_of_a_scenario_is_a_part() -> None:
    s = parse(SERVER)
    assert isinstance(s.model, MLP)
    assert isinstance(s.partition, Dirichlet)
    assert s.model.hidden == [8]
    assert s.names == {
        "data": "digits", "data.partition": "dirichlet", "model": "mlp", "algorithm": "fedavg",
        "participation": "synchronous", "aggregator": "mean",
    }  # fmt: skip
    assert s.given == {"data", "model", "algorithm", "audit"}
    assert list(s.audits) == ["loss"]


def test_a_part_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is done with a scenario after it was read, its sections' parts are those that were read."""
    s = parse(SERVER)
    made: list[Any] = []
    for kind in (MLP, Dirichlet, Mean):
        monkeypatch.setattr(kind, "__init__", lambda self, *_, **__: made.append(self))
    assemble(s)
    s.to_yaml()
    assert made == []


def test_own_functions_are_parts_that_write_what_they_were_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_parts_of_test_sections.py").write_text(OWN_PARTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    s = parse({**SERVER, "model": {"name": "own_parts_of_test_sections:net", "width": 5, "loss": "cross_entropy"}})
    assert isinstance(s.model, OwnModel)
    assert s.resolved()["model"] == {
        "name": "own_parts_of_test_sections:net", "width": 5, "loss": "cross_entropy",
    }  # fmt: skip
    assert parse(s.resolved()).hash() == s.hash()
    save_quadratic(tmp_path)
    gossip = parse({
        "data": {"dataset": "quadratic", "file": str(tmp_path / "q.npz")}, "algorithm": {"name": "dgd"},
        "topology": {"graph": "own_parts_of_test_sections:wheel", "spokes": 3, "weights": "lazy"},
    })  # fmt: skip
    assert isinstance(gossip.topology, Graph)
    assert gossip.resolved()["topology"] == {
        "graph": "own_parts_of_test_sections:wheel", "spokes": 3, "weights": "lazy",
    }  # fmt: skip
    network = assemble(gossip).network
    assert network is not None
    assert network.topology.name == "own_parts_of_test_sections:wheel"
    for keys, key in (({"widht": 5}, "model.widht"), ({"loss": 3}, "model.loss"), ({"loss": "mes"}, "model.loss")):
        with pytest.raises(InputError) as caught:  # before any data are read
            parse({**SERVER, "model": {"name": "own_parts_of_test_sections:net", **keys}})
        assert caught.value.problems[0].key == key


def test_a_scenario_travels_to_other_processes() -> None:
    s = parse(SERVER)
    again = pickle.loads(pickle.dumps(s))
    assert again == s
    assert again.hash() == s.hash()


@dataclass(frozen=True)
class Extra(Aggregator):
    """A part for a section of a test."""

    strength: Positive = 2.0

    def __call__(self, values: Any, weights: Any) -> Any:
        return values


def test_a_new_section_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Wider(Scenario):
        extra: Annotated[Aggregator | None, PartSection(path="extra", kind="aggregator", key="called")]

    row = PartSection(path="extra", kind="aggregator", key="called")
    for module in (loading, schemas, sections):
        monkeypatch.setattr(module, "SECTIONS", {**SECTIONS, "extra": row})
    for module in (loading, sections):
        monkeypatch.setattr(module, "INNER", {**sections.INNER, "extra": ()})
    monkeypatch.setattr(loading, "Scenario", Wider)
    name = f"{__name__}:Extra"
    s = parse({**SERVER, "extra": {"called": name, "strength": 3.0}})
    assert isinstance(s, Wider)
    assert type(s.extra).__name__ == "Extra"
    assert s.resolved()["extra"] == {"called": name, "strength": 3.0}
    assert parse(s.resolved()).hash() == s.hash() != parse(SERVER).hash()
    assert "extra" not in parse(SERVER).resolved()
    assert {c["title"] for c in schemas.scenario_schema()["properties"]["extra"]["anyOf"]} >= {"mean", "median"}
    for wrong, key in ((5, "extra"), ({"called": "meen"}, "extra.called"), ({"called": name, "x": 1}, "extra.x")):
        with pytest.raises(InputError) as caught:
            parse({**SERVER, "extra": wrong})
        assert [p.key for p in caught.value.problems] == [key]


def test_rows_say_what_the_file_has() -> None:
    row = SECTIONS["partition"]
    assert row.given({}) is ABSENT
    assert row.given({"data": None}) is ABSENT
    assert row.given({"data": {"partition": 3}}) == 3
    assert (row.top, row.last) == (False, "partition")


def test_nothing_reads_the_file_behind_the_scenario_s_back() -> None:
    """What a section was asked for is `names`, `given` and its part; only readers of files look into documents."""
    files = "sweeps/files.py", "sweeps/reproduced/files.py"
    may = {"core/documents.py", "scenario/load.py", "reports/groups.py", *files}
    for file in (ROOT / "fedsim").rglob("*.py"):
        if str(file.relative_to(ROOT / "fedsim")) in may:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            reads = isinstance(node, ast.Attribute) and node.attr == "values"
            assert not (reads and "document" in ast.unparse(node.value)), f"{file}:{node.lineno}"  # type: ignore[attr-defined]


def test_defaults_of_own_classes_are_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_class_of_test_sections.py").write_text(
        "from dataclasses import dataclass\nfrom fedsim.models.build import LinearModel\n\n"
        "@dataclass(frozen=True)\nclass Mine(LinearModel):\n    depth: int = 2\n"
    )
    (tmp_path / "s.yaml").write_text(
        yaml.safe_dump({**SERVER, "model": {"name": "own_class_of_test_sections:Mine", "bias": False}})
    )
    monkeypatch.chdir(tmp_path)
    s = fedsim.load("s.yaml")
    assert isinstance(s.model, Model)
    assert s.resolved()["model"] == {"name": "own_class_of_test_sections:Mine", **dump_part(s.model)}
    assert s.resolved()["model"]["depth"] == 2


@pytest.mark.parametrize("section", [p.path for p in SECTIONS.values() if p.top and p.path not in ("name", "seed")])
def test_null_is_a_section_that_is_not_there(section: str) -> None:
    """``--set compression=null`` takes back what the file says; forms, and what a scenario needs, cannot be absent."""
    values: dict[str, Any] = {
        "data": {"dataset": "digits", "clients": 4},
        "model": {"name": "linear"},
        "algorithm": {"name": "fedavg", "lr": 0.1},
    }
    if section in ("data", "algorithm", "system", "run", "backend"):
        with pytest.raises(InputError, match=f"{section}: found nothing, allowed: a mapping"):
            parse({**values, section: None})
    elif section == "model":
        with pytest.raises(InputError, match="model"):
            parse({**values, section: None})
    else:
        assert parse({**values, section: None}).resolved() == parse(values).resolved()
