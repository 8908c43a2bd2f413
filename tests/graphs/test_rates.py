"""chi_1 and chi_2 of links that fire at rates, against the Laplacian's pseudoinverse and closed forms."""

from __future__ import annotations

import math

import networkx as nx
import numpy as np
import pytest

from fedsim.core.errors import InputError
from fedsim.graphs.mixing import chi_1, chi_2
from fedsim.graphs.rates import chi, laplacian


def links_of(graph: nx.Graph[int]) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    return np.unique(np.sort(np.array(list(graph.edges()), dtype=np.int64), axis=1), axis=0)


@pytest.mark.parametrize("seed", range(4))
def test_they_are_of_the_weighted_laplacian(seed: int) -> None:
    graph = nx.gnp_random_graph(9, 0.5, seed=seed)
    assert nx.is_connected(graph)
    links, rates = links_of(graph), np.random.default_rng(seed).uniform(0.2, 5.0, graph.number_of_edges())
    L = np.zeros((9, 9))
    for (i, j), r in zip(links, rates, strict=True):
        e = np.eye(9)[i] - np.eye(9)[j]
        L += r * np.outer(e, e)
    assert np.abs(laplacian(9, links, rates).toarray() - L).max() < 1e-12
    pseudo = np.linalg.pinv(L)
    expected = (
        1 / np.linalg.eigvalsh(L)[1],
        max(pseudo[i, i] + pseudo[j, j] - 2 * pseudo[i, j] for i, j in links) / 2,
    )
    assert chi(9, links, rates) == pytest.approx(expected, rel=1e-10)
    assert (chi_1(graph, rates), chi_2(graph, rates)) == pytest.approx(expected, rel=1e-10)
    assert chi(9, links, rates)[1] <= chi(9, links, rates)[0]


def test_a_star_by_hand() -> None:
    """Rates 1, 2, 4 of a star's links: every link is a bridge, and the slowest decides chi_2."""
    links = links_of(nx.star_graph(3))
    assert chi(4, links, np.array([1.0, 2.0, 4.0])) == pytest.approx((0.831586, 0.5), abs=1e-6)


@pytest.mark.parametrize("n,rate", [(4, 0.612372), (8, 1.222178), (16, 2.481532)])
def test_equal_rates_divide_the_graphs_own(n: int, rate: float) -> None:
    links = links_of(nx.cycle_graph(n))
    first, second = chi(n, links, np.full(n, 2.5))
    assert (2.5 * first, 2.5 * second) == pytest.approx((chi_1(nx.cycle_graph(n)), chi_2(nx.cycle_graph(n))))
    assert math.sqrt(2 * 2.5 * first * 2.5 * second) == pytest.approx(rate, abs=1e-6)


def test_links_that_never_fire_are_not_there() -> None:
    ring, path = links_of(nx.cycle_graph(5)), links_of(nx.path_graph(5))
    rates = np.array([0.0 if tuple(e) == (0, 4) else 3.0 for e in ring.tolist()])
    assert chi(5, ring, rates) == pytest.approx(chi(5, path, np.full(4, 3.0)))
    with pytest.raises(InputError, match="leave 2 groups of nodes apart"):
        chi(5, path, np.array([1.0, 0.0, 1.0, 1.0]))
