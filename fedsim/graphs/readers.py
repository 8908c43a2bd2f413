"""Graphs from files, as they are written there: what the formats that networkx reads say, before any cleaning.

A reader gives the nodes, the edges with their attributes and lines, and whether the file says that edges have a
direction. What a file may cost is checked before it is made: its bytes (also once unpacked), nodes and edges.
"""

from __future__ import annotations

import ast
import bz2
import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedsim.core.errors import InputError, Problem, unknown
from fedsim.core.libraries import nx
from fedsim.graphs.declared import all_declared, in_json, in_pajek, in_xml

MOST_NODES = 1_000_000
MOST_EDGES = 10_000_000
"""A graph of ten million edges takes about 3 GB."""
MOST_BYTES = 256 * 2**20

Attributes = dict[str, Any]
Edge = tuple[Any, Any, Attributes, int | None]
"""Source, target, attributes, and the line of a text file it is in."""


@dataclass
class RawGraph:
    """A graph as a file has it: parallel edges and loops among them; `directed` is None where the format cannot say."""

    nodes: dict[Any, Attributes] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)
    directed: bool | None = None
    attributes: Attributes = field(default_factory=dict)

    def add(self, u: Any, v: Any, data: Attributes, line: int | None = None) -> None:
        if len(self.edges) == MOST_EDGES:
            raise InputError(f"found more than {MOST_EDGES:,} edges, allowed: at most that many")
        self.nodes.setdefault(u, {})
        self.nodes.setdefault(v, {})
        self.edges.append((u, v, data, line))


@dataclass(frozen=True)
class Columns:
    """The columns of a CSV file that hold an edge's ends, where they are not called source and target."""

    source: str | None = None
    target: str | None = None


def check_size(nodes: float, edges: float, key: str | None = None) -> None:
    """Refuse a graph that would not fit, before it is made.

    Raises
    ------
    InputError
        More than ``MOST_NODES`` nodes or ``MOST_EDGES`` edges.
    """
    for count, most, what in ((nodes, MOST_NODES, "nodes"), (edges, MOST_EDGES, "edges")):
        if count > most:
            found = f"{count:,.0f}" if count < 1e15 else "far more"
            raise InputError(f"the graph would have {found} {what}, allowed: at most {most:,}", key=key)


def read_raw(path: Path, format: str | None = None, columns: Columns | None = None) -> RawGraph:
    """What a graph file says; the ending, or `format`, decides how it is read. ``.gz`` and ``.bz2`` are unpacked.

    Raises
    ------
    InputError
        No such file or format, a file that cannot be read as that format, or one that is too large. The error names the
        file and, for text formats, the line.
    """
    packed = path.suffix.lower() if path.suffix.lower() in _UNPACK else ""
    ending = (path.with_suffix("") if packed else path).suffix.lower()
    if format is not None and format not in FORMATS:
        raise InputError(unknown("format", format, list(FORMATS)), key="format")
    name = format or _ENDINGS.get(ending)
    if name is None:
        allowed = ", ".join(_ENDINGS)
        message = (
            f"found a file ending in '{ending}', allowed: {allowed}, also with .gz or .bz2; or say it, format: csv"
        )
        raise wrong(path, message)
    if not path.is_file():
        raise wrong(path, "found a folder, allowed: a file" if path.is_dir() else "no such file")
    if columns is not None and name != "csv":
        key = "source" if columns.source is not None else "target"
        raise InputError(f"names a column of a .csv file, found a {name} file", key=key)
    try:
        data = _bytes(path, packed)
        if name == "csv":
            return _csv(path, data, columns or Columns())
        return FORMATS[name](path, data)
    except InputError as error:
        raise InputError(p if p.file or p.key else replace(p, file=str(path)) for p in error.problems) from None
    except Exception as error:  # the parsers of networkx raise whatever their first unexpected byte leads to
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise wrong(path, f"cannot be read as {name}: {_short(reason, 200)}") from error


def wrong(path: Path, message: str, line: int | None = None) -> InputError:
    return InputError([Problem(message, None, str(path), line)])


_UNPACK: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open}


def _bytes(path: Path, packed: str) -> bytes:
    opener: Any = _UNPACK.get(packed, lambda p: p.open("rb"))
    with opener(path) as stream:
        data: bytes = stream.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        unpacked = " once unpacked" if packed else ""
        raise wrong(path, f"is too large{unpacked}, allowed: at most {MOST_BYTES // 2**20} MiB")
    return data


def _from_networkx(graph: nx.Graph[Any]) -> RawGraph:
    raw = RawGraph(directed=graph.is_directed())
    raw.attributes = {k: v for k, v in graph.graph.items() if k not in ("node_default", "edge_default")}
    raw.nodes = {name: dict(data) for name, data in graph.nodes(data=True)}
    for u, v, data in graph.edges(data=True):
        raw.add(u, v, dict(data))
    return raw


def _xml(data: bytes) -> io.BytesIO:
    if b"<!ENTITY" in data:
        raise InputError("found an entity declaration (<!ENTITY), allowed: plain XML")
    return io.BytesIO(data)


