"""Graphs of nodes: generators, files and sequences of graphs, and what a scenario's ``topology:`` section means.

A graph here is simple, has nodes ``0 .. n-1`` (names stay in the node attribute ``label``) and is connected, strongly
where it is directed; of a sequence only the union must be. On a directed graph u -> v means v receives from u.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx

from fedsim.core import rng
from fedsim.core.errors import InputError
from fedsim.core.fields import make_part
from fedsim.core.registry import lookup, names, register
from fedsim.core.types import Count
from fedsim.graphs.files import read_graph, tidy
from fedsim.graphs.generators import Graph


@dataclass(frozen=True)
class Topology:
    """A graph, or several that take turns: graph ``(round // every) % len(graphs)`` is in force in `round`."""

    graphs: tuple[nx.Graph[Any], ...]
    every: int = 1
    name: str = "graph"

    def at(self, round: int) -> int:
        """Index into `graphs` of the one in force in `round` (from 0)."""
        return (round // self.every) % len(self.graphs)

    @property
    def num_nodes(self) -> int:
        return self.graphs[0].number_of_nodes()

    @property
    def directed(self) -> bool:
        return self.graphs[0].is_directed()


def build_topology(section: Mapping[str, Any], n: int | None, seed: int, base: Path) -> tuple[Topology, str]:
    """The topology a scenario's ``topology:`` section describes, and the name of its mixing weights.

    Parameters
    ----------
    section : mapping
        ``{graph: NAME, weights: RULE, ...fields of the graph}``; NAME may be ``"pkg.mod:function"``, called with ``n``,
        ``seed`` and the other keys, which returns a networkx graph or a list of them. Without ``weights``:
        ``metropolis`` on undirected graphs, ``uniform`` on directed ones.
    n : int, optional
        The number of clients; None when there are none, and the graph must know its own size.
    seed : int
        For random graphs.
    base : Path
        The folder that relative paths are relative to.

    Raises
    ------
    InputError
        An unknown key or value, a file that cannot be read, a size that does not fit, or a graph that is not connected.
    """
    if not isinstance(section, Mapping) or "graph" not in section:
        raise InputError(
            f"found {section!r}, allowed: a mapping with the key 'graph' (one of {', '.join(names('graph'))})"
        )
    fields = {key: value for key, value in section.items() if key != "weights"}
    graphs, every = _build(_absolute(fields, base), n, seed)
    _check_connected(graphs)
    weights = section.get("weights", "uniform" if graphs[0].is_directed() else "metropolis")
    try:
        lookup("mixing", weights)
    except InputError as error:
        raise error.under("weights") from None
    name = section["graph"] if section["graph"] != "file" else Path(str(section.get("path"))).stem
    return Topology(tuple(graphs), every, str(name)), weights


@register.graph("file")
@dataclass(frozen=True, kw_only=True)
class GraphFile(Graph):
    """The graph in a file: GraphML, GML, a CSV edge list (then `directed` may be true), decentralizepy's .edges."""

    path: str
    directed: bool | None = None

    def build(self, n: int | None, seed: int) -> list[nx.Graph[Any]]:
        try:
            graph = read_graph(Path(self.path), self.directed)
        except InputError as error:
            raise error if error.problems[0].key else error.under("path") from None
        found = graph.number_of_nodes()
        if n is not None and found != n:
            raise InputError(f"the graph of {self.path} has {found} nodes, but there are {n} clients", key="path")
        if found < 2:
            raise InputError(f"the graph of {self.path} has {found} node, allowed: at least 2", key="path")
        return [graph]


@register.graph("sequence")
@dataclass(frozen=True, kw_only=True)
class Sequence(Graph):
    """Graphs that take turns, `every` rounds each; only their union must be connected."""

    graphs: list[dict[str, Any]]
    every: Count = 1

    def build(self, n: int | None, seed: int) -> list[nx.Graph[Any]]:
        if not self.graphs:
            raise InputError("found an empty list, allowed: one or more mappings {graph: ..., ...}", key="graphs")
        built: list[nx.Graph[Any]] = []
        for index, section in enumerate(self.graphs):
            try:
                if section.get("graph") == "sequence":
                    raise InputError("a sequence cannot hold a sequence; list its graphs instead", key="graph")
                graphs, repeat = _build(section, n, int(rng.key(seed, "topology", index)[0]))
            except InputError as error:
                raise error.under(f"graphs.{index}") from None
            built += [graph for graph in graphs for _ in range(repeat)]
        for what, values in (
            ("numbers of nodes", {str(g.number_of_nodes()) for g in built}),
            ("kinds", {"directed" if g.is_directed() else "undirected" for g in built}),
        ):
            if len(values) > 1:
                message = f"found graphs of different {what} ({', '.join(sorted(values))}); allowed: all the same"
                raise InputError(message, key="graphs")
        return built


def _build(section: Mapping[str, Any], n: int | None, seed: int) -> tuple[list[nx.Graph[Any]], int]:
    """The graphs of one section (paths absolute), and for how many rounds each stays."""
    fields = {key: value for key, value in section.items() if key != "graph"}
    try:
        kind = lookup("graph", section.get("graph"))
    except InputError as error:
        raise error.under("graph") from None
    if isinstance(kind, type) and issubclass(kind, Graph):
        part = make_part(kind, fields)
        return part.build(n, seed), getattr(part, "every", 1)
    return _call(str(section["graph"]), kind, n, seed, fields), 1


def _call(
    name: str, function: Callable[..., Any], n: int | None, seed: int, fields: dict[str, Any]
) -> list[nx.Graph[Any]]:
    """Somebody's own function's graphs, checked."""
    try:
        inspect.signature(function).bind(n, seed, **fields)
    except TypeError as error:
        raise InputError(f"'{name}' cannot be called with n, seed and the keys given: {error}", key="graph") from None
    try:
        result = function(n, seed, **fields)
    except InputError:
        raise
    except Exception as error:  # somebody's own code may fail in any way
        raise InputError(f"'{name}' failed: {type(error).__name__}: {error}", key="graph") from error
    graphs = [result] if isinstance(result, nx.Graph) else list(result) if isinstance(result, list | tuple) else []
    if not graphs or not all(isinstance(g, nx.Graph) for g in graphs):
        found = type(result).__name__
        raise InputError(f"'{name}' returned {found}, allowed: a networkx graph or a list of them", key="graph")
    sizes = {g.number_of_nodes() for g in graphs}
    if len(sizes) > 1 or (n is not None and sizes != {n}):
        message = f"'{name}' returned graphs of {sorted(sizes)} nodes, allowed: {n or 'all the same number'}"
        raise InputError(message, key="graph")
    try:
        return [tidy(g) for g in graphs]
    except InputError as error:
        raise error.under("graph") from None


def _absolute(section: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """`section` with the paths of graph files made absolute, also inside a sequence."""
    result = dict(section)
    if result.get("graph") == "file" and isinstance(result.get("path"), str):
        result["path"] = str(base / result["path"])
    if result.get("graph") == "sequence" and isinstance(result.get("graphs"), list):
        result["graphs"] = [_absolute(g, base) if isinstance(g, Mapping) else g for g in result["graphs"]]
    return result


def _check_connected(graphs: list[nx.Graph[Any]]) -> None:
    union = graphs[0] if len(graphs) == 1 else nx.compose_all(graphs)
    find: Callable[[Any], Iterable[set[int]]] = (
        nx.strongly_connected_components if union.is_directed() else nx.connected_components
    )
    parts = sorted((sorted(c) for c in find(union)), key=lambda c: (-len(c), c))
    if len(parts) == 1:
        return
    shown = [", ".join(map(str, c[:5])) + (f", ... ({len(c)} nodes)" if len(c) > 5 else "") for c in parts[:5]]
    more = f" and {len(parts) - 5} more" if len(parts) > 5 else ""
    what = "the graph" if len(graphs) == 1 else "the union of the sequence"
    strongly = "strongly " if union.is_directed() else ""
    message = (
        f"{what} is not {strongly}connected; its {len(parts)} components: {'; '.join(f'{{{s}}}' for s in shown)}{more}"
    )
    raise InputError(message, key="graph")
