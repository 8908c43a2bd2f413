"""Graph files that say when their links and nodes are there: contact lists, link streams, dynamic GEXF.

A spell is the field's word for a stretch of time in which an edge or a node is there, from `start` up to, but not
including, `end`. Here a file's times become whole instants of a run: numbers of rounds, or ticks of virtual time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from fedsim.core.arrays import Ints
from fedsim.core.clock import TICKS_PER_SECOND, exact
from fedsim.core.errors import InputError, Problem, nearest
from fedsim.core.libraries import nx
from fedsim.core.types import Positive
from fedsim.graphs.intervals import FOREVER, Intervals
from fedsim.graphs.readers import Attributes, Edge

SPELLS = "spells"
"""The attribute in which GEXF has several spells of an edge or a node, and the graph attribute that keeps `Times`."""

_NAMES = frozenset({"id", "Id", "key"})
"""Attributes that name an edge: they may differ between the spells of one link."""

Show = Any


class Spells(BaseModel):
    """``{unit: rounds}``: edges and nodes are there from their attribute `start` up to, not including, `end`.

    Parameters
    ----------
    unit : what the attributes count: ``rounds`` (1 is the first), or ``s``, virtual seconds (the run begins at 0).
    start, end : what the attributes are called. An edge or a node without a start is there from the beginning, one
        without an end up to the last round, and one with neither always.
    duration : how long each spell lasts, where the file says the start alone.
    origin, scale : a file's time t is ``(t - origin) * scale`` of the run.
    join : what a node has that comes back or comes late: its ``last`` model (before its first round the initial one),
        or the ``average`` of what its neighbours send in its first round, in which it does not compute.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    unit: Literal["rounds", "s"] = Field(description="of the file's times")
    start: str = "start"
    end: str | None = None
    duration: Positive | None = None
    origin: float = Field(0.0, allow_inf_nan=False)
    scale: Positive = 1.0
    join: Literal["last", "average"] = "last"

    @model_validator(mode="after")
    def _one_end(self) -> Spells:
        if self.end is not None and self.duration is not None:
            raise ValueError("found end and duration, allowed: one of the two")
        return self

    @model_serializer
    def _given(self) -> dict[str, Any]:
        """The keys as they are written, without those that are unset or as usual."""
        usual = {name: info.default for name, info in type(self).model_fields.items()}
        return {k: v for k, v in ((k, getattr(self, k)) for k in usual) if v is not None and v != usual[k]}

    @property
    def stop(self) -> str | None:
        """The attribute with the end."""
        return None if self.duration is not None else self.end or "end"

    @property
    def used(self) -> set[str]:
        """The attributes that are read."""
        return {self.start, SPELLS} | ({self.stop} if self.stop else set())

    def check(self, items: Iterable[Mapping[str, Any]]) -> None:
        """Raise InputError where attributes that keys name are on none of the edges and nodes."""
        there = {str(name) for data in items for name in data}
        named = {"start": self.start} if "start" in self.model_fields_set or self.duration is not None else {}
        named |= {} if self.end is None else {"end": self.end}
        for key, name in named.items():
            if name not in there:
                self._none(name, key, there)
        if not there & self.used:
            self._none(self.start, "start", there)

    def _none(self, name: str, key: str, there: set[str]) -> None:
        found = f"no edge or node has the attribute '{name}'{nearest(name, sorted(there))}"
        raise InputError(f"{found}; found: {', '.join(sorted(there)) or 'none'}", key=f"spells.{key}")

    def sifted(self, edges: list[Edge], show: Show, merge: bool) -> tuple[list[Edge], Written]:
        """Every link once, without the attributes of its spells, and all its spells.

        Raises
        ------
        InputError
            A time is no number or negative, a spell ends before it starts, two of a link overlap (unless `merge`), or
            the spells of a link differ in something else. The problem has the line of a text file.
        """
        places: dict[tuple[Any, Any], int] = {}
        kept: list[Edge] = []
        written, used = Written(self, True, merge), self.used
        for u, v, data, line in edges:
            k = places.get((u, v))
            if k is None:
                k = places.get((v, u))
            rest = {name: value for name, value in data.items() if name not in used}
            if k is None:
                k = places[u, v] = len(kept)
                kept.append((u, v, rest, line))
            elif rest != kept[k][2]:
                _same(rest, kept[k][2], lambda: f"edge {show.edge(u, v)}", line)  # noqa: B023 - called at once
            written.add(k, data, line)
        written.check(lambda k: f"edge {show.edge(*kept[k][:2])}")
        return kept, written

    def of_nodes(self, nodes: Mapping[Any, Attributes], show: Show) -> Written:
        """The spells of the nodes."""
        written, names = Written(self, False), list(nodes)
        for k, data in enumerate(nodes.values()):
            written.add(k, data, None, silent=True)
        written.check(lambda k: f"node {show(names[k])}")
        return written


