"""Clients that are off, leave for good, or whose messages get lost, under every mode of a server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.core.errors import InputError, RunError
from fedsim.engine.run_directory import read_jsonl
from fedsim.scenario.load import parse

Make = Callable[..., Any]
MODES: dict[str, dict[str, Any]] = {
    "synchronous": {"mode": "synchronous"},
    "asynchronous": {"mode": "asynchronous", "weights": "identical"},
    "fixed_interval": {"mode": "fixed_interval", "window": 0.5, "weights": "identical"},
    "fedbuff": {"mode": "fedbuff", "buffer": 2, "concurrency": 2},
    "barrier": {"mode": "fedbuff", "buffer": 2, "restart": "barrier"},
}
CLOCKED = [mode for mode in MODES if mode != "synchronous"]
NIGHT = {"model": "table", "active": [[[0.0, 10.0]], [[0.0, 0.5]], [[0.5, 1.0]]], "repeat": 10.0}


@pytest.fixture
def go(tmp_path: Path) -> Make:
    """``go(n, participation, system, rounds)``: a scenario of n scalar clients, run or only made."""

    def run(
        n: int, participation: Any, system: dict[str, Any], rounds: int = 12, made: bool = False, **more: Any
    ) -> Any:
        np.savez(tmp_path / "q.npz", A=np.ones((n, 1)), b=np.arange(1.0, n + 1)[:, None])
        scenario = {
            "data": {"dataset": "quadratic", "file": str(tmp_path / "q.npz")},
            "algorithm": {"name": "fedavg", "lr": 0.1},
            "participation": MODES[participation] if isinstance(participation, str) else participation,
            "system": system,
            "run": {"rounds": rounds, "eval_every": 1, "dtype": "float64", "trace": True, **more},
        }
        return scenario if made else fedsim.run(scenario, out=tmp_path / "run")

    return run


def deliveries(run: Any) -> list[tuple[float, list[int]]]:
    return [(round(row["time"], 9), row["clients"]) for row in run.trace]


def test_work_pauses_while_the_device_is_off(go: Make) -> None:
    """Client 0 is on for long, client 1 for half a second of every ten, client 2 for the half second after."""
    run = go(3, "asynchronous", {"availability": NIGHT, "compute": 1.0}, 14)
    found = deliveries(run)
    assert found[:10] == [(float(k), [0]) for k in range(1, 11)]
    assert (10.5, [1]) in found
    run = go(3, "asynchronous", {"availability": NIGHT, "compute": 0.25}, 50)
    assert [t for t, clients in deliveries(run) if clients == [1]] == [0.25, 0.5, 10.25, 10.5]
    assert [t for t, clients in deliveries(run) if clients == [2]] == [0.75, 1.0, 10.75]


def test_a_void_job_is_lost(go: Make) -> None:
    """Jobs of 0.3 s; client 1 is on for half a second: its first result arrives, its second is void."""
    run = go(
        2,
        "asynchronous",
        {"availability": {**NIGHT, "active": NIGHT["active"][:2], "policy": "void"}, "compute": 0.3},
        60,
    )
    assert [t for t, clients in deliveries(run) if clients == [1]] == [0.3, 10.3]
    rounds = [row["rounds"][0] for row in run.trace if row["clients"] == [1]]
    assert rounds == [1, 3]  # its second job was the void one


def test_a_synchronous_cohort_is_asked_among_those_that_are_on(go: Make) -> None:
    run = go(3, "synchronous", {"availability": NIGHT, "compute": 0.5}, 6)
    assert deliveries(run)[:4] == [(0.5, [0, 1]), (1.0, [0, 2]), (1.5, [0]), (2.0, [0])]
    alone = {**NIGHT, "active": [[[4.0, 5.0]], [[6.0, 7.0]]]}
    run = go(2, "synchronous", {"availability": alone, "compute": 0.5}, 5)
    assert deliveries(run) == [(4.5, [0]), (5.0, [0]), (6.5, [1]), (7.0, [1]), (14.5, [0])]  # the server waits


def test_a_paused_client_delays_a_synchronous_round_and_a_void_one_never_reports(go: Make) -> None:
    on = {"model": "table", "active": [[[0.0, 10.0]], [[0.0, 0.5]]], "repeat": 10.0}
    paused = go(2, "synchronous", {"availability": on, "compute": 0.75}, 2)
    assert deliveries(paused) == [(10.25, [0, 1]), (20.5, [0, 1])]
    void = go(2, "synchronous", {"availability": {**on, "policy": "void"}, "compute": 0.75}, 2)
    assert deliveries(void) == [(0.75, [0]), (1.5, [0])]


@pytest.mark.parametrize("sampling", ["uniform", "bernoulli", "weighted"])
def test_cohorts_of_available_clients_are_fair(go: Make, sampling: str) -> None:
    """Clients 0 to 3 of 8 are always on, the others never: cohorts are of these four, all alike."""
    on = {"model": "table", "active": [[[0.0, 10.0]]] * 4 + [[]] * 4, "repeat": 10.0}
    run = go(8, {"mode": "synchronous", "fraction": 0.25, "sampling": sampling}, {"availability": on}, 600)
    counts = np.bincount([c for row in run.trace for c in row["clients"]], minlength=8)
    assert counts[4:].tolist() == [0] * 4
    assert counts[:4].min() > 0.8 * counts[:4].mean()
    sizes = {len(row["clients"]) for row in run.trace}
    assert sizes == ({2} if sampling == "uniform" else {1, 2} if sampling == "weighted" else {1, 2, 3, 4})


@pytest.mark.parametrize("mode", CLOCKED)
@pytest.mark.parametrize("timeout", [None, 3.0])
def test_losses_are_a_share_of_jobs_and_the_run_goes_on(go: Make, mode: str, timeout: float | None) -> None:
    participation = MODES[mode] | ({"timeout": timeout} if timeout else {})
    run = go(4, participation, {"network": {"loss": {"upload": 0.3}}}, 500)
    # the k-th result of a client is its job number k / 0.7 or so
    last = {c: r for row in run.trace for c, r in zip(row["clients"], row["rounds"], strict=True)}
    arrived = sum(len(row["clients"]) for row in run.trace)
    assert arrived / sum(last.values()) == pytest.approx(0.7, abs=5 * np.sqrt(0.21 / sum(last.values())))


def test_who_is_given_up_restarts_after_the_timeout(go: Make) -> None:
    """A job takes 1 s; after a lost one the next result comes a timeout later."""
    run = go(1, MODES["asynchronous"] | {"timeout": 5.0}, {"network": {"loss": {"download": 0.4}}}, 60)
    previous = (0.0, 0)
    for row in run.trace:
        lost = row["rounds"][0] - previous[1] - 1
        assert row["time"] - previous[0] == pytest.approx(1.0 + 5.0 * lost)
        previous = row["time"], row["rounds"][0]
    assert previous[1] > 80
    waits = go(1, "asynchronous", {"network": {"loss": {"download": 0.4}}}, 60)
    assert all(row["time"] == pytest.approx(row["rounds"][0]) for row in waits.trace)  # without one: as long as a job


def test_a_timeout_gives_up_the_slow(go: Make) -> None:
    slow = {"compute": {"model": "table", "values": [1.0, 4.0]}}
    run = go(2, MODES["asynchronous"] | {"timeout": 2.0}, slow, 30)
    assert {c for row in run.trace for c in row["clients"]} == {0}


def test_bytes_count_what_is_sent_in_vain(go: Make) -> None:
    """A lost download was sent, and so was a lost upload; after a lost download there is no upload."""
    for loss, up in (({"download": 0.3}, 0), ({"upload": 0.3}, 1)):
        run = go(2, "asynchronous", {"network": {"loss": loss}}, 200)
        jobs = {c: r for row in run.trace for c, r in zip(row["clients"], row["rounds"], strict=True)}
        started, arrived = sum(jobs.values()), len(run.trace)
        sent = run.metrics["bytes_sent"].iloc[-1] / 8
        begun = sent - arrived - up * (started - arrived)  # downloads; those after each client's last arrival included
        assert started <= begun <= started + 12


@pytest.mark.parametrize("mode", MODES)
def test_a_client_that_leaves_is_not_waited_for_forever(go: Make, mode: str) -> None:
    system = {"compute": 1.0, "departure": {"model": "table", "values": [2.5, 1000.0, 1000.0, 1000.0]}}
    run = go(4, mode, system, 40)
    last = max((row["time"] for row in run.trace if 0 in row["clients"]), default=0.0)
    assert last <= 3.0
    assert run.trace[-1]["time"] > 8.0
    assert {1, 2, 3} == {c for row in run.trace[-8:] for c in row["clients"]}


@pytest.mark.parametrize("mode", MODES)
def test_a_run_that_nobody_is_left_for_ends_and_keeps_what_it_has(go: Make, tmp_path: Path, mode: str) -> None:
    system = {"compute": 1.0, "departure": {"model": "uniform", "low": 3.0, "high": 8.0}}
    for resume in (False, True):
        with pytest.raises(RunError) as error:
            fedsim.run(go(5, mode, system, 10_000, made=True), out=tmp_path / "run", resume=resume)
        rows, trace = (read_jsonl(tmp_path / "run" / name) for name in ("metrics.jsonl", "trace.jsonl"))
        number = trace[-1]["round"]
        assert f"the run ended after round {number} of 10000, at virtual second" in str(error.value)
        assert "no client is left" in str(error.value)
        assert [row["round"] for row in rows] == list(range(number + 1))
        assert (tmp_path / "run" / "params.safetensors").exists()
        assert json.loads((tmp_path / "run" / "checkpoint" / "progress.json").read_text())["round"] == number
        assert trace[-1]["time"] < 10


def test_the_end_is_after_the_seconds_asked_for(go: Make) -> None:
    run = go(3, "asynchronous", {"departure": 8.5}, 1000, seconds=6.0)
    assert run.trace[-1]["time"] == 6.0


@pytest.mark.parametrize("mode", [m for m in MODES if m not in ("fixed_interval", "synchronous")])
def test_jobs_that_never_arrive_do_not_hang(go: Make, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every job ends while its device is off: nothing can ever be combined."""
    system = {"availability": {"model": "periodic", "period": 2.0, "duty": 0.5, "spread": 0.0, "policy": "void"},
              "compute": 1.5}  # fmt: skip
    monkeypatch.setattr("fedsim.participation.schedule._IN_VAIN", 5000)  # a hundred thousand take seconds
    with pytest.raises(RunError, match=r"after round 0 of 12.*the last 5,000 jobs were lost, every one of them"):
        go(3, mode, system)
    assert go(3, mode, system, seconds=50.0).trace == []