def _graphml(_path: Path, data: bytes) -> RawGraph:
    return _from_networkx(all_declared(nx.read_graphml(_xml(data)), in_xml(data)))


def _gexf(_path: Path, data: bytes) -> RawGraph:
    return _from_networkx(all_declared(nx.read_gexf(_xml(data)), in_xml(data)))


def _gml(_path: Path, data: bytes) -> RawGraph:
    # By id, because labels need not be unique; as a multigraph, because files with parallel edges seldom say so.
    text = _text(data)
    first = re.search(r"\bnode\s*\[", text)
    head, rest = (text[: first.start()], text[first.start() :]) if first else (text, "")
    head = re.sub(r"\bmultigraph\s+[01]\b", "", head)
    head = re.sub(r"(^|\s)graph\s*\[", r"\1graph [ multigraph 1 ", head, count=1)
    return _from_networkx(nx.parse_gml((head + rest).splitlines(), label="id"))


def _pajek(_path: Path, data: bytes) -> RawGraph:
    text = _text(data)
    return _from_networkx(all_declared(nx.parse_pajek(text), in_pajek(text.splitlines())))


def _json(_path: Path, data: bytes) -> RawGraph:
    found = json.loads(data)
    if isinstance(found, dict) and isinstance(found.get("nodes"), list):
        if "adjacency" in found:
            return _from_networkx(all_declared(nx.adjacency_graph(found), in_json(found, "adjacency")))
        for key in ("links", "edges"):  # networkx wrote the one until 3.4 and the other since
            if isinstance(found.get(key), list):
                return _from_networkx(all_declared(nx.node_link_graph(found, edges=key), in_json(found, key)))
    raise InputError("found other JSON, allowed: node-link data (nodes, and links or edges) or adjacency data")


def _graph6(_path: Path, data: bytes) -> RawGraph:
    lines = [line for line in data.split() if line]
    if len(lines) != 1:
        raise InputError(f"found {len(lines)} graphs, allowed: one")
    line = lines[0].removeprefix(b">>graph6<<").removeprefix(b">>sparse6<<")
    sparse = line.startswith(b":")
    check_size(_order(line.removeprefix(b":")), 0)
    read: Any = nx.from_sparse6_bytes if sparse else nx.from_graph6_bytes
    return _from_networkx(read(line))


def _order(line: bytes) -> int:
    """The number of nodes that a graph6 or sparse6 line begins with: one byte, or 3 after one ``~``, or 6 after two."""
    wide = 2 if line.startswith(b"~~") else 1 if line.startswith(b"~") else 0
    first, last = ((0, 1), (1, 4), (2, 8))[wide]
    number = 0
    for byte in line[first:last]:
        number = number << 6 | (byte - 63)
    return number


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        if b"\x00" in data:
            raise
        return data.decode("latin-1")


def _lines(data: bytes, comments: str = "#%", blank: str | None = None) -> Iterator[tuple[int, str]]:
    """Lines that say something, by their numbers, without what is `blank` around them (None: all white space)."""
    for number, line in enumerate(io.StringIO(_text(data)), start=1):
        text = line.strip()
        if text and text[0] not in comments:
            yield number, text if blank is None else line.strip(blank)


_ENDS = (("source", "target"), ("from", "to"), ("src", "dst"), ("fromnodeid", "tonodeid"), ("node1", "node2"))
_SEPARATORS = (",", ";", "\t", None)


def _split(line: str, separator: str | None) -> list[str]:
    if separator is None:
        return line.split()
    return [cell.strip() for cell in next(csv.reader([line], delimiter=separator))]


def _csv(path: Path, data: bytes, columns: Columns) -> RawGraph:
    """One edge per line; a header may name further columns, also as a comment, as SNAP's files have it."""
    lines = list(_lines(data, "#", " \r\n"))  # a tab may stand beside a cell without value
    raw = RawGraph()
    if not lines:
        return raw
    first = lines[0][1].strip()
    separator = next((s for s in _SEPARATORS if len(_split(first, s)) > 1), ",")
    header = _split(first, separator)
    ends = _ends(header, columns, path)
    if ends is not None:
        del lines[0]
    else:
        said = [text.strip().lstrip("#").split() for text in _text(data).splitlines() if text.lstrip().startswith("#")]
        commented = next((names for names in reversed(said) if len(names) == len(header)), [])
        ends = _ends(commented, Columns(), path)
        header = commented if ends is not None else ["source", "target"]
    source, target = ends or (0, 1)
    for line, text in lines:
        row = _split(text, separator)
        while separator == "\t" and len(row) > len(header) and not row[-1]:
            row.pop()
        if len(row) != len(header):
            help_ = "" if len(header) > 2 else "; more columns need a header line that starts with source,target"
            shape = ",".join(header)
            raise wrong(path, f"found {len(row)} column(s), allowed: {len(header)} ({shape}){help_}", line)
        u, v = row[source], row[target]
        if not u or not v:
            raise wrong(path, "found an empty node name", line)
        cells = zip(header, row, strict=True)
        further = {name: cell for i, (name, cell) in enumerate(cells) if cell and i not in (source, target)}
        raw.add(u, v, {name: number_or_text(cell) for name, cell in further.items()}, line)
    _one_kind(raw, path)
    return raw


