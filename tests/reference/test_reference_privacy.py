"""Every private building block against the same method written as a loop over clients, on quadratics, to 1e-10."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networkx as nx
import numpy as np
import privacy_loops as slow
import pytest

from fedsim.graphs.mixing import mixing_matrix

Make = Callable[..., Any]
ROUNDS, LR = 11, 0.1
POISSON = {"sampling": "poisson", "fraction": 0.2}


@pytest.fixture
def problem(quadratic: Make) -> Any:
    return quadratic(n=6, importance=True)


@pytest.fixture
def go(run_scenario: Make, problem: Any) -> Make:
    def run(privacy: Any, name: str = "fedavg", rounds: int = ROUNDS, **more: Any) -> Any:
        keys = {"lr": LR, **more.pop("keys", {"local_steps": {"uniform": [1, 3]}})}
        return run_scenario(
            data=problem.section(), algorithm={"name": name, **keys}, run={"rounds": rounds}, seed=5,
            privacy={"noise_seed": 9, **privacy}, **more,
        )  # fmt: skip

    return run


def agree(run: Any, expected: Any, start: Any) -> None:
    found = run.params.numpy()
    assert np.abs(expected - start).max() > 1e-2
    assert np.abs(found - expected).max() <= 1e-10 * max(1.0, np.abs(expected).max())


NOISE = slow.Noise(9, 5)


def test_dp_sgd(go: Make, problem: Any) -> None:
    run = go(
        {"mechanism": "dp_sgd", "noise_multiplier": 0.7, "clip_norm": 1.5},
        participation={"clients_per_round": 4},
        keys={"local_steps": {"uniform": [1, 3]}, "batch_size": "full"},
    )
    agree(run, slow.dp_sgd(problem, run.trace, LR, 0.7, 1.5, NOISE), problem.x0)


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
@pytest.mark.parametrize("participation", [POISSON, {}])
def test_dp_fedavg(go: Make, problem: Any, weighting: str, participation: Any) -> None:
    keys = {"local_steps": {"uniform": [1, 3]}, "weighting": weighting}
    privacy = {"mechanism": "dp_fedavg", "noise_multiplier": 0.5, "clip_norm": 0.3}
    run = go(privacy, keys=keys, participation=participation)
    if participation:
        assert any(not row["clients"] for row in run.trace)  # a round of nobody is among them
    weights = problem.p if weighting == "samples" else np.full(6, 1 / 6)
    expected, _ = slow.dp_fedavg(problem, run.trace, LR, 0.5, 0.3, participation.get("fraction", 1.0), weights, NOISE)
    agree(run, expected, problem.x0)


def test_adaptive_clipping(go: Make, problem: Any) -> None:
    rule = {"quantile": 0.6, "rate": 0.3, "initial": 0.2, "bit_noise": 0.9}
    run = go({"mechanism": "dp_fedavg", "noise_multiplier": 0.5, "adaptive": rule}, participation=POISSON)
    expected, bound = slow.dp_fedavg(problem, run.trace, LR, 0.5, 0.2, 0.2, problem.p, NOISE, rule)
    agree(run, expected, problem.x0)
    assert bound != 0.2


@pytest.mark.parametrize("restart", [None, 4])
def test_dp_ftrl(go: Make, problem: Any, restart: int | None) -> None:
    keys = {"restart_every": restart} if restart else {}
    run = go(
        {"mechanism": "dp_ftrl", "noise_multiplier": 0.5, "clip_norm": 0.3, **keys},
        participation={"clients_per_round": 3},
    )
    length, worst = restart or ROUNDS, 0.0
    for i in range(6):  # how often a client is in each of the nodes that are released
        at = {row["round"] - 1 for row in run.trace if i in row["clients"]}
        squares = 0
        for epoch in range(-(-ROUNDS // length)):
            size = min(length, ROUNDS - epoch * length)
            for level in range(8):
                for index in range(0, size // 2**level, 2):
                    first = epoch * length + index * 2**level
                    squares += len(at & set(range(first, first + 2**level))) ** 2
        worst = max(worst, squares**0.5)
    share = problem.p * 2  # half of the clients in a cohort
    std = 0.5 * 0.3 * share.max() * worst
    agree(run, slow.dp_ftrl(problem, run.trace, LR, std, 0.3, share, length, NOISE), problem.x0)


@pytest.mark.parametrize(
    ("privacy", "ratio", "mixes"),
    [
        ({"mechanism": "decor", "correlation": 3.0}, 3.0, 1),
        ({"mechanism": "decor", "correlation": 0.0}, 0.0, 1),
        ({"mechanism": "muffliato", "gossip_steps": 4}, 0.0, 4),
    ],
)
def test_on_a_graph(go: Make, problem: Any, privacy: Any, ratio: float, mixes: int) -> None:
    run = go({"noise_multiplier": 0.4, "clip_norm": 0.6, **privacy}, "dfedavg", keys={}, topology={"graph": "star"})
    W = mixing_matrix(nx.star_graph(5), "metropolis").toarray()
    expected = slow.decor(problem, run.trace, LR, 0.6, 0.4 * 2 * 0.6, ratio, W, NOISE, mixes)
    agree(run, expected, problem.x0)
