"""Server algorithms: fixed points and closed forms from the literature, refused keys, counted bytes and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fedsim.algorithms.work import LrDecay, Work
from fedsim.core.errors import InputError

Make = Callable[..., Any]
TWO_OF_FIVE = {"mode": "synchronous", "clients_per_round": 2}


@pytest.fixture
def go(run_scenario: Make) -> Make:
    def run(problem: Any, name: str, rounds: int, participation: Any = None, **keys: Any) -> Any:
        return run_scenario(
            data=problem.section(),
            algorithm={"name": name, **keys},
            participation=participation or {"mode": "synchronous"},
            run={"rounds": rounds, "trace": False},
        )

    return run


# --- FedNova's example: a = (1, 5, -3), p = (.2, .5, .3), tau = (1, 5, 20) ------------------------

TARGETS, SHARES, STEPS = np.array([1.0, 5.0, -3.0]), np.array([0.2, 0.5, 0.3]), np.array([1, 5, 20])


@pytest.mark.parametrize(
    "name,lr,published,tolerance", [("fednova", 1e-4, 1.8010, 5e-5), ("fedavg", 1e-5, -0.6092, 2e-4)]
)
def test_fednova_removes_the_pull_of_more_steps(
    quadratic: Make, go: Make, name: str, lr: float, published: float, tolerance: float
) -> None:
    """(x - a_i)^2 / 2 with unequal steps: FedNova finds the p-weighted mean 1.8 (+ O(lr)), FedAvg the tau-weighted one.

    A large server step only speeds up the way to the same fixed point.
    """
    problem = quadratic(A=np.ones((3, 1)), b=TARGETS[:, None], x0=[0.0], p=SHARES)
    run = go(problem, name, 300, lr=lr, local_steps=STEPS.tolist(), server_lr=0.01 / lr)
    found = float(run.params[0])
    pull = SHARES * (1 - (1 - lr) ** STEPS) / (STEPS if name == "fednova" else 1)
    assert found == pytest.approx(pull @ TARGETS / pull.sum(), abs=1e-9)
    assert found == pytest.approx(published, abs=tolerance)


def test_fednova_approaches_the_mean_linearly_in_lr(quadratic: Make, go: Make) -> None:
    problem = quadratic(A=np.ones((3, 1)), b=TARGETS[:, None], x0=[0.0], p=SHARES)
    gaps = [
        abs(float(go(problem, "fednova", 300, lr=lr, local_steps=STEPS.tolist(), server_lr=0.01 / lr).params[0]) - 1.8)
        for lr in (2e-3, 1e-3)
    ]
    assert gaps[0] / gaps[1] == pytest.approx(2.0, rel=0.02)


# --- exact optima under heterogeneity, partial participation and unequal steps --------------------


@pytest.mark.parametrize("shape", [{}, {"dense": False, "importance": True}], ids=["dense", "diagonal, with p"])
@pytest.mark.parametrize(
    "name,keys",
    [
        ("scaffold", {"lr": 0.1, "local_steps": 4}),
        ("scaffold", {"lr": 0.1, "local_steps": 4, "option": 1}),
        ("scaffold", {"lr": 0.1, "local_steps": [1, 2, 3, 4, 5]}),
        ("feddyn", {"lr": 0.1, "local_steps": 6, "alpha": 1.0}),
        ("feddyn", {"lr": 0.1, "local_steps": [6, 7, 8, 9, 10], "alpha": 1.0}),
    ],
)
def test_scaffold_and_feddyn_reach_the_optimum_with_two_of_five(
    quadratic: Make, go: Make, shape: dict[str, Any], name: str, keys: dict[str, Any]
) -> None:
    problem = quadratic(n=5, d=3, **shape)
    run = go(problem, name, 350, TWO_OF_FIVE, **keys)
    assert np.abs(run.params.numpy() - problem.optimum()).max() < 1e-10
    assert run.metrics["optimum_distance"].iloc[-1] < 1e-10


def test_fedavg_does_not(quadratic: Make, go: Make) -> None:
    problem = quadratic(n=5, d=3)
    run = go(problem, "fedavg", 400, TWO_OF_FIVE, lr=0.1, local_steps=4)
    assert np.abs(run.params.numpy() - problem.optimum()).max() > 1e-2


@pytest.mark.parametrize("name,keys", [("scaffold", {}), ("feddyn", {"alpha": 1.0})])
def test_uniform_weighting_is_the_uniform_objective(quadratic: Make, go: Make, name: str, keys: dict[str, Any]) -> None:
    problem = quadratic(n=5, d=3, importance=True)
    run = go(problem, name, 350, TWO_OF_FIVE, lr=0.1, local_steps=6, weighting="uniform", **keys)
    uniform = problem.optimum(np.full(5, 0.2))
    assert np.abs(run.params.numpy() - uniform).max() < 1e-10
    assert np.abs(problem.optimum() - uniform).max() > 1e-2


def test_fedprox_solves_the_proximal_problem(quadratic: Make, go: Make) -> None:
    """With many local steps a round is ``sum_i p_i argmin f_i(y) + mu/2 |y - x|^2``."""
    problem, mu = quadratic(n=3, d=2, importance=True), 2.0
    run = go(problem, "fedprox", 1, lr=0.2, local_steps=300, mu=mu)
    expected = sum(
        p * np.linalg.solve(A + mu * np.eye(2), A @ b + mu * problem.x0)
        for p, A, b in zip(problem.p, problem.A, problem.b, strict=True)
    )
    assert np.abs(run.params.numpy() - expected).max() < 1e-12


def test_the_first_step_of_the_adaptive_servers(quadratic: Make, go: Make) -> None:
    """From v_0 = 0, with beta1 = 0.9, beta2 = 0.99 (Adagrad: beta1 = 0): closed forms in the mean delta D."""
    problem, eta, tau = quadratic(n=3, d=4), 0.3, 1e-3
    delta = go(problem, "fedavg", 1, lr=0.1).params.numpy() - problem.x0
    for name, keys, expected in (
        ("fedadam", {}, 0.1 * delta / (0.1 * np.abs(delta) + tau)),
        ("fedyogi", {}, 0.1 * delta / (0.1 * np.abs(delta) + tau)),
        ("fedadagrad", {}, delta / (np.abs(delta) + tau)),
        ("fedadam", {"bias_correction": True}, delta * 0.1 / (0.1 * np.abs(delta) + tau)),
    ):
        found = go(problem, name, 1, lr=0.1, server_lr=eta, tau=tau, **keys).params.numpy() - problem.x0
        assert np.abs(found - eta * expected).max() < 1e-12, name


# --- what is counted ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name,down,up,keys",
    [
        ("fedavg", 4, 4, {}),
        ("fedavg", 4, 4, {"server_momentum": 0.5}),
        ("scaffold", 8, 8, {}),
        ("feddyn", 4, 4, {"alpha": 1.0}),
        ("fednova", 4, 5, {}),
        ("fedadam", 4, 4, {}),
    ],
)
def test_bytes_and_gradients(quadratic: Make, go: Make, name: str, down: int, up: int, keys: dict[str, Any]) -> None:
    run = go(quadratic(n=5, d=4), name, 10, TWO_OF_FIVE, lr=0.1, local_steps=3, **keys)
    last = run.metrics.iloc[-1]
    assert last["bytes_sent"] == 10 * 2 * (down + up) * 8
    assert last["gradients"] == 10 * 2 * 3


# --- refused keys ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "algorithm,key",
    [
        ({"name": "fednova", "mu": 0.1, "momentum": 0.9}, "algorithm.mu"),
        ({"name": "fednova", "mu": -0.1}, "algorithm.mu"),
        ({"name": "fedprox", "mu": -0.1}, "algorithm.mu"),
        ({"name": "feddyn", "alpha": 0.0}, "algorithm.alpha"),
        ({"name": "scaffold", "option": 3}, "algorithm.option"),
        ({"name": "fedavg", "lr": 0.0}, "algorithm.lr"),
        ({"name": "fedavg", "momentum": 1.0}, "algorithm.momentum"),
        ({"name": "fedavg", "server_momentum": -0.1}, "algorithm.server_momentum"),
        ({"name": "fedavg", "weight_decay": -1.0}, "algorithm.weight_decay"),
        ({"name": "fedavg", "clip": 0.0}, "algorithm.clip"),
        ({"name": "fedavg", "batch_size": 0}, "algorithm.batch_size"),
        ({"name": "fedavg", "local_steps": 2, "local_epochs": 1}, "algorithm.local_epochs"),
        ({"name": "fedavg", "local_steps": [1, 2]}, "algorithm.local_steps"),
        ({"name": "fedavg", "local_steps": {"uniform": [3, 1]}}, "algorithm.local_steps"),
        ({"name": "fedavg", "lr_decay": 1.5}, "algorithm.lr_decay"),
        ({"name": "fedavg", "lr_decay": {"step": 0.5}}, "algorithm.lr_decay"),
        ({"name": "fedadam", "tau": 0.0}, "algorithm.tau"),
        ({"name": "fedadam", "beta2": 1.0}, "algorithm.beta2"),
        ({"name": "fedavg", "mu": 0.1}, "algorithm.mu"),
    ],
    ids=lambda v: " ".join(f"{x}" for x in v.values()) if isinstance(v, dict) else "",
)
def test_keys_out_of_range_are_named(quadratic: Make, run_scenario: Make, algorithm: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError) as error:
        run_scenario(data=quadratic().section(), algorithm=algorithm, run={"rounds": 1})
    keys = [p.key or "" for p in error.value.problems]
    assert any(k == key or k.startswith(key + ".") for k in keys), keys


# --- schedules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys,expected",
    [
        ({"exponential": 0.5}, [1, 0.5, 0.25, 0.125]),
        ({"step": 0.1, "every": 2}, [1, 1, 0.1, 0.1]),
        ({"inverse": 1.0}, [1, 1 / 2, 1 / 3, 1 / 4]),
        ({"inverse_sqrt": 3.0}, [1, 1 / 2, 1 / np.sqrt(7), 1 / np.sqrt(10)]),
        ({"cosine": 2}, [1, 0.5, 0, 0]),
        ({"cosine": 2, "floor": 0.2}, [1, 0.6, 0.2, 0.2]),
    ],
)
def test_learning_rate_schedules(keys: dict[str, float], expected: list[float]) -> None:
    assert np.allclose(LrDecay(**keys).factor(np.arange(4)), expected, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("keys", [{}, {"step": 0.5}, {"inverse": 1.0, "cosine": 3}, {"exponential": 0.0}])
def test_schedules_that_mean_nothing(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LrDecay(**keys)


def test_drawn_work_covers_its_range_and_depends_on_client_and_round_alone() -> None:
    work, clients = Work(uniform=[2, 5]), np.arange(4000)
    drawn = work.of(clients, np.full(4000, 7), seed=1)
    assert np.bincount(drawn, minlength=6)[2:].min() > 850  # 1000 expected each, standard deviation 27
    assert set(drawn) == {2, 3, 4, 5}
    assert np.array_equal(work.of(clients[5:9], np.full(4, 7), seed=1), drawn[5:9])
    assert not np.array_equal(work.of(clients, np.full(4000, 8), seed=1), drawn)
    assert not np.array_equal(work.of(clients, np.full(4000, 7), seed=2), drawn)
    assert work.of(clients[:2], np.array([7, 8]), seed=1)[0] == drawn[0]


def test_given_work() -> None:
    clients = np.array([2, 0])
    assert Work(fixed=3).of(clients, clients, 0).tolist() == [3, 3]
    assert Work(per_client=[5, 6, 7]).of(clients, clients, 0).tolist() == [7, 5]
    with pytest.raises(ValidationError):
        Work(fixed=1, uniform=[1, 2])
