"""DIFF2-GD: limit cases, sensitivity, noise, accounting, and what is refused."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import diff2_makers as makers
import numpy as np
import pytest
import torch

import fedsim
from fedsim.algorithms.base import Round
from fedsim.algorithms.diff2 import Diff2
from fedsim.core.errors import InputError
from fedsim.engine.run_directory import Run
from fedsim.objective import persample
from fedsim.objective.quadratic import QuadraticTask
from fedsim.privacy.gaussian import Gaussian, counts


def params(folder: Path, name: str, **changes: Any) -> torch.Tensor:
    return fedsim.run(makers.scenario(folder, **changes), out=folder / name).params


def received(x: torch.Tensor, previous: torch.Tensor, age: float) -> dict[str, torch.Tensor]:
    return {"x": x, "previous": previous, "age": x.new_tensor([age])}


@pytest.mark.parametrize("T", [1, 3, 100])
def test_without_clips_and_noise_it_is_gradient_descent(tmp_path: Path, T: int) -> None:
    unbounded = {"restart_every": T, "clip_norm": None, "difference_clip": None}
    ours = params(tmp_path, "ours", algorithm=unbounded, privacy=None)
    descent = {"name": "fedavg", "lr": 0.1, "batch_size": "full", "weighting": "uniform"}
    gone = dict.fromkeys(("restart_every", "clip_norm", "difference_clip"))
    assert (ours - params(tmp_path, "gd", algorithm={**gone, **descent}, privacy=None)).norm() <= 1e-13 * ours.norm()


def test_noise_of_multiplier_0_is_none(tmp_path: Path) -> None:
    silent = params(tmp_path, "silent", privacy={"epsilon": None, "noise_multiplier": 0.0})
    assert torch.equal(silent, params(tmp_path, "none", privacy=None))
    assert not torch.equal(silent, params(tmp_path, "noisy"))
    row = fedsim.run(makers.scenario(tmp_path, privacy={"epsilon": None, "noise_multiplier": 0.0}),
                     out=tmp_path / "again").metrics.iloc[-1]  # fmt: skip
    assert row["epsilon"] is None or math.isnan(row["epsilon"])


def test_restarts_come_every_T_rounds() -> None:
    algorithm = Diff2(lr=0.1, restart_every=3)
    state = algorithm.init(torch.zeros(2, dtype=torch.float64))
    one = torch.ones(1, 1, dtype=torch.float64)
    for number in range(1, 11):
        assert bool(state["age"] == 0) == ((number - 1) % 3 == 0) == algorithm.restarts(number)
        message = {"mean": torch.full((1, 2), float(number), dtype=torch.float64)}
        state = algorithm.combine(state, message, Round(number, 1, one, one, 0.1 * one), lambda v: v[0])
        since = number - (number - 1) % 3
        assert state["v"].tolist() == [sum(range(since, number + 1))] * 2
    assert [counts(2000, T) for T in (1, 6, 20, 3000)] == [(2000, 0), (334, 1666), (100, 1900), (1, 1999)]


# --- sensitivity ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [10**9, 500, 1])
@pytest.mark.parametrize("age", [0.0, 1.0])
@pytest.mark.parametrize("weighting", ["uniform", "samples"])
def test_the_worst_replacement_moves_the_mean_by_its_sensitivity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weighting: str, age: float, limit: int
) -> None:
    """Of every client, with opposite saturated vectors, whatever the parts that samples are differentiated in."""
    monkeypatch.setattr(persample, "_CPU_FLOATS", limit)
    scenario, assembly = makers.built(tmp_path, algorithm={"weighting": weighting})
    task: Any = assembly.task
    algorithm: Any = scenario.algorithm
    bound: Any = assembly.privacy
    clients, rounds, steps, lr = makers.everybody(assembly)
    assert len(set(task.sizes)) == makers.CLIENTS
    x = task.initial()
    sent = received(x, x + 0.1 * torch.linspace(-1, 1, task.dim, dtype=x.dtype), age)
    weights = torch.as_tensor(bound.weights)

    def mean() -> torch.Tensor:
        oracle = task.plan(clients, rounds, steps, "full", False).oracle(0, len(clients), lr)
        rows = algorithm.direction(oracle, x.expand(len(clients), -1), sent, {})
        return weights @ rows

    claimed = 2 * float(algorithm.radius(sent)) * bound.coefficient
    moved = []
    for client in clients:
        worst = 0.0
        for row in task.indices[task.offsets[client] : task.offsets[client + 1]]:
            kept = task.targets[row].clone()
            task.targets[row] = 1e8
            there = mean()
            task.targets[row] = -1e8
            worst = max(worst, float((there - mean()).norm()))
            task.targets[row] = kept
        moved.append(worst)
    assert max(moved) == pytest.approx(claimed, rel=1e-5)
    own = 2 * float(algorithm.radius(sent)) * bound.weights / task.sizes
    assert moved == pytest.approx(own.tolist(), rel=1e-5)


def test_differences_are_clipped_not_their_terms() -> None:
    """Of g(x) = (3, 4) and g(x') = (0, 3), each clipped to 1, it is (0.6, -0.2); clipped itself, (0.95, 0.32)."""
    A = torch.tensor([[3.0, 1.0]], dtype=torch.float64)
    data = type("Data", (), {"A": A, "b": torch.zeros(1, 2), "p": [1.0], "noise": 0.0, "x0": torch.zeros(2)})()
    task = QuadraticTask(data, 0, torch.device("cpu"), torch.float64)
    one = np.ones(1, dtype=np.int64)
    oracle = task.plan(np.zeros(1, dtype=np.int64), one, one, "full", False).oracle(0, 1, torch.ones(1, 1))
    x, before = torch.tensor([1.0, 4.0], dtype=torch.float64), torch.tensor([0.0, 3.0], dtype=torch.float64)
    algorithm = Diff2(restart_every=5, clip_norm=1.0, difference_clip=1.0 / math.sqrt(2))
    found = algorithm.direction(oracle, x.unsqueeze(0), received(x, before, 1.0), {})
    assert found[0].tolist() == pytest.approx([3 / math.sqrt(10), 1 / math.sqrt(10)], abs=1e-14)
    restart = algorithm.direction(oracle, x.unsqueeze(0), received(x, before, 0.0), {})
    assert restart[0].tolist() == pytest.approx([0.6, 0.8], abs=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_where_the_model_did_not_move_nothing_is_added(tmp_path: Path, dtype: str) -> None:
    scenario, assembly = makers.built(tmp_path, run={"dtype": dtype})
    task, algorithm, bound = assembly.task, scenario.algorithm, assembly.privacy
    assert bound is not None
    clients, rounds, steps, lr = makers.everybody(assembly)
    x = task.initial()
    state = {**received(x, x.clone(), 1.0), "v": torch.ones_like(x)}
    oracle = task.plan(clients, rounds, steps, "full", False).oracle(0, len(clients), lr)
    rows = algorithm.direction(oracle, x.expand(len(clients), -1), state, {})
    assert torch.equal(rows, torch.zeros_like(rows))
    info = Round(2, len(clients), lr, lr, lr)
    aggregate = bound.aggregate(info, state, {}, lambda values: values.mean(0))
    after = algorithm.combine(state, {"mean": rows}, info, aggregate)
    assert torch.equal(after["v"], state["v"])


# --- noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("age", [0, 1])
@pytest.mark.parametrize("trust", ["central", "secagg", "local"])
def test_released_noise_has_the_standard_deviation_that_is_accounted_for(tmp_path: Path, trust: str, age: int) -> None:
    scenario, assembly = makers.built(tmp_path, privacy={"trust": trust}, algorithm={"restart_every": 2})
    task, algorithm, bound = assembly.task, scenario.algorithm, assembly.privacy
    assert isinstance(algorithm, Diff2)
    n, x = task.num_clients, task.initial()
    state: Any = received(x, x + 0.02, float(age))
    zeros = torch.zeros(n, task.dim, dtype=x.dtype)
    found = []
    for number in range(1 + age, 1201, 2):
        job = type("Job", (), {"clients": np.arange(n), "rounds": np.full(n, number), "received": state})()
        assert bound is not None
        messages = bound.outgoing({"mean": zeros}, job)
        one = torch.ones(n, 1, dtype=x.dtype)
        aggregate = bound.aggregate(Round(number, n, one, one, one), state, messages, lambda values: values.mean(0))
        found.append(aggregate(messages["mean"]))
    z = scenario.privacy.multipliers(8, 2)[age]  # type: ignore[union-attr]
    C = algorithm.radius(state).item()
    if trust == "local":
        claimed = z * 2 * C * math.sqrt(sum((1 / (n * size)) ** 2 for size in task.sizes))
    else:
        claimed = z * 2 * C / (n * min(task.sizes))
    sample = torch.stack(found).flatten() / claimed
    degrees = len(sample)
    assert abs(float(sample.square().sum()) - degrees) < 4 * math.sqrt(2 * degrees)
    assert abs(float(sample.mean())) < 4 / math.sqrt(degrees)
    rows = torch.stack(found) / claimed
    assert abs(float((rows[1:] * rows[:-1]).mean())) < 4 / math.sqrt(degrees)  # fresh in every round


def test_fewer_honest_clients_add_more_noise_each(tmp_path: Path) -> None:
    """With h of n clients honest, theirs alone must make the noise: everybody adds sqrt(n / h) times as much."""
    x, noise = None, []
    for honest in (None, 1):
        _, assembly = makers.built(tmp_path, privacy={"trust": "secagg", "honest": honest})
        x = assembly.task.initial()
        job = type("J", (), {"clients": np.arange(4), "rounds": np.ones(4, int), "received": received(x, x, 0.0)})()
        assert assembly.privacy is not None
        noise.append(assembly.privacy.outgoing({"mean": torch.zeros(4, len(x), dtype=x.dtype)}, job)["mean"])
    assert torch.allclose(noise[1], 2 * noise[0], rtol=1e-12)


@pytest.mark.parametrize("trust", ["central", "secagg", "local"])
def test_noise_depends_on_neither_chunks_nor_resumes(tmp_path: Path, trust: str) -> None:
    changes: dict[str, Any] = {"privacy": {"trust": trust}}
    whole = params(tmp_path, "whole", **changes)
    chunked = params(tmp_path, "chunked", **changes, run={"chunk_rows": 1})
    assert (whole - chunked).norm() <= 1e-13 * whole.norm()
    scenario = makers.scenario(tmp_path, **changes)

    def stop(done: int, row: Any) -> None:  # noqa: ARG001
        if done == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fedsim.run(scenario, out=tmp_path / "stopped", progress=stop)
    resumed = fedsim.run(scenario, out=tmp_path / "stopped", resume=True)
    assert resumed.resumed_at == 5
    assert torch.equal(resumed.params, whole)
    unbroken = Run(tmp_path / "whole").metrics
    assert resumed.metrics["epsilon"].tolist() == unbroken["epsilon"].tolist()


def test_the_noise_has_a_seed_of_its_own(tmp_path: Path) -> None:
    first = params(tmp_path, "a")
    assert torch.equal(first, params(tmp_path, "b"))
    assert not torch.equal(first, params(tmp_path, "c", privacy={"noise_seed": 1}))
    silent: dict[str, Any] = {"privacy": {"epsilon": None, "noise_multiplier": 0.0}}
    other = {"privacy": {**silent["privacy"], "noise_seed": 1}}
    assert torch.equal(params(tmp_path, "d", **silent), params(tmp_path, "e", **other))


# --- accounting -------------------------------------------------------------------------------------------------------


def test_the_paper_s_noise_and_the_exact_one() -> None:
    paper = Gaussian(epsilon=3.0, delta=1e-5, calibration="paper")
    assert paper.multipliers(2000, 20) == pytest.approx((19.365, 173.205), abs=1e-3)
    assert paper.multipliers(2000, 1)[0] == pytest.approx(77.460, abs=1e-3)
    exact = Gaussian(epsilon=3.0, delta=1e-5)
    assert exact.multipliers(2000, 20) == pytest.approx((15.547, 135.538), abs=1e-3)
    assert exact.multipliers(2000, 1)[0] == pytest.approx(62.189, abs=1e-3)
    assert Gaussian(epsilon=5.0, delta=1e-5).multipliers(2000, 6) == pytest.approx((18.223, 81.400), abs=1e-3)


@pytest.mark.parametrize("T", [1, 3])
def test_a_run_spends_its_epsilon_and_says_what_it_means(tmp_path: Path, T: int) -> None:
    run = fedsim.run(makers.scenario(tmp_path, algorithm={"restart_every": T}), out=tmp_path / "run")
    epsilon = run.metrics["epsilon"].tolist()
    assert epsilon[0] == 0.0
    assert epsilon == sorted(epsilon)
    assert epsilon[-1] == pytest.approx(4.0, rel=1e-6)
    report = run.privacy
    assert report["epsilon"] == report["closed_form"] == epsilon[-1]
    assert report["pld"] == pytest.approx(report["closed_form"], abs=1e-3)
    assert report["rdp"] > report["pld"]
    assert (report["unit"], report["adjacency"], report["trust"]) == ("example", "replace-one", "central")
    assert "train_loss" in report["oracle_metrics"]
    assert "test_loss" not in report["oracle_metrics"]
    assert any("model selection" in line for line in report["not_covered"])
    counted = {r["kind"]: r["count"] for r in report["releases"]}
    assert counted == ({"restart": 8} if T == 1 else {"restart": 3, "difference": 5})


def test_plan_tells_epsilon_before_anything_is_computed(tmp_path: Path) -> None:
    from fedsim.reports.plan import plan

    rows = plan(makers.scenario(tmp_path))["privacy"]
    assert rows["epsilon of the whole run"] == pytest.approx(4.0, rel=1e-6)
    given = {"epsilon": None, "noise_multiplier": 5.0, "difference_noise_multiplier": 10.0}
    told = plan(makers.scenario(tmp_path, privacy=given))["privacy"]["epsilon of the whole run"]
    run = fedsim.run(makers.scenario(tmp_path, privacy=given), out=tmp_path / "run")
    assert told == pytest.approx(run.metrics["epsilon"].iloc[-1], rel=1e-9)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes,key,words",
    [
        ({"privacy": {"epsilon": None}}, "privacy.epsilon", "missing"),
        ({"privacy": {"noise_multiplier": 1.0}}, "privacy.noise_multiplier", "one of the two"),
        ({"privacy": {"difference_noise_multiplier": 1.0}}, "privacy.difference_noise_multiplier", "one of the two"),
        ({"privacy": {"delta": 0.0}}, "privacy.delta", "greater than 0"),
        ({"privacy": {"trust": "nobody"}}, "privacy.trust", "central"),
        ({"privacy": {"mechanism": "gausian"}}, "privacy.mechanism", "did you mean 'gaussian'"),
        ({"privacy": {"honest": 2}}, "privacy.honest", "secagg"),
        ({"privacy": {"honest": 9, "trust": "secagg"}}, "privacy.honest", "at most data.clients = 4"),
        ({"algorithm": {"clip_norm": None}}, "algorithm.clip_norm", "missing"),
        ({"algorithm": {"difference_clip": None}}, "algorithm.difference_clip", "missing"),
        ({"algorithm": {"batch_size": 5}}, "algorithm.batch_size", "allowed: full"),
        ({"algorithm": {"momentum": 0.5}}, "algorithm.momentum", "allowed: 0"),
        ({"algorithm": {"local_steps": 2}}, "algorithm.local_steps", "no such key"),
        ({"algorithm": {"clip": 1.0}}, "algorithm.clip", "no such key"),
        ({"aggregator": {"name": "median"}}, "aggregator.name", "allowed: mean"),
        ({"participation": {"fraction": 0.5}}, "participation.fraction", "all clients"),
        ({"participation": {"clients_per_round": 2}}, "participation.clients_per_round", "all clients"),
        ({"participation": {"dropout": 0.1}}, "participation.dropout", "all clients"),
        ({"participation": {"stragglers": 0.5}}, "participation.stragglers", "all clients"),
        ({"participation": {"mode": "asynchronous"}}, "participation.mode", "allowed with 'diff2': synchronous"),
    ],
)
def test_what_would_break_the_promise_is_refused(tmp_path: Path, changes: dict[str, Any], key: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        makers.built(tmp_path, **changes)
    assert [p.key for p in caught.value.problems] == [key]
    assert words in str(caught.value)


def test_only_diff2_can_say_its_sensitivity(tmp_path: Path) -> None:
    plain = {"name": "fedavg", **dict.fromkeys(("restart_every", "clip_norm", "difference_clip"))}
    with pytest.raises(InputError, match=r"privacy.mechanism.*diff2"):
        makers.built(tmp_path, algorithm=plain)


def test_a_budget_of_some_rounds_does_not_serve_more(tmp_path: Path) -> None:
    fedsim.run(makers.scenario(tmp_path), out=tmp_path / "run")
    with pytest.raises(InputError, match=r"run.rounds.*spends privacy.epsilon over 8 rounds"):
        fedsim.run(makers.scenario(tmp_path, run={"rounds": 12}), out=tmp_path / "run", resume=True)
    given: dict[str, Any] = {"privacy": {"epsilon": None, "noise_multiplier": 5.0}}
    fedsim.run(makers.scenario(tmp_path, **given), out=tmp_path / "given")
    longer = fedsim.run(makers.scenario(tmp_path, **given, run={"rounds": 12}), out=tmp_path / "given", resume=True)
    assert longer.metrics["epsilon"].iloc[-1] > longer.metrics["epsilon"].iloc[-2]


def test_gradients_are_counted_at_both_iterates_but_in_restarts(tmp_path: Path) -> None:
    made, assembly = makers.built(tmp_path)
    run = fedsim.run(made, out=tmp_path / "run")
    restarts = 3  # rounds 1, 4 and 7 of 8
    assert run.metrics["gradients"].iloc[-1] == assembly.task.sizes.sum() * (restarts + 2 * (8 - restarts))
