"""Eigenvalues and distances of large graphs, against dense solvers and formulas."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from scipy import sparse
from scipy.sparse.csgraph import shortest_path

from fedsim.graphs import spectrum
from fedsim.graphs.facts import summary
from fedsim.graphs.mixing import adjacency, mixing_matrix, spectral_gap
from fedsim.graphs.topology import build_topology

N = 1600  # above what a dense solver does by itself, below what it takes long for

GRAPHS: dict[str, Any] = {
    "ring": nx.cycle_graph(N),
    "path": nx.path_graph(N),
    "star": nx.star_graph(N - 1),
    "tree": nx.random_labeled_tree(N, seed=0),
    "grid": nx.convert_node_labels_to_integers(nx.grid_2d_graph(32, 50)),
    "regular": nx.random_regular_graph(4, N, seed=0),
    "hubs": nx.barabasi_albert_graph(N, 2, seed=0),
    "small world": nx.connected_watts_strogatz_graph(N, 4, 0.01, seed=1),
    "barbell": nx.barbell_graph(150, N - 300),
    "bipartite": nx.complete_bipartite_graph(10, N - 10),
    "circulant": nx.circulant_graph(N, [1, 3, 400]),
}


def laplacian(graph: nx.Graph[Any]) -> Any:
    A = adjacency(graph)
    return sparse.csr_array(sparse.diags_array(np.asarray(A.sum(axis=1)).ravel(), format="csr") - A)


@pytest.mark.parametrize("name", GRAPHS)
def test_against_dense_eigenvalues(name: str) -> None:
    graph = GRAPHS[name]
    W, L = mixing_matrix(graph, "metropolis"), laplacian(graph)
    values = np.linalg.eigvalsh(W.toarray())
    gap, exact = spectrum.symmetric_gap(W)
    assert exact
    assert gap == pytest.approx(1 - max(abs(values[0]), values[-2]), rel=1e-6, abs=1e-13)
    smallest, exact = spectrum.second_smallest(L)
    assert exact
    assert smallest == pytest.approx(np.linalg.eigvalsh(L.toarray())[1], rel=1e-6, abs=1e-11)


def test_an_eigenvalue_near_minus_one_decides() -> None:
    torus = adjacency(nx.convert_node_labels_to_integers(nx.grid_2d_graph(40, 40, periodic=True)))
    W = sparse.csr_array(0.999 * torus / 4 + 0.001 * sparse.eye_array(N, format="csr"))
    found, exact = spectrum.symmetric_gap(W)
    assert found == pytest.approx(0.002, rel=1e-6)  # bipartite: -1 is an eigenvalue of the torus itself
    assert exact


def test_what_is_no_circulant_is_not_taken_for_one() -> None:
    assert spectrum.circulant(adjacency(nx.cycle_graph(9))) is not None
    assert spectrum.circulant(adjacency(nx.random_regular_graph(2, 9, seed=1))) is None
    unequal = adjacency(nx.cycle_graph(9))
    unequal.data[3] = 2.0
    assert spectrum.circulant(unequal) is None
    assert spectrum.circulant(adjacency(nx.path_graph(9))) is None


def test_directed_rings_and_exponential_graphs() -> None:
    for name, gap in (("exponential", 2 / 12), ("one_peer_exponential", 1 - math.cos(math.pi / 2048))):
        topology, rule = build_topology({"graph": name}, 2048, 0, Path())  # the first is theorem 1 of arXiv 2110.13363
        assert spectral_gap(mixing_matrix(topology.graphs[0], rule)) == pytest.approx(gap, rel=1e-6)


@pytest.mark.parametrize("name", GRAPHS)
def test_bounds_of_the_diameter(name: str) -> None:
    graph = GRAPHS[name]
    exact = int(shortest_path(adjacency(graph), unweighted=True).max())
    low, high = spectrum.diameter_bounds(adjacency(graph))
    assert low <= exact <= high <= 2 * low
    assert spectrum.diameter(adjacency(graph)) == (exact, exact)


def test_bounds_of_a_directed_diameter() -> None:
    graph = nx.compose(nx.cycle_graph(40, create_using=nx.DiGraph), nx.DiGraph([(0, 20), (30, 5)]))
    low, high = spectrum.diameter_bounds(adjacency(graph))
    assert low <= nx.diameter(graph) <= high


def test_a_ring_of_a_hundred_thousand_takes_seconds() -> None:
    n = 100_000
    graph = nx.cycle_graph(n)
    started = time.process_time()
    facts = summary(graph, mixing_matrix(graph, "metropolis"))
    assert time.process_time() - started < 20
    assert facts["spectral_gap"] == pytest.approx((2 - 2 * math.cos(2 * math.pi / n)) / 3, rel=1e-6)
    assert facts["chi_1"] == pytest.approx(1 / (4 * math.sin(math.pi / n) ** 2), rel=1e-9)
    assert (facts["diameter_at_least"], facts["diameter_at_most"]) == (n // 2, n // 2)


def test_a_large_expander_and_a_large_grid_take_seconds() -> None:
    started = time.process_time()
    graph = nx.convert_node_labels_to_integers(nx.grid_2d_graph(100, 200))
    facts = summary(graph, mixing_matrix(graph, "metropolis"))
    assert facts["chi_1"] == pytest.approx(1 / (2 - 2 * math.cos(math.pi / 200)), rel=1e-6)
    assert facts["diameter_at_least"] == 298
    regular = nx.random_regular_graph(4, 30_000, seed=0)
    facts = summary(regular, mixing_matrix(regular, "metropolis"))
    assert facts["spectral_gap"] == pytest.approx((4 - 2 * math.sqrt(3)) / 5, abs=2e-3)  # Friedman's bound
    assert facts["notes"][0].startswith("diameter")
    assert time.process_time() - started < 30
