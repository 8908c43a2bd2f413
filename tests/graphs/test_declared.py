"""Files that list their nodes: an edge to another one is refused, whatever the format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import networkx as nx
import pytest

from fedsim.core.errors import InputError
from fedsim.graphs.readers import read_raw

SQUARE = nx.Graph([("a", "b"), ("b", "c"), ("c", "drain"), ("drain", "a")])
WRITTEN: dict[str, Callable[[Path], object]] = {
    "g.graphml": lambda path: nx.write_graphml(SQUARE, path),
    "g.gml": lambda path: nx.write_gml(SQUARE, path, stringizer=str),
    "g.gexf": lambda path: nx.write_gexf(SQUARE, path),
    "g.net": lambda path: nx.write_pajek(SQUARE, path),
    "g.json": lambda path: path.write_text(json.dumps(nx.node_link_data(SQUARE, edges="edges"))),
    "links.json": lambda path: path.write_text(json.dumps(nx.node_link_data(SQUARE, edges="links"))),
    "adjacency.json": lambda path: path.write_text(json.dumps(nx.adjacency_data(SQUARE))),
}
NAMED = "an edge names node 'drian' (did you mean 'drain'?); allowed: one of the file's 4 nodes"
SLIPS = {  # one end of one edge is misspelt
    "g.graphml": ('target="drain"', 'target="drian"', NAMED),
    "g.gml": ("target 3", "target 7", "undefined target 7"),
    "g.gexf": ('target="drain"', 'target="drian"', NAMED),
    "g.net": ("3 4 ", "3 7 ", "an edge names node '7'; allowed: one of the file's 4 nodes"),
    "g.json": ('"target": "drain"', '"target": "drian"', NAMED),
    "links.json": ('"target": "drain"', '"target": "drian"', NAMED),
    "adjacency.json": ('{"id": "drain"}], [', '{"id": "drian"}], [', NAMED),
}


@pytest.mark.parametrize("name", SLIPS)
def test_an_edge_to_a_node_that_the_file_does_not_list_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITTEN[name](path)
    assert len(read_raw(path).nodes) == 4
    right, wrong, words = SLIPS[name]
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong, 1))
    with pytest.raises(InputError, match=r"drian|7") as caught:
        read_raw(path)
    assert words in str(caught.value)
    assert caught.value.problems[0].file == str(path)


def test_nodes_without_edges_are_nodes(tmp_path: Path) -> None:
    lonely = nx.Graph(SQUARE)
    lonely.add_node("e")
    nx.write_pajek(lonely, tmp_path / "lonely.net")
    nx.write_graphml(lonely, tmp_path / "lonely.graphml")
    assert len(read_raw(tmp_path / "lonely.net").nodes) == len(read_raw(tmp_path / "lonely.graphml").nodes) == 5
