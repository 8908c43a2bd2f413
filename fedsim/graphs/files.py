"""Graphs from files: GraphML, GML, edge lists as CSV, and decentralizepy's ``.edges``.

Edges may carry ``latency_ms`` (>= 0) and ``bandwidth_mbps`` (> 0, megabits per second); nodes ``label``, ``latitude``
and ``longitude`` (degrees). Whatever a file calls its nodes, the graph read from it has nodes ``0 .. n-1``.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import networkx as nx

from fedsim.core.errors import InputError, Problem

_NO_LOOPS = "remove it, a node always keeps its own value"
_NUMERIC_NODE = {"latitude", "longitude", "x", "y"}


def read_graph(path: Path, directed: bool | None = None) -> nx.Graph[Any]:
    """The simple graph in a file, nodes relabelled ``0 .. n-1``.

    Nodes named ``0 .. n-1`` keep their numbers, others are numbered in the order of the file; the name stays in the
    node attribute ``label``. The ending decides the format:

    - ``.graphml``, ``.xml``, ``.gml``: the file says whether it is directed.
    - ``.csv``: one edge per line, ``source,target``; with a header more numeric columns may follow (an empty cell means
      the edge has no such attribute). Lines that start with ``#`` are skipped.
    - ``.edges`` (decentralizepy): the number of nodes, then one ``i j`` per line, each edge once or in both directions.

    Parameters
    ----------
    path : Path
        The file.
    directed : bool, optional
        Only for ``.csv``, which cannot say so itself: whether ``source,target`` is a one-way edge (default: no).

    Raises
    ------
    InputError
        The file is missing, unreadable, holds no node, a self loop, an edge twice, or an attribute that is not a number
        in its range. The error names the file and, for text formats, the line.
    """
    readers: dict[str, Callable[[Path], nx.Graph[Any]]] = {
        ".graphml": _read_xml,
        ".xml": _read_xml,
        ".gml": _read_gml,
        ".csv": lambda p: _read_csv(p, bool(directed)),
        ".edges": _read_edges,
    }
    kind = path.suffix.lower()
    if kind not in readers:
        raise _wrong(path, f"found a file ending in '{kind}', allowed: {', '.join(readers)}")
    if not path.is_file():
        raise _wrong(path, "found a folder, allowed: a file" if path.is_dir() else "no such file")
    if directed is not None and kind != ".csv":
        message = f"'directed' is only for .csv edge lists; a {kind} file says itself whether it is directed"
        raise InputError(message, key="directed", file=str(path))
    try:
        graph = readers[kind](path)
    except InputError:
        raise
    except Exception as error:  # the parsers of networkx raise whatever their first unexpected byte leads to
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise _wrong(path, f"cannot be read as {kind[1:]}: {reason}") from error
    try:
        return tidy(graph)
    except InputError as error:
        raise InputError(Problem(p.message, p.key, str(path), p.line) for p in error.problems) from error


def tidy(graph: nx.Graph[Any]) -> nx.Graph[Any]:
    """A copy of `graph` that is simple, has nodes ``0 .. n-1`` in this order, labels, and numbers where numbers belong.

    Raises
    ------
    InputError
        No nodes, a self loop, parallel edges, or an attribute that is not a number in its range.
    """
    if graph.number_of_nodes() == 0:
        raise InputError("the graph has no nodes")
    loops = [u for u, v in graph.edges() if u == v]
    if loops:
        raise InputError(f"found {len(loops)} self loop(s), at node {loops[0]!r}; {_NO_LOOPS}")
    clean: nx.Graph[Any] = nx.DiGraph() if graph.is_directed() else nx.Graph()
    clean.graph.update({k: v for k, v in graph.graph.items() if k not in ("node_default", "edge_default")})
    order = _numbering(list(graph.nodes))
    for name in order:
        clean.add_node(order[name], **_node(name, dict(graph.nodes[name])))
    for u, v, data in graph.edges(data=True):
        if clean.has_edge(order[u], order[v]):
            raise InputError(f"the edge {u!r} to {v!r} is there twice; an edge may be given once")
        clean.add_edge(order[u], order[v], **_edge(u, v, data))
    return clean


def _numbering(names: list[Any]) -> dict[Any, int]:
    """Old name to new number, in increasing order of the number."""
    by_number = {str(name): name for name in names}
    numbers = [str(i) for i in range(len(names))]
    if len(by_number) == len(names) and by_number.keys() == set(numbers):
        return {by_number[i]: int(i) for i in numbers}
    return {name: i for i, name in enumerate(names)}


def _node(name: Any, data: dict[str, Any]) -> dict[str, Any]:
    for proper in ("latitude", "longitude"):  # the Internet Topology Zoo capitalises them
        if proper.capitalize() in data and proper not in data:
            data[proper] = data.pop(proper.capitalize())
    for key in _NUMERIC_NODE & data.keys():
        data[key] = _number(data[key], key, f"node {name!r}")
    data["label"] = str(data.get("label", name))
    return data


def _edge(u: Any, v: Any, data: dict[str, Any]) -> dict[str, Any]:
    data = dict(data)
    for key in ("latency_ms", "bandwidth_mbps"):
        if key in data:
            data[key] = _number(data[key], key, f"edge {u!r} to {v!r}")
    return data


def _number(value: Any, key: str, where: str) -> float:
    """`value` as a float in the range of `key`."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{where}: found {key} {value!r}, allowed: a number") from None
    lower = {"latency_ms": "a finite number >= 0", "bandwidth_mbps": "a finite number > 0"}
    fits = {"latency_ms": number >= 0, "bandwidth_mbps": number > 0}.get(key, True)
    if not math.isfinite(number) or not fits:
        raise InputError(f"{where}: found {key} {value}, allowed: {lower.get(key, 'a finite number')}")
    return number


