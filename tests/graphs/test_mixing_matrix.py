"""Aggregators, realised mixing matrices and their application."""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from fedsim.core import crew
from fedsim.core.types import message_bytes
from fedsim.graphs.mixing import mixing_matrix
from fedsim.graphs.mixing_matrix import BaseMixing, MixingMatrix
from fedsim.messages.aggregators import Mean
from fedsim.messages.robust import Median, TrimmedMean

CPU = torch.device("cpu")
GRAPHS: dict[str, tuple[Any, str]] = {
    "star": (nx.star_graph(7), "metropolis"),
    "ring": (nx.cycle_graph(9), "lazy"),
    "complete": (nx.complete_graph(5), "metropolis"),
    "irregular": (nx.lollipop_graph(4, 4), "max_degree"),
    "directed": (nx.DiGraph([(i, (i + h) % 8) for i in range(8) for h in (1, 2, 4)]), "uniform"),
}


def base(name: str) -> BaseMixing:
    graph, weights = GRAPHS[name]
    return BaseMixing(mixing_matrix(graph, weights), graph.is_directed())


def values(n: int, d: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- applying a matrix ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_mixing_is_a_matrix_product(name: str, dtype: torch.dtype) -> None:
    matrix = base(name).matrix
    x = values(matrix.shape[0]).to(dtype)
    before = x.clone()
    found = MixingMatrix(matrix, CPU)(x)
    expected = matrix.toarray() @ x.numpy().astype(np.float64)
    assert np.abs(found.numpy() - expected).max() < (1e-15 if dtype == torch.float64 else 1e-6) * 10
    assert found.dtype == dtype
    assert torch.equal(x, before)
    assert found.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("n,density", [(40, 0.05), (40, 0.9), (3, 0.1)])
def test_sparse_and_dense_application_agree(n: int, density: float) -> None:
    random = np.random.default_rng(0)
    W = random.uniform(0, 1, (n, n)) * (random.uniform(0, 1, (n, n)) < density) + np.eye(n)
    W /= W.sum(1, keepdims=True)
    x = values(n, 17)
    found = MixingMatrix(sparse.csr_array(W), CPU)(x).numpy()
    assert np.abs(found - W @ x.numpy()).max() < 1e-14


def test_a_mixing_ahead_is_of_the_values_that_are_mixed_or_made_anew() -> None:
    """It may have been begun with other values than come in the end, or these may have changed meanwhile."""
    graph = nx.random_regular_graph(4, 60, seed=1)
    W = MixingMatrix(BaseMixing(mixing_matrix(graph, "metropolis"), False).matrix, CPU)
    x = values(60, 2000)
    sent = x.clone()  # what arrives has the same numbers
    for threads in (1, 2):
        with crew.working(threads):
            assert W.ahead(values(60, 20))(sent) is W  # too little work for a second thread
            mixed = W.ahead(x)(sent)
            assert mixed is not W
            first = mixed(sent)
            assert torch.equal(first, W(x))
            first.zero_()  # who asked may change it
            assert torch.equal(mixed(sent), W(x))
            for others in (x.flip(1), sent[:, :700], sent.float(), -sent):
                assert torch.equal(W.ahead(x)(sent)(others), W(others))
            mixed, changed = W.ahead(x)(changed := sent.clone()), changed
            changed.mul_(2)
            assert torch.equal(mixed(changed), W(2 * x))


def test_one_peer_exponential_averages_exactly_in_log_n_rounds() -> None:
    n, x = 16, values(16)
    mixed = x
    for k in range(4):
        graph = nx.DiGraph([(i, (i + 2**k) % n) for i in range(n)])
        mixed = MixingMatrix(BaseMixing(mixing_matrix(graph, "uniform"), True).matrix, CPU)(mixed)
        if k < 3:
            assert (mixed - x.mean(0)).abs().max() > 1e-2
    assert (mixed - x.mean(0)).abs().max() < 1e-12


def test_a_complete_graph_averages_in_one_round() -> None:
    x = values(5)
    assert (MixingMatrix(base("complete").matrix, CPU)(x) - x.mean(0)).abs().max() < 1e-15


# --- realised matrices ----------------------------------------------------------------------------


def by_hand(mixing: BaseMixing, fired: Any, directed: bool) -> Any:
    """``p_ij = r_ij`` where the link fired, the rest of the row stays at home."""
    R, n = mixing.matrix.toarray(), mixing.n
    P = np.zeros((n, n))
    for (u, v), fires in zip(mixing.links, fired, strict=True):
        if fires:
            P[v, u] = R[v, u]
            if not directed:
                P[u, v] = R[u, v]
    return P + np.diag(1 - P.sum(1))


@pytest.mark.parametrize("name", GRAPHS)
def test_links_are_the_graphs_edges_in_order(name: str) -> None:
    graph, _ = GRAPHS[name]
    edges = graph.edges if graph.is_directed() else [tuple(sorted(e)) for e in graph.edges]
    assert [tuple(e) for e in base(name).links.tolist()] == sorted(edges)
    heard = dict(graph.in_degree) if graph.is_directed() else dict(graph.degree)
    assert base(name).degrees.tolist() == [heard[i] for i in range(len(graph))]


@given(name=st.sampled_from(list(GRAPHS)), seed=st.integers(0, 10_000), rate=st.floats(0, 1))
@settings(max_examples=80, deadline=None)
def test_every_realised_matrix_is_what_the_rule_says(name: str, seed: int, rate: float) -> None:
    mixing, directed = base(name), GRAPHS[name][0].is_directed()
    fired = np.random.default_rng(seed).uniform(size=len(mixing.links)) < rate
    P = mixing.realised(fired).toarray()
    assert np.abs(P - by_hand(mixing, fired, directed)).max() < 1e-15
    assert np.abs(P.sum(1) - 1).max() < 1e-14
    assert P.min() >= 0
    if not directed:
        assert np.array_equal(P, P.T)
        assert np.abs(P.sum(0) - 1).max() < 1e-14
    x = values(mixing.n, seed=seed)
    mixed = MixingMatrix(mixing.realised(fired), CPU)(x)
    assert np.abs(mixed.numpy() - P @ x.numpy()).max() < 1e-14
    if not directed:
        assert (mixed.mean(0) - x.mean(0)).abs().max() < 1e-14


@pytest.mark.parametrize("name", GRAPHS)
def test_all_links_and_none(name: str) -> None:
    mixing = base(name)
    count = len(mixing.links)
    assert np.array_equal(mixing.realised(np.ones(count, dtype=bool)).toarray(), mixing_matrix(*GRAPHS[name]).toarray())
    assert np.array_equal(mixing.realised(np.zeros(count, dtype=bool)).toarray(), np.eye(mixing.n))


def test_a_matrix_without_own_weights_gets_room_for_them() -> None:
    """A ring of two halves has zeros on its diagonal; an idle link's weight still has to stay somewhere."""
    ring = np.roll(np.eye(4), 1, 1) / 2 + np.roll(np.eye(4), -1, 1) / 2
    mixing = BaseMixing(sparse.csr_array(ring), False)
    assert np.array_equal(mixing.matrix.toarray(), ring)
    fired = np.array([True, False, False, False])  # links (0,1), (0,3), (1,2), (2,3)
    expected = [[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert np.array_equal(mixing.realised(fired).toarray(), expected)


# --- servers --------------------------------------------------------------------------------------


def test_the_mean_uses_weights_as_they_are() -> None:
    x, w = values(4), torch.tensor([0.5, 0.25, 1.0, 0.0]).double()
    expected = sum(float(w[i]) * x[i] for i in range(4))
    assert (Mean()(x, w) - expected).abs().max() < 1e-15


@given(m=st.integers(1, 12), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_median_and_trimmed_mean_against_loops(m: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    x, w = values(m, 3, seed), torch.as_tensor(random.dirichlet(np.ones(m)))
    median = Median()(x, w)
    for trim in (0.0, 0.1, 0.25, 0.49):
        found = TrimmedMean(trim)(x, w)
        for j in range(3):
            order = sorted(range(m), key=lambda i: float(x[i, j]))
            kept = order[int(trim * m + 1e-9) : m - int(trim * m + 1e-9)]
            expected = sum(float(w[i] * x[i, j]) for i in kept) / sum(float(w[i]) for i in kept)
            assert float(found[j]) == pytest.approx(expected, abs=1e-12)
            assert float(median[j]) == pytest.approx(float(np.median(x[:, j])), abs=1e-15)


def test_one_liar_moves_the_mean_and_not_the_others() -> None:
    x, w = values(10), torch.full((10,), 0.1).double()
    lie = x.clone()
    lie[3] = 1e9
    assert (Mean()(lie, w) - Mean()(x, w)).abs().max() > 1e7
    for robust in (Median(), TrimmedMean(0.1)):
        assert (robust(lie, w) - robust(x, w)).abs().max() < 2.0


def test_bytes_of_a_message() -> None:
    message = {"delta": torch.zeros(7, 10), "norm": torch.zeros(7, 1), "c": torch.zeros(7, 10, dtype=torch.float64)}
    assert message_bytes(message) == 40 + 4 + 80
    assert message_bytes({"x": torch.zeros(10)}) == 40
