"""Every server algorithm against the same method written as a loop over clients, on quadratics, to 1e-10."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import server_loops as slow
from server_loops import Local

ROUNDS = 12
PROBLEMS = {
    "dense": {"dense": True},
    "diagonal": {"dense": False},
    "dense, with p": {"dense": True, "importance": True},
    "diagonal, with p": {"dense": False, "importance": True},
}
UNEQUAL = {"uniform": [1, 4]}
Make = Callable[..., Any]


def agree(run: Any, expected: Any, start: Any) -> None:
    found = run.params.numpy()
    assert np.abs(expected - start).max() > 1e-2  # the reference moved, so agreement means something
    assert np.abs(found - expected).max() <= 1e-10 * max(1.0, np.abs(expected).max())


@pytest.fixture(params=PROBLEMS, ids=list(PROBLEMS))
def problem(request: pytest.FixtureRequest, quadratic: Make) -> Any:
    return quadratic(**PROBLEMS[request.param])


@pytest.fixture
def go(run_scenario: Make, problem: Any) -> Make:
    """Run an algorithm with partial participation and unequal steps, and return its run."""

    def run(name: str, rounds: int = ROUNDS, participation: Any = None, **keys: Any) -> Any:
        return run_scenario(
            data=problem.section(),
            algorithm={"name": name, "lr": 0.05, "local_steps": UNEQUAL, **keys},
            participation=participation or {"mode": "synchronous", "clients_per_round": 3},
            run={"rounds": rounds},
            seed=3,
        )

    return run


def test_the_trace_has_what_the_references_need(go: Make, problem: Any) -> None:
    trace = go("fedavg").trace
    assert [row["round"] for row in trace] == list(range(1, ROUNDS + 1))
    assert len({tuple(row["clients"]) for row in trace}) > 3
    assert {s for row in trace for s in row["steps"]} == {1, 2, 3, 4}
    for row in trace:
        share = problem.p[row["clients"]]
        assert np.allclose(row["weights"], share / share.sum(), rtol=1e-14)


LOCAL: dict[str, tuple[dict[str, Any], Local]] = {
    "plain": ({}, Local(0.05)),
    "momentum": ({"momentum": 0.8}, Local(0.05, momentum=0.8)),
    "weight decay": ({"weight_decay": 0.3}, Local(0.05, weight_decay=0.3)),
    "clip": ({"clip": 1.5}, Local(0.05, clip=1.5)),
    "all": (
        {"momentum": 0.5, "weight_decay": 0.1, "clip": 1.5, "lr_decay": 0.9},
        Local(0.05, 0.5, 0.1, 1.5, lambda t: 0.9**t),
    ),
    "step decay": (
        {"lr_decay": {"step": 0.5, "every": 4}},
        Local(0.05, decay=lambda t: 0.5 ** (t // 4)),
    ),
    "inverse decay": ({"lr_decay": {"inverse": 0.5}}, Local(0.05, decay=lambda t: 1 / (1 + 0.5 * t))),
    "inverse root decay": ({"lr_decay": {"inverse_sqrt": 2.0}}, Local(0.05, decay=lambda t: 1 / math.sqrt(1 + 2 * t))),
    "cosine decay": (
        {"lr_decay": {"cosine": 8, "floor": 0.2}},
        Local(0.05, decay=lambda t: 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * min(t / 8, 1)))),
    ),
}


@pytest.mark.parametrize("case", LOCAL)
@pytest.mark.parametrize("server", [{}, {"server_lr": 0.7, "server_momentum": 0.6}], ids=["mean", "server momentum"])
def test_fedavg(go: Make, problem: Any, case: str, server: dict[str, float]) -> None:
    keys, local = LOCAL[case]
    run = go("fedavg", **keys, **server)
    agree(run, slow.fedavg(problem, run.trace, local, **server), problem.x0)


@pytest.mark.parametrize("case", ["plain", "all"])
def test_fedprox(go: Make, problem: Any, case: str) -> None:
    keys, local = LOCAL[case]
    run = go("fedprox", mu=0.8, **keys)
    expected = slow.fedavg(problem, run.trace, local, mu=0.8)
    agree(run, expected, problem.x0)
    assert np.abs(expected - slow.fedavg(problem, run.trace, local)).max() > 1e-4  # mu matters here


@pytest.mark.parametrize("case", ["plain", "momentum", "weight decay", "step decay", "all"])
@pytest.mark.parametrize("option", [1, 2])
def test_scaffold(go: Make, problem: Any, case: str, option: int) -> None:
    keys, local = LOCAL[case]
    run = go("scaffold", option=option, server_lr=0.9, **keys)
    agree(run, slow.scaffold(problem, run.trace, local, 0.9, option), problem.x0)


@pytest.mark.parametrize("case", ["plain", "momentum", "weight decay", "all"])
def test_feddyn(go: Make, problem: Any, case: str) -> None:
    keys, local = LOCAL[case]
    run = go("feddyn", alpha=0.7, **keys)
    agree(run, slow.feddyn(problem, run.trace, local, 0.7), problem.x0)


@pytest.mark.parametrize("case", ["plain", "momentum", "step decay", "weight decay"])
def test_fednova(go: Make, problem: Any, case: str) -> None:
    keys, local = LOCAL[case]
    run = go("fednova", server_lr=0.8, **keys)
    agree(run, slow.fednova(problem, run.trace, local, server_lr=0.8), problem.x0)


@pytest.mark.parametrize("case", ["plain", "step decay"])
def test_fednova_with_a_proximal_term(go: Make, problem: Any, case: str) -> None:
    keys, local = LOCAL[case]
    run = go("fednova", mu=0.9, **keys)
    agree(run, slow.fednova(problem, run.trace, local, mu=0.9), problem.x0)


@pytest.mark.parametrize("case", ["plain", "all"])
@pytest.mark.parametrize("kind", ["fedadam", "fedyogi", "fedadagrad"])
def test_fedopt(go: Make, problem: Any, kind: str, case: str) -> None:
    keys, local = LOCAL[case]
    moments = {"beta1": 0.8} if kind == "fedadagrad" else {"beta1": 0.8, "beta2": 0.95}
    run = go(kind, server_lr=0.2, tau=0.01, initial_accumulator=0.04, **moments, **keys)
    agree(run, slow.fedopt(problem, run.trace, local, kind, 0.2, 0.8, 0.95, 0.01, 0.04), problem.x0)


@pytest.mark.parametrize("kind,beta1", [("fedadam", 0.9), ("fedyogi", 0.9), ("fedadagrad", 0.0)])
def test_fedopt_defaults(go: Make, problem: Any, kind: str, beta1: float) -> None:
    run = go(kind)
    agree(run, slow.fedopt(problem, run.trace, Local(0.05), kind, 0.1, beta1, 0.99, 1e-3), problem.x0)


def test_fedadam_with_bias_correction(go: Make, problem: Any) -> None:
    run = go("fedadam", bias_correction=True)
    expected = slow.fedopt(problem, run.trace, Local(0.05), "fedadam", 0.1, 0.9, 0.99, 1e-3, bias_correction=True)
    agree(run, expected, problem.x0)


@pytest.mark.parametrize(
    "participation",
    [
        {"mode": "synchronous"},
        {"mode": "synchronous", "fraction": 0.4, "sampling": "bernoulli"},
        {"mode": "synchronous", "clients_per_round": 4, "sampling": "weighted"},
        {"mode": "synchronous", "stragglers": 0.6},
        {"mode": "synchronous", "stragglers": 0.6, "straggler_policy": "drop"},
    ],
    ids=lambda p: ", ".join(str(v) for v in p.values()),
)
@pytest.mark.parametrize("name", ["fedavg", "scaffold", "feddyn", "fednova"])
def test_every_way_to_take_part(go: Make, problem: Any, participation: dict[str, Any], name: str) -> None:
    keys = {"alpha": 0.7} if name == "feddyn" else {}
    run = go(name, participation=participation, **keys)
    agree(run, getattr(slow, name)(problem, run.trace, Local(0.05), **keys), problem.x0)


def test_one_number_of_steps_per_client(go: Make, problem: Any) -> None:
    run = go("fedavg", local_steps=[1, 2, 3, 4, 9])
    for row in run.trace:
        assert row["steps"] == [[1, 2, 3, 4, 9][i] for i in row["clients"]]
    agree(run, slow.fedavg(problem, run.trace, Local(0.05)), problem.x0)
