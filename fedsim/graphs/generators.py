"""The kinds of graphs a scenario can name, each a generator for any number of nodes that fits it; random ones beside.

Registered under their names in ``topology: {graph: NAME, ...}``. Graphs are networkx graphs on ``0 .. n-1``; the graph
attribute ``layout`` and the node attributes ``x``, ``y`` say how to draw them. Random graphs are drawn until connected.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from dataclasses import fields as fields_of
from typing import Any

import numpy as np

from fedsim.core import rng
from fedsim.core.errors import InputError
from fedsim.core.libraries import nx
from fedsim.core.registry import register
from fedsim.core.types import Count
from fedsim.graphs.base import Graph as Graph
from fedsim.graphs.cleaning import tidy
from fedsim.graphs.readers import check_size


@dataclass(frozen=True, kw_only=True)
class Generated(Graph):
    """A graph made for any number of nodes: data.clients, or its own key `nodes`."""

    nodes: Count | None = None
    _fewest = 2

    def build(self, n: int | None, seed: int) -> list[nx.Graph[Any]]:
        if n is not None and self.nodes is not None and n != self.nodes:
            raise InputError(
                f"found {self.nodes} nodes for {n} clients; allowed: the same number, or none", key="nodes"
            )
        size = self.nodes if n is None else n
        size = self.own_size() if size is None else size
        if size is None:
            raise InputError("the number of nodes is not known; allowed: a whole number", key="nodes")
        if size < self._fewest:
            raise InputError(f"found {size} node(s), allowed: at least {self._fewest}", key="nodes")
        check_size(size, self.edges(size), key="graph")
        return self.draws(size, seed)

    def own_size(self) -> int | None:
        """The number of nodes other fields imply, if they do."""
        return None

    def edges(self, n: int) -> float:
        """About how many edges the graph on `n` nodes has, told before it is made."""
        return float(n)

    @abstractmethod
    def draws(self, n: int, seed: int) -> list[nx.Graph[Any]]:
        """The graphs on `n` nodes; `seed` is for random ones."""


@dataclass(frozen=True, kw_only=True)
class Fixed(Generated):
    """One graph, the same for every seed."""

    def draws(self, n: int, seed: int) -> list[nx.Graph[Any]]:
        return [tidy(self.draw(n))]

    @abstractmethod
    def draw(self, n: int) -> nx.Graph[Any]:
        """The graph on `n` nodes."""


@dataclass(frozen=True, kw_only=True)
class Random(Generated):
    """Drawn until connected; with `redraws` several independent graphs take turns, `every` rounds each."""

    redraws: Count = 1
    every: Count = 1

    def draws(self, n: int, seed: int) -> list[nx.Graph[Any]]:
        attempts = max(20, min(1000, 2_000_000 // n))  # a thousand draws of a huge graph would look like a hang
        return [self._connected(n, seed, index, attempts) for index in range(self.redraws)]

    def _connected(self, n: int, seed: int, index: int, attempts: int) -> nx.Graph[Any]:
        for attempt in range(attempts):
            graph = self.draw(n, rng.generator(seed, "topology", index, attempt))
            if nx.is_connected(graph) and self.accept(graph):
                return tidy(graph)
        values = ", ".join(f"{f.name} = {getattr(self, f.name)}" for f in self.own_fields())
        message = f"no connected graph on {n} nodes in {attempts} draws with {values}; {self.remedy(n)}"
        raise InputError(message, key=self.own_fields()[0].name)

    def own_fields(self) -> list[Any]:
        return [f for f in fields_of(self) if f.name not in ("nodes", "redraws", "every")]

    @abstractmethod
    def draw(self, n: int, random: np.random.Generator) -> nx.Graph[Any]:
        """One random graph on `n` nodes, connected or not."""

    def accept(self, graph: nx.Graph[Any]) -> bool:
        """Whether a connected draw is good enough."""
        return True

    def remedy(self, n: int) -> str:
        return "a larger value makes connected graphs likelier"


@register.graph("ring")
@dataclass(frozen=True, kw_only=True)
class Ring(Fixed):
    """i - i+1 mod n (two nodes: one edge)."""

    def draw(self, n: int) -> nx.Graph[Any]:
        return simple_graph(n, ((i, (i + 1) % n) for i in range(n if n > 2 else 1)), layout="circular")


@register.graph("path")
@dataclass(frozen=True, kw_only=True)
class Path(Fixed):
    """A ring with one edge cut: the slowest connected graph."""

    def draw(self, n: int) -> nx.Graph[Any]:
        return simple_graph(n, ((i, i + 1) for i in range(n - 1)))


@register.graph("star")
@dataclass(frozen=True, kw_only=True)
class Star(Fixed):
    """Node 0 with everybody."""

    def draw(self, n: int) -> nx.Graph[Any]:
        return simple_graph(n, ((0, i) for i in range(1, n)))


@register.graph("complete")
@dataclass(frozen=True, kw_only=True)
class Complete(Fixed):
    """Everybody with everybody; the only graph that may have a single node."""

    _fewest = 1

    def edges(self, n: int) -> float:
        return n * (n - 1) / 2

    def draw(self, n: int) -> nx.Graph[Any]:
        return simple_graph(n, ((i, j) for i in range(n) for j in range(i + 1, n)), layout="circular")


@dataclass(frozen=True, kw_only=True)
class _Rectangle(Fixed):
    rows: Count | None = None
    cols: Count | None = None
    _thinnest = 1

    def own_size(self) -> int | None:
        return self.rows * self.cols if self.rows and self.cols else None

    def shape(self, n: int) -> tuple[int, int]:
        """Rows and columns: as given, or the most square factorisation of n."""
        rows, cols = self.rows, self.cols
        if rows is None and cols is None:
            rows = max(r for r in range(1, math.isqrt(n) + 1) if n % r == 0)
            if rows == 1:
                raise InputError(
                    f"{n} nodes make no grid, {n} is prime; allowed: a product, or graph: path", key="nodes"
                )
        rows = rows or n // (cols or 1)
        cols = cols or n // rows
        if rows * cols != n:
            raise InputError(f"{rows} rows x {cols} columns are not {n} nodes", key="cols" if self.cols else "rows")
        if min(rows, cols) < self._thinnest:
            least = self._thinnest
            raise InputError(f"found {rows} rows x {cols} columns, allowed: at least {least} x {least}", key="rows")
        return rows, cols


@register.graph("grid")
@dataclass(frozen=True, kw_only=True)
class Grid(_Rectangle):
    """`rows` x `cols`, each node with the one above, below, left and right; default the most square factorisation."""

    def edges(self, n: int) -> float:
        return 2.0 * n

    def draw(self, n: int) -> nx.Graph[Any]:
        rows, cols = self.shape(n)
        right = ((i, i + 1) for i in range(n) if (i + 1) % cols)
        down = ((i, i + cols) for i in range(n - cols))
        return _lattice(simple_graph(n, [*right, *down]), rows, cols)


@register.graph("torus")
@dataclass(frozen=True, kw_only=True)
class Torus(_Rectangle):
    """A grid whose opposite sides are joined: every node has degree 4; both sides at least 3."""

    _thinnest = 3

    def edges(self, n: int) -> float:
        return 2.0 * n

    def draw(self, n: int) -> nx.Graph[Any]:
        rows, cols = self.shape(n)
        right = ((i, i - i % cols + (i + 1) % cols) for i in range(n))
        down = ((i, (i + cols) % n) for i in range(n))
        return _lattice(simple_graph(n, [*right, *down], layout="torus"), rows, cols)


@register.graph("hypercube")
@dataclass(frozen=True, kw_only=True)
class Hypercube(Fixed):
    """Nodes whose numbers differ in one bit; n is a power of two."""

    def edges(self, n: int) -> float:
        return n * math.log2(n) / 2

    def draw(self, n: int) -> nx.Graph[Any]:
        dimension = _log2(n, "hypercube")
        return simple_graph(n, ((i, i ^ (1 << k)) for i in range(n) for k in range(dimension) if not i >> k & 1))


@register.graph("tree")
@dataclass(frozen=True, kw_only=True)
class Tree(Fixed):
    """The full tree where every node has `branching` children (the last level may be incomplete); root 0."""

    branching: Count = 2

    def draw(self, n: int) -> nx.Graph[Any]:
        return simple_graph(n, (((i - 1) // self.branching, i) for i in range(1, n)))


@register.graph("exponential")
@dataclass(frozen=True, kw_only=True)
class Exponential(Fixed):
    """Directed, i -> i + 2^k mod n for every 2^k < n (Ying et al. 2021, arXiv 2110.13363); uniform weights fit it."""

    def edges(self, n: int) -> float:
        return n * math.log2(n)

    def draw(self, n: int) -> nx.Graph[Any]:
        hops = range((n - 1).bit_length())
        return simple_graph(
            n, ((i, (i + (1 << k)) % n) for i in range(n) for k in hops), directed=True, layout="circular"
        )


@register.graph("one_peer_exponential")
@dataclass(frozen=True, kw_only=True)
class OnePeerExponential(Generated):
    """The sequence i -> i + 2^(k mod p), n = 2^p: uniform weights average exactly in p rounds (arXiv 2110.13363)."""

    every: Count = 1

    def edges(self, n: int) -> float:
        return n * math.log2(n)

    def draws(self, n: int, seed: int) -> list[nx.Graph[Any]]:
        hops = [1 << k for k in range(_log2(n, "one_peer_exponential"))]
        return [tidy(simple_graph(n, ((i, (i + h) % n) for i in range(n)), True, "circular")) for h in hops]


def simple_graph(n: int, edges: Iterable[Any], directed: bool = False, layout: str | None = None) -> nx.Graph[Any]:
    graph: nx.Graph[Any] = nx.DiGraph() if directed else nx.Graph()
    graph.add_nodes_from(range(n))
    graph.add_edges_from(edges)
    if layout:
        graph.graph["layout"] = layout
    return graph


def _lattice(graph: nx.Graph[Any], rows: int, cols: int) -> nx.Graph[Any]:
    for i in graph:
        graph.nodes[i].update(label=f"{i // cols},{i % cols}", x=float(i % cols), y=float(rows - 1 - i // cols))
    return graph


def _log2(n: int, name: str) -> int:
    if n < 2 or n & (n - 1):
        power = 1 << max(1, n.bit_length() - 1)
        message = f"graph {name} needs a power of two; found {n} nodes, the nearest allowed are {power} and {2 * power}"
        raise InputError(message, key="nodes")
    return n.bit_length() - 1
