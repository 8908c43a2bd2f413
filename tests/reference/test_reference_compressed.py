"""EF21, EF21-W, CHOCO, DeepSqueeze and BEER against the same methods as loops over clients and nodes, to 1e-10."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import compressed_loops as slow
import networkx as nx
import numpy as np
import pytest

ROUNDS = 20
SEED = 4
Make = Callable[..., Any]
COMPRESSORS: dict[str, tuple[dict[str, Any], slow.Compress]] = {
    "top_k": ({"k": 2}, slow.top_k(2)),
    "rand_k": ({"k": 2}, slow.rand_k(2)),
    "sign": ({}, slow.sign),
    "qsgd": ({"levels": 3}, slow.qsgd(3)),
    "natural": ({}, slow.natural),
}


@pytest.fixture(params=COMPRESSORS)
def compressor(request: pytest.FixtureRequest) -> tuple[dict[str, Any], slow.Compress]:
    keys, compress = COMPRESSORS[request.param]
    return {"name": request.param, **keys}, compress


@pytest.fixture
def go(run_scenario: Make, quadratic: Make, compressor: Any) -> Make:
    problem = quadratic(n=6, d=5)

    def run(name: str, participation: dict[str, Any], rounds: int = ROUNDS, **keys: Any) -> tuple[Any, Any]:
        scenario = {
            "data": problem.section(), "algorithm": {"name": name, **keys}, "compression": compressor[0],
            "participation": participation, "run": {"rounds": rounds}, "seed": SEED,
        }  # fmt: skip
        if participation["mode"] == "gossip":
            scenario["topology"] = {"graph": "random_geometric", "radius": 0.6}
        return problem, run_scenario(**scenario)

    return run


def edges_of(run: Any) -> slow.Edges:
    graph = nx.read_graphml(run.dir / "topology.graphml", node_type=int)
    return [(int(u), int(v)) for u, v in graph.edges]


def agree(run: Any, expected: Any, start: Any) -> None:
    found = run.params.numpy()
    assert np.abs(expected - start).max() > 1e-2
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-10


@pytest.mark.parametrize("clients", [6, 4])
def test_ef21(go: Make, compressor: Any, clients: int) -> None:
    """With four of six clients it is EF21-PP."""
    participation = {"mode": "synchronous", "clients_per_round": clients}
    problem, run = go("ef21", participation, lr=0.1)
    assert {len(row["clients"]) for row in run.trace} == {clients}
    agree(run, slow.ef21(problem, run.trace, 0.1, compressor[1], SEED), problem.x0)


def test_ef21_from_the_whole_gradient(go: Make, compressor: Any) -> None:
    problem, run = go("ef21", {"mode": "synchronous"}, lr=0.1, init="full")
    agree(run, slow.ef21(problem, run.trace, 0.1, compressor[1], SEED, full=True), problem.x0)


def test_ef21_w(go: Make, compressor: Any) -> None:
    each = [1.0, 2.0, 0.5, 4.0, 1.5, 3.0]
    problem, run = go("ef21_w", {"mode": "synchronous", "clients_per_round": 5}, lr=0.1, smoothness=each)
    scales = [v / (sum(each) / 6) for v in each]
    agree(run, slow.ef21(problem, run.trace, 0.1, compressor[1], SEED, scales), problem.x0)


@pytest.mark.parametrize("order", ["gcm", "gmc"])
def test_choco_with_idle_nodes(go: Make, compressor: Any, order: str) -> None:
    problem, run = go("choco", {"mode": "gossip", "compute": 0.6}, lr=0.1, gamma=0.3, order=order, local_steps=2)
    assert 0 < sum(len(r["compute"]) for r in run.trace) < 6 * ROUNDS
    agree(run, slow.choco(problem, run.trace, edges_of(run), 0.1, 0.3, compressor[1], SEED, order), problem.x0)


def test_deepsqueeze_with_idle_nodes_and_links(go: Make, compressor: Any) -> None:
    problem, run = go("deepsqueeze", {"mode": "gossip", "compute": 0.7, "links": 0.6}, lr=0.1, gamma=0.2)
    edges = edges_of(run)
    assert 0 < sum(len(r["edges"]) for r in run.trace) < len(edges) * ROUNDS
    agree(run, slow.deepsqueeze(problem, run.trace, edges, 0.1, 0.2, compressor[1], SEED), problem.x0)


def test_beer(go: Make, compressor: Any) -> None:
    problem, run = go("beer", {"mode": "gossip"}, lr=0.05, gamma=0.2)
    agree(run, slow.beer(problem, ROUNDS, edges_of(run), 0.05, 0.2, compressor[1], SEED), problem.x0)
