"""Mixing matrices against hand-computed cases and closed forms."""

from __future__ import annotations

import math
import sys
import time
import types
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from fedsim.core.errors import InputError
from fedsim.graphs.facts import summary
from fedsim.graphs.mixing import (
    adjacency,
    check_mixing,
    chi_1,
    chi_2,
    expected_mixing,
    has_bridge,
    is_doubly_stochastic,
    is_symmetric,
    mixing_matrix,
    spectral_gap,
)
from fedsim.graphs.topology import build_topology

PATH = nx.path_graph(3)
STAR = nx.star_graph(3)


def dense(graph: nx.Graph[Any], weights: str) -> np.ndarray[Any, Any]:
    return np.asarray(mixing_matrix(graph, weights).toarray())


def test_weights_of_a_path_by_hand() -> None:
    third = np.array([[2, 1, 0], [1, 1, 1], [0, 1, 2]]) / 3
    assert np.allclose(dense(PATH, "metropolis"), third, atol=1e-15)
    assert np.allclose(dense(PATH, "max_degree"), third, atol=1e-15)
    assert np.allclose(dense(PATH, "lazy"), (np.eye(3) + third) / 2, atol=1e-15)
    assert np.allclose(
        dense(PATH, "uniform"), [[1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3], [0, 1 / 2, 1 / 2]], atol=1e-15
    )


def test_metropolis_and_max_degree_differ_off_the_hub() -> None:
    graph = nx.Graph([(0, 1), (0, 2), (0, 3), (3, 4)])  # degrees 3, 1, 1, 2, 1
    assert dense(graph, "metropolis")[3, 4] == pytest.approx(1 / 3)
    assert dense(graph, "max_degree")[3, 4] == pytest.approx(1 / 4)
    assert dense(graph, "metropolis")[0, 0] == pytest.approx(1 / 4)


def test_a_directed_edge_is_weighed_by_its_receiver() -> None:
    graph = nx.DiGraph([(0, 1), (1, 2), (2, 0), (0, 2)])
    expected = [[1 / 2, 0, 1 / 2], [1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]]
    assert np.allclose(dense(graph, "uniform"), expected, atol=1e-15)
    assert not is_doubly_stochastic(mixing_matrix(graph, "uniform"))


def test_one_node_keeps_its_value() -> None:
    for rule in ("metropolis", "max_degree", "lazy", "uniform"):
        assert dense(nx.empty_graph(1), rule).tolist() == [[1.0]]


@pytest.mark.parametrize("p", [1, 2, 3, 5])
def test_one_peer_exponential_averages_exactly(p: int) -> None:
    n = 2**p
    topology, weights = build_topology({"graph": "one_peer_exponential"}, n, 0, Path())
    x = np.random.default_rng(0).normal(size=(n, 3))
    mean = x.mean(axis=0)
    for k in range(p):
        x = mixing_matrix(topology.graphs[topology.at(k)], weights) @ x
        if k < p - 1:
            assert np.abs(x - mean).max() > 1e-3
    assert np.abs(x - mean).max() < 1e-12


@pytest.mark.parametrize("n", [6, 16, 21])
def test_exponential_is_doubly_stochastic_though_directed(n: int) -> None:
    (graph,) = build_topology({"graph": "exponential"}, n, 0, Path())[0].graphs
    W = mixing_matrix(graph, "uniform")
    check_mixing(W, doubly_stochastic=True)
    assert not is_symmetric(W)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 25),
    st.floats(0.05, 1.0),
    st.integers(0, 10**6),
    st.sampled_from(["metropolis", "max_degree", "lazy"]),
)
def test_symmetric_rules_are_doubly_stochastic_on_any_graph(n: int, p: float, seed: int, rule: str) -> None:
    graph = nx.gnp_random_graph(n, p, seed=seed)
    W = mixing_matrix(graph, rule)
    check_mixing(W, doubly_stochastic=True)
    assert is_symmetric(W)
    off = W.toarray() - np.diag(W.diagonal())
    assert np.array_equal(off > 0, nx.to_numpy_array(graph) > 0)
    if rule == "lazy":
        assert np.linalg.eigvalsh(W.toarray()).min() >= -1e-12
    if nx.is_connected(graph):
        assert spectral_gap(W) > 0
    else:
        assert spectral_gap(W) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("rule", ["metropolis", "max_degree", "lazy"])
