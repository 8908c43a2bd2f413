"""Generators, files, sequences and their errors."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import networkx as nx
import numpy as np
import pytest

from fedsim.core.errors import InputError
from fedsim.core.registry import lookup, names
from fedsim.figures.topology import topology_figure
from fedsim.graphs.files import read_graph
from fedsim.graphs.topology import Topology, build_topology

SHIPPED = sorted((Path(__file__).parents[2] / "topologies").glob("*.graphml"))
HERE = Path()
GML_NODES = "node [ id 0 ] node [ id 1 ]"


def build(section: dict[str, Any], n: int | None = None, seed: int = 0, base: Path = HERE) -> Topology:
    return build_topology(section, n, seed, base)[0]


def one(name: str, n: int | None = None, seed: int = 0, **fields: Any) -> nx.Graph[Any]:
    (graph,) = build({"graph": name, **fields}, n, seed).graphs
    return graph


def degrees(graph: nx.Graph[Any]) -> list[int]:
    return sorted(d for _, d in graph.degree())


@pytest.mark.parametrize(
    "name, n, fields, edges, degree",
    [
        ("ring", 7, {}, 7, {2}),
        ("ring", 2, {}, 1, {1}),
        ("path", 5, {}, 4, {1, 2}),
        ("star", 6, {}, 5, {1, 5}),
        ("complete", 6, {}, 15, {5}),
        ("complete", 1, {}, 0, {0}),
        ("random_peers", 6, {}, 15, {5}),
        ("grid", 12, {}, 17, {2, 3, 4}),
        ("grid", 12, {"rows": 2}, 16, {2, 3}),
        ("torus", 12, {}, 24, {4}),
        ("hypercube", 16, {}, 32, {4}),
        ("tree", 7, {}, 6, {1, 2, 3}),
        ("tree", 13, {"branching": 3}, 12, {1, 3, 4}),
        ("k_regular", 10, {"degree": 3}, 15, {3}),
        ("expander", 30, {"degree": 4}, 60, {4}),
        ("barabasi_albert", 20, {"m": 2}, 36, None),
        ("watts_strogatz", 20, {"k": 4, "p": 0.2}, 40, None),
        ("erdos_renyi", 15, {"p": 1.0}, 105, {14}),
        ("random_geometric", 9, {"radius": 1.5}, 36, {8}),
        ("random_tree", 12, {}, 11, None),
    ],
)
def test_undirected_generators(name: str, n: int, fields: dict[str, Any], edges: int, degree: set[int] | None) -> None:
    graph = one(name, n, **fields)
    assert list(graph.nodes) == list(range(n))
    assert graph.number_of_edges() == edges
    assert nx.is_connected(graph)
    assert nx.number_of_selfloops(graph) == 0
    if degree is not None:
        assert set(degrees(graph)) == degree


def test_generators_against_networkx() -> None:
    assert nx.is_isomorphic(one("grid", 12), nx.grid_2d_graph(3, 4))
    assert nx.is_isomorphic(one("torus", 12), nx.grid_2d_graph(3, 4, periodic=True))
    assert nx.is_isomorphic(one("hypercube", 16), nx.hypercube_graph(4))
    assert nx.is_isomorphic(one("tree", 15), nx.balanced_tree(2, 3))


def test_every_graph_is_in_a_test() -> None:
    others = {"file", "sequence", "exponential", "one_peer_exponential"}
    marks: Any = test_undirected_generators
    tested = {case[0] for case in marks.pytestmark[0].args[1]}
    built_in = {name for name in names("graph") if lookup("graph", name).__module__.startswith("fedsim.")}
    assert built_in == tested | others


def test_exponential() -> None:
    topology, weights = build_topology({"graph": "exponential"}, 6, 0, HERE)
    assert weights == "uniform"
    assert topology.directed
    assert sorted(topology.graphs[0].edges()) == sorted((i, (i + h) % 6) for i in range(6) for h in (1, 2, 4))


def test_one_peer_exponential_is_a_sequence() -> None:
    topology = build({"graph": "one_peer_exponential"}, 8)
    for graph, hop in zip(topology.graphs, (1, 2, 4), strict=True):
        assert sorted(graph.edges()) == sorted((i, (i + hop) % 8) for i in range(8))
    assert [topology.at(k) for k in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_seed_decides_a_random_graph() -> None:
    def edges(seed: int) -> list[Any]:
        return sorted(one("random_geometric", 20, seed, radius=0.4).edges())

    assert edges(3) == edges(3)
    assert edges(3) != edges(4)


def test_random_geometric_edges_are_the_pairs_within_the_radius() -> None:
    graph = one("random_geometric", 25, radius=0.35)
    place = {i: np.array([d["x"], d["y"]]) for i, d in graph.nodes(data=True)}
    for i in range(25):
        for j in range(i):
            assert graph.has_edge(i, j) == (np.linalg.norm(place[i] - place[j]) <= 0.35)


def test_redraws_are_independent_graphs_that_take_turns() -> None:
    topology = build({"graph": "erdos_renyi", "p": 0.5, "redraws": 3, "every": 10}, 12)
    assert len({frozenset(g.edges()) for g in topology.graphs}) == 3
    assert [topology.at(r) for r in (0, 9, 10, 20, 29, 30)] == [0, 0, 1, 2, 2, 0]


def test_sequence_needs_only_a_connected_union(tmp_path: Path) -> None:
    (tmp_path / "a.edges").write_text("4\n0 1\n2 3\n")
    (tmp_path / "b.edges").write_text("4\n1 2\n")
    section = {"graph": "sequence", "every": 5, "graphs": [{"graph": "file", "path": f"{x}.edges"} for x in "ab"]}
    topology = build(section, 4, base=tmp_path)
    assert [sorted(g.edges()) for g in topology.graphs] == [[(0, 1), (2, 3)], [(1, 2)]]
    assert topology.at(5) == 1
    with pytest.raises(InputError, match=r"not connected; its 2 components: \{0, 1\}; \{2, 3\}"):
        build({"graph": "file", "path": "a.edges"}, 4, base=tmp_path)


def test_a_graph_that_is_not_connected_is_named_by_its_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.edges").write_text("4\n0 1\n2 3\n")
    files: list[dict[str, Any]] = [{"graph": "file", "path": f"{name}.edges"} for name in "ab"]
    a, b = (re.escape(str(tmp_path / f"{name}.edges")) for name in "ab")
    with pytest.raises(InputError, match=f"graph: the graph of {a} is not connected; .*; component: largest keeps"):
        build(files[0], 4, base=tmp_path)
    with pytest.raises(InputError, match=f"graph: the union of the sequence of {a}, {b} is not connected"):
        build({"graph": "sequence", "graphs": files}, 4, base=tmp_path)


def test_equal_random_entries_of_a_sequence_differ() -> None:
    entry = {"graph": "erdos_renyi", "p": 0.5}
    first, second = build({"graph": "sequence", "graphs": [entry, entry]}, 12).graphs
    assert set(first.edges()) != set(second.edges())


def test_nodes_stands_in_for_clients() -> None:
    assert build({"graph": "ring", "nodes": 9}).num_nodes == 9
    assert build({"graph": "grid", "rows": 2, "cols": 5}).num_nodes == 10
    assert build({"graph": "ring", "nodes": 9}, 9).num_nodes == 9


@pytest.mark.parametrize(
    "section, n, key, words",
    [
        ({"graph": "rng"}, 5, "graph", "did you mean 'ring'"),
        ({}, 5, None, "the key 'graph'"),
        ({"graph": "random_geometric", "radus": 1.0}, 5, "radus", "did you mean 'radius'"),
        ({"graph": "random_geometric"}, 5, "radius", "missing"),
        ({"graph": "random_geometric", "radius": -1.0}, 5, "radius", "greater than 0"),
        ({"graph": "random_geometric", "radius": "big"}, 5, "radius", "found 'big'"),
        ({"graph": "random_geometric", "radius": 0.001}, 20, "radius", r"sqrt\(log n / \(pi n\)\) = 0.218"),
        ({"graph": "erdos_renyi", "p": 0.0001}, 20, "p", "log"),
        ({"graph": "erdos_renyi", "p": 1.5}, 20, "p", "less than or equal to 1"),
        ({"graph": "ring"}, None, "nodes", "not known"),
        ({"graph": "ring"}, 1, "nodes", "at least 2"),
        ({"graph": "ring", "nodes": 5}, 6, "nodes", "found 5 nodes for 6 clients"),
        ({"graph": "ring", "weights": "metropoli"}, 6, "weights", "did you mean 'metropolis'"),
        ({"graph": "grid"}, 7, "nodes", "prime"),
        ({"graph": "grid", "rows": 4}, 10, "rows", "not 10 nodes"),
        ({"graph": "torus", "rows": 2}, 10, "rows", "at least 3 x 3"),
        ({"graph": "hypercube"}, 12, "nodes", "8 and 16"),
        ({"graph": "one_peer_exponential"}, 12, "nodes", "power of two"),
        ({"graph": "k_regular", "degree": 3}, 5, "degree", "even"),
        ({"graph": "k_regular", "degree": 5}, 5, "degree", "below 5"),
        ({"graph": "k_regular", "degree": 1}, 6, "degree", "degree 3 or more"),
        ({"graph": "expander", "degree": 2}, 6, "degree", "at least 3"),
        ({"graph": "barabasi_albert", "m": 6}, 6, "m", "1 to 5"),
        ({"graph": "watts_strogatz", "k": 3, "p": 0.1}, 8, "k", "even"),
        ({"graph": "file", "path": "none.csv"}, 8, "path", "no such file"),
        ({"graph": "sequence", "graphs": []}, 8, "graphs", "empty"),
        ({"graph": "sequence", "graphs": [{"graph": "ring"}, {"graph": "tree", "m": 1}]}, 8, "graphs.1.m", "unknown"),
        ({"graph": "sequence", "graphs": [{"graph": "ring"}, {"graph": "exponential"}]}, 8, "graphs", "directed"),
        ({"graph": "sequence", "graphs": [{"graph": "sequence", "graphs": []}]}, 8, "graphs.0.graph", "cannot hold"),
    ],
)
def test_errors_name_the_key_and_what_is_allowed(section: dict[str, Any], n: int | None, key: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        build(section, n)
    assert caught.value.problems[0].key == key


def test_own_function(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("own_graphs")
    module.lollipop = lambda n, seed, tail=2: nx.lollipop_graph(n - tail, tail)  # type: ignore[attr-defined]  # noqa: ARG005
    module.loops = lambda n, seed: nx.Graph([(0, 0), (0, n - 1)])  # type: ignore[attr-defined]  # noqa: ARG005
    module.broken = lambda n, seed: 1 / 0  # type: ignore[attr-defined]  # noqa: ARG005
    monkeypatch.setitem(sys.modules, "own_graphs", module)
    assert one("own_graphs:lollipop", 7, tail=3).number_of_edges() == 4 * 3 // 2 + 3
    for section, words in [
        ({"graph": "own_graphs:lollipop", "head": 3}, "cannot be called"),
        ({"graph": "own_graphs:loops"}, "self loop"),
        ({"graph": "own_graphs:broken"}, "ZeroDivisionError"),
        ({"graph": "own_graphs:nothing"}, "unknown attribute"),
    ]:
        with pytest.raises(InputError, match=words):
            build(section, 2)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_networks(path: Path) -> None:
    graph = one("file", path=str(path))
    assert nx.is_strongly_connected(nx.DiGraph(graph))
    assert graph.graph["name"] == path.stem
    assert graph.graph["source"]
    for _, data in graph.nodes(data=True):
        assert data["label"]
        assert -90 <= data["latitude"] <= 90
        assert -180 <= data["longitude"] <= 180
    for *_, data in graph.edges(data=True):
        assert data["latency_ms"] == pytest.approx(0.0085 * data["distance_km"] + 4, abs=1e-3)
        assert data["bandwidth_mbps"] > 0


def test_shipped_sizes() -> None:
    sizes = {p.stem: (len(g := read_graph(p)), g.number_of_edges()) for p in SHIPPED}
    marfoq = {
        "gaia": (11, 55),
        "aws_north_america": (22, 231),
        "geant": (40, 61),
        "exodus": (79, 147),
        "ebone": (87, 161),
    }
    assert sizes == {**marfoq, "geant_one_way": (40, 81), "abilene": (11, 14), "nsfnet": (14, 21)}


def test_great_circle_of_a_known_pair() -> None:
    abilene = read_graph(next(p for p in SHIPPED if p.stem == "abilene"))
    number = {d["label"]: i for i, d in abilene.nodes(data=True)}
    seattle_denver = abilene.edges[number["Seattle"], number["Denver"]]["distance_km"]
    assert seattle_denver == pytest.approx(1642, abs=5)


def test_a_fixed_graph_must_fit_the_clients() -> None:
    with pytest.raises(InputError, match="has 11 nodes, but there are 10 clients"):
        build({"graph": "file", "path": str(SHIPPED[0])}, 10)


def test_graphml_and_gml_round_trip(tmp_path: Path) -> None:
    graph: nx.Graph[Any] = nx.Graph()
    graph.add_edge("b", "a", latency_ms=3, bandwidth_mbps=2.5)
    graph.add_edge("a", "c")
    nx.write_graphml(graph, tmp_path / "g.graphml")
    nx.write_gml(graph, tmp_path / "g.gml")
    for name in ("g.graphml", "g.gml"):
        read = read_graph(tmp_path / name)
        assert [d["label"] for _, d in read.nodes(data=True)] == ["b", "a", "c"]
        assert read.edges[0, 1]["latency_ms"] == 3.0
        assert isinstance(read.edges[0, 1]["latency_ms"], float)
        assert sorted(read.edges()) == [(0, 1), (1, 2)]


def test_directed_files(tmp_path: Path) -> None:
    nx.write_graphml(nx.cycle_graph(4, create_using=nx.DiGraph), tmp_path / "g.graphml")
    assert build({"graph": "file", "path": "g.graphml"}, 4, base=tmp_path).directed
    (tmp_path / "g.csv").write_text("0,1\n1,2\n")
    with pytest.raises(InputError, match="not strongly connected; its 3 components"):
        build({"graph": "file", "path": "g.csv", "directed": True}, base=tmp_path)


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "g.csv"
    path.write_text("source,target,latency_ms,weight\n# far\nParis,Nice,12,1\n\nNice,Rome,,2\n")
    graph = read_graph(path)
    assert graph.edges[0, 1] == {"latency_ms": 12.0, "weight": 1.0}
    assert graph.edges[1, 2] == {"weight": 2.0}
    path.write_text("2,1\n1,0\n")
    assert sorted(map(sorted, read_graph(path).edges())) == [[0, 1], [1, 2]]


def test_edges_in_one_or_both_directions(tmp_path: Path) -> None:
    path = tmp_path / "g.edges"
    path.write_text("3\n0 1\n0 2\n1 0\n2 0\n")
    assert sorted(read_graph(path).edges()) == [(0, 1), (0, 2)]


@pytest.mark.parametrize(
    "name, text, line, words",
    [
        ("g.csv", "", None, "no nodes"),
        ("g.csv", "0,1\n1,1\n", 2, "self loop"),
        ("g.csv", "0,1\n1,0\n", 2, "twice"),
        ("g.csv", "0,1,5\n", 1, "header"),
        ("g.csv", "source,target,latency_ms\n0,1,fast\n", 2, "found latency_ms 'fast', allowed: a number"),
        ("g.csv", "source,target,latency_ms\n0,1,-1\n", 2, "allowed: a finite number >= 0"),
        ("g.csv", "source,target,latency_ms\n0,1,inf\n", 2, "allowed: a finite number >= 0"),
        ("g.csv", "source,target,bandwidth_mbps\n0,1,0\n", 2, "allowed: a finite number > 0"),
        ("g.csv", "source,target\n0,\n", 2, "empty node name"),
        ("g.edges", "0 1\n", 1, "number of nodes"),
        ("g.edges", "2\n0 2\n", 2, "from 0 to 1"),
        ("g.edges", "2\n0 1\n0 1\n", 3, "twice"),
        ("g.edges", "2\n0 x\n", 2, "whole numbers"),
        ("g.graphml", "<graphml", None, "cannot be read as graphml"),
        ("g.gml", "nonsense", None, "cannot be read as gml"),
        ("g.gml", f"graph [ {GML_NODES} edge [ source 0 target 1 latency_ms -2 ] ]", None, "latency_ms -2"),
        ("g.gml", f"graph [ multigraph 1 {GML_NODES} {2 * 'edge [ source 0 target 1 ] '} ]", None, "twice"),
        ("g.doc", "0 1", None, "allowed: .graphml"),
    ],
)  # fmt: skip
def test_bad_files(tmp_path: Path, name: str, text: str, line: int | None, words: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_graph(path)
    assert caught.value.problems[0].file == str(path)
    assert caught.value.problems[0].line == line


def test_figure_draws_every_edge_and_node(tmp_path: Path) -> None:
    from matplotlib.collections import LineCollection, PathCollection

    for graph in (one("file", path=str(SHIPPED[0])), one("torus", 9), one("exponential", 8), one("ring", 5)):
        figure = topology_figure(graph, "a title")
        (axes, *_) = figure.axes
        assert sum(len(c.get_offsets()) for c in axes.collections if isinstance(c, PathCollection)) == len(graph)
        lines = [c for c in axes.collections if isinstance(c, LineCollection)]
        assert sum(len(c.get_segments()) for c in lines) == graph.number_of_edges()
        figure.savefig(tmp_path / "figure.png", dpi=40)
        assert (tmp_path / "figure.png").stat().st_size > 1000


@pytest.mark.parametrize("latencies", ["all", "some", "none"])
def test_a_directed_link_is_drawn_once(latencies: str) -> None:
    """As an arrow from its source, in the colour of its latency."""
    from matplotlib.collections import LineCollection

    graph = nx.DiGraph([(0, 1), (1, 0), (1, 2), (2, 0)])
    given = {"all": 4, "some": 2, "none": 0}[latencies]
    for k, edge in enumerate(list(graph.edges)[:given]):
        graph.edges[edge]["latency_ms"] = 10.0 * (k + 1)
    axes = topology_figure(graph).axes[0]
    arrows = [t.arrow_patch for t in axes.texts if getattr(t, "arrow_patch", None) is not None]
    (lines,) = (c for c in axes.collections if isinstance(c, LineCollection))
    assert not lines.get_visible()
    assert len(arrows) == graph.number_of_edges()
    assert len({arrow.get_edgecolor() for arrow in arrows}) == max(given + (given < 4), 1)


def test_names_of_near_nodes_do_not_cover_each_other() -> None:
    graph = nx.complete_graph(4)
    for i, (name, x) in enumerate(
        zip(("San Francisco", "San Jose", "Palo Alto", "New York"), (0, 0.1, 0.2, 9), strict=True)
    ):
        graph.nodes[i].update(label=name, x=x, y=0.05 * i)
    figure = topology_figure(graph)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [
        text.get_window_extent() for text in axes.texts if text.get_text() in {"San Francisco", "San Jose", "Palo Alto"}
    ]
    assert len(boxes) == 3
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_ring_is_drawn_as_a_circle() -> None:
    from matplotlib.collections import PathCollection

    axes = topology_figure(one("ring", 8)).axes[0]
    (dots,) = (c for c in axes.collections if isinstance(c, PathCollection))
    places = np.asarray(dots.get_offsets())
    assert np.allclose(np.hypot(*places.T), 1.0)
    assert np.allclose(np.linalg.norm(places - np.roll(places, 1, axis=0), axis=1), 2 * math.sin(math.pi / 8))
