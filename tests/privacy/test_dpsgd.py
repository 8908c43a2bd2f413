"""DP-SGD as an oracle: limit cases, Poisson sampling, noise, the number of releases, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from fedsim.algorithms.base import ServerAlgorithm
from fedsim.algorithms.scaffold import Scaffold
from fedsim.core.errors import InputError, RunError
from fedsim.engine.assembly import assemble
from fedsim.privacy.accounting import epsilon_pld, epsilon_rdp, quick_pld
from fedsim.privacy.oracle import calls_per_step
from fedsim.scenario.load import parse

Make = Callable[..., Any]
DIGITS = {"dataset": "digits", "clients": 5, "limit": 300, "partition": {"scheme": "dirichlet", "alpha": 1.0}}
RING = {"topology": {"graph": "ring"}}


def scenario(name: str = "fedavg", privacy: Any = None, rounds: int = 4, **sections: Any) -> dict[str, Any]:
    keys = sections.pop("keys", {})
    return {
        "data": DIGITS,
        "model": {"name": "linear"},
        "algorithm": {"name": name, "lr": 0.1, "batch_size": "full", **keys},
        "run": {"rounds": rounds, "dtype": "float64", "device": "cpu"},
        **({} if privacy is None else {"privacy": {"mechanism": "dp_sgd", **privacy}}),
        **sections,
    }


def bound(**privacy: Any) -> tuple[Any, Any]:
    """The bound mechanism and its task."""
    keys = {"local_steps": 2}
    if privacy.get("sampling_rate", 1) < 1:
        keys["batch_size"] = 1
    a = assemble(parse(scenario(privacy={"clip_norm": 0.5, **privacy}, keys=keys, rounds=8)))
    return a.privacy, a.task


def ask(task: Any, rounds: int = 1, step: int = 0, x: Any = None) -> tuple[Any, Any]:
    """The oracle of all clients at a step of a round, and parameters."""
    clients = np.arange(task.num_clients)
    plan = task.plan(clients, np.full(len(clients), rounds), np.full(len(clients), step + 1), 1, False)
    x = task.initial().expand(len(clients), -1).clone() if x is None else x
    return plan.oracle(step, len(clients), torch.ones(len(clients), 1, dtype=x.dtype)), x


# --- limit cases ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "keys", "more"),
    [
        ("fedavg", {"local_steps": 3}, {}),
        (
            "fedprox",
            {"local_steps": {"uniform": [1, 3]}, "mu": 0.1, "momentum": 0.5},
            {"participation": {"fraction": 0.6}},
        ),
        ("scaffold", {"local_steps": 2, "option": 1}, {}),
        ("feddyn", {"local_steps": 2}, {}),
        ("dspodfl", {}, {**RING, "participation": {"compute": 0.7}}),
        ("gradient_tracking", {}, RING),
    ],
)
def test_without_noise_and_clip_it_is_the_algorithm_itself(run_scenario: Make, name: str, keys: Any, more: Any) -> None:
    plain = run_scenario(**scenario(name, keys=keys, **more)).params
    private = run_scenario(**scenario(name, {"noise_multiplier": 0.0}, keys=keys, **more)).params
    clipped = run_scenario(**scenario(name, {"noise_multiplier": 0.0, "clip_norm": 0.1}, keys=keys, **more)).params
    assert (plain - private).abs().max() <= 1e-12
    assert (plain - clipped).abs().max() > 1e-3


def test_results_do_not_depend_on_chunks(run_scenario: Make) -> None:
    privacy = {"noise_multiplier": 1.0, "clip_norm": 0.5, "sampling_rate": 0.2}
    settings = scenario(privacy=privacy, keys={"batch_size": 8, "local_steps": {"uniform": [1, 4]}})
    whole, single = (run_scenario(**{**settings, "run": {"rounds": 4, "chunk_rows": rows}}).params for rows in (100, 1))
    assert (whole - single).abs().max() <= 1e-12


# --- the answer -----------------------------------------------------------------------------------


def test_a_gradient_is_the_clipped_sum_and_noise_over_a_public_denominator() -> None:
    """One answer rebuilt from single samples' gradients."""
    _, task = bound(noise_multiplier=2.0, sampling_rate=0.2)
    oracle, x = ask(task, rounds=3)
    answer = oracle.grad(x)
    clients = np.arange(task.num_clients)
    sample: Any = task.inner.poisson_plan(clients, np.full(5, 3), np.ones(5, dtype=int), np.full(5, 0.2))
    sample = sample.oracle(0, 5, torch.ones(5, 1))
    for i in clients.tolist():
        mine = sample.batch.index[i][: sample.batch.counts[i]]
        assert set(mine.tolist()) <= set(task.indices[task.offsets[i] : task.offsets[i + 1]].tolist())
        total = torch.zeros_like(x[i])
        for j in mine.tolist():
            W = x[i].clone().requires_grad_()
            logits = W[: 64 * 10].view(10, 64) @ task.inputs[j].flatten() + W[64 * 10 :]
            (g,) = torch.autograd.grad(-torch.log_softmax(logits, 0)[task.targets[j]], W)
            total += g * min(1.0, 0.5 / float(g.norm()))
        noise = answer[i] * 0.2 * task.sizes[i] - total
        assert 0.8 < float(noise.std()) < 1.2  # z C = 1
        again, _ = ask(task, rounds=3)
        assert torch.equal(again.grad(x)[i], answer[i])


