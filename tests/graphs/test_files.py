"""Graph files of every format, the keys that clean them, and what is told of them."""

from __future__ import annotations

import bz2
import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest

import fedsim
from fedsim.core.errors import InputError
from fedsim.engine.assembly import assemble
from fedsim.graphs.cleaning import REMARKS, labels
from fedsim.graphs.edge_values import FIBRE, great_circle
from fedsim.graphs.facts import summary
from fedsim.graphs.files import read_graph
from fedsim.graphs.mixing import mixing_matrix
from fedsim.graphs.readers import FORMATS
from fedsim.graphs.topology import Topology, build_topology

SQUARE = nx.cycle_graph(["a", "b", "c", "d"])  # a graph whose nodes have names
CLEAN = {"parallel_edges": "merge", "loops": "drop", "component": "largest", "directed": False}

ZOO = """Creator "a toolset"
graph [
  Network "Sinet"
  node [ id 0 label "Tokyo" Longitude 139.58 Latitude 35.61 Internal 1 graphics [ x 1 y 2 ] ]
  node [ id 1 label "Osaka" Longitude 135.5 Latitude 34.69 ]
  node [ id 2 label "Nagoya" Longitude 136.9 Latitude 35.18 ]
  node [ id 3 label "None" hyperedge 1 ]
  node [ id 4 label "None" ]
  edge [ source 0 target 1 LinkSpeed "10" LinkLabel "10 Gbps" LinkSpeedRaw 10000000000.0 ]
  edge [ source 1 target 0 LinkSpeedRaw 30000000000.0 ]
  edge [ source 1 target 2 LinkSpeedRaw 2500000000.0 ]
  edge [ source 2 target 0 LinkLabel "dark" ]
  edge [ source 2 target 2 ]
  edge [ source 3 target 4 ]
]
"""


def build(path: Path, n: int | None = None, **keys: Any) -> Topology:
    return build_topology({"graph": "file", "path": str(path), **keys}, n, 0, Path())[0]


def graph_of(path: Path, **keys: Any) -> nx.Graph[Any]:
    return build(path, **keys).graphs[0]


def refused(path: Path, **keys: Any) -> tuple[str | None, str]:
    with pytest.raises(InputError) as caught:
        build(path, **keys)
    return caught.value.problems[0].key, str(caught.value)


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    path = tmp_path / "Sinet.gml"
    path.write_text(ZOO)
    return path


def rings() -> dict[str, Callable[[Path], object]]:
    """The same ring of four named nodes, written in every format."""

    def lines(*rows: str) -> Callable[[Path], object]:
        return lambda path: path.write_text("\n".join(rows) + "\n")

    numbered = nx.cycle_graph(4)
    return {
        "g.graphml": lambda path: nx.write_graphml(SQUARE, path),
        "g.xml": lambda path: nx.write_graphml(SQUARE, path),
        "g.gml": lambda path: nx.write_gml(SQUARE, path),
        "g.gexf": lambda path: nx.write_gexf(SQUARE, path),
        "g.net": lambda path: nx.write_pajek(SQUARE, path),
        "g.json": lambda path: path.write_text(json.dumps(nx.node_link_data(SQUARE, edges="edges"))),
        "links.json": lambda path: path.write_text(json.dumps(nx.node_link_data(SQUARE, edges="links"))),
        "adjacency.json": lambda path: path.write_text(json.dumps(nx.adjacency_data(SQUARE))),
        "g.adjlist": lambda path: nx.write_adjlist(SQUARE, path),
        "g.edgelist": lambda path: nx.write_edgelist(SQUARE, path),
        "g.txt": lines("% a comment", "a b 2.5", "b c 1", "c d 1", "d a 1"),
        "g.csv": lines("Source,Target,Type,Id,Label,Weight", "a,b,Undirected,0,,1.0", *(
            f"{u},{v},Undirected,1,x,2" for u, v in ("bc", "cd", "da"))),
        "semicolon.csv": lines("from;to;km", "a;b;1", "b;c;2", "c;d;1", "d;a;1"),
        "g.tsv": lines("# FromNodeId\tToNodeId", "a\tb", "b\tc", "c\td", "d\ta"),
        "spaces.csv": lines("a b", "b c", "c d", "d a"),
        "g.edges": lines("4", "0 1", "1 0", "1 2", "2 3", "3 0"),
        "g.g6": lambda path: nx.write_graph6(numbered, path),
        "g.s6": lambda path: nx.write_sparse6(numbered, path),
    }  # fmt: skip


