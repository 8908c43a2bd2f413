"""Client-level building blocks: DP-FedAvg, its adaptive clip norm and shares of noise, DP-FTRL, local DP."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from fedsim.core.errors import InputError
from fedsim.engine.assembly import assemble
from fedsim.privacy.adaptive import Adaptive, update_noise
from fedsim.privacy.ftrl import DPFTRL
from fedsim.privacy.matrix_noise import (
    prefix_nodes,
    square_root_bands,
    toeplitz_inverse,
    toeplitz_sensitivity,
    tree_sensitivity,
)
from fedsim.scenario.load import parse

Make = Callable[..., Any]
POISSON = {"sampling": "poisson", "fraction": 0.5}


@pytest.fixture
def problem(quadratic: Make) -> Any:
    return quadratic(n=8, importance=True)


@pytest.fixture
def settings(problem: Any) -> Make:
    def make(privacy: Any, name: str = "fedavg", rounds: int = 6, participation: Any = None, **keys: Any) -> Any:
        return {
            "data": problem.section(), "algorithm": {"name": name, "lr": 0.1, **keys},
            "participation": participation or {}, "run": {"rounds": rounds},
            **({} if privacy is None else {"privacy": privacy}),
        }  # fmt: skip

    return make


def still(n: int, d: int) -> dict[str, Any]:
    """A problem on which nobody moves, so that what is released is noise."""
    return {"A": np.ones((n, d)), "b": np.zeros((n, d)), "x0": np.zeros(d)}


# --- limit cases ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", ["dp_fedavg", "dp_ftrl", "local_dp"])
@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fedadam"])
def test_without_noise_and_clip_it_is_the_algorithm_itself(
    run_scenario: Make, settings: Make, mechanism: str, name: str
) -> None:
    plain = run_scenario(**settings(None, name, local_steps=3)).params
    quiet = {"mechanism": mechanism, "noise_multiplier": 0.0}
    assert (run_scenario(**settings(quiet, name, local_steps=3)).params - plain).abs().max() <= 1e-12
    clipped = run_scenario(**settings({**quiet, "clip_norm": 0.01}, name, local_steps=3)).params
    assert (clipped - plain).abs().max() > 1e-3


def test_identity_correlation_is_fresh_noise(run_scenario: Make, settings: Make) -> None:
    """C = I recovers DP-GD: everybody in all of R rounds moves it by sqrt(R) clips."""
    base = {"mechanism": "dp_ftrl", "noise_multiplier": 1.0, "clip_norm": 0.5}
    a = assemble(parse(settings({**base, "correlation": "none"}, rounds=9)))
    assert a.privacy.sensitivity == pytest.approx(3.0)
    none, banded = (
        run_scenario(**settings({**base, **keys}, rounds=9)).params
        for keys in ({"correlation": "none"}, {"correlation": "banded", "bands": 1})
    )
    assert torch.equal(none, banded)


# --- noise ----------------------------------------------------------------------------------------


def test_noise_of_a_sum_is_that_of_the_heaviest_client(run_scenario: Make, quadratic: Make) -> None:
    problem = quadratic(**still(4, 4000), p=[1.0, 2.0, 3.0, 4.0])
    for weighting, heaviest in (("samples", 0.4), ("uniform", 0.25)):
        run = run_scenario(
            data=problem.section(), algorithm={"name": "fedavg", "weighting": weighting}, participation=POISSON,
            privacy={"mechanism": "dp_fedavg", "noise_multiplier": 1.5, "clip_norm": 0.3}, run={"rounds": 1},
        )  # fmt: skip
        std = 1.5 * 0.3 * heaviest / 0.5
        assert within_chi_square(run.params, std)


def test_shares_of_noise_add_up(run_scenario: Make, quadratic: Make) -> None:
    problem = quadratic(**still(5, 4000), p=[1.0, 1.0, 1.0, 1.0, 6.0])
    for honest, factor in ((None, 1.0), (3, 5 / 3)):
        privacy = {"mechanism": "dp_fedavg", "noise_multiplier": 1.5, "clip_norm": 0.3, "trust": "secagg"}
        run = run_scenario(
            data=problem.section(), algorithm={"name": "fedavg"}, run={"rounds": 1},
            privacy={**privacy, **({} if honest is None else {"honest": honest})},
        )  # fmt: skip
        assert within_chi_square(run.params, 1.5 * 0.3 * 0.6 * math.sqrt(factor))


def test_local_noise_is_twice_the_clip_and_clips_a_message_as_one(run_scenario: Make, quadratic: Make) -> None:
    problem = quadratic(**still(2, 4000))
    run = run_scenario(
        data=problem.section(), algorithm={"name": "fedavg"}, run={"rounds": 1},
        privacy={"mechanism": "local_dp", "noise_multiplier": 1.5, "clip_norm": 0.3},
    )  # fmt: skip
    assert within_chi_square(run.params, 1.5 * 2 * 0.3 / math.sqrt(2))
    a = assemble(
        parse({
            "data": problem.section(), "algorithm": {"name": "scaffold"}, "run": {"rounds": 1},
            "privacy": {"mechanism": "local_dp", "noise_multiplier": 0.0, "clip_norm": 0.3},
        })
    )  # fmt: skip
    big = {"delta": torch.full((2, 4000), 5.0), "c": torch.full((2, 4000), 1.0)}
    sent = a.privacy.outgoing(big, None)
    assert torch.cat([sent["delta"], sent["c"]], 1).norm(dim=1) == pytest.approx(0.3, rel=1e-5)
    assert sent["delta"][0, 0] / sent["c"][0, 0] == pytest.approx(5.0)


def within_chi_square(noise: torch.Tensor, std: float) -> bool:
    low, high = stats.chi2.ppf([1e-4, 1 - 1e-4], noise.numel())
    return bool(low < float((noise / std).pow(2).sum()) < high)


def test_a_round_of_nobody_releases_and_is_written_down(run_scenario: Make, settings: Make) -> None:
    privacy = {"mechanism": "dp_fedavg", "noise_multiplier": 1.0, "clip_norm": 0.5}
    run = run_scenario(**settings(privacy, rounds=3, participation={"sampling": "poisson", "fraction": 1e-9}))
    assert all(row["clients"] == [] for row in run.trace)
    assert run.metrics["epsilon"].iloc[0] == 0.0
    assert float(run.params.norm()) > 1.0  # noise of three rounds, over a tiny expected cohort
    (release,) = json.loads((run.dir / "privacy.json").read_text())["releases"]
    assert release["count"] == 3


# --- adaptive clipping ----------------------------------------------------------------------------


@pytest.mark.parametrize("initial", [0.01, 100.0])
@pytest.mark.parametrize("quantile", [0.5, 0.8])
def test_the_clip_norm_reaches_the_quantile_from_both_sides(initial: float, quantile: float) -> None:
    norms = np.linspace(1.0, 9.0, 101)
    rule = Adaptive(initial=initial, quantile=quantile)
    clip = initial
    for _ in range(400):
        centred = np.where(norms <= clip, 0.5, -0.5).sum()
        clip = rule.step(clip, float(centred), len(norms))
    assert clip == pytest.approx(np.quantile(norms, quantile), rel=0.05)


def test_a_run_adapts_to_the_median_update(run_scenario: Make, quadratic: Make) -> None:
    """Clients that move by 1, 2, ..., 9 in every round; noise keeps the norm near 5."""
    b = np.zeros((9, 3))
    b[:, 0] = np.arange(1, 10)
    problem = quadratic(A=np.ones((9, 3)), b=b, x0=np.zeros(3))
    for initial in (0.05, 300.0):
        run = run_scenario(
            data=problem.section(),
            algorithm={"name": "fedavg", "lr": 1.0, "server_lr": 1e-9},
            privacy={
                "mechanism": "dp_fedavg", "noise_multiplier": 0.3,
                "adaptive": {"initial": initial, "bit_noise": 0.5, "rate": 0.3},
            },
            run={"rounds": 120},
        )  # fmt: skip
        progress = json.loads((run.dir / "checkpoint" / "progress.json").read_text())
        assert 3.5 < progress["privacy"]["clip"] < 6.5


def test_updates_and_bits_together_are_one_release() -> None:
    z, bit = 1.2, 2.0
    left = update_noise(z, bit)
    assert 1 / left**2 + 1 / (2 * bit) ** 2 == pytest.approx(1 / z**2, rel=1e-12)  # bits move by 1/2
    assert left > z
    with pytest.raises(InputError, match="more than the whole noise multiplier"):
        update_noise(z, 0.6)


# --- DP-FTRL --------------------------------------------------------------------------------------


def tree_matrix(rounds: int) -> np.ndarray[Any, Any]:
    """C of binary-tree aggregation: one row for each node that some prefix uses."""
    nodes = sorted({node for t in range(1, rounds + 1) for node in prefix_nodes(t)})
    C = np.zeros((len(nodes), rounds))
    for row, (level, index) in enumerate(nodes):
        C[row, index << level : (index + 1) << level] = 1
    return C


@pytest.mark.parametrize("rounds", [1, 2, 7, 8, 13])
def test_prefixes_and_their_sensitivity(rounds: int) -> None:
    C = tree_matrix(rounds)
    for t in range(1, rounds + 1):
        covered = [r for level, index in prefix_nodes(t) for r in range(index << level, (index + 1) << level)]
        assert sorted(covered) == list(range(t))
    random = np.random.default_rng(rounds)
    for _ in range(20):
        pattern = random.random(rounds) < 0.5
        expected = np.linalg.norm(C @ pattern)
        assert tree_sensitivity(np.flatnonzero(pattern) + 1, rounds) == pytest.approx(expected)
    single = max(tree_sensitivity(np.array([t]), rounds) for t in range(1, rounds + 1))
    assert round(single**2) <= math.floor(math.log2(rounds)) + 1


@pytest.mark.parametrize("bands", [1, 2, 4])
def test_banded_noise_and_its_sensitivity(bands: int) -> None:
    rounds = 9
    inverse = sum(np.diag(np.full(rounds - k, a), -k) for k, a in enumerate(square_root_bands(bands)))
    C = np.linalg.inv(inverse)
    column = toeplitz_inverse(square_root_bands(bands), rounds)
    assert np.allclose(C[:, 0], column, atol=1e-12)
    pattern = np.array([1, 4, 5])
    unit = np.zeros(rounds)
    unit[pattern - 1] = 1
    assert toeplitz_sensitivity(pattern, rounds, column) == pytest.approx(np.linalg.norm(C @ unit))


@pytest.mark.parametrize("keys", [{}, {"restart_every": 3}, {"correlation": "banded", "bands": 3}])
def test_the_noise_of_a_run_has_the_covariance_that_is_accounted_for(settings: Make, keys: Any) -> None:
    """Noise of rounds 1 to R, whitened by C, is independent: Cov = B-free, C^-1 C^-T std^2."""
    rounds = 6
    a = assemble(
        parse(settings({"mechanism": "dp_ftrl", "noise_multiplier": 1.0, "clip_norm": 1.0, **keys}, rounds=rounds))
    )
    like = torch.zeros(20_000, dtype=torch.float64)
    steps = torch.stack([a.privacy._noise(t, like) for t in range(1, rounds + 1)]).numpy()
    if keys.get("correlation") == "banded":
        inverse = sum(np.diag(np.full(rounds - k, v), -k) for k, v in enumerate(square_root_bands(3)))
        expected = inverse @ inverse.T
    else:
        length = keys.get("restart_every", rounds)
        prefix = np.zeros((rounds, rounds))
        for s in range(rounds):
            for t in range(rounds):
                if s // length == t // length:  # nodes in common
                    common = set(prefix_nodes(s % length + 1)) & set(prefix_nodes(t % length + 1))
                    prefix[s, t] = len(common)
        first = np.eye(rounds) - np.diag([float(t % length > 0) for t in range(1, rounds)], -1)
        expected = first @ prefix @ first.T
    assert np.abs(np.cov(steps) - expected).max() < 0.1


def test_the_sensitivity_is_that_of_the_worst_pattern() -> None:
    part = DPFTRL(noise_multiplier=1.0, restart_every=4)
    patterns = {0: np.array([1]), 1: np.array([1, 5, 9]), 2: np.array([2, 3])}
    one = tree_sensitivity(np.array([1]), 4)
    assert part.sensitivity(patterns, 12) == pytest.approx(one * math.sqrt(3))


def test_one_release_for_the_whole_run(run_scenario: Make, settings: Make) -> None:
    privacy = {"mechanism": "dp_ftrl", "epsilon": 2.0, "clip_norm": 0.5}
    run = run_scenario(**{**settings(privacy, participation=POISSON), "run": {"rounds": 6, "eval_every": 1}})
    assert run.metrics["epsilon"].iloc[0] == 0.0
    assert run.metrics["epsilon"].iloc[1:].to_numpy() == pytest.approx(2.0, abs=1e-6)


# --- what is refused ------------------------------------------------------------------------------

FEDAVG = {"mechanism": "dp_fedavg", "epsilon": 2.0, "clip_norm": 1.0}
FTRL = {**FEDAVG, "mechanism": "dp_ftrl"}
LOCAL = {**FEDAVG, "mechanism": "local_dp"}


@pytest.mark.parametrize(
    ("privacy", "more", "key", "words"),
    [
        (FEDAVG, {"participation": {"fraction": 0.5}}, "participation.sampling", "Poisson"),
        (FEDAVG, {"participation": {"fraction": 0.5, "sampling": "bernoulli"}}, "participation.sampling", "again"),
        (FEDAVG, {"participation": {**POISSON, "stragglers": 0.5}}, "participation.stragglers", "cohort"),
        (FEDAVG, {"participation": {"mode": "asynchronous"}}, "participation.mode", "one sum per round"),
        (FEDAVG, {"name": "scaffold"}, "algorithm.name", "delta, c"),
        (FEDAVG, {"name": "feddyn"}, "algorithm.name", "in another way"),
        (FEDAVG, {"name": "fednova"}, "algorithm.name", "norm"),
        ({**FEDAVG, "trust": "secagg"}, {"participation": POISSON}, "privacy.trust", "cohort that changes"),
        ({**FEDAVG, "trust": "local"}, {}, "privacy.trust", "central"),
        ({**FEDAVG, "honest": 3}, {}, "privacy.honest", "secagg"),
        ({**FEDAVG, "trust": "secagg", "honest": 9}, {}, "privacy.honest", "at most"),
        ({**FEDAVG, "adaptive": {}}, {}, "privacy.clip_norm", "adaptive.initial"),
        ({"mechanism": "dp_fedavg", "epsilon": 2.0}, {}, "privacy.clip_norm", "bound on each client"),
        (
            {"mechanism": "dp_fedavg", "noise_multiplier": 1.0, "adaptive": {"bit_noise": 0.4}},
            {}, "privacy.adaptive.bit_noise", "more than the whole",
        ),
        ({"mechanism": "dp_fedavg", "noise_multiplier": 1.0, "adaptive": {"quantil": 0.4}}, {}, "quantil", "quantile"),
        (FTRL, {"participation": {"sampling": "weighted"}}, "participation.sampling", "twice"),
        ({**FTRL, "bands": 3}, {}, "privacy.bands", "banded"),
        ({**FTRL, "correlation": "banded"}, {}, "privacy.bands", "missing"),
        (FTRL, {"name": "scaffold"}, "algorithm.name", "delta, c"),
        (
            LOCAL, {"name": "fedasync", "participation": {"mode": "asynchronous", "weights": "identical"}},
            "algorithm.name", "'y'",
        ),
        (LOCAL, {"name": "fednova"}, "algorithm.name", "norm"),
    ],
)  # fmt: skip
def test_refusals(settings: Make, privacy: Any, more: Any, key: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        assemble(parse(settings(privacy, **more)))
    assert key in str(error.value)
    assert words in str(error.value)


def test_other_aggregators_are_refused(settings: Make) -> None:
    for privacy in (FEDAVG, FTRL):
        with pytest.raises(InputError, match="weighted mean"):
            assemble(parse({**settings(privacy), "aggregator": {"name": "median"}}))


UNACCOUNTABLE = [
    ("dp_fedavg", "noise_multiplier", 1e300), ("dp_fedavg", "noise_multiplier", 1e-200),
    ("dp_fedavg", "epsilon", 1e200), ("dp_sgd", "noise_multiplier", 1e300),
    ("dp_ftrl", "noise_multiplier", 1e-200), ("local_dp", "epsilon", 1e10),
]  # fmt: skip


@pytest.mark.parametrize("mechanism,key,value", UNACCOUNTABLE)
def test_numbers_that_no_accountant_can_square_are_refused(mechanism: str, key: str, value: float) -> None:
    with pytest.raises(InputError, match=r"found .*, allowed: .*1e") as caught:
        parse({
            "data": {"dataset": "quadratic", "file": "q.npz"}, "algorithm": {"name": "fedavg"},
            "privacy": {"mechanism": mechanism, "clip_norm": 1.0, key: value},
        })  # fmt: skip
    assert caught.value.problems[0].key == f"privacy.{key}"
