"""Graphs that take turns have the same node under the same number, whatever order each file has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch

from fedsim.core.errors import InputError
from fedsim.graphs.cleaning import labels, remarks_of
from fedsim.graphs.topology import Topology, build_topology

Make = Callable[..., Any]
FIRST = [("Oslo", "Rome"), ("Rome", "Bonn"), ("Bonn", "Oslo"), ("Bonn", "Bern")]
SECOND = [("Bern", "Rome"), ("Oslo", "Bern"), ("Rome", "Bonn")]


def file(folder: Path, name: str, edges: list[tuple[Any, Any]]) -> dict[str, Any]:
    rows = [f"{u},{v}" for u, v in edges]
    (folder / f"{name}.csv").write_text("\n".join(["source,target", *rows]), encoding="utf-8")
    return {"graph": "file", "path": f"{name}.csv"}


def sequence(folder: Path, *graphs: Any, n: int | None = None) -> Topology:
    sections = [g if isinstance(g, dict) else file(folder, f"g{k}", g) for k, g in enumerate(graphs)]
    return build_topology({"graph": "sequence", "graphs": sections}, n, 0, folder)[0]


def edges(graph: Any, names: Any = None) -> set[frozenset[Any]]:
    called = names or labels(graph)
    return {frozenset((called[u], called[v])) for u, v in graph.edges}


def sets(found: list[tuple[Any, Any]]) -> set[frozenset[Any]]:
    return {frozenset(map(str, e)) for e in found}


def test_a_name_has_one_number_in_all_files(tmp_path: Path) -> None:
    topology = sequence(tmp_path, FIRST, SECOND, n=4)
    assert topology.names == ("Oslo", "Rome", "Bonn", "Bern")
    for graph, wanted in zip(topology.graphs, (FIRST, SECOND), strict=True):
        assert labels(graph) == list(topology.names)
        assert list(graph) == [0, 1, 2, 3]
        assert edges(graph) == sets(wanted)


def test_a_run_does_not_depend_on_the_order_in_the_files(quadratic: Make, run_scenario: Make, tmp_path: Path) -> None:
    runs = []
    for k, second in enumerate((SECOND, [(v, u) for u, v in reversed(SECOND)])):
        folder = tmp_path / f"{k}"
        folder.mkdir()
        paths = [str(folder / file(folder, name, e)["path"]) for name, e in (("a", FIRST), ("b", second))]
        graphs = [{"graph": "file", "path": path} for path in paths]
        runs.append(run_scenario(
            data=quadratic(n=4, d=3).section(), algorithm={"name": "dfedavg", "lr": 0.1}, run={"rounds": 6},
            topology={"graph": "sequence", "graphs": graphs}, participation={"mode": "gossip"},
        ))  # fmt: skip
    assert torch.equal(runs[0].params, runs[1].params)
    assert [row["edges"] for row in runs[0].trace] == [row["edges"] for row in runs[1].trace]


def test_a_node_that_a_file_lacks_has_no_links_there(tmp_path: Path) -> None:
    topology = sequence(tmp_path, FIRST, [("Kiev", "Rome")], n=5)
    assert topology.names == ("Oslo", "Rome", "Bonn", "Bern", "Kiev")
    assert [edges(g) for g in topology.graphs] == [sets(FIRST), {frozenset(("Kiev", "Rome"))}]
    said = remarks_of(topology.graphs[0])
    assert "graphs.0 lacks 'Kiev': without links while it is in force" in said
    assert "graphs.1 lacks 'Oslo', 'Bonn', 'Bern': without links while it is in force" in said


def test_a_misspelt_name_is_one_node_too_many(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"5 nodes together, but there are 4 clients: graphs.0 lacks 'Romé'") as error:
        sequence(tmp_path, FIRST, [("Bern", "Romé"), ("Oslo", "Bern"), ("Bonn", "Oslo")], n=4)
    assert error.value.problems[0].key == "graphs"


def test_numbers_are_names_where_a_file_has_more_than_numbers(tmp_path: Path) -> None:
    """Without 0 a file's 1 to 4 would be 0 to 3; beside one that has 0 they are what they are called."""
    zero, one = [(0, 1), (1, 2), (2, 3)], [(4, 1), (1, 3), (3, 2)]
    topology = sequence(tmp_path, one, zero, n=5)
    assert topology.names is None
    assert [edges(g, "01234") for g in topology.graphs] == [sets(one), sets(zero)]


def test_graphs_without_names_keep_their_numbers(tmp_path: Path) -> None:
    topology = sequence(tmp_path, {"graph": "star"}, FIRST, file(tmp_path, "n", [(3, 2), (2, 1), (1, 0)]), n=4)
    found = [{frozenset(e) for e in g.edges} for g in topology.graphs]
    by_number = {"Oslo": 0, "Rome": 1, "Bonn": 2, "Bern": 3}
    assert found[0] == {frozenset((0, i)) for i in (1, 2, 3)}
    assert found[1] == {frozenset((by_number[u], by_number[v])) for u, v in FIRST}
    assert found[2] == {frozenset((i, i + 1)) for i in range(3)}


def test_two_nodes_of_one_name_are_refused(tmp_path: Path) -> None:
    graph = nx.path_graph(4)
    nx.set_node_attributes(graph, dict(enumerate(["Oslo", "Rome", "Oslo", "Bern"])), "label")
    nx.write_graphml(graph, tmp_path / "twice.graphml")
    twice = {"graph": "file", "path": "twice.graphml"}
    with pytest.raises(InputError, match=r"two nodes called 'Oslo' in graphs\.1"):
        sequence(tmp_path, FIRST, twice, n=4)
    assert sequence(tmp_path, twice, twice, n=4).num_nodes == 4  # the same nodes in the same order


def own(n: int, seed: int, other: str = "Bern") -> list[Any]:  # noqa: ARG001
    return [nx.Graph(FIRST), nx.relabel_nodes(nx.Graph(SECOND), {"Bern": other})]


def test_somebodys_own_graphs_are_matched_too(tmp_path: Path) -> None:
    section = {"graph": f"{__name__}:own"}
    topology, _ = build_topology(section, 4, 0, tmp_path)
    assert [edges(g) for g in topology.graphs] == [sets(FIRST), sets(SECOND)]
    with pytest.raises(InputError, match="whose nodes have different names"):
        build_topology({**section, "other": "Basel"}, 4, 0, tmp_path)