def _same(found: Attributes, before: Attributes, who: Any, line: int | None) -> None:
    """Raise InputError where two spells of a link differ in more than their times and names."""
    for name in {**found, **before}:
        if name not in _NAMES and found.get(name) != before.get(name):
            message = f"{who()}: found {name} {found.get(name)!r} and {before.get(name)!r} in two of its spells"
            raise InputError([Problem(f"{message}, allowed: the same in all", None, None, line)])


@dataclass
class Written:
    """Spells as a file has them: item, start and end (nan: none), and the line of each."""

    how: Spells
    of_links: bool
    merge: bool = False
    items: list[int] = field(default_factory=list)
    starts: list[Any] = field(default_factory=list)
    ends: list[Any] = field(default_factory=list)
    lines: list[int | None] = field(default_factory=list)

    def add(self, item: int, data: Mapping[str, Any], line: int | None, silent: bool = False) -> None:
        """A spell of `item`; `silent`: one without times is always there and needs no interval."""
        how = self.how
        spells = data.get(SPELLS)
        if not isinstance(spells, list) or not spells:
            start, end = data.get(how.start), None if how.stop is None else data.get(how.stop)
            if silent and start is None and end is None:
                return
            spells = [(start, end)]
        for start, end in spells:
            if how.duration is not None and start is not None and end is None:
                end = _Later(start, how.duration)
            self.items.append(item)
            self.starts.append(start)
            self.ends.append(end)
            self.lines.append(line)

    def check(self, who: Any) -> None:
        """Make times whole instants; raise InputError on the first spell that is none, or that overlaps another."""
        usual = self.how.origin == 0.0
        first = [self._number(value, k, who, usual, "start") for k, value in enumerate(self.starts)]
        last = [self._number(value, k, who, usual, "end") for k, value in enumerate(self.ends)]
        starts, ends = np.array(first, dtype=np.float64), np.array(last, dtype=np.float64)
        wrong = np.flatnonzero(ends <= starts)
        if len(wrong):
            k = int(wrong[0])
            message = f"found a spell from {starts[k]:g} to {ends[k]:g}, allowed: an end after its start"
            raise InputError([Problem(f"{who(self.items[k])}: {message}", None, None, self.lines[k])])
        self._items = np.array(self.items, dtype=np.int64)
        self._starts, self._ends = self._instants(starts, 0), self._instants(ends, FOREVER)
        starts, ends = np.where(np.isnan(starts), -np.inf, starts), np.where(np.isnan(ends), np.inf, ends)
        order = np.lexsort((starts, self._items))
        items, starts, ends = self._items[order], starts[order], ends[order]
        over = np.flatnonzero((items[1:] == items[:-1]) & (starts[1:] < ends[:-1]))
        if len(over) and not self.merge:
            k, j = int(over[0]), int(max(order[over[0]], order[over[0] + 1]))
            start = "the beginning" if np.isinf(starts[k + 1]) else f"{starts[k + 1]:g}"
            end = "the end" if np.isinf(ends[k]) else f"{ends[k]:g}"
            message = f"{who(self.items[j])}: found two spells that overlap, one from {start} and one up to {end}"
            way = ", or: parallel_edges: merge" if self.of_links else ""
            problem = Problem(f"{message}; allowed: one after the other{way}", None, None, self.lines[j])
            raise InputError([problem])

    def _number(self, value: Any, k: int, who: Any, usual: bool, what: str) -> float:
        if value is None:
            return math.nan
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if math.isfinite(number) and not (usual and number < 0):
            return number
        allowed = "a finite number" + (" >= 0 (origin moves file times)" if usual and number < 0 else "")
        message = f"{who(self.items[k])}: found {what} {value!r}, allowed: {allowed}"
        raise InputError([Problem(message, None, None, self.lines[k])])

    def _instants(self, times: Any, missing: int) -> Ints:
        """The first whole instant at or after each time of the file; those before the run's beginning are 0."""
        values, where = np.unique(times[~np.isnan(times)], return_inverse=True)
        how, unit = self.how, 1 if self.how.unit == "rounds" else TICKS_PER_SECOND
        origin, factor = exact(how.origin), exact(how.scale) * unit
        whole = [_bounded(math.ceil((_exact(v) - origin) * factor)) for v in values.tolist()]
        result = np.full(len(times), missing, dtype=np.int64)
        result[~np.isnan(times)] = np.array(whole, dtype=np.int64)[where] if len(whole) else 0
        return result

    def intervals(self, count: int, places: Mapping[int, int]) -> tuple[Intervals, int]:
        """Of the items that are left, item k as number ``places[k]`` of `count`; and how many spells fall between two
        instants, so that they are never met."""
        rows: dict[int, list[tuple[int, int]]] = {}
        short = 0
        for item, start, end in zip(self._items.tolist(), self._starts.tolist(), self._ends.tolist(), strict=True):
            place = places.get(item)
            if place is not None:
                short += end <= start
                rows.setdefault(place, []).append((start, end))
        spans = []
        for place, found in rows.items():
            joined = _joined(found)
            if joined != [(0, FOREVER)]:
                spans += [(place, a, b) for a, b in joined]
        return Intervals.of(count, spans), short


