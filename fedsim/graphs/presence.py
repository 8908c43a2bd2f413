"""A graph whose links and nodes come and go: who is there at an instant, and how those mix.

An instant is the number of a round, or a tick of virtual time. Sources: Nedic & Olshevsky, "Distributed optimization
over time-varying directed graphs" (arXiv 1303.2289) for joint connectivity; Nedic, Olshevsky & Shi (arXiv 1607.03218)
for Metropolis weights of the links of a round.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedsim.core.arrays import Bools, Ints
from fedsim.core.libraries import nx, sparse
from fedsim.graphs.intervals import FOREVER, Intervals
from fedsim.graphs.spells import Spells, Times


@dataclass(frozen=True)
class There:
    """Who is there: `links` ``[E]`` and `nodes` ``[n]``."""

    links: Bools
    nodes: Bools

    @property
    def everybody(self) -> bool:
        """Whether no node is away."""
        return bool(self.nodes.all())

    @property
    def counts(self) -> dict[str, int]:
        """How many nodes and links there are, under the names of their columns."""
        return {"nodes_there": int(self.nodes.sum()), "links_there": int(self.links.sum())}


@dataclass(frozen=True)
class Presence:
    """When the links ``[E, 2]`` (i < j, sorted) and the nodes of a graph are there.

    A link is there where its spell has begun and both its ends are there.
    """

    how: Spells
    ends: Ints
    links: Intervals
    nodes: Intervals
    graph: nx.Graph[Any] = field(repr=False)

    @classmethod
    def of(cls, graph: nx.Graph[Any], times: Times) -> Presence:
        """What a graph file says of `graph`."""
        ends = np.array(sorted((min(u, v), max(u, v)) for u, v in graph.edges()), dtype=np.int64).reshape(-1, 2)
        return cls(times.how, ends, times.links.within(times.nodes, ends), times.nodes, graph)

    @property
    def by_rounds(self) -> bool:
        """Whether instants are numbers of rounds, else ticks of virtual time."""
        return self.how.unit == "rounds"

    def at(self, instant: int) -> There:
        """Who is there at `instant`."""
        return There(self.links.at(instant), self.nodes.at(instant))

    def subgraph(self, links: Bools) -> nx.Graph[Any]:
        """The graph of some of the links, on all nodes, with the attributes of the whole one."""
        found: nx.Graph[Any] = nx.Graph()
        found.add_nodes_from(self.graph.nodes(data=True))
        found.add_edges_from((i, j, self.graph.edges[i, j]) for i, j in self.ends[links].tolist())
        return found


def at_rounds(found: Intervals, begins: Ints) -> Intervals:
    """By numbers of rounds (from 1), of which round k has who is there when it begins, at ``begins[k - 1]``."""
    starts = np.searchsorted(begins, found.starts) + 1
    ends = np.where(found.ends >= FOREVER, FOREVER, np.searchsorted(begins, found.ends) + 1)
    return Intervals(found.count, found.items, starts, ends)


def in_windows(found: Intervals, edges: Ints) -> Intervals:
    """By numbers of windows (from 1), of which window k has who is there at some instant from ``edges[k - 1]`` up to,
    not including, ``edges[k]``."""
    starts = np.searchsorted(edges, found.starts, side="right")
    ends = np.where(found.ends >= FOREVER, FOREVER, np.searchsorted(edges, found.ends, side="left") + 1)
    return Intervals(found.count, found.items, starts, np.where(found.ends > found.starts, ends, starts))


def mean_there(found: Intervals, first: int, last: int) -> float:
    """How many items are there on average at the instants `first` to `last`."""
    moving = len(np.unique(found.items))
    lengths = np.minimum(found.ends, last + 1) - np.maximum(found.starts, first)
    return found.count - moving + float(np.maximum(lengths, 0).sum()) / (last - first + 1)


def extremes(found: Intervals, first: int, last: int) -> tuple[int, int]:
    """The least and the largest number of items that are there at one of the instants `first` to `last`."""
    moving = len(np.unique(found.items))
    starts, ends = np.maximum(found.starts, first), np.minimum(found.ends, last + 1)
    counts = starts < ends
    changes = np.concatenate([starts[counts], ends[counts], [first]])
    steps = np.concatenate([np.ones(counts.sum()), -np.ones(counts.sum()), [0]])
    at, where = np.unique(changes, return_inverse=True)
    level = np.cumsum(np.bincount(where, steps, minlength=len(at)))[at <= last]
    return found.count - moving + int(level.min()), found.count - moving + int(level.max())


def never(found: Intervals, first: int, last: int) -> int:
    """How many items are there at none of the instants `first` to `last`."""
    met = found.items[(found.starts <= last) & (found.ends > first) & (found.ends > found.starts)]
    return len(np.unique(found.items)) - len(np.unique(met))


def joint_connectivity(ends: Ints, links: Intervals, n: int, rounds: int) -> int | None:
    """The smallest B such that the links of any B rounds in a row, of 1 to `rounds`, connect all `n` nodes; None where
    there is no such B.

    The links of the b rounds up to t connect all nodes where those that were last there after round t - b do: b_t
    follows from the spanning tree whose oldest link is as young as can be. B is then the smallest number that no b_t
    from round B on exceeds.
    """
    last = np.full(links.count, -1, dtype=np.int64)
    moving = np.zeros(links.count, dtype=bool)
    moving[links.items] = True
    needed = np.zeros(rounds + 1, dtype=np.int64)
    for t in range(1, rounds + 1):
        last[:] = -1
        last[~moving] = t
        seen = (links.starts <= t) & (links.ends > links.starts)
        np.maximum.at(last, links.items[seen], np.minimum(links.ends[seen] - 1, t))
        oldest = _bottleneck(ends, last, n)
        needed[t] = rounds + 1 if oldest is None or oldest < 1 else t - oldest + 1
    best, worst = None, 0
    for b in range(rounds, 0, -1):
        worst = max(worst, int(needed[b]))
        if worst <= b:
            best = b
    return best


def _bottleneck(ends: Ints, last: Ints, n: int) -> int | None:
    """Of all spanning trees of links with ``last >= 1`` the largest that the smallest `last` in one can be."""
    seen = last >= 1
    if n == 1:
        return int(last.max(initial=1))
    i, j = ends[seen].T
    age = (int(last.max(initial=0)) - last[seen] + 1).astype(np.float64)
    tree = sparse.csgraph.minimum_spanning_tree(sparse.csr_array((age, (i, j)), shape=(n, n)))
    if tree.nnz < n - 1:
        return None
    return int(last.max(initial=0)) + 1 - int(tree.data.max())