@pytest.mark.parametrize("name", rings())
@pytest.mark.parametrize("packed", ["", ".gz", ".bz2"])
def test_every_format_gives_the_same_graph(tmp_path: Path, name: str, packed: str) -> None:
    path = tmp_path / name
    rings()[name](path)
    if packed:
        data, opener = path.read_bytes(), {".gz": gzip, ".bz2": bz2}[packed]
        path = tmp_path / (name + packed)
        path.write_bytes(opener.compress(data))  # type: ignore[attr-defined]
    topology = build(path, 4)
    graph = topology.graphs[0]
    assert not graph.is_directed()
    names = topology.names or tuple("abcd")
    assert sorted(sorted(names[i] for i in edge) for edge in graph.edges()) == [
        list(e) for e in ("ab", "ad", "bc", "cd")
    ]
    assert (topology.names is None) == (name in ("g.edges", "g.g6", "g.s6"))
    assert summary(graph, mixing_matrix(graph, "metropolis"))["diameter"] == 2


def test_every_format_is_in_the_test_above() -> None:
    assert len({Path(name).suffix for name in rings()}) >= len(FORMATS)


def test_format_and_columns_by_key(tmp_path: Path) -> None:
    (tmp_path / "g.edges").write_text("0 1\n1 2\n2 0\n")
    assert graph_of(tmp_path / "g.edges", format="edgelist").number_of_edges() == 3
    assert "format: edgelist" in refused(tmp_path / "g.edges")[1]
    (tmp_path / "g.dat").write_text("id,city_a,city_b,rtt\n7,x,y,1\n8,y,z,2\n")
    graph = graph_of(
        tmp_path / "g.dat", format="csv", source="city_a", target="city_b", latency={"attribute": "rtt", "unit": "s"}
    )
    assert labels(graph) == ["x", "y", "z"]
    assert [data["latency_ms"] for *_, data in graph.edges(data=True)] == [1000.0, 2000.0]
    assert refused(tmp_path / "g.dat", format="csv", source="city_1", target="city_b")[0] == "source"
    assert "did you mean 'csv'" in refused(tmp_path / "g.dat", format="cvs")[1]


def test_parallel_edges_loops_and_components_are_refused_until_a_key_says_so(zoo: Path) -> None:
    keys: dict[str, Any] = {}
    for words, key, value in (
        ("self loop at node 'Nagoya'; remove it, a node always keeps its own value, or: loops: drop", "loops", "drop"),
        ("the edge 'Tokyo' to 'Osaka' is there twice; .* or: parallel_edges: merge", "parallel_edges", "merge"),
        (r"2 components: \{Tokyo, Osaka, Nagoya\}; .*component: largest keeps the largest", "component", "largest"),
    ):
        with pytest.raises(InputError, match=words):
            build(zoo, **keys)
        keys[key] = value
    topology = build(zoo, 3, **keys)
    assert topology.names == ("Tokyo", "Osaka", "Nagoya")
    assert topology.graphs[0].number_of_edges() == 3
    said = summary(topology.graphs[0], mixing_matrix(topology.graphs[0], "metropolis"))["notes"]
    assert any(note.startswith("loops: drop; 1 self loop(s) dropped") for note in said)
    assert any(note.startswith("parallel_edges: merge; 1 merged") for note in said)
    assert any(note.startswith("component: largest; 3 of 5 nodes kept, the largest of 2 connected") for note in said)
    assert any("3 of 3 nodes have positions (did you mean latency: {from: positions}?)" in note for note in said)
    assert any("nothing uses: LinkSpeed, LinkLabel, LinkSpeedRaw (did you mean bandwidth:" in note for note in said)


