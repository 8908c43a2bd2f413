"""Server algorithms on the virtual clock: known optima, weights and schedules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clocked import ASYNC, F80, Make, events

import fedsim
from fedsim.core.errors import InputError
from fedsim.participation.base import Arrival
from fedsim.participation.clocked import Staleness

A = np.array([4.0, 1.0, -2.0, 3.0])
CYCLE = 732  # arrivals until durations of 15, 11, 7 and 3 fifteenths of a second coincide again, after 77 s


@pytest.fixture
def scalar(quadratic: Make, run_scenario: Make) -> Make:
    """f_i(x) = (x - a_i)^2 / 2 under F-80; one local step of length phi, from x = 1."""

    def run(phi: float, rounds: int, participation: dict[str, Any], **more: Any) -> Any:
        problem = quadratic(n=4, d=1, dense=False, A=np.ones((4, 1)), b=A[:, None], x0=[1.0])
        return run_scenario(
            data=problem.section(),
            algorithm={"name": "fedavg", "lr": phi},
            participation=participation,
            system=F80,
            run={"rounds": rounds, **more},
        )

    return run


def models(run: Any, phi: float) -> list[float]:
    """theta^0, theta^1, ... from the trace's weights and staleness, which end at the run's parameters."""
    x = [1.0]
    for row in run.trace:
        sent = [x[row["round"] - 1 - s] for s in row["staleness"]]
        x.append(
            x[-1] + sum(w * phi * (A[c] - y) for c, w, y in zip(row["clients"], row["weights"], sent, strict=True))
        )
    assert abs(x[-1] - float(run.params)) < 1e-12
    return x


def mean_weights(count: int, n: int, **sections: Any) -> Any:
    """Mean of omega_i per combine."""
    total = np.zeros(n)
    for event in events(count, **sections):
        if isinstance(event, Arrival):
            assert event.weights is not None
            np.add.at(total, event.clients, event.weights)
    return total / count


# --- where it converges to ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "participation,phi,rounds,cycle,limit,tolerance",
    [
        ({"weights": "identical", **ASYNC}, 0.002, 6000, CYCLE, 1.691257, 2e-5),
        (ASYNC, 0.002, 6000, CYCLE, 1.49962, 2e-5),
        ({"mode": "fixed_interval", "window": 0.5, "weights": "identical"}, 0.01, 2000, 2, 1.16611, 1e-5),
        ({"mode": "fixed_interval", "window": 0.5}, 0.01, 2000, 2, 1.49875, 1e-5),
    ],
    ids=["asynchronous, identical", "asynchronous, debiased", "FedFix, identical", "FedFix, debiased"],
)
def test_optima(
    scalar: Make, participation: dict[str, Any], phi: float, rounds: int, cycle: int, limit: float, tolerance: float
) -> None:
    run = scalar(phi, rounds, participation)
    assert np.mean(models(run, phi)[-cycle:]) == pytest.approx(limit, abs=tolerance)


def test_smaller_steps_come_nearer_to_the_optimum(scalar: Make) -> None:
    """1.5 for debiased weights and 7/6 for identical ones are the limits for phi to 0, with an error of order phi."""
    for weights, limit in (("debiased", 1.5), ("identical", 7 / 6)):
        gaps = []
        for phi in (0.12, 0.06, 0.03):
            run = scalar(phi, int(20 / phi), {"mode": "fixed_interval", "window": 0.5, "weights": weights})
            gaps.append(abs(np.mean(models(run, phi)[-2:]) - limit))
        assert gaps[0] / gaps[1] == pytest.approx(2.0, abs=0.1)
        assert gaps[1] / gaps[2] == pytest.approx(2.0, abs=0.1)


def limit_cycle(run: Any, phi: float, cycle: int) -> float:
    """sum_i p_i * mean over i's deliveries in one cycle of the model it was sent."""
    x = models(run, phi)
    sent: list[list[float]] = [[], [], [], []]
    for row in run.trace[-cycle:]:
        for c, s in zip(row["clients"], row["staleness"], strict=True):
            sent[c].append(x[row["round"] - 1 - s])
    return float(np.mean([np.mean(values) for values in sent]))


