"""Gossip algorithms: fixed points, invariants, refused scenarios, counted bytes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import networkx as nx
import numpy as np
import pytest
from safetensors.torch import load_file

from fedsim.algorithms.dspodfl import PeriodicGossip
from fedsim.core.errors import InputError
from fedsim.graphs.mixing import mixing_matrix

Make = Callable[..., Any]
RING = {"graph": "ring"}


@pytest.fixture
def go(run_scenario: Make) -> Make:
    def run(problem: Any, name: str, rounds: int, topology: Any = None, participation: Any = None, **keys: Any) -> Any:
        return run_scenario(
            data=problem.section(),
            algorithm={"name": name, **keys},
            topology=topology or RING,
            participation={"mode": "gossip", **(participation or {})},
            run={"rounds": rounds},
        )

    return run


def fixed_point(problem: Any, W: Any, lr: float, adapt_first: bool) -> Any:
    """All nodes at once: ``(I - W) x + lr A (x - b) = 0`` (DGD), or ``x = W (x - lr A (x - b))`` (adapt first)."""
    n, d = problem.b.shape
    A = np.zeros((n * d, n * d))
    for i in range(n):
        A[i * d : (i + 1) * d, i * d : (i + 1) * d] = problem.A[i]
    mix = np.kron(W, np.eye(d))
    step = mix @ A if adapt_first else A
    return np.linalg.solve(np.eye(n * d) - mix + lr * step, lr * step @ problem.b.ravel()).reshape(n, d)


@pytest.mark.parametrize("name,adapt_first", [("dgd", False), ("dfedavg", True)])
@pytest.mark.parametrize("graph", [RING, {"graph": "exponential"}, {"graph": "star"}])
def test_where_constant_steps_end(
    quadratic: Make, go: Make, name: str, adapt_first: bool, graph: dict[str, Any]
) -> None:
    problem, lr = quadratic(n=6, d=2), 0.1
    run = go(problem, name, 500, graph, lr=lr)
    base = {"ring": nx.cycle_graph(6), "star": nx.star_graph(5)}.get(graph["graph"])
    if base is None:
        W = np.zeros((6, 6))
        for i in range(6):
            W[i, [i, i - 1, i - 2, i - 4]] += 0.25
    else:
        W = mixing_matrix(base, "metropolis").toarray()
    assert np.abs(run.params.numpy() - fixed_point(problem, W, lr, adapt_first)).max() < 1e-10


def test_dgd_keeps_a_gap_that_shrinks_with_lr_and_gradient_tracking_none(quadratic: Make, go: Make) -> None:
    problem = quadratic(n=6, d=2)
    best = problem.optimum()
    gaps = [np.abs(go(problem, "dgd", int(50 / lr), lr=lr).params.numpy() - best).max() for lr in (0.2, 0.1)]
    assert gaps[0] > 1e-2
    assert 0.4 < gaps[1] / gaps[0] < 0.75  # first order in lr
    exact = go(problem, "gradient_tracking", 500, lr=0.15)
    assert np.abs(exact.params.numpy() - best).max() < 1e-10


@pytest.mark.parametrize("topology", [{"graph": "exponential"}, {"graph": "path"}, {"graph": "complete"}])
def test_gradient_tracking_is_exact_on_other_graphs(quadratic: Make, go: Make, topology: dict[str, Any]) -> None:
    problem = quadratic(n=6, d=2)
    run = go(problem, "gradient_tracking", 900, topology, lr=0.1)
    assert np.abs(run.params.numpy() - problem.optimum()).max() < 1e-10


def test_gradient_tracking_is_exact_with_sporadic_links(quadratic: Make, go: Make) -> None:
    problem = quadratic(n=6, d=2)
    run = go(problem, "gradient_tracking", 800, RING, {"links": 0.5}, lr=0.1)
    assert np.abs(run.params.numpy() - problem.optimum()).max() < 1e-10


@pytest.mark.parametrize("rounds", [1, 2, 7])
def test_the_tracker_averages_to_the_mean_gradient(quadratic: Make, go: Make, rounds: int) -> None:
    problem = quadratic(n=6, d=2)
    run = go(problem, "gradient_tracking", rounds, {"graph": "star"}, {"links": 0.5}, lr=0.1)
    y = load_file(run.dir / "checkpoint" / "state.safetensors")["y"].numpy()
    g = load_file(run.dir / "checkpoint" / "clients.safetensors")["table.g"].numpy()
    assert np.abs(y.mean(0) - g.mean(0)).max() < 1e-14
    assert np.abs(g.mean(0)).max() > 1e-3


def test_no_gap_where_all_nodes_want_the_same(quadratic: Make, go: Make) -> None:
    A, b = np.tile([[0.5, 2.0]], (6, 1)), np.tile([[1.0, -3.0]], (6, 1))
    problem = quadratic(A=A, b=b, x0=[5.0, 5.0])
    run = go(problem, "dspodfl", 400, RING, {"compute": {"beta": [0.8, 0.8]}, "links": 0.5}, lr=0.3)
    assert np.abs(run.params.numpy() - b).max() < 1e-10


def test_a_falling_rate_closes_the_gap(quadratic: Make, go: Make) -> None:
    problem = quadratic(n=6, d=2)
    constant, falling = (
        np.abs(go(problem, "dgd", 600, lr=0.2, lr_decay=decay).params.numpy() - problem.optimum()).max()
        for decay in (1.0, {"inverse": 0.1})
    )
    assert falling < 0.1 * constant


@pytest.mark.parametrize("name", ["dspodfl", "dfedavg", "sporadic_sgd"])
def test_who_never_computes_never_moves(quadratic: Make, go: Make, name: str) -> None:
    problem = quadratic(n=6, d=2)
    run = go(problem, name, 20, RING, {"compute": 0.0, "links": 0.5}, lr=0.3)
    assert np.abs(run.params.numpy() - problem.x0).max() < 1e-14
    assert run.metrics["gradients"].iloc[-1] == 0
    alone = go(problem, name, 20, RING, {"compute": [1, 0, 0, 0, 0, 0], "links": 0.0}, lr=0.3).params.numpy()
    if name != "sporadic_sgd":  # its links always fire
        assert np.array_equal(alone[1:], np.tile(problem.x0, (5, 1)))
        expected = problem.b[0] + np.linalg.matrix_power(np.eye(2) - 0.3 * problem.A[0], 20) @ (
            problem.x0 - problem.b[0]
        )
        assert np.abs(alone[0] - expected).max() < 1e-12


def test_the_period_of_periodic_gossip(quadratic: Make, go: Make) -> None:
    d = [1.0, 0.5, 0.25, 0.8, 1.0, 0.4]
    expected = math.ceil(sum(1 / p for p in d) / 6)  # 13.75 / 6 -> 3
    run = go(quadratic(n=6, d=2), "periodic_gossip", 10, RING, {"compute": d}, lr=0.1)
    assert [bool(r["edges"]) for r in run.trace] == [k % expected == 0 for k in range(1, 11)]
    given = go(quadratic(n=6, d=2), "periodic_gossip", 10, RING, lr=0.1, every=4)
    assert [bool(r["edges"]) for r in given.trace] == [k % 4 == 0 for k in range(1, 11)]
    assert all(r["compute"] == list(range(6)) for r in run.trace)


def test_a_mean_of_exactly_whole_rounds_is_not_rounded_up() -> None:
    assert PeriodicGossip().period(np.full(7, 1 / 3)) == 3
    assert PeriodicGossip().period(np.ones(5)) == 1


def test_a_node_that_never_computes_keeps_the_period_finite() -> None:
    assert PeriodicGossip().period(np.array([1.0, 0.0])) == 501  # the floor of 1e-3 makes it (1 + 1000) / 2


@pytest.mark.parametrize(
    "name,vectors", [("dspodfl", 1), ("dgd", 1), ("dfedavg", 1), ("randomized_gossip", 1), ("gradient_tracking", 2)]
)
def test_bytes_are_messages_over_links_that_fired(quadratic: Make, go: Make, name: str, vectors: int) -> None:
    run = go(quadratic(n=6, d=5), name, 12, {"graph": "star"}, {"compute": 0.5, "links": 0.5}, lr=0.1)
    fired = sum(len(row["edges"]) for row in run.trace)
    assert run.metrics["bytes_sent"].iloc[-1] == 2 * fired * vectors * 5 * 8  # both ways
    assert run.metrics["gradients"].iloc[-1] == sum(len(row["compute"]) for row in run.trace)


def test_bytes_on_a_directed_graph_go_one_way(quadratic: Make, go: Make) -> None:
    run = go(quadratic(n=8, d=5), "dgd", 3, {"graph": "exponential"}, lr=0.1)
    assert run.metrics["bytes_sent"].iloc[-1] == 3 * 8 * 3 * 5 * 8


@pytest.mark.parametrize(
    "name,topology,participation,keys,key",
    [
        ("dspodfl", {"graph": "exponential"}, {}, {}, "topology.graph"),
        ("sporadic_sgd", {"graph": "exponential"}, {}, {}, "topology.graph"),
        ("dgd", {"graph": "star", "weights": "uniform"}, {}, {}, "topology.weights"),
        ("dfedavg", {"graph": "exponential"}, {"links": 0.5}, {}, "participation.links"),
        ("gradient_tracking", {"graph": "exponential"}, {"links": {"beta": [1.0, 1.0]}}, {}, "participation.links"),
        ("gradient_tracking", RING, {}, {"local_steps": 2}, "algorithm.local_steps"),
        ("gradient_tracking", RING, {}, {"local_epochs": 1}, "algorithm.local_epochs"),
        ("gradient_tracking", RING, {}, {"momentum": 0.5}, "algorithm.momentum"),
        ("gradient_tracking", RING, {}, {"weight_decay": 0.5}, "algorithm.weight_decay"),
        ("periodic_gossip", RING, {}, {"every": 0}, "algorithm.every"),
        ("dspodfl", RING, {"compute": 1.5}, {}, "participation.compute"),
        ("dspodfl", RING, {"links": [0.5, 0.5]}, {}, "participation.links"),
        ("dspodfl", RING, {"mode": "synchronous"}, {}, "participation.mode"),
    ],
)
def test_refused_scenarios(
    quadratic: Make, go: Make, name: str, topology: Any, participation: Any, keys: Any, key: str
) -> None:
    with pytest.raises(InputError) as error:
        go(quadratic(n=6, d=2), name, 3, topology, participation, **keys)
    found = [p.key or "" for p in error.value.problems]
    assert any(k == key or k.startswith(key + ".") for k in found), found


def test_a_directed_graph_whose_links_always_fire_is_fine_with_a_link_law(quadratic: Make, go: Make) -> None:
    """DGD uses link probabilities for delays alone, and a law that gives 1 everywhere is no sporadic law."""
    for name, links in (("dgd", 0.5), ("dfedavg", [1.0] * 18)):
        run = go(quadratic(n=6, d=2), name, 5, {"graph": "exponential"}, {"links": links}, lr=0.1)
        assert run.params.shape == (6, 2)
