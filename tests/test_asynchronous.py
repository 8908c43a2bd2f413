"""Server algorithms on the virtual clock: known optima, weights, limit cases, lazy batches, interrupted runs."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.assembly import assemble
from fedsim.asynchronous import Staleness
from fedsim.backends.vectorized import Vectorized
from fedsim.config import parse
from fedsim.errors import InputError
from fedsim.participation import Arrival, Dispatch
from fedsim.results import read_jsonl

Make = Callable[..., Any]
F80 = {"compute": {"model": "linear", "slowest": 1.0, "fastest": 0.2}}
A = np.array([4.0, 1.0, -2.0, 3.0])
CYCLE = 732  # arrivals until durations of 15, 11, 7 and 3 fifteenths of a second coincide again, after 77 s
ASYNC = {"mode": "asynchronous"}
DIGITS = {
    "dataset": "digits", "clients": 6, "limit": 300,
    "partition": {"scheme": "dirichlet", "alpha": 0.5, "min_partition_size": 8},
}  # fmt: skip


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


def events(count: int, seed: int = 0, **sections: Any) -> list[Arrival | Dispatch]:
    """The first events of a scenario, without any training, until `count` combines."""
    scenario = parse({**sections, "run": {"device": "cpu"}, "seed": seed})
    a = assemble(scenario)
    stream = scenario.participation.events(a.task, scenario.algorithm, seed, 0, a.network, a.durations)
    found: list[Any] = []
    arrivals = 0
    while arrivals < count:
        found.append(next(stream))
        arrivals += isinstance(found[-1], Arrival)
    return found


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


# --- limit cases --------------------------------------------------------------------------------------------------

SAME: dict[str, dict[str, Any]] = {
    "fedavg": {"name": "fedavg"},
    "fedavgm": {"name": "fedavg", "server_momentum": 0.9, "server_lr": 0.7},
    "fedprox": {"name": "fedprox", "mu": 0.5, "momentum": 0.5},
    "fednova": {"name": "fednova"},
}


@pytest.mark.parametrize("window", [1.0, 2.5])
@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("data", ["quadratic", "digits"])
def test_fedfix_with_a_long_window_is_fedavg(
    quadratic: Make, run_scenario: Make, data: str, name: str, window: float
) -> None:
    """Bit for bit, in float64 and, with minibatches, in float32."""
    if data == "digits":
        task = {"data": DIGITS, "model": {"name": "linear"}}
        keys: dict[str, Any] = {"lr": 0.05, "batch_size": 8, "local_epochs": 1}
    else:
        task = {"data": quadratic(n=6, importance=True).section(noise=0.2)}
        keys = {"lr": 0.05, "local_steps": [1, 2, 3, 1, 2, 3]}
    runs = [
        run_scenario(
            **task,
            algorithm={**keys, **SAME[name]},
            system=F80,
            participation=participation,
            run={"rounds": 8, "dtype": "float32" if data == "digits" else "float64"},
        )
        for participation in ({"mode": "synchronous"}, {"mode": "fixed_interval", "window": window})
    ]
    assert torch.equal(runs[0].params, runs[1].params)
    assert [row["time"] for row in runs[0].trace] == [1.0 * k for k in range(1, 9)]
    assert [row["time"] for row in runs[1].trace] == [window * k for k in range(1, 9)]
    assert runs[0].trace[3]["weights"] == runs[1].trace[3]["weights"]


@pytest.fixture
def served(quadratic: Make, run_scenario: Make) -> Make:
    """A run of FedAvg with noisy gradients on a fixed problem."""
    problem = quadratic(n=5)

    def run(participation: dict[str, Any], system: Any = None, rounds: int = 20, **keys: Any) -> Any:
        return run_scenario(
            data=problem.section(noise=0.2),
            algorithm={"name": "fedavg", "lr": 0.05, "local_steps": 2, **keys},
            participation=participation,
            system=system or F80,
            run={"rounds": rounds},
        )

    return run


def test_fedbuff_with_a_buffer_for_all_and_equal_delays_is_fedavg(served: Make) -> None:
    equal = {"compute": 2.0}
    fedavg = served({"mode": "synchronous"}, equal)
    fedbuff = served({"mode": "fedbuff", "buffer": 5, "restart": "barrier"}, equal)
    assert torch.equal(fedbuff.params, fedavg.params)
    assert [row["time"] for row in fedbuff.trace] == [row["time"] for row in fedavg.trace]


def test_fedbuff_with_a_buffer_of_one_is_asynchronous(served: Make) -> None:
    fedbuff = served({"mode": "fedbuff", "buffer": 1, "staleness": "constant"}, rounds=60)
    barrier = served({"mode": "fedbuff", "buffer": 1, "staleness": "constant", "restart": "barrier"}, rounds=60)
    asynchronous = served({**ASYNC, "weights": "identical"}, rounds=60)
    assert torch.equal(fedbuff.params, asynchronous.params)
    assert torch.equal(barrier.params, asynchronous.params)
    assert fedbuff.trace == asynchronous.trace


def test_sum_is_the_mean_times_the_buffer(served: Make) -> None:
    mean = served({"mode": "fedbuff", "buffer": 4}, server_lr=0.4)
    total = served({"mode": "fedbuff", "buffer": 4, "reduce": "sum"}, server_lr=0.1)
    assert (mean.params - total.params).abs().max() < 1e-12


def test_fedbuff_counts_a_client_as_often_as_it_delivers(quadratic: Make, run_scenario: Make) -> None:
    """Every job of a buffer alone, from the model it was sent; clients come several times in one buffer."""
    problem = quadratic(n=6)
    run = run_scenario(
        data=problem.section(),
        algorithm={"name": "fedavg", "lr": 0.05, "local_steps": [1, 2, 3, 1, 2, 3]},
        participation={"mode": "fedbuff", "buffer": 5, "concurrency": 3},
        system={**F80, "jitter": {"model": "exponential", "mean": 0.5}},
        run={"rounds": 40},
    )
    x = [problem.x0]
    for row in run.trace:
        move = np.zeros(problem.d)
        for c, stale, steps, w in zip(row["clients"], row["staleness"], row["steps"], row["weights"], strict=True):
            assert w == pytest.approx(0.2 / np.sqrt(1 + stale))
            y = sent = x[row["round"] - 1 - stale]
            for _ in range(steps):
                y = y - 0.05 * problem.grad(c, y)
            move = move + w * (y - sent)
        x.append(x[-1] + move)
    assert any(len(set(row["clients"])) < 5 for row in run.trace)
    assert np.abs(run.params.numpy() - x[-1]).max() < 1e-10


def test_fedbuff_keeps_its_concurrency(quadratic: Make) -> None:
    sections = {"data": quadratic(n=8).section(), "algorithm": {"name": "fedavg"}, "system": F80}
    working: set[int] = set()
    begun = events(200, participation={"mode": "fedbuff", "buffer": 1, "concurrency": 3}, **sections)
    seen = set()
    for event in begun:
        if isinstance(event, Dispatch):
            assert not working & set(event.clients.tolist())
            working |= set(event.clients.tolist())
            assert len(working) == 3
        else:
            working -= set(event.clients.tolist())
        seen |= working
    assert seen == set(range(8))


# --- lazy batches -------------------------------------------------------------------------------------------------

MODES: dict[str, dict[str, Any]] = {
    "asynchronous": ASYNC,
    "fixed_interval": {"mode": "fixed_interval", "window": 0.3},
    "fedbuff": {"mode": "fedbuff", "buffer": 4, "concurrency": 4},
    "barrier": {"mode": "fedbuff", "buffer": 3, "restart": "barrier"},
}


class Eager(Vectorized):
    """Computes every job by itself when it is dispatched."""

    def dispatch(self, job: Any) -> None:
        for i in range(len(job.clients)):
            row = slice(i, i + 1)
            received = {k: v[row] if v.dim() > 1 else v for k, v in job.received.items()}
            alone = dataclasses.replace(
                job, clients=job.clients[row], rounds=job.rounds[row], steps=job.steps[row], received=received,
                jobs=job.numbers[row],
            )  # fmt: skip
            super().dispatch(alone)
            self.compute()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("data", ["quadratic", "digits"])
def test_lazy_is_eager(
    quadratic: Make, run_scenario: Make, monkeypatch: pytest.MonkeyPatch, data: str, mode: str
) -> None:
    task = (
        {"data": DIGITS, "model": {"name": "linear"}}
        if data == "digits"
        else {"data": quadratic(n=6).section(noise=0.2)}
    )
    keys = {
        **task,
        "algorithm": {"name": "fedavg", "lr": 0.05, "momentum": 0.5, "local_steps": 2, "batch_size": 8},
        "participation": MODES[mode],
        "system": F80,
    }
    lazy = [run_scenario(**keys, run={"rounds": 25, "chunk_rows": rows}) for rows in (1, 4, 100)]
    monkeypatch.setattr("fedsim.simulation.Vectorized", Eager)
    eager = run_scenario(**keys, run={"rounds": 25, "chunk_rows": 1})
    assert torch.equal(lazy[0].params, eager.params)
    for other in lazy[1:]:
        assert (other.params - eager.params).abs().max() < 1e-12


OWN = """
from dataclasses import dataclass
import torch
from fedsim.algorithms.base import ServerAlgorithm

