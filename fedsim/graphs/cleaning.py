"""From what a graph file says to the simple graph a run uses: nothing is repaired unless a key asks for it.

Latency, bandwidth and mixing weight of an edge end in the attributes ``latency_ms``, ``bandwidth_mbps`` and
``mixing_weight``; names and attributes of the file stay beside them. What was changed, and what nothing uses, is kept
as remarks that ``fedsim plan`` and ``fedsim topology`` show.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fedsim.core.errors import InputError, Problem, nearest
from fedsim.core.libraries import nx, sparse
from fedsim.graphs.edge_values import Bandwidth, Latency, Weight, position
from fedsim.graphs.readers import Attributes, Edge, RawGraph, check_size
from fedsim.graphs.spells import SPELLS, Spells, hint, timed

REMARKS = "remarks"
"""The graph attribute that keeps the remarks, one a line."""

VALUES = ("latency_ms", "bandwidth_mbps", "mixing_weight")
_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "latency_ms": ("a finite number >= 0", lambda x: x >= 0),
    "bandwidth_mbps": ("a finite number > 0", lambda x: x > 0),
    "mixing_weight": ("a finite number > 0", lambda x: x > 0),
}
_SHOWN = 3


@dataclass(frozen=True)
class Cleaning:
    """What may be changed of a file's graph; the defaults change nothing and refuse what is not simple."""

    directed: bool | None = None
    parallel_edges: Literal["refuse", "merge"] = "refuse"
    loops: Literal["refuse", "drop"] = "refuse"
    component: Literal["all", "largest"] = "all"
    latency: Latency | None = None
    bandwidth: Bandwidth | None = None
    weight: Weight | None = None
    spells: Spells | None = None
    from_file: bool = False
    """Whether messages may name keys, edges must have all values or none, and remarks are made."""


def tidy(graph: nx.Graph[Any]) -> nx.Graph[Any]:
    """A copy of `graph` that is simple, has nodes ``0 .. n-1`` in this order, labels, and numbers where numbers belong.

    Raises
    ------
    InputError
        No nodes, a self loop, parallel edges, or an attribute that is not a number in its range.
    """
    raw = RawGraph(dict(graph.nodes(data=True)), directed=graph.is_directed(), attributes=dict(graph.graph))
    raw.edges = [(u, v, data, None) for u, v, data in graph.edges(data=True)]
    return clean(raw, Cleaning())


def clean(raw: RawGraph, how: Cleaning) -> nx.Graph[Any]:
    """The simple graph on ``0 .. n-1`` that `raw` becomes.

    Raises
    ------
    InputError
        Something `how` does not allow to change, a named attribute that is not there, or one that is not a number in
        its range or that only some edges have. Of text formats the problem has the line.
    """
    if not raw.nodes:
        raise InputError("the graph has no nodes")
    check_size(len(raw.nodes), len(raw.edges))
    remarks: list[str] = []
    show = _Names(raw.nodes)
    directed, oriented = _direction(raw, how, remarks)
    unused = _unused(raw.edges, how) if how.from_file else []
    single = _without_loops(raw.edges, how, show, remarks)
    single, when = (single, None) if how.spells is None else timed(how.spells, single, raw.nodes, show, how, directed)
    edges = [_with_values(edge, how, show) for edge in single]
    _check_named(raw.edges, how)
    merged = _merged(edges, directed, oriented, how, show, remarks)
    kept = _component(raw.nodes, merged, directed, how, remarks)
    order = numbering([name for name in raw.nodes if name in kept])
    graph: nx.Graph[Any] = nx.DiGraph() if directed else nx.Graph()
    graph.graph.update(plain(raw.attributes, ("node_default", "edge_default")))
    for name in order:
        graph.add_node(order[name], **_node(name, raw.nodes[name], show))
    for (u, v), data in merged.items():
        if u in kept and v in kept:
            graph.add_edge(order[u], order[v], **data)
    if how.latency is not None and how.latency.from_positions:
        how.latency.place(graph)
    if when is not None:
        graph.graph[SPELLS], said = when.of(graph, order)
        remarks += said
    if how.from_file:
        _complete(graph, how)
        graph.graph[REMARKS] = "\n".join([*remarks, *unused, *_no_clock(graph, unused)])
    return graph


def remarks_of(graph: nx.Graph[Any]) -> list[str]:
    return [line for line in str(graph.graph.get(REMARKS, "")).split("\n") if line]


