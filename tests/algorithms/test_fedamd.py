"""FedAMD: its fixed point, who is an anchor, what a round costs, keys that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.registry import lookup
from fedsim.engine.assembly import assemble
from fedsim.reports.plan import plan
from fedsim.scenario.load import parse

Make = Callable[..., Any]
ANCHOR = 1


@pytest.fixture
def go(run_scenario: Make) -> Make:
    def run(problem: Any, rounds: int, cohort: int, noise: float = 0.0, **keys: Any) -> Any:
        return run_scenario(
            data=problem.section(noise=noise),
            algorithm={"name": "fedamd", "lr": 0.1, "local_steps": 4, **keys},
            participation={"mode": "synchronous", "clients_per_round": cohort},
            run={"rounds": rounds},
        )

    return run


@pytest.mark.parametrize(
    "cohort,rounds,keys",
    [
        (2, 800, {"anchor_probability": 0.5}),
        (5, 450, {"anchor_probability": 0.3}),
        (2, 400, {"anchor_every": 2}),
        (2, 600, {"anchor_probability": 0.5, "local_steps": [1, 2, 3, 4, 5]}),
    ],
)
def test_it_reaches_the_optimum(quadratic: Make, go: Make, cohort: int, rounds: int, keys: dict[str, Any]) -> None:
    problem = quadratic(n=5, d=3, importance=True)
    found = go(problem, rounds, cohort, **keys).params.numpy()
    assert np.abs(found - problem.optimum()).max() < 1e-12


def test_fedavg_does_not(quadratic: Make, run_scenario: Make) -> None:
    problem = quadratic(n=5, d=3, importance=True)
    run = run_scenario(
        data=problem.section(),
        algorithm={"name": "fedavg", "lr": 0.1, "local_steps": 4},
        participation={"mode": "synchronous", "clients_per_round": 2},
        run={"rounds": 600},
    )
    assert np.abs(run.params.numpy() - problem.optimum()).max() > 1e-2


def test_weight_decay_belongs_to_the_objective(quadratic: Make, go: Make) -> None:
    problem = quadratic(n=4, d=3)
    found = go(problem, 600, 2, anchor_probability=0.5, weight_decay=0.3).params.numpy()
    A, p = problem.A + 0.3 * np.eye(3), problem.p
    right = np.linalg.solve((p[:, None, None] * A).sum(0), sum(p[i] * problem.A[i] @ problem.b[i] for i in range(4)))
    assert np.abs(found - right).max() < 1e-12


# --- roles ----------------------------------------------------------------------------------------


def test_the_first_round_asks_everybody_and_moves_nothing(quadratic: Make, go: Make) -> None:
    problem = quadratic(n=5, d=3)
    run = go(problem, 1, 2)
    (row,) = run.trace
    assert row["clients"] == [0, 1, 2, 3, 4]
    assert row["roles"] == [ANCHOR] * 5
    assert row["steps"] == [1] * 5
    assert np.array_equal(run.params.numpy(), problem.x0)


def test_after_it_one_step_is_gradient_descent(quadratic: Make, go: Make) -> None:
    """vbar is the full gradient; a miner's first step takes it as it is, whoever the miners are."""
    problem = quadratic(n=5, d=3, importance=True)
    run = go(problem, 3, 2, anchor_every=2, local_steps=1)
    assert [set(row["roles"]) for row in run.trace] == [{1}, {1}, {0}]
    gradient = sum(problem.p[i] * problem.grad(i, problem.x0) for i in range(5))
    assert np.abs(run.params.numpy() - (problem.x0 - 0.1 * gradient)).max() < 1e-14


def test_a_round_of_anchors_leaves_x_as_it_is(quadratic: Make, go: Make) -> None:
    problem = quadratic(n=5, d=3)
    fourth, fifth = go(problem, 4, 2, anchor_every=3), go(problem, 5, 2, anchor_every=3)
    assert set(fifth.trace[-1]["roles"]) == {ANCHOR}
    assert np.array_equal(fourth.params.numpy(), fifth.params.numpy())


def test_roles_are_drawn_from_client_and_round_alone() -> None:
    made = lookup("algorithm", "fedamd")(anchor_probability=0.3)
    clients = np.arange(5000)
    roles = made.role_of(clients, np.full(5000, 7), 1)
    assert abs(roles.mean() - 0.3) < 0.025  # standard deviation 0.0065
    assert np.array_equal(made.role_of(clients[10:20], np.full(10, 7), 1), roles[10:20])
    assert not np.array_equal(made.role_of(clients, np.full(5000, 8), 1), roles)
    assert not np.array_equal(made.role_of(clients, np.full(5000, 7), 2), roles)
    every = lookup("algorithm", "fedamd")(anchor_every=3)
    assert [int(every.role_of(np.array([4]), np.array([t]), 0)[0]) for t in range(1, 9)] == [1, 1, 0, 0, 1, 0, 0, 1]


def test_chunks_do_not_matter(quadratic: Make, run_scenario: Make) -> None:
    def params(rows: int | None) -> Any:
        return run_scenario(
            data=quadratic(n=7, d=3).section(noise=0.3),
            algorithm={"name": "fedamd", "lr": 0.1, "local_steps": {"uniform": [1, 4]}, "anchor_probability": 0.4},
            participation={"mode": "synchronous", "clients_per_round": 5},
            run={"rounds": 12} | ({} if rows is None else {"chunk_rows": rows}),
        ).params.numpy()

    assert all(np.array_equal(params(None), params(rows)) for rows in (1, 2, 3))