@dataclass(frozen=True, kw_only=True)
class Counting(ServerAlgorithm):
    "Every job of a client moves the server by how many jobs the client has done."
    def init_client(self, params):
        return {"jobs": torch.zeros_like(params[..., :1])}
    def message(self, local, received, client, effort):
        jobs = client["jobs"] + 1
        return {"delta": jobs.expand_as(local["x"])}, {"jobs": jobs}
"""


def test_a_client_in_a_buffer_twice_builds_on_its_first_job(
    quadratic: Make, run_scenario: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_counting.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    run = run_scenario(
        data=quadratic(n=3, x0=np.zeros(4)).section(),
        algorithm={"name": "own_counting:Counting"},
        participation={"mode": "fedbuff", "buffer": 6, "reduce": "sum", "staleness": "constant"},
        system=F80,
        run={"rounds": 5},
    )
    expected = sum(r for row in run.trace for r in row["rounds"])
    assert any(len(set(row["clients"])) < len(row["clients"]) for row in run.trace)
    assert run.params.tolist() == [float(expected)] * 4


# --- interrupted runs ---------------------------------------------------------------------------------------------


def resumable(mode: str, rounds: int = 30, **run: Any) -> dict[str, Any]:
    return {
        "data": DIGITS,
        "model": {"name": "linear"},
        "algorithm": {"name": "fedavg", "lr": 0.05, "local_steps": 2, "batch_size": 8, "server_momentum": 0.5},
        "participation": MODES[mode],
        "system": {**F80} if mode != "fedbuff" else {**F80, "jitter": {"model": "exponential", "mean": 0.3}},
        "run": {"rounds": rounds, "eval_every": 7, "device": "cpu", "threads": 1, "trace": True, **run},
    }


def metrics(run: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "wall"} for row in read_jsonl(run.dir / "metrics.jsonl")]


def in_flight(folder: Path) -> int:
    from safetensors.torch import load_file

    saved = load_file(folder / "checkpoint" / "clients.safetensors")
    return sum(len(saved[k]) for k in ("pending.numbers", "done.numbers") if k in saved)


@pytest.mark.parametrize("after", [4, 14, 17])
@pytest.mark.parametrize("mode", MODES)
def test_interrupted_with_jobs_in_flight(mode: str, after: int, tmp_path: Path) -> None:
    def interrupt(number: int, _row: object) -> None:
        if number == after:
            os.kill(os.getpid(), signal.SIGINT)

    whole = fedsim.run(resumable(mode), out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fedsim.run(resumable(mode), out=tmp_path / "parts", progress=interrupt)
    assert json.loads((tmp_path / "parts" / "checkpoint" / "progress.json").read_text())["round"] == after
    assert in_flight(tmp_path / "parts") > 0
    parts = fedsim.run(resumable(mode), out=tmp_path / "parts", resume=True)
    assert torch.equal(parts.params, whole.params)
    assert parts.trace == whole.trace
    assert metrics(parts) == metrics(whole)


@pytest.mark.parametrize("mode", MODES)
def test_more_rounds(mode: str, tmp_path: Path) -> None:
    whole = fedsim.run(resumable(mode), out=tmp_path / "whole")
    for rounds in (5, 13, 30):
        parts = fedsim.run(resumable(mode, rounds), out=tmp_path / "parts", resume=True)
    assert torch.equal(parts.params, whole.params)
    assert parts.trace == whole.trace
    assert metrics(parts) == metrics(whole)


# --- what is recorded ---------------------------------------------------------------------------------------------


def test_a_synchronous_round_takes_as_long_as_its_slowest_client(served: Make) -> None:
    durations = [1.0, 0.8, 0.6, 0.4, 0.2]
    run = served({"mode": "synchronous", "clients_per_round": 2})
    now = 0.0
    for row in run.trace:
        now += max(durations[c] for c in row["clients"])
        assert row["time"] == pytest.approx(now, abs=1e-9)
    assert run.metrics["time"].iloc[-1] == run.trace[-1]["time"]
    assert len({tuple(row["clients"]) for row in run.trace}) > 5


def test_mean_staleness_is_recorded(served: Make) -> None:
    run = served(ASYNC, rounds=50)
    assert run.metrics["staleness_mean"].tolist() == [0.0, np.mean([row["staleness"][0] for row in run.trace])]
    assert "staleness_mean" not in served({"mode": "synchronous"}).metrics


@pytest.mark.parametrize("mode", [*MODES, "synchronous"])
def test_seconds_end_a_run(mode: str, tmp_path: Path) -> None:
    participation = MODES.get(mode, {"mode": "synchronous"})
    limited = {**resumable("asynchronous", 1000, seconds=3.0), "participation": participation}
    run = fedsim.run(limited, out=tmp_path / "limited")
    rounds = len(run.trace)
    assert 3 <= rounds < 100
    assert run.trace[-1]["time"] <= 3.0
    last = metrics(run)[-1]
    assert (last["round"], last["time"]) == (rounds, run.trace[-1]["time"])
    counted = fedsim.run(
        {**limited, "run": {k: v for k, v in limited["run"].items() if k != "seconds"} | {"rounds": rounds + 1}},
        out=tmp_path / "counted",
    )
    assert counted.trace[:-1] == run.trace
    assert counted.trace[-1]["time"] > 3.0
    shorter = {**limited, "run": {**limited["run"], "rounds": rounds}}
    assert torch.equal(fedsim.run(shorter, out=tmp_path / "shorter").params, run.params)
    assert json.loads((tmp_path / "limited" / "checkpoint" / "progress.json").read_text())["round"] == rounds
    again = fedsim.run(limited, out=tmp_path / "limited", resume=True)
    assert torch.equal(again.params, run.params)
    assert metrics(again)[-1] == last
    assert len(metrics(again)) == len({row["round"] for row in metrics(again)})


def test_seconds_before_the_first_arrival(tmp_path: Path) -> None:
    for resume in (False, True):
        run = fedsim.run(resumable("barrier", 10, seconds=0.1), out=tmp_path / "run", resume=resume)
        assert [row["round"] for row in metrics(run)] == [0]


def test_planning_a_run_whose_first_window_is_empty(quadratic: Make) -> None:
    from fedsim.planning import plan

    scenario = {
        "data": quadratic(n=3).section(), "algorithm": {"name": "fedavg"}, "run": {"device": "cpu"},
        "participation": {"mode": "fixed_interval", "window": 0.1}, "system": F80,
    }  # fmt: skip
    assert "clients in the first round" in json.dumps(plan(parse(scenario)))


def test_events_continue_after_any_round(quadratic: Make) -> None:
    scenario = parse({"data": quadratic(n=2).section(), "algorithm": {"name": "fedavg"}, "participation": ASYNC})
    a = assemble(scenario)
    stream = scenario.participation.events(a.task, scenario.algorithm, 0, 5, None, a.durations)
    first = list(islice(stream, 4))  # round 6 on, and nothing of what went before
    assert [type(e) for e in first] == [Dispatch, Arrival, Dispatch, Arrival]
    assert [e.number for e in first if isinstance(e, Arrival)] == [6, 7]