def labels(graph: nx.Graph[Any]) -> list[str]:
    """A name for each node ``0 .. n-1``, no two alike: its label, with its number where several have the same."""
    found = [str(graph.nodes[i].get("label", i)) for i in range(graph.number_of_nodes())]
    counts: dict[str, int] = {}
    for name in found:
        counts[name] = counts.get(name, 0) + 1
    return [name if counts[name] == 1 else f"{name} ({i})" for i, name in enumerate(found)]


def plain(data: Attributes, without: Iterable[str] = ()) -> Attributes:
    """Attributes as GraphML can hold them: text, numbers, true and false; anything else becomes JSON text."""
    result: Attributes = {}
    for key, value in data.items():
        value = value.item() if isinstance(value, np.generic) else value
        if value is None or key in without:
            continue
        if isinstance(value, int) and abs(value) >= 2**63:
            value = str(value)
        if not isinstance(value, bool | int | float | str):
            value = json.dumps(value, default=str)
        if isinstance(value, str):
            value = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", " ", value)
        result[str(key)] = value
    return result


class _Names:
    """How a message names a node: by its label, and by what the file calls it where it has none or not its own."""

    def __init__(self, nodes: dict[Any, Attributes]) -> None:
        self.nodes = nodes
        self._counts: Counter[Any] | None = None

    def __call__(self, name: Any) -> str:
        label = self.nodes.get(name, {}).get("label")
        if label is None or label in ("", name):
            return repr(name)
        if self._counts is None:  # only where there is something to say
            self._counts = Counter(str(data.get("label")) for data in self.nodes.values())
        return repr(label) if self._counts[str(label)] == 1 else f"{label!r} ({name})"

    def edge(self, u: Any, v: Any) -> str:
        return f"{self(u)} to {self(v)}"


def _direction(raw: RawGraph, how: Cleaning, remarks: list[str]) -> tuple[bool, bool]:
    """Whether the graph is directed, and whether ``a b`` and ``b a`` of the file are one edge's two directions."""
    if how.directed and raw.directed is False:
        raise InputError("found true, but the file says that its edges have no direction", key="directed")
    directed = bool(raw.directed) if how.directed is None else how.directed
    if raw.directed and not directed:
        remarks.append("directed: false; the file says that its edges are directed, they work both ways here")
    return directed, bool(raw.directed) or (raw.directed is None and how.directed is False)


def _without_loops(edges: list[Edge], how: Cleaning, show: _Names, remarks: list[str]) -> list[Edge]:
    loops = [edge for edge in edges if edge[0] == edge[1]]
    if not loops:
        return edges
    if how.loops == "drop":
        remarks.append(f"loops: drop; {len(loops)} self loop(s) dropped")
        return [edge for edge in edges if edge[0] != edge[1]]
    more = "" if len(loops) == 1 else f" and {len(loops) - 1} more"
    way = ", or: loops: drop" if how.from_file else ""
    message = f"found a self loop at node {show(loops[0][0])}{more}; remove it, a node always keeps its own value{way}"
    raise InputError([Problem(message, None, None, loops[0][3])])


def _with_values(edge: Edge, how: Cleaning, show: _Names) -> Edge:
    """The edge with its attributes plain and the ones that are used as numbers under our names."""
    u, v, found, line = edge
    if not found:
        return edge
    data = plain(found)
    for name, source in zip(VALUES, (how.latency, how.bandwidth, how.weight), strict=True):
        attribute = name if source is None or source.attribute is None else source.attribute
        if attribute not in data:
            data.pop(name, None)
            continue
        try:
            number = float(data[attribute])
        except ValueError:
            number = math.nan
        scaled = number if source is None else number * source.factor
        allowed, fits = _RANGES[name]
        if not math.isfinite(scaled) or not fits(scaled):
            allowed = "a number" if isinstance(data[attribute], str) and math.isnan(number) else allowed
            message = f"edge {show.edge(u, v)}: found {attribute} {data[attribute]!r}, allowed: {allowed}"
            if not isinstance(data[attribute], str):
                message = f"edge {show.edge(u, v)}: found {attribute} {data[attribute]:g}, allowed: {allowed}"
            raise InputError([Problem(message, None, None, line)])
        data[name] = scaled
    return u, v, data, line


