"""Clocked modes in their limit cases, lazy batches against eager ones, and buffers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clocked import ASYNC, DIGITS, F80, MODES, Make, events

from fedsim.backends.in_process import Vectorized
from fedsim.participation.base import Dispatch

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
    monkeypatch.setattr("fedsim.engine.place.Vectorized", Eager)
    eager = run_scenario(**keys, run={"rounds": 25, "chunk_rows": 1})
    assert torch.equal(lazy[0].params, eager.params)
    for other in lazy[1:]:
        assert (other.params - eager.params).abs().max() < 1e-12


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("memory", [False, True], ids=["stateless", "compressed"])
def test_computing_few_jobs_ahead_changes_nothing(
    quadratic: Make, run_scenario: Make, monkeypatch: pytest.MonkeyPatch, mode: str, memory: bool
) -> None:
    """Results that would not fit are left to be computed later; with a client's memory in between, too."""
    keys = {
        "data": quadratic(n=12).section(noise=0.2),
        "algorithm": {"name": "fedavg", "lr": 0.05, "local_steps": 2},
        "participation": MODES[mode],
        "system": {"compute": {"model": "lognormal", "sigma": 0.8}},
        **({"compression": {"name": "top_k", "k": 2, "feedback": "ef14"}} if memory else {}),
    }
    run = {"rounds": 30, "chunk_rows": 1}
    whole = run_scenario(**keys, run=run)
    for most in (1, 3, 8):
        monkeypatch.setattr("fedsim.backends.in_process._AHEAD_BYTES", most * 2 * whole.params.nbytes)
        few = run_scenario(**keys, run=run)
        assert torch.equal(few.params, whole.params)


MEASURE = """
from dataclasses import dataclass
from fedsim import Measure, Metric

@dataclass(frozen=True)
class Kept(Measure):
    "How large the models are that clients keep."
    @property
    def metrics(self):
        return [Metric("kept", "kept")]
    def evaluate(self, view):
        return {"kept": float(view.kept("v", view.honest).double().pow(2).sum())}
"""


@pytest.mark.parametrize("mode", MODES)
def test_what_clients_keep_shows_nothing_of_it(
    run_scenario: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Of whoever is asked what is under way is done first, however much is computed ahead."""
    (tmp_path / "own_measure.py").write_text(MEASURE)
    monkeypatch.syspath_prepend(str(tmp_path))
    keys = {
        "data": DIGITS, "model": {"name": "linear"}, "algorithm": {"name": "ditto", "lr": 0.1, "local_steps": 2},
        "participation": MODES[mode], "system": {"compute": {"model": "lognormal", "sigma": 0.8}},
    }  # fmt: skip
    run = {"rounds": 12, "chunk_rows": 1, "eval_every": 1, "metrics": [{"name": "own_measure:Kept"}]}
    whole = run_scenario(**keys, run=run)
    for most in (1, 4):
        monkeypatch.setattr("fedsim.backends.in_process._AHEAD_BYTES", most * 2 * whole.params.nbytes)
        assert run_scenario(**keys, run=run).metrics["kept"].tolist() == whole.metrics["kept"].tolist()


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
        return {"delta": jobs.expand_as(local["x"])}, {}, {"jobs": jobs}
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
