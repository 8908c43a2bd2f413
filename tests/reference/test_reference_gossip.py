"""Every gossip algorithm against the same method written as a loop over nodes and neighbours, on quadratics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networkx as nx
import numpy as np
import pytest
from gossip_loops import Edges, gossip, gradient_tracking

ROUNDS = 25
LR = 0.07
Make = Callable[..., Any]
BETA = {"mode": "gossip", "compute": {"beta": [0.8, 0.8]}, "links": {"beta": [0.8, 0.8]}}
IRREGULAR = {"graph": "random_geometric", "radius": 0.55}


def physical(run: Any) -> Callable[[int], Edges]:
    graph = nx.read_graphml(run.dir / "topology.graphml", node_type=int)
    edges = [(int(u), int(v)) for u, v in graph.edges]
    return lambda k: edges  # noqa: ARG005


def agree(run: Any, expected: Any, start: Any) -> None:
    found = run.params.numpy()
    assert np.abs(expected - start).max() > 1e-2
    assert np.abs(expected - expected.mean(0)).max() > 1e-3  # the nodes differ, so mixing matters
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-10


@pytest.fixture(params=[True, False], ids=["dense", "diagonal"])
def problem(request: pytest.FixtureRequest, quadratic: Make) -> Any:
    return quadratic(n=8, d=3, dense=request.param)


@pytest.fixture
def go(run_scenario: Make, problem: Any) -> Make:
    def run(name: str, topology: Any = None, participation: Any = None, **keys: Any) -> Any:
        return run_scenario(
            data=problem.section(),
            algorithm={"name": name, "lr": LR, **keys},
            topology=topology or IRREGULAR,
            participation=participation or BETA,
            run={"rounds": ROUNDS},
            seed=1,
        )

    return run


def test_dspodfl_on_an_irregular_graph(go: Make, problem: Any) -> None:
    run = go("dspodfl")
    graph = physical(run)
    degrees = nx.Graph(graph(1)).degree
    assert len({d for _, d in degrees}) > 2
    assert 0 < sum(len(r["compute"]) for r in run.trace) < 8 * ROUNDS
    assert 0 < sum(len(r["edges"]) for r in run.trace) < len(graph(1)) * ROUNDS
    agree(run, gossip(problem, run.trace, graph, lambda k: LR, adapt_first=False), problem.x0)  # noqa: ARG005


@pytest.mark.parametrize("name", ["dgd", "dpsgd", "randomized_gossip", "sporadic_sgd", "periodic_gossip"])
def test_the_methods_dspodfl_contains(go: Make, problem: Any, name: str) -> None:
    run = go(name)
    agree(run, gossip(problem, run.trace, physical(run), lambda k: LR, adapt_first=False), problem.x0)  # noqa: ARG005
    everybody, every_link = list(range(8)), len(physical(run)(1))
    always_compute = all(r["compute"] == everybody for r in run.trace)
    always_mix = all(len(r["edges"]) == every_link for r in run.trace)
    expected = {"dgd": (True, True), "dpsgd": (True, True), "sporadic_sgd": (False, True)}
    assert (always_compute, always_mix) == expected.get(name, (True, False))


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"local_steps": 3},
        {"local_steps": {"uniform": [1, 4]}, "momentum": 0.7, "weight_decay": 0.2, "lr_decay": 0.95},
    ],
    ids=["one step", "three steps", "unequal steps, momentum, weight decay, lr decay"],
)
@pytest.mark.parametrize("name,adapt_first", [("dfedavg", True), ("dspodfl", False)])
def test_several_local_steps(go: Make, problem: Any, name: str, adapt_first: bool, keys: dict[str, Any]) -> None:
    run = go(name, **keys)
    decay = keys.get("lr_decay", 1.0)
    solver = {k: v for k, v in keys.items() if k in ("momentum", "weight_decay")}
    agree(
        run,
        gossip(problem, run.trace, physical(run), lambda k: LR * decay ** (k - 1), adapt_first, **solver),
        problem.x0,
    )


@pytest.mark.parametrize(
    "graph,weights",
    [("star", "metropolis"), ("path", "metropolis"), ("complete", "metropolis"), ("hypercube", "metropolis")],
)
def test_other_graphs(go: Make, problem: Any, graph: str, weights: str) -> None:
    run = go("dspodfl", topology={"graph": graph, "weights": weights})
    agree(run, gossip(problem, run.trace, physical(run), lambda k: LR, adapt_first=False), problem.x0)  # noqa: ARG005


def test_graphs_that_take_turns(go: Make, problem: Any) -> None:
    """Ring and star in turn, two rounds each; Metropolis weights follow the graph in force."""
    ring, star = [(i, (i + 1) % 8) for i in range(8)], [(0, i) for i in range(1, 8)]
    topology = {"graph": "sequence", "graphs": [{"graph": "ring"}, {"graph": "star"}], "every": 2}

    def in_force(k: int) -> Edges:
        return ring if (k - 1) // 2 % 2 == 0 else star

    run = go("dspodfl", topology=topology)
    for row in run.trace:
        assert {frozenset(e) for e in row["edges"]} <= {frozenset(e) for e in in_force(row["round"])}
    agree(run, gossip(problem, run.trace, in_force, lambda k: LR, adapt_first=False), problem.x0)  # noqa: ARG005


@pytest.mark.parametrize("name,adapt_first", [("dgd", False), ("dfedavg", True)])
def test_a_directed_exponential_graph(go: Make, problem: Any, name: str, adapt_first: bool) -> None:
    run = go(name, topology={"graph": "exponential"}, participation={"mode": "gossip"})
    edges = [(i, (i + hop) % 8) for i in range(8) for hop in (1, 2, 4)]
    assert {tuple(e) for e in run.trace[0]["edges"]} == set(edges)
    expected = gossip(problem, run.trace, lambda k: edges, lambda k: LR, adapt_first, directed=True)  # noqa: ARG005
    agree(run, expected, problem.x0)


def test_one_peer_after_the_other(go: Make, problem: Any) -> None:
    run = go("dgd", topology={"graph": "one_peer_exponential"}, participation={"mode": "gossip"})

    def peers(k: int) -> Edges:
        return [(i, (i + 2 ** ((k - 1) % 3)) % 8) for i in range(8)]

    agree(run, gossip(problem, run.trace, peers, lambda k: LR, adapt_first=False, directed=True), problem.x0)  # noqa: ARG005


@pytest.mark.parametrize(
    "topology,links", [(IRREGULAR, 1.0), (IRREGULAR, {"beta": [0.8, 0.8]}), ({"graph": "exponential"}, 1.0)]
)
def test_gradient_tracking(go: Make, problem: Any, topology: dict[str, Any], links: Any) -> None:
    directed = topology["graph"] == "exponential"
    run = go("gradient_tracking", topology=topology, participation={"mode": "gossip", "links": links})
    edges = [(i, (i + hop) % 8) for i in range(8) for hop in (1, 2, 4)]
    graph = (lambda k: edges) if directed else physical(run)  # noqa: ARG005
    expected = gradient_tracking(problem, run.trace, graph, LR, directed)
    found = run.params.numpy()
    assert np.abs(found - expected).max() <= 1e-10
    assert np.abs(expected - problem.x0).max() > 1e-2


WINDOWS = {
    "links": 0.5, "merge": {"rounds": [9, 17]},
    "schedule": [
        {"from": 3, "until": 6, "links": 0}, {"from": 0.4, "until": 0.6, "links": {"linear": [0.1, 1.0]}},
        {"from": 20, "until": 22, "links": 1, "merge": True},
    ],
}  # fmt: skip


@pytest.mark.parametrize("topology", [IRREGULAR, {"graph": "random_peers", "peers": 0.7}], ids=["graph", "peers"])
@pytest.mark.parametrize("name,adapt_first", [("dspodfl", False), ("dfedavg", True), ("gradient_tracking", True)])
def test_windows_and_merges(go: Make, problem: Any, name: str, adapt_first: bool, topology: Any) -> None:
    run = go(name, topology, {"mode": "gossip", **WINDOWS})
    assert [row["round"] for row in run.trace if row.get("merge")] == [9, 17, 20, 21]
    fired = [len(row["edges"]) for row in run.trace]
    assert fired[2:5] == [0, 0, 0]
    if topology is IRREGULAR:
        assert fired[19:21] == [len(physical(run)(1))] * 2
    graph = physical(run) if topology is IRREGULAR else None
    if name == "gradient_tracking":
        agree(run, gradient_tracking(problem, run.trace, graph, LR), problem.x0)
    else:
        agree(run, gossip(problem, run.trace, graph, lambda k: LR, adapt_first), problem.x0)  # noqa: ARG005


@pytest.mark.parametrize("peers,symmetric", [(0.6, True), (0.4, False), (2.5, False)])
@pytest.mark.parametrize("name,adapt_first", [("dpsgd", False), ("dfedavg", True)])
def test_peers_that_are_drawn_anew(
    go: Make, problem: Any, name: str, adapt_first: bool, peers: float, symmetric: bool
) -> None:
    links = {} if name == "dpsgd" else {"links": 0.8}
    run = go(name, {"graph": "random_peers", "peers": peers, "symmetric": symmetric}, {"mode": "gossip", **links})
    assert len({tuple(map(tuple, row["edges"])) for row in run.trace}) > 5
    expected = gossip(problem, run.trace, None, lambda k: LR, adapt_first, directed=not symmetric)  # noqa: ARG005
    agree(run, expected, problem.x0)


@pytest.mark.parametrize("name,adapt_first", [("dspodfl", False), ("dfedavg", True)])
def test_a_merge_at_the_end(go: Make, problem: Any, name: str, adapt_first: bool) -> None:
    run = go(name, participation={"mode": "gossip", "links": 0.3, "merge": "final"})
    apart = gossip(problem, run.trace, physical(run), lambda k: LR, adapt_first)  # noqa: ARG005
    assert np.abs(apart - apart.mean(0)).max() > 1e-3
    assert np.abs(run.params.numpy() - apart.mean(0)).max() <= 1e-10