def test_nobody_ever(go: Make) -> None:
    never = {"availability": {"model": "table", "active": [[], []]}}
    for mode in MODES:
        with pytest.raises(RunError, match="after round 0 of 12, at virtual second 0: no client is left"):
            go(2, mode, never)
    from fedsim.reports.plan import plan

    with pytest.raises(InputError, match="system: nobody ever delivers"):
        plan(parse(go(2, "asynchronous", never, made=True)))


@pytest.mark.parametrize("mode", ["asynchronous", "fixed_interval", "fedbuff"])
def test_estimated_weights_count_what_arrives(go: Make, mode: str) -> None:
    """With losses, pauses and speeds that differ, the mean weight per combine is p_i = 1/4."""
    participation = MODES[mode] | {"weights": "estimated", "staleness": "constant", "pilot": 1000}
    system = {
        "compute": {"model": "linear", "slowest": 1.0, "fastest": 0.2}, "network": {"loss": 0.2},
        "availability": {"model": "on_off", "on": {"model": "exponential", "mean": 5.0}, "off": 2.0},
    }  # fmt: skip
    run = go(4, participation, system, 1000, eval_every=1000)
    total = np.zeros(4)
    for row in run.trace:
        np.add.at(total, row["clients"], row["weights"])
    assert total / 1000 == pytest.approx([0.25] * 4, abs=1e-12)