@pytest.mark.parametrize("phi", [0.05, 0.3, 0.6])
def test_the_limit_cycle_of_fedfix(scalar: Make, phi: float) -> None:
    run = scalar(phi, int(50 / phi), {"mode": "fixed_interval", "window": 0.5})
    assert limit_cycle(run, phi, 2) == pytest.approx(A.mean(), abs=1e-12)
    if phi == 0.6:
        assert sorted(models(run, phi)[-2:]) == pytest.approx([1.25676, 1.58108], abs=5e-6)


def test_the_limit_cycle_of_asynchronous_fedavg(scalar: Make) -> None:
    assert limit_cycle(scalar(0.05, 3 * CYCLE, ASYNC), 0.05, CYCLE) == pytest.approx(A.mean(), abs=1e-12)


def test_schedules_of_runs(scalar: Make) -> None:
    run = scalar(0.1, 4, {"mode": "fixed_interval", "window": 0.5})
    assert [row["clients"] for row in run.trace] == [[2, 3], [0, 1, 2, 3], [2, 3], [0, 1, 2, 3]]
    assert [row["staleness"] for row in run.trace] == [[0, 0], [1, 1, 0, 0], [0, 0], [1, 1, 0, 0]]
    assert [row["weights"] for row in run.trace] == [[0.25, 0.25], [0.5, 0.5, 0.25, 0.25]] * 2
    assert [row["time"] for row in run.trace] == [0.5, 1.0, 1.5, 2.0]
    run = scalar(0.1, 9, ASYNC)
    assert [(r["clients"][0], r["round"] - 1 - r["staleness"][0]) for r in run.trace] == [
        (3, 0), (3, 1), (2, 0), (3, 2), (1, 0), (3, 4), (2, 3), (0, 0), (3, 6),
    ]  # fmt: skip
    assert [row["time"] for row in run.trace] == [0.2, 0.4, 7 / 15, 0.6, 11 / 15, 0.8, 14 / 15, 1.0, 1.0]
    run = scalar(0.1, 7, {"mode": "fedbuff", "buffer": 2, "restart": "barrier"})
    assert [row["time"] for row in run.trace] == [t / 15 for t in (7, 11, 14, 17, 21, 24, 28)]


# --- weights ------------------------------------------------------------------------------------------------------


def test_equal_clients_weigh_one_when_arrivals_come_alone(quadratic: Make) -> None:
    problem = quadratic(n=7)
    for event in events(20, data=problem.section(), algorithm={"name": "fedavg"}, participation=ASYNC):
        if isinstance(event, Arrival):
            assert event.weights == pytest.approx([1.0], abs=1e-14)


def test_the_fastest_of_twenty_weighs_what_it_should(quadratic: Make) -> None:
    """The official code's floating-point time doubles its weight while it misses a tenth of its windows."""
    problem = quadratic(n=20, importance=True)
    sections = {
        "data": problem.section(), "algorithm": {"name": "fedavg"}, "system": F80,
        "participation": {"mode": "fixed_interval", "window": 0.2},
    }  # fmt: skip
    for event in events(120, **sections):
        if isinstance(event, Arrival):
            assert event.clients[-1] == 19
            assert event.weights is not None
            assert event.weights[-1] == problem.p[19]
    assert np.abs(mean_weights(120, 20, **sections) - problem.p).max() < 1e-9