def _check_named(edges: list[Edge], how: Cleaning) -> None:
    """An attribute that a key names is on some edge."""
    for key, source in (("latency", how.latency), ("bandwidth", how.bandwidth), ("weight", how.weight)):
        if source is None or source.attribute is None or any(source.attribute in data for _, _, data, _ in edges):
            continue
        there = sorted({str(name) for _, _, data, _ in edges for name in data})
        near = nearest(source.attribute, there)
        message = f"no edge has the attribute '{source.attribute}'{near}; found: {', '.join(there) or 'none'}"
        raise InputError(message, key=f"{key}.attribute")


def _merged(
    edges: list[Edge], directed: bool, oriented: bool, how: Cleaning, show: _Names, remarks: list[str]
) -> dict[tuple[Any, Any], Attributes]:
    """Every pair of nodes once, in the order and direction in which the file first has it."""
    ways: dict[tuple[Any, Any], list[Attributes]] = {}
    parallel = 0
    for u, v, data, line in edges:
        pair = (v, u) if not directed and not oriented and (v, u) in ways else (u, v)
        found = ways.setdefault(pair, [])
        if found:
            parallel += 1
            if how.parallel_edges == "refuse":
                way = ", or: parallel_edges: merge" if how.from_file else ""
                message = f"the edge {show.edge(u, v)} is there twice; an edge may be given once{way}"
                raise InputError([Problem(message, None, None, line)])
        found.append(data)
    one = {pair: _bundle(found) for pair, found in ways.items()}
    if parallel:
        remarks.append(
            f"parallel_edges: merge; {parallel} merged into others between the same nodes (bandwidths and weights add "
            "up, the smallest latency counts)"
        )
    if directed or not oriented:
        return one
    joined: dict[tuple[Any, Any], Attributes] = {}
    for (u, v), data in one.items():
        if (v, u) in joined:
            joined[v, u] = _both_ways(joined[v, u], data, u, v, show)
        else:
            joined[u, v] = data
    return joined


def _bundle(found: list[Attributes]) -> Attributes:
    """Parallel edges as one: their bandwidths and weights together, the latency of the fastest."""
    if len(found) == 1:
        return found[0]
    result = {key: value for data in reversed(found) for key, value in data.items()}
    for name, join in (("latency_ms", min), ("bandwidth_mbps", sum), ("mixing_weight", sum)):
        values = [data[name] for data in found if name in data]
        if values:
            result[name] = join(values)
    return result


def _both_ways(one: Attributes, other: Attributes, u: Any, v: Any, show: _Names) -> Attributes:
    """Two directions as one edge: it fires both ways at once, so the slower direction counts."""
    result = {**other, **one}
    for name, join in (("latency_ms", max), ("bandwidth_mbps", min)):
        if name in one and name in other:
            result[name] = join(one[name], other[name])
    if one.get("mixing_weight") != other.get("mixing_weight"):
        raise InputError(
            f"the edge {show.edge(u, v)} weighs {other.get('mixing_weight')} one way and {one.get('mixing_weight')} "
            "the other; an undirected edge has one weight",
            key="directed",
        )
    return result


def _component(
    nodes: dict[Any, Attributes], edges: Iterable[tuple[Any, Any]], directed: bool, how: Cleaning, remarks: list[str]
) -> set[Any]:
    """The nodes that stay: all, or those of the largest (strongly) connected component."""
    if how.component == "all":
        return set(nodes)
    number = {name: i for i, name in enumerate(nodes)}
    ends = np.array([(number[u], number[v]) for u, v in edges], dtype=np.int64).reshape(-1, 2)
    count, member = components(len(nodes), ends, directed)
    if count == 1:
        return set(nodes)
    sizes = np.bincount(member)
    largest = int(np.argmax(sizes))
    strongly = "strongly " if directed else ""
    remarks.append(
        f"component: largest; {sizes[largest]} of {len(nodes)} nodes kept, the largest of {count} {strongly}connected "
        "components"
    )
    return {name for name, i in number.items() if member[i] == largest}


def components(n: int, ends: Any, directed: bool) -> tuple[int, Any]:
    """How many (strongly) connected components, and which each node ``[n]`` is in; `ends` ``[edges, 2]``."""
    from scipy.sparse.csgraph import connected_components

    matrix = sparse.csr_array((np.ones(len(ends), dtype=np.int8), (ends[:, 0], ends[:, 1])), shape=(n, n))
    count, member = connected_components(matrix, directed=directed, connection="strong")
    return int(count), member


