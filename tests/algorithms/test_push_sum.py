"""SGP and Push-DIGing: slow loops, sums that stay, the optimum on directed graphs, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import push_loops as slow

import fedsim
from fedsim.core.errors import InputError
from fedsim.graphs.mixing import mixing_matrix
from fedsim.graphs.push import PushMixing
from fedsim.graphs.topology import build_topology

Make = Callable[..., Any]
N = 6
EDGES = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0), (0, 3), (0, 2), (4, 1), (2, 5)]
LOSSY = {"mode": "gossip", "links": 0.6}
GEANT = Path(__file__).parents[2] / "topologies" / "geant_one_way.graphml"


def directed(folder: Path) -> dict[str, Any]:
    graph = nx.DiGraph()
    graph.add_nodes_from(range(N))
    graph.add_edges_from(EDGES)
    nx.write_graphml(graph, folder / "g.graphml")
    return {"graph": "file", "path": str(folder / "g.graphml")}


@pytest.fixture
def go(quadratic: Make, run_scenario: Make, tmp_path: Path) -> Make:
    problem = quadratic(n=N, d=3)

    def run(name: str, rounds: int, participation: Any = None, topology: Any = None, **keys: Any) -> tuple[Any, Any]:
        algorithm = {"name": name, "lr": 0.05, "batch_size": "full", **keys}
        made = run_scenario(
            data=problem.section(), algorithm=algorithm, topology=topology or directed(tmp_path),
            participation=participation or {"mode": "gossip"}, run={"rounds": rounds}, seed=3,
        )  # fmt: skip
        return problem, made

    return run


@pytest.mark.parametrize("keys", [{}, {"local_steps": 3}], ids=str)
@pytest.mark.parametrize("participation", [None, {**LOSSY, "compute": 0.7}], ids=["always", "sporadic"])
def test_sgp_is_its_loop(go: Make, participation: Any, keys: dict[str, Any]) -> None:
    problem, run = go("sgp", 25, participation, **keys)
    expected, w = slow.sgp(problem, run.trace, EDGES, 0.05)
    assert np.abs(expected - expected.mean(0)).max() > 1e-3
    assert np.abs(run.params.numpy() - expected).max() <= 1e-10
    assert np.abs(w - 1).max() > 0.1
    assert w.sum() == pytest.approx(N, abs=1e-12)


@pytest.mark.parametrize("participation", [None, LOSSY], ids=["always", "lossy"])
def test_push_diging_is_its_loop(go: Make, participation: Any) -> None:
    problem, run = go("push_diging", 25, participation)
    expected, _, apart = slow.push_diging(problem, run.trace, EDGES, 0.05)
    assert np.abs(run.params.numpy() - expected).max() <= 1e-10
    assert apart < 1e-12


@pytest.mark.parametrize("participation", [None, LOSSY], ids=["always", "lossy"])
def test_push_diging_reaches_the_optimum_of_all(go: Make, participation: Any) -> None:
    problem, run = go("push_diging", 600, participation)
    optimum = problem.optimum(np.full(N, 1 / N))
    assert np.abs(run.params.numpy() - optimum).max() < 1e-10
    problem, one = go("sgp", 400, participation)
    gap = np.abs(one.params.numpy() - optimum).max()
    assert gap > 1e-3
    problem, less = go("sgp", 2000, participation, lr=0.005)
    assert np.abs(less.params.numpy() - optimum).max() < gap / 4


@pytest.mark.parametrize("name,plain", [("sgp", "dfedavg"), ("push_diging", "gradient_tracking")])
def test_on_a_symmetric_matrix_it_is_the_plain_method(go: Make, name: str, plain: str) -> None:
    part = LOSSY if name == "sgp" else None
    (_, pushed), (_, other) = (go(n, 40, part, {"graph": "ring"}) for n in (name, plain))
    assert float((pushed.params - other.params).abs().max()) < 1e-12


@given(st.integers(2, 9), st.integers(0, 2**20), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_nothing_is_lost_whatever_links_fail(n: int, seed: int, share: float) -> None:
    draw = np.random.default_rng(seed)
    graph = nx.DiGraph(nx.cycle_graph(n, create_using=nx.DiGraph))
    graph.add_edges_from((i, j) for i in range(n) for j in range(n) if i != j and draw.random() < share)
    mixing = PushMixing(mixing_matrix(graph, "push"), directed=True)
    fired = draw.random(len(mixing.links)) < 0.5
    matrix = mixing.realised(fired).toarray()
    assert matrix.sum(0) == pytest.approx(np.ones(n), abs=1e-12)
    assert (matrix >= 0).all()
    off = {(int(j), int(i)) for i, j in zip(*np.nonzero(matrix), strict=True) if i != j}
    assert off == {(int(u), int(v)) for u, v in mixing.links[fired]}


@pytest.mark.parametrize("name", ["sgp", "push_diging"])
def test_resumed_it_is_the_unbroken_run(quadratic: Make, tmp_path: Path, name: str) -> None:
    scenario = {
        "data": quadratic(n=N, d=3).section(), "algorithm": {"name": name, "lr": 0.05, "batch_size": "full"},
        "topology": directed(tmp_path), "participation": LOSSY, "run": {"rounds": 9, "dtype": "float64"},
    }  # fmt: skip
    whole = fedsim.run(scenario, out=tmp_path / "whole")
    fedsim.run({**scenario, "run": {**scenario["run"], "rounds": 4}}, out=tmp_path / "parts")
    assert torch.equal(fedsim.run(scenario, out=tmp_path / "parts", resume=True).params, whole.params)


def test_a_real_network_whose_links_work_one_way() -> None:
    facts = fedsim.plan({
        "data": {"dataset": "digits", "clients": 40}, "model": {"name": "linear"},
        "algorithm": {"name": "sgp"}, "topology": {"graph": "file", "path": str(GEANT)}, "run": {"rounds": 2},
    })["network"]  # fmt: skip
    assert (facts["directed"], facts["connected"], facts["doubly_stochastic"]) == (True, True, False)


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("sgp", {"topology": {"weights": "uniform"}}, "topology.weights", "sum to 1 over what every node sends"),
    ("dgd", {"topology": {"weights": "push"}}, "topology.weights", "rows do not sum to 1"),
    ("gradient_tracking", {"topology": {"weights": "push"}}, "topology.weights", "rows do not sum to 1"),
    ("dspodfl", {"topology": {"weights": "push"}}, "topology.graph", "symmetric"),
    ("sgp", {"participation": {"mode": "gossip", "merge": "final"}}, "participation.merge", "counts with its weight"),
    ("sgp", {"participation": {"mode": "poisson"}}, "participation.mode", ""),
    ("push_diging", {"aggregator": {"name": "nna", "f": 1}}, "aggregator.name", ""),
    ("sgp", {"aggregator": {"name": "median"}}, "aggregator.name", "mixed alike"),
]


@pytest.mark.parametrize("name,sections,key,said", REFUSED)
def test_what_is_refused(
    quadratic: Make, tmp_path: Path, name: str, sections: dict[str, Any], key: str, said: str
) -> None:
    topology = {**directed(tmp_path), **sections.get("topology", {})}
    scenario = {
        "data": quadratic(n=N, d=3).section(), "algorithm": {"name": name, "lr": 0.05}, "run": {"rounds": 3},
        **sections, "topology": topology,
    }  # fmt: skip
    with pytest.raises(InputError) as caught:
        fedsim.run(scenario, out=tmp_path / "run")
    assert [(p.key, said in p.message) for p in caught.value.problems] == [(key, True)], str(caught.value)
    assert not (tmp_path / "run").exists()


def test_pulls_are_refused(quadratic: Make, tmp_path: Path) -> None:
    scenario = {
        "data": quadratic(n=N, d=3).section(), "algorithm": {"name": "sgp", "lr": 0.05}, "run": {"rounds": 3},
        "topology": {"graph": "random_peers", "symmetric": False},
    }  # fmt: skip
    with pytest.raises(InputError, match=r"topology\.symmetric: SGP needs links that work both ways, found pulls"):
        fedsim.run(scenario, out=tmp_path / "run")


def test_a_file_says_what_nodes_send(quadratic: Make, run_scenario: Make, tmp_path: Path) -> None:
    """Shares that sum to less than 1 over what a node sends, which keeps the rest; rows sum to anything."""
    shares = {(0, 1): 0.5, (1, 2): 0.9, (2, 0): 0.25, (2, 3): 0.25, (3, 0): 0.8}
    rows = "\n".join(f"{u},{v},{c}" for (u, v), c in shares.items())
    (tmp_path / "sent.csv").write_text(f"source,target,weight\n{rows}\n", encoding="utf-8")
    topology = {"graph": "file", "path": str(tmp_path / "sent.csv"), "directed": True, "weights": "push_file"}
    problem = quadratic(n=4, d=3)
    keys: dict[str, Any] = {"data": problem.section(), "topology": topology, "run": {"rounds": 400}}
    run = run_scenario(algorithm={"name": "push_diging", "lr": 0.05}, participation={"mode": "gossip"}, **keys)
    assert np.abs(run.params.numpy() - problem.optimum()).max() < 1e-6
    C = build_topology(topology, 4, 0, tmp_path)[0].matrix("push_file").toarray()
    assert C.sum(0) == pytest.approx(1, abs=1e-12)
    assert C.diagonal() == pytest.approx([0.5, 0.1, 0.5, 0.2])
    assert all(C[v, u] == c for (u, v), c in shares.items())
    with pytest.raises(InputError, match=r"the weights at node '0' sum to 1\.05"):
        run_scenario(algorithm={"name": "sgp"}, **{**keys, "topology": {**topology, "weights": "file"}})
    with pytest.raises(InputError, match="rows do not sum to 1"):
        run_scenario(algorithm={"name": "dfedavg"}, **keys)
    (tmp_path / "sent.csv").write_text(f"source,target,weight\n{rows}\n3,1,0.3\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"node '3' sends with sum to 1\.1, allowed: at most 1"):
        run_scenario(algorithm={"name": "sgp"}, **keys)
