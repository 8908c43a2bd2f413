"""DIFF2 with private local steps: what it contains, its walk, its noise and its accounts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import diff2_makers as makers
import numpy as np
import pytest
import torch

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.job import Job
from fedsim.privacy.accounting import Release, epsilon
from fedsim.privacy.noise import gaussian

BVR: dict[str, Any] = {"name": "diff2_bvr", "inner_steps": 4, "inner_batch": 4, "inner_clip": 1.0}
GIVEN: dict[str, Any] = {"mechanism": "gaussian_bvr", "epsilon": None, "noise_multiplier": 3.0}


def test_with_one_local_step_it_is_diff2(tmp_path: Path) -> None:
    """The first step goes along v and needs no data; a round of the method is two of a run."""
    plain = fedsim.run(makers.scenario(tmp_path, privacy=None), out=tmp_path / "plain").params
    one = {**BVR, "inner_steps": 1}
    walked = fedsim.run(
        makers.scenario(tmp_path, algorithm=one, privacy=None, run={"rounds": 16}), out=tmp_path / "walked"
    ).params
    assert (plain - walked).norm() <= 1e-13 * plain.norm()


def test_a_walk_is_the_equations_with_poisson_batches_and_noise(tmp_path: Path) -> None:
    scenario, assembly = makers.built(tmp_path, algorithm=BVR, privacy=GIVEN)
    algorithm: Any = scenario.algorithm
    bound: Any = assembly.privacy
    task: Any = assembly.task
    worker = assembly.worker(scenario)
    x, v = task.initial(), torch.linspace(-1, 1, task.dim, dtype=torch.float64)
    number, chosen = 4, 1  # the second walk is the second client's
    sent = {"x": x, "previous": x, "age": x.new_zeros(1), "v": v, "walks": x.new_ones(1)}
    clients = np.arange(makers.CLIENTS)
    job = Job(clients, np.full(4, number), np.full(4, 4), sent)
    moved = worker.run(job)["mean"][chosen]
    plan = task.inner.poisson_plan(
        np.array([chosen]), np.array([number]), np.array([4]), np.array([bound.rates[chosen]])
    )
    y, before, w = x - algorithm.lr * v, x, v
    for step in range(1, 4):
        oracle = plan.oracle(step, 1, torch.ones(1, 1, dtype=torch.float64))
        index = oracle.batch.index[0, : oracle.batch.counts[0]]
        total = torch.zeros_like(x)
        clip = float((y - before).norm())
        for i in index.tolist():
            new, old = (
                task.kernel.per_sample_grad(p.unsqueeze(0), task.inputs[i].view(1, 1, -1), task.targets[i].view(1, 1))
                for p in (y, before)
            )
            g = (new - old).flatten()
            total += g * min(1.0, clip / float(g.norm()))
        noise = gaussian(bound.seeds, "walk", np.array([chosen]), np.array([number]), step, width=task.dim,
                         device=x.device, dtype=x.dtype)[0]  # fmt: skip
        w = w + (total + 3.0 * clip * noise) / 4
        y, before = y - algorithm.lr * w, y
    assert (moved - (y - x)).norm() <= 1e-11 * (y - x).norm()


def test_each_client_pays_for_its_own_walks_and_the_worst_one_counts(tmp_path: Path) -> None:
    """12 rounds: 6 of gradients, of which 2 restarts, and 6 walks of 4 clients: two of clients 0 and 1, 3 releases each."""  # noqa: E501
    scenario = makers.scenario(tmp_path, algorithm=BVR, privacy=GIVEN, run={"rounds": 12})
    run = fedsim.run(scenario, out=tmp_path / "run")
    sizes = fedsim_sizes(scenario)
    rates = [min(4 / n, 1.0) for n in sizes]
    own = [
        {Release("restart", 3.0): 2, Release("difference", 3.0): 4, Release("inner", 3.0, q): 6 if p < 2 else 3}
        for p, q in enumerate(rates)
    ]
    expected = max(epsilon(profile, 1e-5) for profile in own)
    assert run.metrics["epsilon"].iloc[-1] == pytest.approx(expected, rel=1e-9)
    assert run.privacy["adjacency"] == "add-remove"


def fedsim_sizes(scenario: Any) -> list[int]:
    from fedsim.engine.assembly import assemble

    return [int(n) for n in assemble(scenario).task.sizes]


def test_a_target_is_spent_and_not_passed_and_a_resume_repeats(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"algorithm": BVR, "privacy": {"mechanism": "gaussian_bvr", "epsilon": 4.0}}
    whole = fedsim.run(makers.scenario(tmp_path, **changes), out=tmp_path / "whole")
    assert 4.0 * (1 - 1e-2) < whole.metrics["epsilon"].iloc[-1] <= 4.0 * (1 + 1e-6)
    chunked = fedsim.run(makers.scenario(tmp_path, **changes, run={"chunk_rows": 1}), out=tmp_path / "chunked")
    assert (whole.params - chunked.params).norm() <= 1e-12 * whole.params.norm()


@pytest.mark.parametrize(
    "algorithm,privacy,key",
    [
        ({"inner_clip": None}, {}, "algorithm.inner_clip"),
        ({"clip_norm": None}, {}, "algorithm.clip_norm"),
        ({}, {"trust": "local"}, "privacy.trust"),
        ({}, {"epsilon": 1.0}, "privacy.noise_multiplier"),
        ({}, {"mechanism": "gaussian"}, "privacy.mechanism"),
        ({"local_steps": 3}, {}, "algorithm.local_steps"),
    ],
)
def test_what_would_break_the_promise_is_refused(
    tmp_path: Path, algorithm: dict[str, Any], privacy: dict[str, Any], key: str
) -> None:
    with pytest.raises(InputError) as caught:
        makers.built(tmp_path, algorithm={**BVR, **algorithm}, privacy={**GIVEN, **privacy})
    assert [p.key for p in caught.value.problems] == [key]


def test_noise_in_the_walk_has_the_accounted_deviation(tmp_path: Path) -> None:
    _, assembly = makers.built(tmp_path, algorithm=BVR, privacy=GIVEN)
    task: Any = assembly.task
    x, draws = task.initial().expand(makers.CLIENTS, -1), []
    clients, steps = np.arange(makers.CLIENTS), np.full(makers.CLIENTS, 4)
    for number in range(2, 402, 2):
        plan = task.plan(clients, np.full(makers.CLIENTS, number), steps, "full", False)
        oracle = plan.oracle(1, makers.CLIENTS, torch.ones(makers.CLIENTS, 1, dtype=x.dtype))
        total = oracle.clipped_sum(x, 0.5, x)  # the same point twice: differences are zero
        turn = assembly.privacy.whose_turn(number)  # type: ignore[union-attr]
        assert (total.norm(dim=1) > 0).nonzero().flatten().tolist() == [turn]
        draws.append(total[turn] / (3.0 * 0.5))
    sample = torch.stack(draws)
    degrees = sample.numel()
    assert abs(float(sample.square().sum()) - degrees) < 4 * math.sqrt(2 * degrees)
