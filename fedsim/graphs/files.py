"""Graphs from files: what a scenario's ``topology: {graph: file, path: ..., ...}`` may say.

Edges may carry ``latency_ms`` (>= 0) and ``bandwidth_mbps`` (> 0, megabits per second), or the keys `latency` and
`bandwidth` say which attribute stands for them; nodes ``label``, ``latitude`` and ``longitude`` (degrees). Whatever a
file calls its nodes, the graph read from it has nodes ``0 .. n-1``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fedsim.core.errors import InputError
from fedsim.core.libraries import nx
from fedsim.core.registry import register
from fedsim.graphs.base import Graph
from fedsim.graphs.cleaning import REMARKS, Cleaning, clean
from fedsim.graphs.edge_values import Bandwidth, Latency, Weight
from fedsim.graphs.presence import Presence
from fedsim.graphs.readers import Columns, RawGraph, read_raw
from fedsim.graphs.spells import SPELLS, Spells

_MANY = 10_000


def read_graph(path: Path, directed: bool | None = None) -> nx.Graph[Any]:
    """The simple graph in a file, nodes relabelled ``0 .. n-1``; what is not simple is refused.

    Nodes named ``0 .. n-1`` keep their numbers, others are numbered in the order of the file; the name stays in the
    node attribute ``label``. The ending decides the format, see `fedsim.graphs.readers`.

    Parameters
    ----------
    path : Path
        The file.
    directed : bool, optional
        Whether edges have a direction, where the file does not say so or what it says does not count.

    Raises
    ------
    InputError
        The file is missing, unreadable, holds no node, a self loop, an edge twice, or an attribute that is not a number
        in its range. The error names the file and, for text formats, the line.
    """
    raw = read_raw(path)
    graph = _clean(raw, Cleaning(directed=directed), path)
    if REMARKS in raw.attributes:  # a file that a run wrote keeps what was said of the one it read
        graph.graph[REMARKS] = raw.attributes[REMARKS]
    return graph


@register.graph("file")
@dataclass(frozen=True, kw_only=True)
class GraphFile(Graph):
    """The graph in a file: GraphML, GML, GEXF, CSV and other edge lists, adjacency lists, Pajek, JSON, graph6.

    Parameters
    ----------
    path : the file; the ending says the format, `format` where it does not. `source` and `target` are the columns of a
        CSV file whose header does not call them so.
    directed : whether edges have a direction; false reads those of any file as working both ways.
    parallel_edges, loops, component : what to do with edges between the same nodes, edges from a node to itself, and a
        graph in several components; the defaults refuse them.
    latency, bandwidth, weight : which attributes of an edge these are, and in what unit.
    spells : which attributes say when edges and nodes are there; without it they always are.
    """

    path: str
    format: str | None = None
    source: str | None = None
    target: str | None = None
    directed: bool | None = None
    parallel_edges: Literal["refuse", "merge"] = "refuse"
    loops: Literal["refuse", "drop"] = "refuse"
    component: Literal["all", "largest"] = "all"
    latency: Latency | None = None
    bandwidth: Bandwidth | None = None
    weight: Weight | None = None
    spells: Spells | None = None

    def located(self, base: Path) -> GraphFile:
        return replace(self, path=str(base / self.path))

    def build(self, n: int | None, seed: int) -> list[nx.Graph[Any]]:
        path = Path(self.path)
        columns = None if self.source is None and self.target is None else Columns(self.source, self.target)
        try:
            raw = read_raw(path, self.format, columns)
            if self.component == "all" and len(raw.nodes) > _MANY:
                self._check_nodes(len(raw.nodes), n)  # before the graph is made: a line can ask for a million nodes
            graph = _clean(raw, self._cleaning(), path)
        except InputError as error:
            raise error if error.problems[0].key else error.under("path") from None
        self._check_nodes(graph.number_of_nodes(), n)
        return [graph]

    def presence(self, graphs: list[nx.Graph[Any]]) -> Presence | None:
        found = graphs[0].graph.pop(SPELLS, None)
        return None if found is None else Presence.of(graphs[0], found)

    def _cleaning(self) -> Cleaning:
        return Cleaning(
            self.directed, self.parallel_edges, self.loops, self.component, self.latency, self.bandwidth, self.weight,
            self.spells, from_file=True,
        )  # fmt: skip

    def _check_nodes(self, found: int, n: int | None) -> None:
        if n is not None and found != n:
            raise InputError(f"the graph of {self.path} has {found} nodes, but there are {n} clients", key="path")
        if found == 1:
            raise InputError(f"the graph of {self.path} has {found} node, allowed: at least 2", key="path")


def _clean(raw: RawGraph, how: Cleaning, path: Path) -> nx.Graph[Any]:
    """`clean` with the file in its problems; those of a key stay with the key."""
    try:
        return clean(raw, how)
    except InputError as error:
        raise InputError(p if p.key else replace(p, file=str(path)) for p in error.problems) from error
