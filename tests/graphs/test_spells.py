"""When the links and nodes of a graph file are there: what is read, what is refused, and when all are connected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components

from fedsim.core.clock import TICKS_PER_SECOND
from fedsim.core.errors import InputError
from fedsim.graphs.intervals import FOREVER, Intervals
from fedsim.graphs.presence import Presence, at_rounds, extremes, in_windows, joint_connectivity, mean_there, never
from fedsim.graphs.topology import Topology, build_topology

HEADER = "source,target,start,end\n"
GEXF = """<?xml version="1.0" encoding="UTF-8"?>
<gexf xmlns="http://www.gexf.net/1.2draft" version="1.2">
<graph mode="dynamic" defaultedgetype="undirected" timeformat="integer">
<nodes><node id="a" label="Ann" start="2" end="9"/><node id="b" label="Bob"/><node id="c" label="Cy"/></nodes>
<edges>
<edge id="0" source="a" target="b"><spells><spell start="1" end="4"/><spell start="6" end="8"/></spells></edge>
<edge id="1" source="b" target="c" start="3"/>
<edge id="2" source="a" target="c" end="5"/>
</edges></graph></gexf>
"""


def read(folder: Path, text: str, name: str = "contacts.csv", file: Any = None, **spells: Any) -> Topology:
    (folder / name).write_text(text, encoding="utf-8")
    section = {"graph": "file", "path": name, "spells": {"unit": "rounds", **spells}, **(file or {})}
    return build_topology(section, None, 0, folder)[0]


def presence(topology: Topology) -> Presence:
    assert topology.presence is not None
    return topology.presence


def problem(folder: Path, text: str, **keys: Any) -> tuple[str, str | None, int | None]:
    with pytest.raises(InputError) as caught:
        read(folder, text, **keys)
    (found,) = caught.value.problems
    return found.message, found.key, found.line


def test_a_link_has_several_spells_in_any_order_and_direction(tmp_path: Path) -> None:
    found = presence(read(tmp_path, HEADER + "a,b,6,8\nb,c,,\nb,a,1,4\nc,a,2.5,\n"))
    assert found.ends.tolist() == [[0, 1], [0, 2], [1, 2]]
    rows = [found.at(k).links.tolist() for k in range(1, 9)]
    assert [row[0] for row in rows] == [True, True, True, False, False, True, True, False]  # 4 and 8 are not in it
    assert [row[1] for row in rows] == [False, False, True, True, True, True, True, True]  # from the first round after
    assert all(row[2] for row in rows)


def test_gexf_has_spells_of_edges_and_of_nodes(tmp_path: Path) -> None:
    found = read(tmp_path, GEXF, "dynamic.gexf")
    assert found.names == ("Ann", "Bob", "Cy")
    there = [presence(found).at(k) for k in range(1, 10)]
    assert [t.nodes.tolist() for t in there] == [[1 < k < 10 and k < 9, True, True] for k in range(1, 10)]
    assert [t.links[0] for t in there] == [k in (2, 3, 6, 7) for k in range(1, 10)]  # Ann comes in round 2
    assert [t.links[1] for t in there] == [k in (2, 3, 4) for k in range(1, 10)]
    assert [t.links[2] for t in there] == [k >= 3 for k in range(1, 10)]
    assert there[0].counts == {"nodes_there": 2, "links_there": 0}


def test_times_are_moved_scaled_and_exact(tmp_path: Path) -> None:
    text = "source,target,t\na,b,1000.1\nb,c,1000.3\na,b,1000.4\n"
    found = presence(read(tmp_path, text, unit="s", start="t", duration=0.2, origin=1000))
    tenth = TICKS_PER_SECOND // 10
    assert found.links.starts.tolist() == [tenth, 4 * tenth, 3 * tenth]
    assert found.links.ends.tolist() == [3 * tenth, 6 * tenth, 5 * tenth]
    scaled = presence(read(tmp_path, text, start="t", duration=0.2, origin=1000, scale=10))
    assert list(zip(scaled.links.starts.tolist(), scaled.links.ends.tolist(), strict=True)) == [(1, 3), (4, 6), (3, 5)]


def test_nodes_of_json_come_and_go(tmp_path: Path) -> None:
    text = json.dumps({"nodes": [{"id": 0, "start": 3}, {"id": 1}], "edges": [{"source": 0, "target": 1}]})
    found = presence(read(tmp_path, text, "two.json"))
    assert [found.at(k).counts["links_there"] for k in (1, 2, 3, 4)] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("rows", "line", "message"),
    [
        ("a,b,5,5", 2, "edge 'a' to 'b': found a spell from 5 to 5, allowed: an end after its start"),
        ("b,c,1,2\na,b,6,2", 3, "edge 'a' to 'b': found a spell from 6 to 2, allowed: an end after its start"),
        ("a,b,-3,5", 2, "edge 'a' to 'b': found start -3.0, allowed: a finite number >= 0 (origin moves file times)"),
        ("a,b,nan,5", 2, "edge 'a' to 'b': found start nan, allowed: a finite number"),
        ("a,b,1,inf", 2, "edge 'a' to 'b': found end inf, allowed: a finite number"),
        ("a,b,1,noon", 2, "edge 'a' to 'b': found end 'noon', allowed: a finite number"),
        (
            "a,b,1,5\nb,c,1,2\nb,a,4,8", 4,
            "edge 'a' to 'b': found two spells that overlap, one from 4 and one up to 5; allowed: one after the other, "
            "or: parallel_edges: merge",
        ),
        (
            "a,b,1,5\na,b,,9\na,c,,3\na,c,4,5\nb,c,2,\nb,c,3,4", 3,
            "edge 'a' to 'b': found two spells that overlap, one from 1 and one up to 9; allowed: one after the other, "
            "or: parallel_edges: merge",
        ),
    ],
)  # fmt: skip
def test_spells_that_are_none_are_refused_with_their_line(
    tmp_path: Path, rows: str, line: int, message: str
) -> None:  # fmt: skip
    assert problem(tmp_path, HEADER + rows + "\n") == (message, "path", line)


def test_keys_that_do_not_fit_the_file(tmp_path: Path) -> None:
    rows = HEADER + "a,b,1,5\nb,c,,\n"
    message, key, _ = problem(tmp_path, rows, start="strat")
    assert key == "spells.start"
    assert message == "no edge or node has the attribute 'strat' (did you mean 'start'?); found: end, start"
    assert problem(tmp_path, rows, end="stop")[1] == "spells.end"
    assert problem(tmp_path, "source,target,weight\na,b,2\n")[1] == "spells.start"
    assert "found end and duration, allowed: one of the two" in problem(tmp_path, rows, end="end", duration=2.0)[0]
    message, key, _ = problem(tmp_path, rows, file={"directed": True})
    assert (key, message.split(";")[0]) == (
        "spells", "found spells in a directed graph: while a link is away the mixing matrix's columns do not sum to 1"
    )  # fmt: skip
    other = "source,target,start,end,latency_ms\na,b,1,5,10\na,b,5,9,20\n"
    assert problem(tmp_path, other)[0] == (
        "edge 'a' to 'b': found latency_ms 20.0 and 10.0 in two of its spells, allowed: the same in all"
    )


def test_overlapping_spells_merge_where_that_is_asked_for(tmp_path: Path) -> None:
    text = HEADER + "a,b,1,5\na,b,4,8\na,b,8,9\n"
    found = presence(read(tmp_path, text, file={"parallel_edges": "merge"})).links
    assert (found.starts.tolist(), found.ends.tolist()) == ([1], [9])


def test_times_that_nothing_uses_and_spells_that_are_never_met_are_told(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text(HEADER + "a,b,1,5\n", encoding="utf-8")
    plain, _ = build_topology({"graph": "file", "path": "c.csv"}, None, 0, tmp_path)
    assert "did you mean spells: {unit: rounds}" in plain.graphs[0].graph["remarks"]
    found = read(tmp_path, HEADER + "a,b,1,5\na,b,6.2,6.8\n")
    assert "1 of links begin and end between two rounds" in found.graphs[0].graph["remarks"]
    assert "uses" not in found.graphs[0].graph["remarks"]


def test_a_component_keeps_its_spells(tmp_path: Path) -> None:
    text = HEADER + "x,y,1,2\na,b,3,5\nb,c,4,6\n"
    found = presence(read(tmp_path, text, file={"component": "largest"}))
    assert [found.at(k).links.tolist() for k in (3, 4, 5)] == [[True, False], [True, True], [False, True]]


def test_a_sequence_has_no_spells(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text(HEADER + "a,b,1,5\n", encoding="utf-8")
    section = {"graph": "sequence", "graphs": [{"graph": "file", "path": "c.csv", "spells": {"unit": "rounds"}}]}
    with pytest.raises(InputError, match="links come and go in a sequence"):
        build_topology(section, None, 0, tmp_path)


spans = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12), st.integers(1, 4)), max_size=14)


def intervals(rows: list[tuple[int, int, int]], count: int = 6) -> tuple[Intervals, list[set[int]]]:
    """Intervals that do not overlap, and the instants below 30 at which each item is there."""
    found: list[set[int]] = [set() for _ in range(count)]
    for item, start, length in rows:
        found[item] |= set(range(start, start + length))
    made = []
    for item, instants in enumerate(found):
        for t in sorted(instants):
            if t - 1 not in instants:
                made.append((item, t, next(u for u in range(t, 40) if u not in instants)))
    timed = {item for item, _, _ in rows}
    return Intervals.of(count, made), [s if i in timed else set(range(40)) for i, s in enumerate(found)]


@settings(max_examples=60, deadline=None)
@given(spans, spans, st.integers(1, 14))
def test_intervals_are_what_every_instant_says(rows: Any, others: Any, last: int) -> None:
    found, sets = intervals(rows)
    nodes, of_nodes = intervals(others)
    ends = np.array([[0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [0, 5]])
    within = found.within(nodes, ends)
    counts = []
    for t in range(last + 1):
        there = [t in s for s in sets]
        assert found.at(t).tolist() == there == [found.has(i, t) for i in range(6)]
        both = [there[k] and t in of_nodes[i] and t in of_nodes[j] for k, (i, j) in enumerate(ends.tolist())]
        assert within.at(t).tolist() == both
        counts.append(sum(there))
    assert extremes(found, 0, last) == (min(counts), max(counts))
    assert mean_there(found, 0, last) == pytest.approx(np.mean(counts))
    assert never(found, 0, last) == sum(not s & set(range(last + 1)) for s in sets)


@settings(max_examples=80, deadline=None)
@given(spans, st.integers(1, 9))
def test_joint_connectivity_is_that_of_every_window(rows: Any, rounds: int) -> None:
    found, sets = intervals(rows)
    ends = np.array([[0, 1], [1, 2], [2, 3], [3, 4], [0, 4], [1, 3]])

    def connected(first: int, length: int) -> bool:
        window = set(range(first, first + length))
        graph = np.zeros((5, 5))
        for k, (i, j) in enumerate(ends.tolist()):
            graph[i, j] = bool(sets[k] & window)
        return int(connected_components(graph, directed=False)[0]) == 1

    wanted = next(
        (b for b in range(1, rounds + 1) if all(connected(f, b) for f in range(1, rounds - b + 2))), None
    )  # fmt: skip
    assert joint_connectivity(ends, found, 5, rounds) == wanted


def test_seconds_become_rounds_and_windows() -> None:
    found = Intervals.of(2, [(0, 15, 20), (0, 30, 31), (1, 10, FOREVER)])
    begins = np.array([0, 10, 20, 30])
    rounds = at_rounds(found, begins)
    assert [rounds.at(k).tolist() for k in (1, 2, 3, 4)] == [found.at(t).tolist() for t in begins.tolist()]
    windows = in_windows(found, np.array([0, 10, 20, 30, 40]))
    assert [windows.at(k).tolist() for k in (1, 2, 3, 4)] == [[False, False], [True, True], [False, True], [True, True]]


@pytest.mark.parametrize("mark", [",", "\t", ";"], ids=["comma", "tab", "semicolon"])
def test_a_last_cell_may_be_empty(tmp_path: Path, mark: str) -> None:
    rows = [["source", "target", "start", "end"], ["a", "b", "2", ""], ["b", "c", "", "3"], ["c", "a", "", ""]]
    (tmp_path / "c.csv").write_text("\n".join(mark.join(row) for row in rows) + "\n", encoding="utf-8")
    section = {"graph": "file", "path": "c.csv", "spells": {"unit": "rounds"}}
    found = presence(build_topology(section, None, 0, tmp_path)[0])
    assert [found.at(k).links.tolist() for k in (1, 2, 3)] == [
        [False, True, True], [True, True, True], [True, True, False]
    ]  # fmt: skip


def test_tabs_behind_the_last_cell_are_no_cells(tmp_path: Path) -> None:
    (tmp_path / "g.csv").write_text("source\ttarget\t\na\tb\t\nb\tc\n", encoding="utf-8")
    graph = build_topology({"graph": "file", "path": "g.csv"}, None, 0, tmp_path)[0].graphs[0]
    assert graph.number_of_edges() == 2
    (tmp_path / "g.csv").write_text("source\ttarget\tend\n\tb\t3\n", encoding="utf-8")
    with pytest.raises(InputError):
        build_topology({"graph": "file", "path": "g.csv"}, None, 0, tmp_path)