def test_parallel_bandwidths_add_up_in_the_unit_given(zoo: Path) -> None:
    assert "1 of 3 edges have no LinkSpeedRaw: 'Tokyo' to 'Nagoya'" in refused(
        zoo, **CLEAN, bandwidth={"attribute": "LinkSpeedRaw", "unit": "bps"})[1]  # fmt: skip
    keys = {"bandwidth": {"attribute": "LinkSpeedRaw", "unit": "bps", "missing": 1e9}}
    graph = graph_of(zoo, **CLEAN, **keys)
    assert {frozenset(e): graph.edges[e]["bandwidth_mbps"] for e in graph.edges} == {
        frozenset((0, 1)): 40_000.0, frozenset((1, 2)): 2500.0, frozenset((2, 0)): 1000.0,
    }  # fmt: skip


def test_latency_from_positions(zoo: Path) -> None:
    graph = graph_of(zoo, **CLEAN, latency={"from": "positions"})
    kilometres = great_circle(35.61, 139.58, 34.69, 135.5)
    assert kilometres == pytest.approx(385, abs=3)
    assert graph.edges[0, 1]["latency_ms"] == pytest.approx(1e3 * kilometres / FIBRE)
    slower = graph_of(zoo, **CLEAN, latency={"from": "positions", "km_per_second": 100_000.0, "extra_ms": 4.0})
    assert slower.edges[0, 1]["latency_ms"] == pytest.approx(kilometres / 100 + 4)
    zoo.write_text(ZOO.replace("edge [ source 2 target 2 ]", "edge [ source 2 target 3 ]"))
    key, said = refused(zoo, **CLEAN, latency={"from": "positions"})
    assert key == "latency"
    assert (
        "2 of 5 edges have no position of both ends: 'Nagoya' to 'None (3)', 'None (3)' to 'None (4)'; allowed" in said
    )
    assert "missing: NUMBER in latency" in said
    assert graph_of(zoo, **CLEAN, latency={"from": "positions", "missing": 7.0}).edges[3, 4]["latency_ms"] == 7.0


def test_great_circle_of_a_quarter() -> None:
    assert great_circle(0, 0, 0, 90) == pytest.approx(6371 * math.pi / 2)
    assert great_circle(90, 0, -90, 77) == pytest.approx(6371 * math.pi)
    assert great_circle(1, 179.5, 1, -179.5) == pytest.approx(great_circle(1, 0, 1, 1))


@pytest.mark.parametrize(
    ("keys", "key", "words"),
    [
        (
            {"latency": {"attribute": "rtt", "unit": "ms"}},
            "latency.attribute",
            "no edge has the attribute 'rtt'; found",
        ),
        ({"latency": {"attribute": "linklabel", "unit": "ms"}}, "latency.attribute", "did you mean"),
        ({"latency": {"attribute": "LinkSpeedRaw"}}, "latency", "'attribute' and 'unit' go together"),
        ({"latency": {"from": "positions", "unit": "ms"}}, "latency", "go together"),
        ({"latency": {"from": "places"}}, "latency.from", "'positions'"),
        ({"latency": {}}, "latency", "{from: positions}"),
        ({"latency": {"attribute": "x", "unit": "ms", "km_per_second": 1.0}}, "latency", "go with from: positions"),
        ({"bandwidth": {"attribute": "LinkSpeedRaw"}}, "bandwidth.unit", "missing"),
        ({"bandwidth": {"attribute": "LinkSpeedRaw", "unit": "Bps"}}, "bandwidth.unit", "did you mean 'bps'"),
        ({"parallel_edges": "merged"}, "parallel_edges", "did you mean 'merge'"),
        ({"component": "biggest"}, "component", "'largest'"),
        ({"directed": True}, "directed", "the file says that its edges have no direction"),
        ({"bandwidth": {"attribute": "LinkLabel", "unit": "bps"}}, "path", "LinkLabel '10 Gbps', allowed: a number"),
    ],
)
def test_keys_that_do_not_fit(zoo: Path, keys: dict[str, Any], key: str, words: str) -> None:
    found, said = refused(zoo, **{**CLEAN, **keys})
    assert (found, words in said) == (key, True), said