def numbering(names: list[Any]) -> dict[Any, int]:
    """Old name to new number, in increasing order of the number: names ``0 .. n-1`` keep theirs, others count up."""
    by_number = {str(name): name for name in names}
    numbers = [str(i) for i in range(len(names))]
    if len(by_number) == len(names) and by_number.keys() == set(numbers):
        return {by_number[i]: int(i) for i in numbers}
    return {name: i for i, name in enumerate(names)}


def _node(name: Any, found: Attributes, show: _Names) -> Attributes:
    data = position(plain(found), show(name))
    label = data.get("label")
    data["label"] = str(name if label is None or label == "" else label)
    return data


def _complete(graph: nx.Graph[Any], how: Cleaning) -> None:
    """A value that some edges have all have, or the key says what the others get."""
    for name, key, source in (
        ("latency_ms", "latency", how.latency), ("bandwidth_mbps", "bandwidth", how.bandwidth),
        ("mixing_weight", "weight", how.weight),
    ):  # fmt: skip
        without = [(u, v) for u, v, data in graph.edges(data=True) if name not in data]
        if not without or (source is None and len(without) == graph.number_of_edges()):
            continue
        missing = getattr(source, "missing", None)
        if missing is not None and source is not None:
            for u, v in without:
                graph.edges[u, v][name] = missing * source.factor
            continue
        called = labels(graph)
        names = [f"'{called[u]}' to '{called[v]}'" for u, v in without[:_SHOWN]]
        more = f" and {len(without) - _SHOWN} more" if len(without) > _SHOWN else ""
        attribute = name if source is None or source.attribute is None else source.attribute
        what = "position of both ends" if source is not None and source.from_positions else attribute
        give = {"latency": "latency: {..., missing: MS}", "bandwidth": "bandwidth: {..., missing: MBPS}"}.get(key)
        if source is None and give is not None:
            unit = "ms" if key == "latency" else "mbps"
            give = f"{key}: {{attribute: {name}, unit: {unit}, missing: NUMBER}}"
        elif give is not None:
            give = f"missing: NUMBER in {key}, for edges without"
        way = "allowed: on every edge or on none" + (f", or: {give}" if give else "")
        raise InputError(
            f"{len(without)} of {graph.number_of_edges()} edges have no {what}: {', '.join(names)}{more}; {way}",
            key=key,
        )


def _unused(edges: list[Edge], how: Cleaning) -> list[str]:
    """A remark that names the edge attributes that nothing uses, with the key that would."""
    sources = {"latency": how.latency, "bandwidth": how.bandwidth, "weight": how.weight}
    used = {s.attribute for s in sources.values() if s is not None} | set(VALUES) | {"key", "id", "Id"}
    used |= set() if how.spells is None else how.spells.used
    found: dict[str, Any] = {}
    for _, _, data, _ in edges:
        for name, value in data.items():
            found.setdefault(str(name), value)
    left = [f"{name}{_meant(name, value, sources, found)}" for name, value in found.items() if name not in used]
    return [f"edge attributes that nothing uses: {', '.join(left)}{hint(found, how.spells)}"] if left else []


_LIKE = (
    ("latency", r"laten|delay|rtt|ping", "latency: {{attribute: {}, unit: ms}}"),
    ("bandwidth", r"bandw|capaci|speed|rate|throughput", "bandwidth: {{attribute: {}, unit: bps}}"),
    ("weight", r"weight", "weights: file, weight: {{attribute: {}}}"),
)


def _meant(name: str, value: Any, sources: dict[str, Any], there: dict[str, Any]) -> str:
    for key, pattern, form in _LIKE:
        ours = next(n for n in VALUES if n.startswith(key) or (key == "weight" and n == "mixing_weight"))
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        if sources[key] is None and ours not in there and numeric and re.search(pattern, name.lower()):
            return f" (did you mean {form.format(name)}?)"
    return nearest(name, [n for n in VALUES[:2] if n not in there])


def _no_clock(graph: nx.Graph[Any], unused: list[str]) -> list[str]:
    """A graph that could give a run's clock something and does not says so."""
    placed = sum("latitude" in data and "longitude" in data for _, data in graph.nodes(data=True))
    timed = any(name in data for *_, data in graph.edges(data=True) for name in VALUES[:2])
    if timed or not (placed or unused):
        return []
    way = f"; {placed} of {len(graph)} nodes have positions (did you mean latency: {{from: positions}}?)"
    said = "no edge has a latency or a bandwidth: messages take no time, a round takes 1 s or what system says"
    return [said + (way if placed else "")]
