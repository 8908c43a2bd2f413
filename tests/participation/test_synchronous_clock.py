"""Synchronous rounds on the clock: over-selection, deadlines and clients that never report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.core.errors import InputError

Make = Callable[..., Any]
SPEEDS = {"compute": {"model": "linear", "slowest": 1.0, "fastest": 0.2}}  # 10 clients: 1.0, 0.911, ..., 0.2
TAU = np.linspace(1.0, 0.2, 10)


@pytest.fixture
def go(tmp_path: Any) -> Make:
    random = np.random.default_rng(0)
    np.savez(tmp_path / "q.npz", A=random.uniform(0.5, 2, (10, 2)), b=random.normal(size=(10, 2)))

    def run(rounds: int = 40, **participation: Any) -> Any:
        scenario = {
            "data": {"dataset": "quadratic", "file": str(tmp_path / "q.npz")},
            "algorithm": {"name": "fedavg", "lr": 0.1},
            "participation": {"mode": "synchronous", **participation},
            "system": SPEEDS,
            "run": {"rounds": rounds, "eval_every": 1, "dtype": "float64", "trace": True},
        }
        return fedsim.run(scenario, out=tmp_path / "run")

    return run


def test_a_round_lasts_as_long_as_its_slowest_client(go: Make) -> None:
    run = go(clients_per_round=3)
    ends = np.cumsum([TAU[row["clients"]].max() for row in run.trace])
    np.testing.assert_allclose([row["time"] for row in run.trace], ends, rtol=1e-12)
    np.testing.assert_allclose(run.metrics["time"].iloc[1:], ends, rtol=1e-12)


def test_over_selection_uses_the_first_to_finish(go: Make) -> None:
    run = go(clients_per_round=4, over_selection=2.5)  # all 10 are asked
    for row in run.trace:
        assert row["clients"] == [6, 7, 8, 9]
        assert row["weights"] == [0.25] * 4
    np.testing.assert_allclose(run.trace[-1]["time"], 40 * TAU[6], rtol=1e-12)
    one_model = 2 * 8
    assert run.metrics["bytes_sent"].iloc[-1] == 40 * (10 + 4) * one_model


def test_a_deadline_leaves_the_slow_ones_out(go: Make) -> None:
    run = go(deadline=0.5)
    on_time = np.flatnonzero(TAU <= 0.5).tolist()
    assert all(row["clients"] == on_time for row in run.trace)
    np.testing.assert_allclose(run.trace[-1]["time"], 40 * 0.5, rtol=1e-12)


def test_a_deadline_nobody_meets_changes_nothing(go: Make) -> None:
    run = go(deadline=0.1)
    assert all(row["clients"] == [] for row in run.trace)
    assert run.params.tolist() == [0.0, 0.0]
    assert run.metrics["time"].iloc[-1] == pytest.approx(4.0)


def test_drop_outs_are_independent_and_cost_the_whole_wait(go: Make) -> None:
    run = go(rounds=400, dropout=0.3)
    reported = np.zeros((400, 10))
    for i, row in enumerate(run.trace):
        reported[i, row["clients"]] = 1
        assert sum(row["weights"]) == pytest.approx(1.0)
    np.testing.assert_allclose(reported.mean(0), 0.7, atol=5 * np.sqrt(0.21 / 400))
    assert abs(np.corrcoef(reported.T)[np.triu_indices(10, 1)]).max() < 5 / np.sqrt(400)
    lengths = np.diff([0.0, *[row["time"] for row in run.trace]])
    np.testing.assert_allclose(lengths, 1.0, rtol=1e-9)  # the slowest reports, or is waited for in vain


@pytest.mark.parametrize(
    "changes,key",
    [
        ({"over_selection": 0.5}, "participation.over_selection"),
        ({"over_selection": 2.0, "sampling": "bernoulli", "fraction": 0.5}, "participation.over_selection"),
        ({"deadline": 0.0}, "participation.deadline"),
        ({"dropout": 1.0}, "participation.dropout"),
    ],
)
def test_what_makes_no_sense_is_refused(go: Make, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError) as error:
        go(**changes)
    assert [p.key for p in error.value.problems] == [key]