def test_estimated_weights_of_who_left(go: Make) -> None:
    """A client that leaves before it has delivered anything weighs nothing and is no error."""
    system = {"departure": {"model": "table", "values": [0.5, 1000.0]}}
    run = go(2, MODES["asynchronous"] | {"weights": "estimated", "pilot": 50}, system, 50)
    assert {row["weights"][0] for row in run.trace} == {0.5}


@pytest.mark.parametrize("mode", ["asynchronous", "fixed_interval"])
@pytest.mark.parametrize(
    "system,key",
    [
        ({"network": {"loss": 0.1}}, "network.loss"),
        ({"availability": NIGHT}, "availability"),
        ({"departure": 9.0}, "departure"),
    ],
)
def test_debiased_needs_that_all_arrives(go: Make, mode: str, system: dict[str, Any], key: str) -> None:
    participation = {k: v for k, v in MODES[mode].items() if k != "weights"}
    with pytest.raises(InputError, match=rf"participation.weights: with system.{key} not every job arrives"):
        go(3, participation, system)
    with pytest.raises(InputError, match=r"with participation\.timeout not every job"):
        go(3, {**participation, "timeout": 3.0}, {})


@pytest.mark.parametrize("mode", MODES)
def test_broken_off_and_resumed(go: Make, tmp_path: Path, mode: str) -> None:
    system = {
        "compute": {"model": "lognormal", "sigma": 0.7}, "network": {"loss": 0.2},
        "departure": {"model": "exponential", "mean": 60.0},
        "availability": {"model": "on_off", "on": {"model": "exponential", "mean": 5.0}, "off": 2.0},
    }  # fmt: skip
    whole = fedsim.run(go(6, mode, system, 30, made=True), out=tmp_path / "whole")
    for rounds in (7, 18, 30):
        parts = fedsim.run(go(6, mode, system, rounds, made=True), out=tmp_path / "parts", resume=rounds > 7)
    assert torch.equal(parts.params, whole.params)
    assert parts.trace == whole.trace
    assert parts.metrics.drop(columns="wall").equals(whole.metrics.drop(columns="wall"))


@pytest.mark.parametrize("key", ["availability", "departure"])
def test_graphs_have_sporadicity_instead(go: Make, key: str) -> None:
    section = {"availability": NIGHT, "departure": 3.0}
    scenario = {
        **go(3, {"mode": "gossip"}, {key: section[key]}, made=True), "algorithm": {"name": "dgd"},
        "topology": {"graph": "ring"},
    }  # fmt: skip
    with pytest.raises(InputError, match=rf"system.{key}: this is of clients of a server"):
        parse(scenario)


@pytest.mark.parametrize("loss", [1.0, -0.1, {"upload": 1.0}, {"both": 0.1}, "a"])
def test_wrong_losses(go: Make, loss: Any) -> None:
    with pytest.raises(InputError, match=r"system\.network\.loss"):
        parse(go(3, "asynchronous", {"network": {"loss": loss}}, made=True))