def test_columns_that_nothing_uses_are_told(tmp_path: Path) -> None:
    path = tmp_path / "lat.csv"
    path.write_text("source,target,latency,latncy_ms,colour\n0,1,10,1,red\n1,2,20,1,red\n2,0,5,1,blue\n")
    graph = graph_of(path)
    (unused, clock) = graph.graph[REMARKS].split("\n")
    assert "nothing uses: latency (did you mean latency: {attribute: latency, unit: ms}?), latncy_ms (did you" in unused
    assert unused.endswith(", colour")
    assert clock.startswith("no edge has a latency or a bandwidth")
    graph = graph_of(path, latency={"attribute": "latency", "unit": "us"})
    assert {e: graph.edges[e]["latency_ms"] for e in graph.edges} == {(0, 1): 0.01, (1, 2): 0.02, (0, 2): 0.005}
    assert "latency (" not in graph.graph[REMARKS]
    assert "no edge has" not in graph.graph[REMARKS]


def test_an_attribute_that_only_some_edges_have(tmp_path: Path) -> None:
    path = tmp_path / "g.csv"
    path.write_text("source,target,latency_ms\na,b,1\nb,c,\nc,a,\n")
    key, said = refused(path)
    assert key == "latency"
    assert "2 of 3 edges have no latency_ms: 'a' to 'c', 'b' to 'c'" in said
    assert "latency: {attribute: latency_ms, unit: ms, missing: NUMBER}" in said
    graph = graph_of(path, latency={"attribute": "latency_ms", "unit": "ms", "missing": 3})
    assert sorted(data["latency_ms"] for *_, data in graph.edges(data=True)) == [1.0, 3.0, 3.0]


ARCS = {
    "g.csv": "source,target,latency_ms\na,b,1\nb,a,3\nb,c,2\nc,a,4\n",
    "g.edgelist": "a b {'latency_ms': 1}\nb a {'latency_ms': 3}\nb c {'latency_ms': 2}\nc a {'latency_ms': 4}\n",
    "g.gml": 'graph [ directed 1 node [ id 0 label "a" ] node [ id 1 label "b" ] node [ id 2 label "c" ]'
    " edge [ source 0 target 1 latency_ms 1 ] edge [ source 1 target 0 latency_ms 3 ]"
    " edge [ source 1 target 2 latency_ms 2 ] edge [ source 2 target 0 latency_ms 4 ] ]",
}


