"""Runs over links and nodes that come and go against a loop that asks every spell in every round."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contact_loop import Spells, holds, replay
from poisson_loop import replay as replay_ticks

LINKS: dict[tuple[int, int], Spells] = {
    (0, 1): [(1, 5), (9, 14)], (1, 2): [(3, 8)], (2, 3): [], (3, 4): [(2, 6), (7, 9)], (4, 5): [(6, 99)],
    (0, 5): [(1, 4), (12, 13)], (2, 5): [(10, 12)], (1, 4): [(4, 11)],
}  # fmt: skip
NODES: dict[int, Spells] = {0: [(1, 10)], 5: [(4, 99)], 3: [(1, 5), (8, 20)]}
ROUNDS, LR = 20, 0.07
SPORADIC = {"mode": "gossip", "compute": 0.7, "links": 0.7}
Make = Callable[..., Any]


def contacts(path: Path, links: dict[tuple[int, int], Spells], nodes: dict[int, Spells]) -> Path:
    """A node-link file with the spells."""
    found = {
        "nodes": [{"id": i, "spells": [list(s) for s in nodes.get(i, [])]} for i in range(6)],
        "edges": [{"source": i, "target": j, "spells": [list(s) for s in spells]} for (i, j), spells in links.items()],
    }
    path.write_text(json.dumps(found), encoding="utf-8")
    return path


@pytest.fixture
def go(quadratic: Make, run_scenario: Make, tmp_path: Path) -> Make:
    def run(name: str, nodes: dict[int, Spells], participation: Any = SPORADIC, **spells: Any) -> tuple[Any, Any]:
        problem = quadratic(n=6, d=3)
        found = run_scenario(
            data=problem.section(),
            algorithm={"name": name, "lr": LR},
            topology={
                "graph": "file",
                "path": str(contacts(tmp_path / "contacts.json", LINKS, nodes)),
                "spells": {"unit": "rounds", **spells},
            },
            participation=participation,
            run={"rounds": ROUNDS},
            seed=3,
        )
        return found, problem

    return run


def agree(found: Any, wanted: Any) -> None:
    assert np.abs(wanted - wanted.mean(0)).max() > 1e-3
    assert np.abs(found.params.numpy() - wanted).max() <= 1e-10


@pytest.mark.parametrize("nodes", [{}, NODES], ids=["links", "nodes"])
@pytest.mark.parametrize(
    ("name", "first"), [("dspodfl", False), ("dfedavg", True), ("dgd", False), ("sporadic_sgd", False)]
)
def test_rounds_replay_from_the_trace(go: Make, name: str, first: bool, nodes: dict[int, Spells]) -> None:
    run, problem = go(name, nodes)
    agree(run, replay(problem, run.trace, LINKS, nodes, LR, first))
    assert min(row["links_there"] for row in run.trace) < max(row["links_there"] for row in run.trace)


@pytest.mark.parametrize(("name", "first"), [("dspodfl", False), ("dfedavg", True)])
def test_nodes_that_join_take_the_mean_of_what_they_hear(go: Make, name: str, first: bool) -> None:
    always = {"mode": "gossip"}
    run, problem = go(name, NODES, always, join="average")
    agree(run, replay(problem, run.trace, LINKS, NODES, LR, first, average=True))
    kept, _ = go(name, NODES, always)
    assert not np.allclose(run.params.numpy(), kept.params.numpy())


def test_gradients_are_tracked_by_those_who_are_there(go: Make) -> None:
    """DIGing over a graph that changes: the y of all nodes sum to the sum of the gradients they last had."""
    run, problem = go("gradient_tracking", NODES, {"mode": "gossip"})
    x = np.tile(problem.x0, (6, 1))
    y, g = np.zeros_like(x), np.zeros_like(x)
    for k in range(1, ROUNDS + 1):
        there = [i for i in range(6) if holds(NODES.get(i, []), k)]
        up = [(i, j) for (i, j), s in LINKS.items() if i in there and j in there and holds(s, k)]
        degree = [sum(i in link for link in up) for i in range(6)]
        for i in there:
            fresh = problem.grad(i, x[i])
            y[i], g[i] = y[i] + fresh - g[i], fresh
        assert np.allclose(y.sum(0), g.sum(0), atol=1e-12)
        sent = x.copy()
        sent[there] -= LR * y[there]
        x, mixed = sent.copy(), y.copy()
        for i, j in up:
            r = 1 / (1 + max(degree[i], degree[j]))
            for a, b in ((i, j), (j, i)):
                x[a] += r * (sent[b] - sent[a])
                mixed[a] += r * (y[b] - y[a])
        y = mixed
    agree(run, x)


def test_ticks_of_what_is_away_do_nothing(quadratic: Make, run_scenario: Make, tmp_path: Path) -> None:
    import networkx as nx

    problem = quadratic(n=6, d=3, x0=np.zeros(3))
    file = contacts(tmp_path / "contacts.json", LINKS, NODES)
    topology = {"graph": "file", "path": str(file)}
    keys = {"data": problem.section(), "algorithm": {"name": "dspodfl", "lr": LR}, "seed": 3}
    ticking: dict[str, Any] = {"participation": {"mode": "poisson", "window": 2}, "run": {"rounds": 10}}
    whole = run_scenario(topology=topology, **keys, **ticking)
    run = run_scenario(topology={**topology, "spells": {"unit": "s"}}, **keys, **ticking)
    graph = nx.read_graphml(run.dir / "topology.graphml", node_type=int)
    agree(run, replay_ticks(run.trace, problem, graph, LR, half=False))
    happened = [tuple(event) for row in run.trace for event in row["events"]]
    there = []
    for time, *nodes in (event for row in whole.trace for event in row["events"]):
        link = holds(LINKS[tuple(sorted(nodes))], time) if len(nodes) == 2 else True  # type: ignore[index]
        if link and all(holds(NODES.get(i, []), time) for i in nodes):
            there.append((time, *nodes))
    assert happened == there
    assert 0 < len(there) < sum(len(row["events"]) for row in whole.trace)