def test_an_interrupted_run_goes_on_as_if_nothing_was(quadratic: Make, tmp_path: Path) -> None:
    scenario = {
        "data": quadratic(n=5, d=3).section(noise=0.3),
        "algorithm": {"name": "fedamd", "lr": 0.1, "local_steps": 3},
        "participation": {"mode": "synchronous", "clients_per_round": 2},
        "run": {"rounds": 12, "dtype": "float64", "device": "cpu", "checkpoint_seconds": 1e-9},
    }

    def stop(number: int, _: Any) -> None:
        if number == 5:
            raise KeyboardInterrupt

    whole = fedsim.run(scenario, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fedsim.run(scenario, out=tmp_path / "broken", progress=stop)
    again = fedsim.run(scenario, out=tmp_path / "broken", resume=True)
    assert again.resumed_at is not None
    assert again.resumed_at > 0
    assert np.array_equal(whole.params.numpy(), again.params.numpy())
    assert whole.metrics["gradients"].iloc[-1] == again.metrics["gradients"].iloc[-1]


# --- cost -----------------------------------------------------------------------------------------


def digits(**keys: Any) -> dict[str, Any]:
    return {
        "data": {"dataset": "digits", "clients": 10, "partition": {"scheme": "dirichlet", "alpha": 1.0}},
        "model": {"name": "linear"},
        "algorithm": {"name": "fedamd", "lr": 0.05, "local_steps": 5, "batch_size": 8, **keys},
        "participation": {"mode": "synchronous", "clients_per_round": 4},
        "run": {"rounds": 9, "trace": True, "eval_every": 100, "device": "cpu"},
    }


@pytest.mark.parametrize("large", ["full", 40])
def test_large_batches_and_pairs_of_small_ones_are_counted(tmp_path: Path, large: Any) -> None:
    """Anchors: one large batch; miners: a pair of gradients per step but the first; all send one vector and get two."""
    run = fedsim.run(digits(large_batch=large), out=tmp_path / "run")
    sizes = np.array([int(line.split(",")[1]) for line in (run.dir / "partition.csv").read_text().splitlines()[1:]])
    expected = messages = 0
    for row in run.trace:
        for i, role in zip(row["clients"], row["roles"], strict=True):
            anchor = sizes[i] if large == "full" else min(sizes[i], large)
            expected += anchor if role == ANCHOR else 2 * (5 - 1) * min(sizes[i], 8)
            messages += 1
    last = run.metrics.iloc[-1]
    assert last["gradients"] == expected
    d = 64 * 10 + 10
    assert last["bytes_sent"] == messages * 3 * d * 4


def test_plan_tells_the_first_round_from_the_others(tmp_path: Path) -> None:
    scenario = digits(anchor_every=4)
    scenario["run"]["rounds"] = 21
    facts, run = plan(parse(scenario)), fedsim.run(scenario, out=tmp_path / "run")

    def number(text: str) -> float:
        return float(text.replace("about ", "").replace(",", "").split()[0])

    work, sent = facts["work"], facts["messages"]
    assert work["clients in the first round"] == 10
    first = number(work["sample gradients in the first round"])
    assert first == sum(assemble(parse(scenario)).task.sizes)
    assert number(work["sample gradients in all"]) == run.metrics["gradients"].iloc[-1]
    assert number(sent["sent in all"]) == pytest.approx(run.metrics["bytes_sent"].iloc[-1] / 2**10, rel=1e-3)


def test_it_learns_digits(tmp_path: Path) -> None:
    scenario = digits(anchor_probability=0.3, lr=0.2)
    scenario["run"]["rounds"] = 40
    run = fedsim.run(scenario, out=tmp_path / "run")
    assert run.metrics["test_accuracy"].iloc[-1] > 0.85


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys,key,says",
    [
        ({"anchor_probability": 0.0}, "anchor_probability", "greater than 0"),
        ({"anchor_probability": 1.0}, "anchor_probability", "less than 1"),
        ({"anchor_every": 1}, "anchor_every", "greater than or equal to 2"),  # the published code: miners for ever
        ({"anchor_every": 3, "anchor_probability": 0.5}, "anchor_every", "one of the two"),
        ({"large_batch": 0}, "large_batch", "greater than 0"),
        ({"large_batch": "all"}, "large_batch", "'full'"),
        ({"momentum": 0.5}, "momentum", "FedAMD has no momentum"),
        ({"relaxed_init": 0.1}, "relaxed_init", "FedAMD has no relaxed_init"),
    ],
)
def test_wrong_keys_are_named(quadratic: Make, go: Make, keys: dict[str, Any], key: str, says: str) -> None:
    with pytest.raises(InputError) as error:
        go(quadratic(), 1, 2, **keys)
    assert f"algorithm.{key}" in str(error.value)
    assert says in str(error.value)


def test_the_trace_is_plain_json(quadratic: Make, go: Make) -> None:
    run = go(quadratic(), 2, 2)
    rows = [json.loads(line) for line in (run.dir / "trace.jsonl").read_text().splitlines()]
    assert all(set(row["roles"]) <= {0, 1} for row in rows)
