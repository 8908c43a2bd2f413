"""Lower bounds on epsilon: exact values, the published formula, and how often they are wrong."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from dp_accounting import get_sigma_gaussian
from scipy.stats import binomtest, norm

from fedsim.audit.bounds import (
    clopper_pearson,
    from_scores,
    gaussian_epsilon,
    one_run_epsilon,
    one_run_p_value,
    two_rates_epsilon,
)

DELTA = 1e-5


def ideal(trials: int, epsilon: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and coins of canaries behind a Gaussian mechanism that spends exactly (epsilon, DELTA)."""
    random = np.random.default_rng(seed)
    coins = random.random(trials) < 0.5
    return coins / get_sigma_gaussian(epsilon, DELTA) + random.standard_normal(trials), coins


def test_without_delta_it_is_the_binomial_tail() -> None:
    exact = sum(Fraction(math.comb(20, k), 2**20) for k in range(15, 21))
    assert one_run_p_value(30, 20, 15, 0.0, 0.0) == pytest.approx(float(exact), rel=1e-12)


def test_delta_adds_the_steepest_slope_of_the_tail() -> None:
    trials, guesses, correct, epsilon, delta = 50, 12, 9, 0.7, 1e-3
    q = 1 / (1 + math.exp(-epsilon))

    def tail(at_least: int) -> float:
        return sum(
            math.comb(guesses, k) * q**k * (1 - q) ** (guesses - k) for k in range(max(at_least, 0), guesses + 1)
        )

    slope = max((tail(correct - i) - tail(correct)) / i for i in range(1, correct + 1))
    expected = tail(correct) + 2 * trials * delta * slope
    assert one_run_p_value(trials, guesses, correct, epsilon, delta) == pytest.approx(expected, rel=1e-10)


def test_all_right_guesses_refute_what_makes_them_unlikely() -> None:
    q = 0.05 ** (1 / 40)
    assert one_run_epsilon(40, 40, 40, 0.0, 0.05) == pytest.approx(math.log(q / (1 - q)), abs=1e-3)
    assert one_run_epsilon(40, 40, 20, 0.0, 0.05) == 0
    assert one_run_epsilon(40, 0, 0, 0.0, 0.05) == 0


def test_more_delta_or_confidence_gives_less() -> None:
    found = [one_run_epsilon(200, 100, 90, delta, level) for delta, level in ((0, 0.05), (1e-4, 0.05), (1e-4, 0.01))]
    assert found[0] > found[1] > found[2] > 0


@pytest.mark.parametrize(
    "trials,epsilon,expected",
    [(1000, 1, 0.23), (1000, 3, 0.98), (1000, 8, 2.63), (10_000, 1, 0.42), (10_000, 3, 1.44), (10_000, 8, 3.41)],
)
def test_ideal_scores_give_what_others_found(trials: int, epsilon: float, expected: float) -> None:
    found = [
        from_scores(*ideal(trials, epsilon, seed), DELTA, 0.05).epsilon for seed in range(9 if trials < 10_000 else 5)
    ]
    assert float(np.median(found)) == pytest.approx(expected, abs=0.1, rel=0.1)


@pytest.mark.parametrize("bound", [one_run_epsilon, gaussian_epsilon])
def test_a_sound_mechanism_is_not_accused(bound) -> None:
    wrong = sum(from_scores(*ideal(100, 1.0, seed), DELTA, 0.05, bound).epsilon > 1.0 for seed in range(40))
    assert wrong <= 4  # of 40 at 5 %: binomial probability 0.95


@pytest.mark.parametrize("bound", [one_run_epsilon, gaussian_epsilon])
def test_a_tenth_of_the_noise_is_found(bound) -> None:
    random = np.random.default_rng(0)
    coins = random.random(500) < 0.5
    scores = 10 * coins / get_sigma_gaussian(3.0, DELTA) + random.standard_normal(500)
    found = from_scores(scores, coins, DELTA, 0.05, bound)
    assert found.epsilon > 3.0
    assert found.epsilon <= found.ceiling


def test_the_gaussian_audit_is_tighter_for_gaussian_mechanisms() -> None:
    scores, coins = ideal(1000, 3.0, 1)
    assert (
        from_scores(scores, coins, DELTA, 0.05, gaussian_epsilon).epsilon
        > from_scores(scores, coins, DELTA, 0.05).epsilon
    )


def test_the_ceiling_is_what_perfect_scores_reach() -> None:
    coins = np.arange(100) % 2 == 0
    perfect = from_scores(coins.astype(float), coins, DELTA, 0.05)
    assert perfect.epsilon == perfect.ceiling > 1
    assert from_scores(-coins.astype(float), coins, DELTA, 0.05).epsilon == 0


@pytest.mark.parametrize("successes,trials", [(0, 10), (3, 10), (10, 10), (97, 100)])
def test_clopper_pearson_is_scipys(successes: int, trials: int) -> None:
    low, high = clopper_pearson(successes, trials, 0.025)
    exact = binomtest(successes, trials).proportion_ci(0.95, "exact")
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=1e-12)


def test_two_rates_use_the_better_direction() -> None:
    low, high = clopper_pearson(50, 50, 0.025)[0], clopper_pearson(0, 50, 0.025)[1]
    assert two_rates_epsilon(50, 50, 0, 50, 0.0, 0.05) == pytest.approx(math.log(low / high))
    expected = math.log((1 - clopper_pearson(25, 50, 0.025)[1]) / (1 - clopper_pearson(50, 50, 0.025)[0]))
    assert two_rates_epsilon(50, 50, 25, 50, 0.0, 0.05) == pytest.approx(expected)
    assert two_rates_epsilon(1, 50, 25, 50, 0.0, 0.05) == 0


@pytest.mark.parametrize(
    "trials,guesses,correct,delta",
    [(1000, 250, 200, 1e-5), (1000, 250, 250, 1e-5), (200, 20, 19, 1e-3), (5000, 3750, 2400, 1e-6)],
)
def test_the_gaussian_audit_refutes_what_is_below_it(trials: int, guesses: int, correct: int, delta: float) -> None:
    """Against the paper's procedure, asked of one claimed epsilon at a time."""

    def refuted(epsilon: float) -> bool:
        mu = 1 / get_sigma_gaussian(epsilon, delta)
        r, h = 0.05 * correct / trials, 0.05 * (guesses - correct) / trials
        for i in range(correct - 1, -1, -1):
            higher = max(h, norm.cdf(norm.ppf(r) - mu))
            r, h = r + i / (guesses - i) * (higher - h), higher
        return bool(r + h < guesses / trials)

    found = gaussian_epsilon(trials, guesses, correct, delta, 0.05)
    assert 0.1 < found < 20
    assert refuted(found - 1e-4) != refuted(found + 1e-4)