def test_noise_has_the_std_that_is_accounted_for() -> None:
    """Chi-square on answers whose clean part is removed by drawing the same samples without noise."""
    private, task = bound(noise_multiplier=1.5)
    silent, quiet = bound(noise_multiplier=0.0)
    squares, count = 0.0, 0
    for number in range(1, 6):
        oracle, x = ask(task, rounds=number)
        noise = (oracle.grad(x) - ask(quiet, rounds=number)[0].grad(x)) * torch.as_tensor(task.sizes).unsqueeze(1)
        squares, count = squares + float((noise**2).sum()), count + noise.numel()
    assert silent.std == 0.0
    assert private.std == 0.75
    low, high = stats.chi2.ppf([1e-4, 1 - 1e-4], count) * private.std**2
    assert low < squares < high


def test_an_empty_sample_still_releases_noise() -> None:
    _, task = bound(noise_multiplier=1.0, sampling_rate=0.001)
    oracle, x = ask(task)
    assert not oracle._clean.samples.any()
    answer = oracle.grad(x) * torch.as_tensor(0.001 * task.sizes).unsqueeze(1)
    assert 0.4 < float(answer.std()) < 0.6


# --- how many releases ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TwoPoints(ServerAlgorithm):
    """Looks uphill first, as sharpness-aware minimisation does."""

    def direction(self, oracle: Any, x: Any, received: Any, client: Any) -> Any:
        return oracle.grad(x + 0.1 * oracle.grad(x))


def test_points_are_counted() -> None:
    assert calls_per_step(TwoPoints()) == 2
    assert calls_per_step(Scaffold(option=1)) == 1  # asks twice, at the same point
    private, task = bound(noise_multiplier=1.0)
    oracle, x = ask(task)
    first = oracle.grad(x)
    assert oracle.grad(x) is first
    with pytest.raises(RunError, match="more than 1 points"):
        oracle.grad(x.clone())
    moved, x = ask(task)
    moved.grad(x)
    x.add_(0.0)  # the same tensor after work in place is another point
    with pytest.raises(RunError, match="more than 1 points"):
        moved.grad(x)
    assert private.one.z == 1.0


def test_two_points_share_a_sample_and_not_their_noise() -> None:
    settings = scenario(
        privacy={"noise_multiplier": 1.0, "clip_norm": 0.5, "sampling_rate": 0.2}, keys={"batch_size": 1}
    )
    settings["algorithm"]["name"] = f"{__name__}:TwoPoints"
    a = assemble(parse(settings))
    (release,) = a.privacy.ledger.planned
    assert release.z == pytest.approx(2**-0.5)
    assert release.q == 0.2
    oracle, x = ask(a.task)
    one, two = oracle.grad(x), oracle.grad(x.clone())
    gap = (one - two) * 0.2 * torch.as_tensor(a.task.sizes).unsqueeze(1)
    assert float(gap.std()) == pytest.approx(0.5 * math.sqrt(2), rel=0.1)