class _Later:
    """The end of a spell of which the start and the duration are known."""

    def __init__(self, start: Any, duration: float) -> None:
        self.start, self.duration = start, duration

    def __float__(self) -> float:
        return float(exact(float(self.start)) + exact(self.duration))

    def __repr__(self) -> str:
        return f"{self.start!r} + {self.duration:g}"


def _exact(value: float) -> Fraction | int:
    return int(value) if value.is_integer() else exact(value)


def _bounded(value: int) -> int:
    return min(max(value, 0), FOREVER)


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ascending intervals with no gap of width 0 between them; one that is empty where all are."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if end <= start:
            continue
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((start, end))
    return found or [(0, 0)]


@dataclass(frozen=True)
class Times:
    """When the links (i < j, sorted) and the nodes of a graph are there."""

    how: Spells
    links: Intervals
    nodes: Intervals


def timed(
    how: Spells, edges: list[Edge], nodes: Mapping[Any, Attributes], show: Show, cleaning: Any, directed: bool
) -> tuple[list[Edge], Sifted]:
    """Every link of a file once, and when it and the nodes are there.

    Raises
    ------
    InputError
        The graph is directed, the keys do not fit the file, or a spell is wrong.
    """
    if directed:
        found = "found spells in a directed graph: while a link is away the mixing matrix's columns do not sum to 1"
        raise InputError(f"{found}; allowed: an undirected graph (directed: false reads a file so)", key="spells")
    how.check(chain((data for _, _, data, _ in edges), nodes.values()))
    kept, links = how.sifted(edges, show, cleaning.parallel_edges == "merge")
    return kept, Sifted(how, [(u, v) for u, v, _, _ in kept], links, how.of_nodes(nodes, show), list(nodes))


@dataclass(frozen=True)
class Sifted:
    """The spells of a file.

    Attributes
    ----------
    ends, names : the file's names of each link's ends and of each node, by the numbers under which `links` and `nodes`
        have them.
    """

    how: Spells
    ends: list[tuple[Any, Any]]
    links: Written
    nodes: Written
    names: list[Any]

    def of(self, graph: nx.Graph[Any], order: Mapping[Any, int]) -> tuple[Times, list[str]]:
        """The times of the graph that is left, whose nodes have numbers by `order`, and remarks on spells that can
        never be met."""
        n = len(order)
        keys = sorted(min(u, v) * n + max(u, v) for u, v in graph.edges())
        number = {key: k for k, key in enumerate(keys)}
        places = {}
        for k, (u, v) in enumerate(self.ends):
            if u in order and v in order:
                i, j = sorted((order[u], order[v]))
                places[k] = number[i * n + j]
        links, short_links = self.links.intervals(len(keys), places)
        nodes, short_nodes = self.nodes.intervals(n, {k: order[a] for k, a in enumerate(self.names) if a in order})
        between = "rounds" if self.how.unit == "rounds" else "ticks"
        said = [
            f"spells: {count} of {what} begin and end between two {between}, and are never met"
            for count, what in ((short_links, "links"), (short_nodes, "nodes"))
            if count
        ]
        return Times(self.how, links, nodes), said


def hint(found: Iterable[str], how: Spells | None) -> str:
    """What to say where a file has times that nobody asked for."""
    names = set(found)
    seen = how is None and (SPELLS in names or {"start", "end"} <= names)
    return " (did you mean spells: {unit: rounds}, or unit: s?)" if seen else ""
