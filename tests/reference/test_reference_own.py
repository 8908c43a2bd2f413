"""Algorithms with a model of each client's own against loops over clients, on quadratics, to 1e-10."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networkx as nx
import numpy as np
import own_loops as slow
import pytest
from kept_models import KEEP, own_models
from own_loops import Setting
from server_loops import Local

ROUNDS = 10
Make = Callable[..., Any]
LOCAL: dict[str, tuple[dict[str, Any], Local]] = {
    "plain": ({}, Local(0.05)),
    "all": (
        {"momentum": 0.5, "weight_decay": 0.1, "clip": 1.5, "lr_decay": 0.9},
        Local(0.05, 0.5, 0.1, 1.5, lambda t: 0.9**t),
    ),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "": {"participation": {"mode": "synchronous", "clients_per_round": 3}},
    "gossip_": {
        "topology": {"graph": "random_geometric", "radius": 0.6},
        "participation": {"mode": "gossip", "compute": 0.7, "links": 0.6},
    },
}


@pytest.fixture(params=SETTINGS, ids=["server", "graph"])
def go(request: pytest.FixtureRequest, run_scenario: Make, quadratic: Make) -> Make:
    """Run an algorithm with unequal steps; its problem, its run, its setting, and the clients' own models."""
    prefix = request.param

    def run(name: str, **keys: Any) -> tuple[Any, Any, Setting, Any]:
        problem = quadratic(n=5, importance=not prefix)
        work = {"model": "uniform", "low": 1, "high": 4}
        made = run_scenario(
            data=problem.section(),
            algorithm={
                "name": prefix + name,
                "lr": 0.05,
                "local_steps": work,
                **keys,
            },
            run={"rounds": ROUNDS, "metrics": [KEEP]},
            seed=3,
            **SETTINGS[prefix],
        )
        edges = None
        if prefix:
            edges = [(int(u), int(v)) for u, v in nx.read_graphml(made.dir / "topology.graphml", node_type=int).edges]
        return problem, made, Setting(edges), own_models()

    return run


def agree(problem: Any, run: Any, own: Any, expected: tuple[Any, Any]) -> None:
    x, v = expected
    assert np.abs(x - problem.x0).max() > 1e-2  # the reference moved, so agreement means something
    assert np.abs(v - v.mean(0)).max() > 1e-2
    assert np.abs(v - x).max() > 1e-3
    assert np.abs(run.params.numpy() - x).max() <= 1e-10
    assert np.abs(own - v).max() <= 1e-10


@pytest.mark.parametrize("case", LOCAL)
@pytest.mark.parametrize("own_rate", [{}, {"personal_lr": 0.02}], ids=["", "own rate"])
def test_ditto(go: Make, case: str, own_rate: dict[str, float]) -> None:
    keys, local = LOCAL[case]
    problem, run, setting, own = go("ditto", **{"lambda": 0.7}, **keys, **own_rate)
    scale = own_rate.get("personal_lr", 0.05) / 0.05
    agree(problem, run, own, slow.ditto(problem, run, local, setting, 0.7, scale))


@pytest.mark.parametrize("case", LOCAL)
def test_pfedme(go: Make, case: str) -> None:
    keys, local = LOCAL[case]
    problem, run, setting, own = go("pfedme", **{"lambda": 2.0}, inner_steps=3, personal_lr=0.15, **keys)
    agree(problem, run, own, slow.pfedme(problem, run, local, setting, 2.0, 3, 3.0))


@pytest.mark.parametrize("case", LOCAL)
@pytest.mark.parametrize("adaptive", [{}, {"adaptive": True}, {"adaptive": True, "alpha_lr": 0.5}], ids=str)
def test_apfl(go: Make, case: str, adaptive: dict[str, Any]) -> None:
    keys, local = LOCAL[case]
    problem, run, setting, own = go("apfl", alpha=0.4, **keys, **adaptive)
    scale = adaptive.get("alpha_lr", 0.05) / 0.05 if adaptive else None
    agree(problem, run, own, slow.apfl(problem, run, local, setting, 0.4, scale))
