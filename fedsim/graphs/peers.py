"""Peers at random: in every round nodes meet others that they draw anew, in pairs or by pulling.

``symmetric: true``: a random matching; each of its pairs meets with probability `peers`, and both take the mean of the
two. ``symmetric: false`` is what the code of "On the Surprising Effectiveness of a Single Global Merging" (Zhu et al.,
arXiv 2507.06542) does: every node pulls the models of floor(peers) others, and of one more with the probability that is
left, and takes the plain mean of them and its own; whom it pulls from does not change. Rows of that matrix sum to 1 and
its columns do not, so that the mean of all models moves (it does not in expectation).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.core import rng
from fedsim.core.arrays import Bools, Floats, Ints
from fedsim.core.errors import InputError
from fedsim.core.libraries import nx, sparse
from fedsim.core.registry import register
from fedsim.core.types import Positive
from fedsim.graphs.generators import Fixed, simple_graph
from fedsim.graphs.mixing_matrix import BaseMixing


@register.graph("random_peers")
@dataclass(frozen=True, kw_only=True)
class RandomPeers(Fixed):
    """Everybody may meet everybody, and meets about `peers` others in a round; drawn anew in every round.

    Source: pulls are those of the code of arXiv 2507.06542.

    Parameters
    ----------
    peers : probability of a node's pair to meet (``symmetric: true``, at most 1), or how many others a node pulls from
        on average.
    symmetric : random pairs that average, or pulls of which only one side changes.
    """

    peers: Positive = 1.0
    symmetric: bool = True

    def __post_init__(self) -> None:
        if self.symmetric and self.peers > 1:
            message = f"found {self.peers:g}, allowed: at most 1 (symmetric: false pulls from more)"
            raise InputError(message, key="peers")

    def edges(self, n: int) -> float:
        return n * (n - 1) / (2 if self.symmetric else 1)

    def draw(self, n: int) -> nx.Graph[Any]:
        if self.peers > n - 1:
            raise InputError(f"found {self.peers:g} for {n} nodes, allowed: at most {n - 1}", key="peers")
        if self.symmetric:
            return simple_graph(n, ((i, j) for i in range(n) for j in range(i + 1, n)), layout="circular")
        graph: nx.Graph[Any] = nx.DiGraph(layout="circular")
        graph.add_nodes_from(range(n))
        graph.add_edges_from((i, j) for i in range(n) for j in range(n) if i != j)
        return graph

    def mixing(self, n: int) -> BaseMixing:
        return RandomPairs(n, self.peers) if self.symmetric else RandomPulls(n, self.peers)


class RandomPairs(BaseMixing):
    """A random matching in every round; `matrix` is what a round's matrix is on average."""

    redrawn = True

    def __init__(self, n: int, peers: float) -> None:
        self.peers = peers
        self.share = peers * (n // 2) / (n * (n - 1) / 2)  # two nodes are a pair of the matching, and meet
        super().__init__(_equal(n, self.share / 2), directed=False)

    @property
    def pair_weights(self) -> Floats:
        """Those who meet take the mean of the two."""
        return np.full(len(self.links), 0.5)

    @property
    def hears(self) -> Ints:
        return np.ones(self.n, dtype=np.int64)

    def fires(self, chance: Floats, seed: int, number: int) -> Bools:
        n = self.n
        order = np.argsort(rng.uniform(rng.key(seed, "peers", np.arange(n), number)), kind="stable")
        pairs = np.sort(order[: n // 2 * 2].reshape(-1, 2), axis=1)
        i, j = pairs.T
        links = i * n - i * (i + 1) // 2 + j - i - 1
        fired = np.zeros(len(self.links), dtype=bool)
        meets = rng.uniform(rng.key(seed, "link", i, j, number)) < self.peers * chance[links]
        fired[links[meets]] = True
        return fired

    def realised(self, fired: Bools) -> sparse.csr_array:
        """Pairs average, the others keep what they have."""
        i, j = self.links[fired].T
        kept = np.ones(self.n)
        kept[i] = kept[j] = 0.5
        half = np.full(len(i), 0.5)
        rows, columns = np.concatenate([np.arange(self.n), i, j]), np.concatenate([np.arange(self.n), j, i])
        return _sorted(np.concatenate([kept, half, half]), rows, columns, self.n)


class RandomPulls(BaseMixing):
    """Every node takes the mean of its own model and of some others'; `matrix` is a round's on average."""

    redrawn, moves_mean = True, True

    def __init__(self, n: int, peers: float) -> None:
        self.peers = peers
        low, more = math.floor(peers), peers - math.floor(peers)
        share = sum(p * k / (n - 1) / (k + 1) for k, p in ((low, 1 - more), (low + 1, more)) if p > 0)
        super().__init__(_equal(n, share), directed=True)

    @property
    def hears(self) -> Ints:
        return np.full(self.n, math.floor(self.peers), dtype=np.int64)

    def fires(self, chance: Floats, seed: int, number: int) -> Bools:
        n, low = self.n, math.floor(self.peers)
        nodes = np.arange(n)
        wanted = low + (rng.uniform(rng.key(seed, "pulls", nodes, number)) < self.peers - low)
        draws = rng.uniform(rng.key(seed, "peers", nodes[:, None], nodes[None, :], number))  # [who pulls, from whom]
        draws[nodes, nodes] = np.inf
        place = np.argsort(np.argsort(draws, axis=1, kind="stable"), axis=1, kind="stable")
        source, target = self.links.T
        open_ = rng.uniform(rng.key(seed, "link", source, target, number)) < chance
        return np.asarray((place[target, source] < wanted[target]) & open_)

    def realised(self, fired: Bools) -> sparse.csr_array:
        """Plain means of a node's own model and those it pulls."""
        source, target = self.links[fired].T
        weight = 1.0 / (1 + np.bincount(target, minlength=self.n))
        rows, columns = np.concatenate([np.arange(self.n), target]), np.concatenate([np.arange(self.n), source])
        return _sorted(weight[rows], rows, columns, self.n)


def _equal(n: int, share: float) -> sparse.csr_array:
    """Every other node's model with weight `share`."""
    matrix = np.full((n, n), share)
    np.fill_diagonal(matrix, 1.0 - share * (n - 1))
    return sparse.csr_array(matrix)


def _sorted(data: Floats, rows: Any, columns: Any, n: int) -> sparse.csr_array:
    matrix = sparse.csr_array((data, (rows, columns)), shape=(n, n))
    matrix.sort_indices()
    return matrix