def _read_xml(path: Path) -> nx.Graph[Any]:
    graph: nx.Graph[Any] = nx.read_graphml(path)
    return graph


def _read_gml(path: Path) -> nx.Graph[Any]:
    # By id, because labels need not be unique; they stay as the node attribute.
    graph: nx.Graph[Any] = nx.read_gml(path, label="id")
    return graph


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line


def _read_csv(path: Path, directed: bool) -> nx.Graph[Any]:
    rows = [(number, [c.strip() for c in next(csv.reader([line]))]) for number, line in _lines(path)]
    graph: nx.Graph[Any] = nx.DiGraph() if directed else nx.Graph()
    columns: list[str] = []
    if rows and [c.lower() for c in rows[0][1][:2]] == ["source", "target"]:
        columns = rows.pop(0)[1][2:]
    for line, row in rows:
        if len(row) != 2 + len(columns):
            shape = ",".join(["source", "target", *columns])
            help_ = "" if columns else "; more columns need a header line that names them"
            raise _wrong(path, f"found {len(row)} column(s), allowed: {2 + len(columns)} ({shape}){help_}", line)
        u, v, *cells = row
        if not u or not v:
            raise _wrong(path, "found an empty node name", line)
        try:
            data = {c: _number(cell, c, f"edge '{u}' to '{v}'") for c, cell in zip(columns, cells, strict=True) if cell}
        except InputError as error:
            raise _wrong(path, error.problems[0].message, line) from None
        _add(graph, u, v, path, line, data)
    return graph


def _read_edges(path: Path) -> nx.Graph[Any]:
    lines = list(_lines(path))
    rows: list[tuple[int, list[int]]] = []
    for line, text in lines:
        try:
            rows.append((line, [int(word) for word in text.split()]))
        except ValueError:
            raise _wrong(path, f"found '{text.strip()}', allowed: whole numbers", line) from None
    if not rows or len(rows[0][1]) != 1 or rows[0][1][0] < 1:
        raise _wrong(path, "the first line must be the number of nodes", rows[0][0] if rows else None)
    n = rows[0][1][0]
    graph: nx.Graph[Any] = nx.Graph()
    graph.add_nodes_from(range(n))
    seen: set[tuple[int, int]] = set()
    for line, row in rows[1:]:
        if len(row) != 2 or not all(0 <= i < n for i in row):
            found = " ".join(map(str, row))
            raise _wrong(path, f"found '{found}', allowed: two nodes 'i j' from 0 to {n - 1}", line)
        u, v = row
        if (u, v) in seen:
            raise _wrong(path, f"the edge {u} to {v} is there twice", line)
        seen.add((u, v))
        if (v, u) not in seen:  # decentralizepy itself writes every edge in both directions
            _add(graph, u, v, path, line, {})
    return graph


def _add(graph: nx.Graph[Any], u: Any, v: Any, path: Path, line: int, data: dict[str, float]) -> None:
    if u == v:
        raise _wrong(path, f"found a self loop at node {u!r}; {_NO_LOOPS}", line)
    if graph.has_edge(u, v):
        raise _wrong(path, f"the edge {u!r} to {v!r} is there twice; an edge may be given once", line)
    graph.add_edge(u, v, **data)


def _wrong(path: Path, message: str, line: int | None = None) -> InputError:
    return InputError([Problem(message, None, str(path), line)])
