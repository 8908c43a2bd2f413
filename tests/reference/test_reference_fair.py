"""q-FFL and agnostic federated learning against the same methods written as loops over clients, to 1e-10."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fair_loops as slow
import numpy as np
import pytest
import torch
from server_loops import Local

from fedsim.algorithms.afl import on_simplex
from fedsim.algorithms.qffl import QFFL
from fedsim.algorithms.round import Effort
from fedsim.core.errors import InputError, RunError
from fedsim.engine.assembly import assemble
from fedsim.scenario.load import parse

ROUNDS = 12
LOCAL = Local(0.05)
Make = Callable[..., Any]


@pytest.fixture(params=[{"dense": True}, {"dense": False, "importance": True}], ids=str)
def problem(request: pytest.FixtureRequest, quadratic: Make) -> Any:
    return quadratic(**request.param)


@pytest.fixture
def go(run_scenario: Make, problem: Any) -> Make:
    """Run an algorithm with partial participation and unequal steps, and return its run."""

    def run(name: str, rounds: int = ROUNDS, participation: Any = None, **keys: Any) -> Any:
        return run_scenario(
            data=problem.section(),
            algorithm={"name": name, "lr": 0.05, "local_steps": {"uniform": [1, 4]}, **keys},
            participation=participation or {"clients_per_round": 3},
            run={"rounds": rounds},
            seed=3,
        )

    return run


def agree(run: Any, expected: Any, start: Any) -> None:
    found = run.params.numpy()
    assert np.abs(expected - start).max() > 1e-2
    assert np.abs(found - expected).max() <= 1e-10 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("q", [0.0, 0.5, 1.0, 5.0])
@pytest.mark.parametrize("weighting", ["samples", "uniform"])
def test_qffl(go: Make, problem: Any, q: float, weighting: str) -> None:
    run = go("qffl", q=q, weighting=weighting)
    agree(run, slow.qffl(problem, run.trace, LOCAL, q), problem.x0)


def test_qffl_with_other_keys(go: Make, problem: Any) -> None:
    run = go("qffl", q=2.0, lipschitz=7.0, server_lr=0.8, lr_decay=0.9, participation={"sampling": "weighted"})
    expected = slow.qffl(problem, run.trace, Local(0.05, decay=lambda t: 0.9**t), 2.0, 7.0, 0.8)
    agree(run, expected, problem.x0)


@pytest.mark.parametrize("lambda_lr", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("weighting", ["samples", "uniform"])
def test_afl(go: Make, problem: Any, lambda_lr: float, weighting: str) -> None:
    run = go("afl", lambda_lr=lambda_lr, weighting=weighting, server_lr=0.8)
    at_first = problem.p if weighting == "samples" else np.full(problem.n, 1 / problem.n)
    agree(run, slow.afl(problem, run.trace, LOCAL, lambda_lr, at_first, 0.8), problem.x0)


def test_afl_ends_where_the_worst_client_is_best_off(run_scenario: Make, quadratic: Make) -> None:
    problem = quadratic(n=4, d=3)
    keys = {"lr": 0.1, "lambda_lr": 0.01, "local_steps": 1}
    run = run_scenario(data=problem.section(), algorithm={"name": "afl", **keys}, run={"rounds": 600, "trace": False})
    best = slow.minimax(problem)
    x = run.params.numpy()
    worst, least = (max(slow.loss(problem, i, v) for i in range(4)) for v in (x, best))
    assert worst < 1.02 * least
    mean = max(slow.loss(problem, i, problem.optimum()) for i in range(4))
    assert worst < 0.9 * mean


@pytest.mark.parametrize("v", [[0.2, 0.3, 0.5], [3.0, 0.1, -1.0], [0.6, 0.6, 0.6], [-5.0, -5.1], [7.0]], ids=str)
def test_the_projection_on_the_simplex(v: list[float]) -> None:
    found = on_simplex(torch.tensor(v, dtype=torch.float64)).numpy()
    assert np.abs(found - slow.nearest(np.array(v))).max() < 1e-12
    assert abs(found.sum() - 1) < 1e-12


def test_a_cohort_that_weighs_nothing_moves_nothing(run_scenario: Make, quadratic: Make) -> None:
    """With a large step lambda ends at one client; rounds without it leave the model as it is."""
    problem = quadratic(n=6, d=3)
    keys = {"name": "afl", "lr": 0.05, "lambda_lr": 100.0}
    run = run_scenario(
        data=problem.section(), algorithm=keys, participation={"clients_per_round": 2}, run={"rounds": 8}
    )
    agree(run, slow.afl(problem, run.trace, LOCAL, 100.0, np.full(6, 1 / 6)), problem.x0)


@pytest.mark.parametrize(
    ("b", "keys", "says"),
    [
        (0.0, {"name": "qffl", "q": 5.0}, "found 0 for the cohort's sum of h_i: with q = 5 the losses to the power of"),
        (1e7, {"name": "qffl", "q": 5.0}, "found inf .* allowed: a smaller q, or run.dtype: float64"),
        (1e25, {"name": "afl"}, "found losses that are no finite numbers, of clients 4: there is no step along them"),
    ],
    ids=["too small", "too large", "afl"],
)
def test_losses_beyond_what_numbers_hold_end_the_run(
    b: float, keys: dict[str, Any], says: str, run_scenario: Make, quadratic: Make
) -> None:
    """Weights made of them would be no numbers, and the model would stay where it is for good, or be none."""
    problem = quadratic(n=5, d=3, dense=False, x0=np.zeros(3), b=[[0.0] * 3] * 4 + [[b] * 3])
    with pytest.raises(RunError, match=says):
        run_scenario(data=problem.section(), algorithm={**keys, "lr": 0.1}, run={"rounds": 3, "dtype": "float32"})


def test_a_loss_below_0_has_no_powers() -> None:
    received = {"x": torch.zeros(2, 3)}
    effort = Effort(torch.ones(2, 1), torch.ones(2, 1), torch.tensor([[1.0], [-0.5]]))
    with pytest.raises(RunError, match=r"takes powers of losses, and found -0\.5"):
        QFFL(q=2.0).message({"x": torch.ones(2, 3)}, received, {}, effort)
    assert QFFL(q=0.0).message({"x": torch.ones(2, 3)}, received, {}, effort)[0]["weighted"].isfinite().all()


DIGITS = {
    "data": {"dataset": "digits", "clients": 6, "limit": 400, "partition": {"scheme": "dirichlet", "alpha": 0.5}},
    "model": {"name": "linear"},
    "participation": {"clients_per_round": 3},
}


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
@pytest.mark.parametrize("keys", [{"name": "qffl", "q": 0.0}, {"name": "afl", "lambda_lr": 0.0}], ids=str)
def test_without_fairness_it_is_fedavg(run_scenario: Make, keys: dict[str, Any], weighting: str) -> None:
    """With q = 0, or with lambda as it is at first, in both weightings of cohorts."""
    work = {"lr": 0.1, "local_epochs": 1, "batch_size": 16, "weighting": weighting}
    fair, plain = (
        run_scenario(**DIGITS, algorithm={**work, **k}, run={"rounds": 5}) for k in (keys, {"name": "fedavg"})
    )
    assert float((fair.params - plain.params).abs().max()) < 1e-12
    assert fair.metrics["gradients"].equals(plain.metrics["gradients"])


@pytest.mark.parametrize(
    "compression", [{"name": "top_k", "k": 40, "feedback": "ef14"}, {"name": "qsgd", "levels": 4}], ids=str
)
def test_compressed_changes_are_weighed_as_those_of_fedavg(run_scenario: Make, compression: dict[str, Any]) -> None:
    """Losses are one number of each client, which no compressor touches."""
    common = {"lr": 0.1, "local_steps": 2, "batch_size": 8, "weighting": "uniform"}
    plain, fair = (
        run_scenario(
            **DIGITS, algorithm={**keys, **common}, compression=compression, run={"rounds": 3, "eval_every": 1}
        )
        for keys in ({"name": "fedavg"}, {"name": "afl", "lambda_lr": 0.0})
    )
    assert torch.equal(plain.params, fair.params)
    more = fair.metrics.bytes_sent.iloc[-1] - plain.metrics.bytes_sent.iloc[-1]
    assert more == 3 * 3 * 8  # a loss of each client in every round


def test_losses_are_counted_and_travel(run_scenario: Make) -> None:
    work = {"lr": 0.1, "local_steps": 1, "batch_size": 16}
    plain = run_scenario(**DIGITS, algorithm={"name": "fedavg", **work}, run={"rounds": 4})
    own = assemble(parse({**DIGITS, "algorithm": {"name": "qffl"}})).task.sizes
    for keys, each in (({}, None), ({"loss_samples": 5}, 5)):
        fair = run_scenario(**DIGITS, algorithm={"name": "qffl", **work, **keys}, run={"rounds": 4})
        assert int(fair.metrics["bytes_sent"].iloc[-1] - plain.metrics["bytes_sent"].iloc[-1]) == 4 * 3 * 8
        sizes = own if each is None else np.full(6, each)
        counted = sum(int(sizes[row["clients"]].sum()) for row in fair.trace)
        assert int(fair.metrics["loss_evaluations"].iloc[-1]) == counted
    assert "loss_evaluations" not in plain.metrics


@pytest.mark.parametrize("mechanism", ["dp_fedavg", "local_dp", "dp_sgd"])
@pytest.mark.parametrize("name", ["qffl", "afl"])
def test_no_mechanism_covers_losses(name: str, mechanism: str) -> None:
    privacy = {"mechanism": mechanism, "noise_multiplier": 1.0, "clip_norm": 1.0}
    with pytest.raises(InputError, match="sends what clients lose on their own data") as caught:
        parse({**DIGITS, "algorithm": {"name": name}, "privacy": privacy})
    assert "privacy.mechanism" in [problem.key for problem in caught.value.problems]


@pytest.mark.parametrize("name", ["qffl", "afl"])
def test_losses_of_several_models_are_not_compared(name: str) -> None:
    with pytest.raises(InputError, match=f"one and the same model; allowed with '{name}': synchronous"):
        parse({**DIGITS, "algorithm": {"name": name}, "participation": {"mode": "asynchronous"}})
