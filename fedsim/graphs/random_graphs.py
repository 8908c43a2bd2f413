"""The random kinds of graphs: what `generators.Random` draws until it is connected."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.core.errors import InputError
from fedsim.core.libraries import nx
from fedsim.core.registry import register
from fedsim.core.types import Count, Fraction, Positive, Probability
from fedsim.graphs.generators import Random, simple_graph


@register.graph("k_regular")
@dataclass(frozen=True, kw_only=True)
class KRegular(Random):
    """A random graph where every node has `degree` neighbours."""

    degree: Count

    def edges(self, n: int) -> float:
        return n * self.degree / 2

    def draw(self, n: int, random: np.random.Generator) -> nx.Graph[Any]:
        if self.degree >= n or n * self.degree % 2:
            message = (
                f"no graph on {n} nodes has degree {self.degree} everywhere; allowed: below {n}, and n x degree even"
            )
            raise InputError(message, key="degree")
        graph: nx.Graph[Any] = nx.random_regular_graph(self.degree, n, seed=_seed(random))
        return graph

    def remedy(self, n: int) -> str:
        return "degree 3 or more is almost surely connected"


@register.graph("expander")
@dataclass(frozen=True, kw_only=True)
class Expander(KRegular):
    """A random regular graph with a nearly optimal gap: second eigenvalue at most ``2 sqrt(degree - 1) + slack``.

    Almost every random regular graph is that good (Friedman 2008, arXiv cs/0405020), so drawing until one is costs
    a few draws and works for any n, where Margulis' construction needs a square and gives loops and parallel edges.
    """

    degree: Count = 4
    slack: Positive = 0.2

    def draw(self, n: int, random: np.random.Generator) -> nx.Graph[Any]:
        if self.degree < 3:
            raise InputError(f"found degree {self.degree}, allowed: at least 3 (degree 2 is a ring)", key="degree")
        return super().draw(n, random)

    def accept(self, graph: nx.Graph[Any]) -> bool:
        from fedsim.graphs.mixing import adjacency, spectral_gap

        return (
            self.degree * (1 - spectral_gap(adjacency(graph) / self.degree))
            <= 2 * math.sqrt(self.degree - 1) + self.slack
        )

    def remedy(self, n: int) -> str:
        return "a larger slack would help"


@register.graph("erdos_renyi")
@dataclass(frozen=True, kw_only=True)
class ErdosRenyi(Random):
    """Every pair is an edge with probability `p`."""

    p: Fraction

    def edges(self, n: int) -> float:
        return self.p * n * (n - 1) / 2

    def draw(self, n: int, random: np.random.Generator) -> nx.Graph[Any]:
        graph: nx.Graph[Any] = nx.fast_gnp_random_graph(n, self.p, seed=_seed(random))
        return graph

    def remedy(self, n: int) -> str:
        return f"connected graphs are likely from p = log(n) / n = {min(1.0, math.log(n) / n):.3g}"


@register.graph("barabasi_albert")
@dataclass(frozen=True, kw_only=True)
class BarabasiAlbert(Random):
    """Preferential attachment: each new node brings `m` edges; a few hubs, many leaves."""

    m: Count

    def edges(self, n: int) -> float:
        return float(n * self.m)

    def draw(self, n: int, random: np.random.Generator) -> nx.Graph[Any]:
        if self.m >= n:
            raise InputError(f"found m = {self.m} for {n} nodes, allowed: 1 to {n - 1}", key="m")
        graph: nx.Graph[Any] = nx.barabasi_albert_graph(n, self.m, seed=_seed(random))
        return graph


@register.graph("watts_strogatz")
@dataclass(frozen=True, kw_only=True)
class WattsStrogatz(Random):
    """A small world: a ring where each node knows `k` (even) nearest, each edge rewired with probability `p`."""

    k: Count
    p: Probability

    def edges(self, n: int) -> float:
        return n * self.k / 2

    def draw(self, n: int, random: np.random.Generator) -> nx.Graph[Any]:
        if self.k >= n or self.k % 2:
            raise InputError(f"found k = {self.k} for {n} nodes, allowed: an even number below {n}", key="k")
        graph: nx.Graph[Any] = nx.watts_strogatz_graph(n, self.k, self.p, seed=_seed(random))
        graph.graph["layout"] = "circular"
        return graph

    def remedy(self, n: int) -> str:
        return "a larger k makes connected graphs likelier"


@register.graph("random_geometric")
@dataclass(frozen=True, kw_only=True)
class RandomGeometric(Random):
    """Nodes at random in the unit square, edges between those at most `radius` apart."""

    radius: Positive

    def edges(self, n: int) -> float:
        return min(1.0, math.pi * self.radius**2) * n * (n - 1) / 2

    def draw(self, n: int, random: np.random.Generator) -> nx.Graph[Any]:
        from scipy.spatial import cKDTree

        places = random.random((n, 2))
        graph = simple_graph(n, cKDTree(places).query_pairs(self.radius, output_type="ndarray").tolist())
        for i, (x, y) in enumerate(places.tolist()):
            graph.nodes[i].update(x=x, y=y)
        return graph

    def remedy(self, n: int) -> str:
        threshold = math.sqrt(math.log(n) / (math.pi * n))
        return f"connected graphs are likely from radius = sqrt(log n / (pi n)) = {threshold:.3g}"


@register.graph("random_tree")
@dataclass(frozen=True, kw_only=True)
class RandomTree(Random):
    """A tree drawn uniformly from all trees on n labelled nodes."""

    def draw(self, n: int, random: np.random.Generator) -> nx.Graph[Any]:
        graph: nx.Graph[Any] = nx.random_labeled_tree(n, seed=_seed(random))
        return graph


def _seed(random: np.random.Generator) -> int:
    """networkx mixes several generators; an integer is what all of them take, and what keeps draws reproducible."""
    return int(random.integers(2**31))
