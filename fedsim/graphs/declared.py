"""Files that list their nodes: an edge to one that is not among them is a slip of the pen, and not one node more.

networkx makes such a node for most formats, without a word.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Hashable, Mapping
from itertools import islice
from typing import Any
from xml.etree import ElementTree

from fedsim.core.errors import InputError, nearest
from fedsim.core.libraries import nx

_COMPARED = 1000  # names among which the nearest one is looked for


def all_declared(graph: nx.Graph[Any], nodes: Collection[Hashable]) -> nx.Graph[Any]:
    """The graph itself.

    Raises
    ------
    InputError
        It has a node that is none of `nodes`.
    """
    for node in graph:
        if node not in nodes:
            meant = nearest(node, [str(name) for name in islice(nodes, _COMPARED)])
            raise InputError(f"an edge names node {str(node)!r}{meant}; allowed: one of the file's {len(nodes)} nodes")
    return graph


def in_xml(data: bytes) -> set[str]:
    """Names of the nodes that GraphML or GEXF lists, whatever namespace it is written in."""
    found = ElementTree.iterparse(io.BytesIO(data))
    return {element.get("id", "") for _, element in found if element.tag.rpartition("}")[2] == "node"}


def in_pajek(lines: list[str]) -> set[Hashable]:
    """Names of the nodes before the first list of edges."""
    ends = (i for i, line in enumerate(lines) if line.lower().startswith(("*arcs", "*edges", "*matrix")))
    return set(nx.parse_pajek(lines[: next(ends, len(lines))]))


def in_json(found: Mapping[str, Any], edges: str) -> set[Hashable]:
    """Names of the nodes of node-link data, whose edges are under `edges`, or of adjacency data."""
    if edges == "adjacency":
        return set(nx.adjacency_graph({**found, edges: [[] for _ in found["nodes"]]}))
    return set(nx.node_link_graph({**found, edges: []}, edges=edges))