def test_symmetric_rules_refuse_directed_graphs(rule: str) -> None:
    with pytest.raises(InputError, match="needs an undirected graph") as caught:
        mixing_matrix(nx.cycle_graph(4, create_using=nx.DiGraph), rule)
    assert caught.value.problems[0].key == "weights"


def test_own_rule_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    import fedsim.graphs.mixing

    monkeypatch.setattr(fedsim.graphs.mixing, "own", lambda g: np.full((len(g), len(g)), 1 / len(g)), raising=False)
    assert np.allclose(dense(nx.complete_graph(3), "fedsim.graphs.mixing:own"), 1 / 3)
    monkeypatch.setattr(fedsim.graphs.mixing, "own", lambda g: np.eye(len(g)) * 0.9)
    with pytest.raises(InputError, match=r"row 0 of the mixing matrix sums to 0\.9"):
        mixing_matrix(PATH, "fedsim.graphs.mixing:own")
    monkeypatch.setattr(fedsim.graphs.mixing, "own", lambda g: np.eye(len(g) + 1))
    with pytest.raises(InputError, match=r"shape \(4, 4\), allowed: \(3, 3\)"):
        mixing_matrix(PATH, "fedsim.graphs.mixing:own")


@pytest.mark.parametrize(
    "W, doubly, words",
    [
        ([[1.5, -0.5], [0, 1]], False, r"non-negative; found -0\.5 at \[0, 1\]"),
        ([[0.5, 0.5], [0, 1]], True, "column 0"),
        ([[0.5, 0.4], [0, 1]], False, "row 0"),
        ([[1 + 1e-10, 0], [0, 1]], False, "row 0"),
        ([[math.nan, 0], [0, 1]], False, "finite"),
        ([[1.0, 0.0]], False, "square"),
    ],
)
def test_check_mixing_refuses(W: list[list[float]], doubly: bool, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_mixing(sparse.csr_array(np.array(W)), doubly)


def test_check_mixing_accepts() -> None:
    check_mixing(sparse.csr_array(np.array([[0.5, 0.5], [0.0, 1.0]])), doubly_stochastic=False)
    check_mixing(sparse.csr_array(np.eye(2)), doubly_stochastic=True)


@pytest.mark.parametrize("n", [3, 4, 11, 40, 1600])
def test_spectral_gap_of_a_ring(n: int) -> None:
    eigenvalues = (1 + 2 * np.cos(2 * np.pi * np.arange(n) / n)) / 3
    expected = 1 - np.sort(np.abs(eigenvalues))[-2]
    assert spectral_gap(mixing_matrix(nx.cycle_graph(n), "metropolis")) == pytest.approx(expected, rel=1e-7, abs=1e-13)


def test_spectral_gap_of_complete_averaging_is_one() -> None:
    for n in (1, 2, 5, 30):
        assert spectral_gap(mixing_matrix(nx.complete_graph(n), "metropolis")) == pytest.approx(1, abs=1e-13)


@pytest.mark.parametrize("n", [4, 5, 1601])
def test_spectral_gap_of_periodic_matrices(n: int) -> None:
    shift = sparse.csr_array((np.ones(n), (np.arange(n), (np.arange(n) + 1) % n)))
    gap = spectral_gap(shift)  # all eigenvalues on the unit circle; large: the iteration may give up, and says so
    assert gap == pytest.approx(0, abs=1e-9) or (n > 1500 and math.isnan(gap))
    bipartite = adjacency(nx.cycle_graph(2 * (n // 2))) / 2.0  # eigenvalue -1
    assert spectral_gap(bipartite) == pytest.approx(0, abs=1e-12)


def test_spectral_gap_sees_a_negative_eigenvalue_of_a_large_matrix() -> None:
    n = 1801  # odd ring without self weights: the largest |eigenvalue| below 1 is cos(pi (n - 1) / n)
    expected = 1 - math.cos(math.pi / n)
    assert spectral_gap(adjacency(nx.cycle_graph(n)) / 2.0) == pytest.approx(expected, rel=1e-6)


def test_spectral_gap_of_asymmetric_matrices() -> None:
    a, b = 0.3, 0.1
    assert spectral_gap(sparse.csr_array(np.array([[1 - a, a], [b, 1 - b]]))) == pytest.approx(a + b, abs=1e-14)
    for p in (4, 11):  # exponential graph, n = 2^p: gap 2 / (1 + p) (Ying et al. 2021, Proposition 1)
        (graph,) = build_topology({"graph": "exponential"}, 2**p, 0, Path())[0].graphs
        assert spectral_gap(mixing_matrix(graph, "uniform")) == pytest.approx(2 / (1 + p), abs=1e-10)


def test_large_sparse_gap_equals_dense() -> None:
    W = mixing_matrix(nx.random_regular_graph(4, 1600, seed=0), "metropolis")
    assert spectral_gap(W) == pytest.approx(1 - np.sort(np.abs(np.linalg.eigvalsh(W.toarray())))[-2], abs=1e-10)


@pytest.mark.parametrize("n", [3, 8, 25])
def test_chi_closed_forms(n: int) -> None:
    assert chi_1(nx.cycle_graph(n)) == pytest.approx(1 / (2 - 2 * math.cos(2 * math.pi / n)), rel=1e-10)
    assert chi_2(nx.cycle_graph(n)) == pytest.approx((n - 1) / (2 * n), rel=1e-10)
    assert chi_1(nx.complete_graph(n)) == pytest.approx(1 / n, rel=1e-10)
    assert chi_2(nx.complete_graph(n)) == pytest.approx(1 / n, rel=1e-10)
    assert chi_1(nx.star_graph(n)) == pytest.approx(1, rel=1e-10)
    assert chi_2(nx.star_graph(n)) == 0.5


def test_chi_of_a_large_graph() -> None:
    n = 3100  # beyond the dense solvers
    assert chi_1(nx.cycle_graph(n)) == pytest.approx(1 / (2 - 2 * math.cos(2 * math.pi / n)), rel=1e-6)
    assert chi_2(nx.cycle_graph(n)) == pytest.approx((n - 1) / (2 * n), rel=1e-9)


def test_chi_2_is_half_the_largest_resistance() -> None:
    graph = nx.Graph([(0, 1), (1, 2), (2, 0), (2, 3), (3, 4), (4, 5), (5, 2)])  # a triangle and a square share node 2
    resistances = [nx.resistance_distance(graph, u, v) for u, v in graph.edges()]
    assert chi_2(graph) == pytest.approx(max(resistances) / 2, rel=1e-10)
    assert chi_2(graph) == pytest.approx(3 / 8, rel=1e-10)


@pytest.mark.parametrize("graph", [nx.empty_graph(3), nx.empty_graph(1), nx.cycle_graph(3, create_using=nx.DiGraph)])
def test_chi_refuses(graph: nx.Graph[Any]) -> None:
    for chi in (chi_1, chi_2):
        with pytest.raises(InputError, match="defined for"):
            chi(graph)


def test_expected_mixing_is_the_mean_over_all_outcomes() -> None:
    graph = nx.Graph([(0, 1), (1, 2), (2, 0), (2, 3)])
    W = dense(graph, "metropolis")
    links = np.array(list(graph.edges()))
    b = np.array([0.2, 0.5, 0.9, 1.0])
    mean = np.zeros((4, 4))
    for outcome in range(2**4):
        fired = np.array([(outcome >> k) & 1 for k in range(4)])
        P = np.eye(4)
        for (i, j), on in zip(links, fired, strict=True):
            e = np.eye(4)[i] - np.eye(4)[j]
            P -= on * W[i, j] * np.outer(e, e)
        mean += np.prod(np.where(fired == 1, b, 1 - b)) * P
    expected = expected_mixing(mixing_matrix(graph, "metropolis"), links, b)
    assert np.allclose(expected.toarray(), mean, atol=1e-14)
    check_mixing(expected, doubly_stochastic=True)


def test_expected_mixing_limits() -> None:
    W = mixing_matrix(STAR, "metropolis")
    links = list(STAR.edges())
    assert np.allclose(expected_mixing(W, links, 1.0).toarray(), W.toarray(), atol=1e-15)
    assert np.array_equal(expected_mixing(W, links, 0.0).toarray(), np.eye(4))
    assert np.array_equal(expected_mixing(W, [], []).toarray(), np.eye(4))


@pytest.mark.parametrize(
    "links, b, words",
    [
        ([(0, 9)], [0.5], "node 9, allowed: 0 to 3"),
        ([(1, 2)], [0.5], r"\(1, 2\) has no weight"),
        ([(0, 1), (1, 0)], [0.5, 0.5], "twice"),
        ([(0, 1)], [1.5], "allowed: 0 to 1"),
    ],
)
def test_expected_mixing_refuses(links: list[Any], b: list[float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        expected_mixing(mixing_matrix(STAR, "metropolis"), links, b)


def test_expected_mixing_needs_symmetry() -> None:
    with pytest.raises(InputError, match="symmetric"):
        expected_mixing(mixing_matrix(STAR, "uniform"), [(0, 1)], 0.5)


def test_summary() -> None:
    graph = nx.path_graph(4)
    graph.edges[0, 1].update(latency_ms=5.0, bandwidth_mbps=10.0)
    graph.edges[1, 2].update(latency_ms=2.0)
    result = summary(graph, mixing_matrix(graph, "metropolis"))
    expected = {"nodes": 4, "edges": 3, "directed": False, "connected": True, "degree_min": 1, "degree_mean": 1.5}
    expected |= {"degree_max": 2, "diameter": 3, "chi_2": 0.5, "symmetric": True, "doubly_stochastic": True}
    expected |= {"latency_ms": [2.0, 5.0], "bandwidth_mbps": [10.0, 10.0], "notes": []}
    assert {key: result[key] for key in expected} == expected


def test_summary_says_what_it_leaves_out() -> None:
    directed = nx.cycle_graph(5, create_using=nx.DiGraph)
    result = summary(directed, mixing_matrix(directed, "uniform"))
    assert (result["diameter"], result["chi_1"], result["directed"]) == (4, None, True)
    halves = nx.Graph([(0, 1), (2, 3)])
    result = summary(halves, mixing_matrix(halves, "metropolis"))
    assert (result["connected"], result["diameter"], result["spectral_gap"]) == (False, None, 0.0)
    assert "not connected" in result["notes"][0]
    large = nx.star_graph(5000)
    result = summary(large, mixing_matrix(large, "metropolis"))
    assert (result["diameter"], result["diameter_at_least"]) == (None, 2)
    assert any("lower bound" in note for note in result["notes"])


def test_ten_thousand_nodes_take_less_than_a_second_of_a_processor() -> None:
    graph = nx.random_regular_graph(10, 10_000, seed=0)
    took = []
    for _ in range(3):  # what others do on the machine slows some of them
        started = time.thread_time()
        W = mixing_matrix(graph, "metropolis")
        took.append(time.thread_time() - started)
    assert min(took) < 1.0
    assert W.nnz == 10_000 * 11


def everywhere(graph: nx.Graph[Any]) -> Any:
    """Weights between all nodes, whatever links there are."""
    n = graph.number_of_nodes()
    return np.full((n, n), 1 / n)


def test_own_weights_stay_on_the_links(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spread", types.SimpleNamespace(everywhere=everywhere))
    with pytest.raises(InputError, match="no link from 2 to 0"):
        mixing_matrix(nx.cycle_graph(5), "spread:everywhere")
    assert mixing_matrix(nx.complete_graph(5), "spread:everywhere").nnz == 25


@pytest.mark.parametrize("graph", [
    nx.cycle_graph(7), nx.path_graph(4), nx.star_graph(5), nx.barbell_graph(4, 0), nx.barbell_graph(5, 0),
    nx.complete_graph(5), nx.petersen_graph(), nx.disjoint_union(nx.cycle_graph(3), nx.cycle_graph(5)),
    nx.grid_2d_graph(4, 4, periodic=True), nx.lollipop_graph(4, 2), nx.empty_graph(3), nx.wheel_graph(6),
    *(nx.gnp_random_graph(9, 0.3, seed=s) for s in range(40)),
], ids=str)  # fmt: skip
def test_bridges_are_those_of_networkx(graph: nx.Graph[Any]) -> None:
    assert has_bridge(graph) == nx.has_bridges(graph)