@pytest.mark.parametrize("name", ARCS)
def test_directed_false_for_every_format(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(ARCS[name])
    graph = graph_of(path, directed=False)
    assert not graph.is_directed()
    assert {tuple(sorted(e)): graph.edges[e]["latency_ms"] for e in graph.edges} == {(0, 1): 3, (1, 2): 2, (0, 2): 4}
    directed = graph_of(path, directed=True)
    assert directed.is_directed()
    assert directed.edges[0, 1]["latency_ms"] == 1.0
    assert directed.edges[1, 0]["latency_ms"] == 3.0


YED = """<graphml xmlns="http://graphml.graphdrawing.org/xmlns" xmlns:y="http://www.yworks.com/xml/graphml">
  <key for="node" id="d6" yfiles.type="nodegraphics"/>
  <key for="edge" id="d10" yfiles.type="edgegraphics"/>
  <graph edgedefault="directed" id="G">
    <node id="n0"><data key="d6"><y:ShapeNode><y:NodeLabel>Paris</y:NodeLabel></y:ShapeNode></data></node>
    <node id="n1"><data key="d6"><y:ShapeNode><y:NodeLabel>Rome</y:NodeLabel></y:ShapeNode></data></node>
    <node id="n2"><data key="d6"><y:ShapeNode><y:NodeLabel>Wien</y:NodeLabel></y:ShapeNode></data></node>
    <edge id="e0" source="n0" target="n1"/>
    <edge id="e1" source="n1" target="n2"/><edge id="e2" source="n0" target="n2"/>
  </graph>
</graphml>
"""


def test_yed_says_directed_and_has_a_way_out(tmp_path: Path) -> None:
    path = tmp_path / "yed.graphml"
    path.write_text(YED)
    assert "{Paris}; {Rome}; {Wien}; directed: false lets its edges work both ways" in refused(path)[1]
    topology = build(path, 3, directed=False)
    assert topology.names == ("Paris", "Rome", "Wien")
    assert topology.graphs[0].number_of_edges() == 3
    assert "directed: false; the file says" in topology.graphs[0].graph[REMARKS]


def test_weights_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "w.csv"
    path.write_text("Source,Target,Weight\n0,1,0.5\n1,2,0.25\n2,0,0.25\n")
    section = {"graph": "file", "path": str(path), "weights": "file"}
    with pytest.raises(InputError, match=r"no edge has the attribute 'weight' \(did you mean 'Weight'\?\)|'weight'"):
        build_topology(section, 3, 0, Path())
    topology, rule = build_topology({**section, "weight": {"attribute": "Weight"}}, 3, 0, Path())
    W = mixing_matrix(topology.graphs[0], rule).toarray()
    assert np.array_equal(W, [[0.25, 0.5, 0.25], [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]])
    path.write_text("source,target,weight\n0,1,0.8\n1,2,0.25\n2,0,0.25\n")
    topology, rule = build_topology(section, 3, 0, Path())
    with pytest.raises(InputError, match=r"the weights at node '[01]' sum to 1.05, allowed: at most 1") as caught:
        mixing_matrix(topology.graphs[0], rule)
    assert caught.value.problems[0].key == "weights"
    path.write_text("source,target,weight\n0,1,0.5\n1,2,-0.25\n2,0,0.25\n")
    with pytest.raises(InputError, match=r"found weight -0.25, allowed: a finite number > 0"):
        build_topology(section, 3, 0, Path())
    path.write_text("source,target,weight\n0,1,0.5\n1,2,\n2,0,0.25\n")
    with pytest.raises(InputError, match="1 of 3 edges have no weight: '1' to '2'"):
        build_topology(section, 3, 0, Path())
    with pytest.raises(InputError, match="takes the weights of a graph file's edges"):
        mixing_matrix(nx.cycle_graph(3), "file")


def test_weights_of_a_directed_file(tmp_path: Path) -> None:
    path = tmp_path / "w.csv"
    path.write_text("source,target,weight\n0,1,0.5\n1,2,0.25\n2,0,0.125\n")
    section = {"graph": "file", "path": str(path), "weights": "file", "directed": True}
    topology, rule = build_topology(section, 3, 0, Path())
    W = mixing_matrix(topology.graphs[0], rule).toarray()
    assert np.array_equal(W, [[0.875, 0, 0.125], [0.5, 0.5, 0], [0, 0.25, 0.75]])  # u -> v: v hears u
    path.write_text("source,target,weight\n0,1,0.5\n1,0,0.25\n")
    with pytest.raises(
        InputError, match=r"weighs 0.5 one way and 0.25 the other|weighs 0.25 one way and 0.5 the other"
    ):
        build_topology({**section, "directed": False}, 2, 0, Path())


def test_names_and_attributes_stay_in_the_run_directory(tmp_path: Path, zoo: Path) -> None:
    graph = graph_of(zoo, **CLEAN, latency={"from": "positions"})
    nx.write_graphml(graph, tmp_path / "topology.graphml")  # as a run does
    again = read_graph(tmp_path / "topology.graphml")
    assert labels(again) == ["Tokyo", "Osaka", "Nagoya"]
    assert again.graph["Network"] == "Sinet"
    assert again.edges[0, 1]["LinkLabel"] == "10 Gbps"
    assert json.loads(again.nodes[0]["graphics"]) == {"x": 1, "y": 2}
    assert [d["latency_ms"] for *_, d in again.edges(data=True)] == [
        d["latency_ms"] for *_, d in graph.edges(data=True)
    ]
    assert again.graph[REMARKS] == graph.graph[REMARKS]


def test_equal_labels_get_their_number() -> None:
    graph = nx.path_graph(3)
    nx.set_node_attributes(graph, {0: "None", 1: "Rome", 2: "None"}, "label")
    assert labels(graph) == ["None (0)", "Rome", "None (2)"]


def test_a_run_says_names(tmp_path: Path) -> None:
    from fedsim import load
    from fedsim.engine.run import run
    from fedsim.reports.plan import plan
    from fedsim.reports.timeline import follow
    from fedsim.reports.timeline_tables import client_rows, combine_rows

    (tmp_path / "Sinet.gml").write_text(ZOO)
    (tmp_path / "s.yaml").write_text(
        "name: named\ndata: {dataset: synthetic, alpha: 0.0, beta: 0.0, clients: 3, max_samples: 10}\n"
        "model: {name: linear}\nalgorithm: {name: dspodfl, lr: 0.1}\n"
        "topology: {graph: file, path: Sinet.gml, parallel_edges: merge, loops: drop, component: largest,\n"
        "  latency: {from: positions}, bandwidth: {attribute: LinkSpeedRaw, unit: bps, missing: 1.0e+9}}\n"
        "run: {rounds: 3, trace: true, device: cpu}\n"
    )
    scenario = load(tmp_path / "s.yaml")
    network = plan(scenario)["network"]
    assert network["names of nodes"] == ["0 Tokyo", "1 Osaka", "2 Nagoya"]
    assert network["latency_ms"][1] < 3
    assert network["bandwidth_mbps"] == [1000.0, 40_000.0]
    timeline = follow(scenario)
    assert [row[0] for row in client_rows(timeline)[1]] == ["Tokyo", "Osaka", "Nagoya"]
    assert "Tokyo" in str(combine_rows(timeline)[1])
    assert [row["name"] for row in timeline.to_json()["clients"]] == ["Tokyo", "Osaka", "Nagoya"]
    done = run(scenario, tmp_path / "out")
    assert done.trace[0]["names"] == ["Tokyo", "Osaka", "Nagoya"]
    assert "names" not in done.trace[1]
    assert 3.003 < done.trace[-1]["time"] < 3.1  # a second of work and the positions' milliseconds in each round
    resolved = load(tmp_path / "out" / "scenario.yaml")
    assert resolved.hash() == scenario.hash()
    graph = nx.read_graphml(tmp_path / "out" / "topology.graphml")
    assert [data["label"] for _, data in graph.nodes(data=True)] == ["Tokyo", "Osaka", "Nagoya"]


def test_a_path_is_relative_to_the_scenario_wherever_that_is_read_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "graphs").mkdir()
    nx.write_graphml(SQUARE, tmp_path / "graphs" / "square.graphml")
    (tmp_path / "scenarios").mkdir()
    (tmp_path / "scenarios" / "s.yaml").write_text(
        "data: {dataset: digits, clients: 4}\nmodel: {name: linear}\nalgorithm: {name: dgd, lr: 0.1}\n"
        "topology: {graph: file, path: ../graphs/square.graphml}\n"
    )
    monkeypatch.chdir(tmp_path)
    for name in ("scenarios/s.yaml", tmp_path / "scenarios" / "s.yaml"):
        network = assemble(fedsim.load(name)).network
        assert network is not None
        assert list(network.topology.names or ()) == ["a", "b", "c", "d"]