@pytest.mark.parametrize(
    "participation,rounds",
    [(ASYNC, CYCLE), ({"mode": "fixed_interval", "window": 0.3}, 12), ({"mode": "fixed_interval", "window": 0.5}, 2)],
    ids=["asynchronous", "FedFix 0.3", "FedFix 0.5"],
)
def test_debiased_weights_are_p_on_average(quadratic: Make, participation: dict[str, Any], rounds: int) -> None:
    problem = quadratic(n=4, importance=True)
    sections = {"data": problem.section(), "algorithm": {"name": "fedavg"}, "system": F80}
    found = mean_weights(rounds, 4, participation=participation, **sections)
    assert np.abs(found - problem.p).max() < 1e-12
    uniform = {**sections, "algorithm": {"name": "fedavg", "weighting": "uniform"}}
    assert np.abs(mean_weights(rounds, 4, participation=participation, **uniform) - 0.25).max() < 1e-12


@pytest.mark.parametrize(
    "participation",
    [ASYNC, {"mode": "fixed_interval", "window": 0.6}, {"mode": "fedbuff", "buffer": 3, "staleness": "constant"},
     {"mode": "fedbuff", "buffer": 2, "restart": "barrier", "staleness": "constant"}],
    ids=["asynchronous", "FedFix", "FedBuff", "FedBuff with a barrier"],
)  # fmt: skip
def test_estimated_weights_are_p_on_average_with_random_durations(
    quadratic: Make, participation: dict[str, Any]
) -> None:
    problem = quadratic(n=4, importance=True)
    sections = {
        "data": problem.section(), "algorithm": {"name": "fedavg"},
        "participation": {**participation, "weights": "estimated", "pilot": 2000},
        "system": {**F80, "jitter": {"model": "exponential", "mean": 0.5}},
    }  # fmt: skip
    assert np.abs(mean_weights(6000, 4, **sections) / problem.p - 1).max() < 0.05
    biased = {**sections, "participation": {**participation, "weights": "identical"}}
    found = mean_weights(6000, 4, **biased)
    assert np.abs(found / found.sum() / problem.p - 1).max() > 0.2


def test_a_client_that_never_delivers_cannot_be_weighed(quadratic: Make, tmp_path: Path) -> None:
    scenario = {
        "data": quadratic(n=4).section(), "algorithm": {"name": "fedavg"}, "run": {"rounds": 2, "device": "cpu"},
        "participation": {**ASYNC, "weights": "estimated", "pilot": 5}, "system": F80,
    }  # fmt: skip
    with pytest.raises(InputError, match=r"participation.pilot: client 0 delivers in none of the first 5 combines"):
        fedsim.run(scenario, out=tmp_path / "run")


def test_staleness_factors() -> None:
    stale = np.array([0, 1, 3, 4, 8])
    assert Staleness().factor(stale).tolist() == [1, 1, 1, 1, 1]
    assert Staleness(polynomial=0.5).factor(stale) == pytest.approx([1, 2**-0.5, 0.5, 5**-0.5, 1 / 3])
    assert Staleness(polynomial=0.0).factor(stale).tolist() == [1, 1, 1, 1, 1]
    assert Staleness(hinge=[10.0, 4.0]).factor(stale) == pytest.approx([1, 1, 1, 1, 1 / 41])
    assert Staleness(hinge=[0.5, 1.0]).factor(stale) == pytest.approx([1, 1, 0.5, 0.4, 1 / 4.5])


def test_fresh_contributions_have_staleness_zero(quadratic: Make) -> None:
    one = {"data": quadratic(n=1).section(), "algorithm": {"name": "fedavg"}, "system": F80}
    two = {**one, "data": quadratic(n=2).section()}
    alone = [e for e in events(5, participation=ASYNC, **one) if isinstance(e, Arrival)]
    both = [e for e in events(8, participation=ASYNC, **two) if isinstance(e, Arrival)]
    assert [e.staleness.tolist() for e in alone] == [[0]] * 5
    assert [(e.clients[0], e.staleness[0]) for e in both] == [
        (1, 0), (1, 0), (1, 0), (1, 0), (0, 4), (1, 1), (1, 0), (1, 0),
    ]  # fmt: skip