def test_epsilon_is_that_of_the_clients_that_stepped_most(run_scenario: Make) -> None:
    privacy = {"noise_multiplier": 1.0, "clip_norm": 0.5, "sampling_rate": 0.2}
    settings = scenario(
        privacy=privacy,
        keys={"batch_size": 1, "local_steps": [1, 2, 3, 4, 5]},
        participation={"fraction": 0.4},
        rounds=6,
    )
    planned = dict(assemble(parse(settings)).privacy.ledger.planned)
    run = run_scenario(**settings)
    steps = np.zeros(5, dtype=int)
    for row in run.trace:
        steps[row["clients"]] += row["steps"]
    ((release, count),) = planned.items()
    assert count == steps.max()
    assert run.metrics["epsilon"].iloc[-1] == pytest.approx(quick_pld({release: int(steps.max())}, 1e-5), rel=1e-9)


def test_known_epsilon() -> None:
    """Poisson q = 0.01, z = 1, 1000 steps, delta 1e-5: PLD 1.8282, RDP 2.1014."""
    privacy = {"noise_multiplier": 1.0, "clip_norm": 1.0, "sampling_rate": 0.01}
    a = assemble(parse(scenario(privacy=privacy, keys={"batch_size": 1, "local_steps": 10}, rounds=100)))
    assert epsilon_pld(a.privacy.ledger.planned, 1e-5) == pytest.approx(1.8282, abs=2e-4)
    assert epsilon_rdp(a.privacy.ledger.planned, 1e-5) == pytest.approx(2.1014, abs=2e-4)


def test_a_target_is_met_and_not_passed() -> None:
    privacy = {"epsilon": 2.0, "clip_norm": 1.0, "sampling_rate": 0.05}
    a = assemble(parse(scenario(privacy=privacy, keys={"batch_size": 1, "local_steps": 5}, rounds=20)))
    assert 1.999 < epsilon_pld(a.privacy.ledger.planned, 1e-5) <= 2.0


# --- what it refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("privacy", "keys", "key", "words"),
    [
        ({"noise_multiplier": 1.0}, {}, "privacy.clip_norm", "bound on each example"),
        ({"clip_norm": 1.0}, {}, "privacy.epsilon", "missing"),
        ({"clip_norm": 1.0, "epsilon": 1.0, "noise_multiplier": 1.0}, {}, "privacy.noise_multiplier", "one of the two"),
        ({"clip_norm": 1.0, "epsilon": 1.0}, {"batch_size": 16}, "privacy.sampling_rate", "not Poisson"),
        ({"clip_norm": 1.0, "epsilon": 1.0, "sampling_rate": 0.1}, {}, "algorithm.batch_size", "full"),
        ({"clip_norm": 1.0, "epsilon": 1.0}, {"local_epochs": 1}, "algorithm.local_epochs", "shuffled"),
        ({"clip_norm": 1.0, "epsilon": 1.0, "trust": "central"}, {}, "privacy.trust", "local"),
        ({"clip_norm": 0.0, "epsilon": 1.0}, {}, "privacy.clip_norm", "greater than 0"),
        ({"clip_norm": 1.0, "epsilon": 1.0, "sampling_rate": 1.5}, {}, "privacy.sampling_rate", "1"),
    ],
)
def test_refusals(privacy: Any, keys: Any, key: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        assemble(parse(scenario(privacy=privacy, keys=keys)))
    assert key in str(error.value)
    assert words in str(error.value)


@dataclass(frozen=True, kw_only=True)
class Peeks(ServerAlgorithm):
    """Looks at single samples' gradients."""

    def direction(self, oracle: Any, x: Any, received: Any, client: Any) -> Any:
        return oracle.per_sample_grad(x).mean(1)


def test_an_algorithm_that_sees_single_gradients_is_refused() -> None:
    settings = scenario(privacy={"clip_norm": 1.0, "epsilon": 1.0})
    settings["algorithm"]["name"] = f"{__name__}:Peeks"
    with pytest.raises(InputError, match="single samples"):
        assemble(parse(settings))


def test_quadratics_have_no_examples_to_sample(quadratic: Make) -> None:
    settings = {
        "data": quadratic().section(), "algorithm": {"name": "fedavg", "lr": 0.1},
        "privacy": {"mechanism": "dp_sgd", "clip_norm": 1.0, "epsilon": 1.0, "sampling_rate": 0.5},
    }  # fmt: skip
    with pytest.raises(InputError, match="no examples to sample"):
        assemble(parse(settings))