def _ends(header: list[str], columns: Columns, path: Path) -> tuple[int, int] | None:
    """Where a header names the two ends of an edge; None where this is no header."""
    if columns != Columns():
        found = []
        for key, name in (("source", columns.source or "source"), ("target", columns.target or "target")):
            if name not in header:
                raise InputError(f"{path} has no column '{name}'; {unknown('column', name, header)}", key=key)
            found.append(header.index(name))
        return found[0], found[1]
    lower = tuple(name.lower() for name in header[:2])
    return (0, 1) if lower in _ENDS else None


def _one_kind(raw: RawGraph, path: Path) -> None:
    """Gephi's column Type says of every edge whether it is directed."""
    kinds = {str(data.get("Type", "")).lower() for _, _, data, _ in raw.edges}
    if not kinds <= {"directed", "undirected"}:
        return  # a column of that name with a meaning of its own
    if len(kinds) == 2:
        raise wrong(path, "found directed and undirected edges in column Type, allowed: one of the two")
    raw.directed = kinds == {"directed"}
    for _, _, data, _ in raw.edges:
        del data["Type"]


def _edge_list(path: Path, data: bytes) -> RawGraph:
    """``i j`` per line, then nothing, a weight, or networkx's ``{'key': value}``."""
    raw = RawGraph()
    separator: str | None = None
    for line, text in _lines(data):
        if not raw.edges and len(text.split()) < 2 and "," in text:
            separator = ","
        end = text.index("{") if text.endswith("}") and "{" in text else len(text)
        row = _split(text[:end].strip().rstrip(separator or " "), separator)
        if len(row) not in (2, 3) or not all(row):
            raise wrong(path, f"found '{_short(text)}', allowed: two nodes, and a weight or {{'name': value}}", line)
        attributes: Attributes = {"weight": number_or_text(row[2])} if len(row) == 3 else {}
        if end < len(text):
            attributes |= _literal(text[end:], path, line)
        raw.add(row[0], row[1], attributes, line)
    return raw


def _literal(text: str, path: Path, line: int) -> Attributes:
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise wrong(path, f"found '{_short(text)}', allowed: {{'name': value, ...}}", line)
    return {str(key): value for key, value in found.items()}


def _adjacency_list(_path: Path, data: bytes) -> RawGraph:
    """A node and its neighbours per line."""
    raw = RawGraph()
    for line, text in _lines(data):
        node, *neighbours = text.split()
        raw.nodes.setdefault(node, {})
        for other in neighbours:
            raw.add(node, other, {}, line)
    return raw


def _edges(path: Path, data: bytes) -> RawGraph:
    """decentralizepy's: the number of nodes, then ``i j`` per line, each edge once or in both directions."""
    rows = _lines(data, "#")
    first, text = next(rows, (None, ""))
    if first is None or len(_numbers(text, path, first)) != 1 or (n := _numbers(text, path, first)[0]) < 1:
        more = "" if len(text.split()) < 2 else "; a file without it is read with format: edgelist"
        raise wrong(path, f"the first line must be the number of nodes{more}", first)
    try:
        check_size(n, 0)
    except InputError as error:
        raise wrong(path, error.problems[0].message, first) from None
    raw = RawGraph({i: {} for i in range(n)}, directed=False)
    seen: set[tuple[int, int]] = set()
    for line, text in rows:
        row = _numbers(text, path, line)
        if len(row) != 2 or not all(0 <= i < n for i in row):
            raise wrong(path, f"found '{_short(text)}', allowed: two nodes 'i j' from 0 to {n - 1}", line)
        u, v = row
        repeated = (u, v) in seen or u == v
        if repeated or (v, u) not in seen:  # decentralizepy itself writes every edge in both directions
            raw.add(u, v, {}, line)
        seen.add((u, v))
    return raw


def _numbers(text: str, path: Path, line: int) -> list[int]:
    words = text.split()
    if not all(re.fullmatch(r"[-+]?\d{1,18}", word) for word in words):
        raise wrong(path, f"found '{_short(text)}', allowed: whole numbers of at most 18 digits", line)
    return [int(word) for word in words]


def number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


FORMATS: dict[str, Callable[[Path, bytes], RawGraph]] = {
    "graphml": _graphml,
    "gml": _gml,
    "gexf": _gexf,
    "csv": lambda path, data: _csv(path, data, Columns()),
    "edgelist": _edge_list,
    "edges": _edges,
    "adjlist": _adjacency_list,
    "pajek": _pajek,
    "json": _json,
    "graph6": _graph6,
    "sparse6": _graph6,
}
_ENDINGS = {
    ".graphml": "graphml", ".xml": "graphml", ".gml": "gml", ".gexf": "gexf", ".csv": "csv", ".tsv": "csv",
    ".edges": "edges", ".edgelist": "edgelist", ".txt": "edgelist", ".adjlist": "adjlist", ".net": "pajek",
    ".json": "json", ".g6": "graph6", ".graph6": "graph6", ".s6": "sparse6", ".sparse6": "sparse6",
}  # fmt: skip
