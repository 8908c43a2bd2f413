"""Lower bounds on epsilon from the outcomes of attacks, each true with a stated confidence.

A bound above the claimed epsilon shows that the claim is false. A bound below it shows nothing: attacks are weaker than
the worst case that epsilon covers, and confidence costs more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, ndtr, ndtri
from scipy.stats import beta, binom

from fedsim.core.arrays import Bools, Floats
from fedsim.privacy.accounting import mu_for

GUESSED = (0.05, 0.1, 0.25, 0.75)
"""Shares of the canaries that guesses are made for, the most confident ones; fixed in advance, each tried at a share of
the significance (Bonferroni). Not all of them: half of the guesses go to each side, and coins do not fall evenly.
"""

_LEAST, _MOST = 1e-3, 500.0  # epsilons nobody claims: where searches end


@dataclass(frozen=True)
class Bound:
    """A lower bound on epsilon at `delta` that is false with probability at most `significance`.

    `guesses`, `correct`: of the threshold that gave it. `ceiling`: what the same number of trials would have given had
    every guess been right; claims above it cannot be refuted by this audit.
    """

    epsilon: float
    delta: float
    significance: float
    guesses: int
    correct: int
    ceiling: float


def one_run_p_value(trials: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Probability that an (epsilon, delta)-private algorithm lets `correct` or more of the guesses be right, at most.

    ``p = beta + 2 m delta a``, with B ~ Bin(r, 1 / (1 + e^-eps)), beta = P[B >= v] and
    a = max_{1 <= i <= v} (P[B >= v - i] - beta) / i, for m trials, r guesses and v right ones: Steinke, Nasr and
    Jagielski, "Privacy auditing with one (1) training run", arXiv 2305.08846, main theorem.

    Trials are independent fair coins (a canary is in or out, or is one of two examples), and the algorithm is private
    with respect to changing one coin.
    """
    q = expit(epsilon)
    tail = float(binom.sf(correct - 1, guesses, q))
    if delta == 0 or correct == 0:
        return tail
    i = np.arange(1, correct + 1)
    slope = float(np.max((binom.sf(correct - i - 1, guesses, q) - tail) / i, initial=0.0))
    return min(1.0, tail + 2 * trials * delta * slope)


def one_run_epsilon(trials: int, guesses: int, correct: int, delta: float, significance: float) -> float:
    """The largest epsilon that these guesses refute at `significance` (0: none)."""

    def excess(epsilon: float) -> float:
        return one_run_p_value(trials, guesses, correct, epsilon, delta) - significance

    return _largest(excess) if guesses else 0.0


def gaussian_epsilon(trials: int, guesses: int, correct: int, delta: float, significance: float) -> float:
    """The largest epsilon whose Gaussian mechanism these guesses refute: the f-DP audit of Mahloujifar et al.

    arXiv 2410.22235: with f the trade-off curve of N(0, 1) against N(mu, 1), mu that of (epsilon, delta), step through
    the numbers of right guesses, ``h <- max(h, g(r)), r <- r + i / (c' - i) (h_new - h)`` from r = a c / m and
    h = a (c' - c) / m (a the significance, c of c' guesses right, g(x) = Phi(Phi^-1(x) - mu)); refuted where
    r + h > c' / m at the end. It holds against claims that are Gaussian mechanisms, as compositions of noisy sums
    without subsampling are, and there it is far tighter than the bound for any (epsilon, delta).
    """
    from dp_accounting import get_epsilon_gaussian

    if not guesses:
        return 0.0

    def excess(mu: float) -> float:
        r, h = significance * correct / trials, significance * (guesses - correct) / trials
        for i in range(correct - 1, -1, -1):
            higher = max(h, float(ndtr(ndtri(r) - mu)))
            if higher == h:
                break
            r, h = min(1.0, r + i / (guesses - i) * (higher - h)), higher
        return guesses / trials - r - h

    low, most = mu_for(_LEAST, delta), mu_for(_MOST, delta)
    if excess(low) > 0:
        return 0.0
    if excess(most) < 0:
        return _MOST
    # Of mu, since epsilon is a search of its own from every mu and needs to be known of the last one alone.
    return float(get_epsilon_gaussian(1.0 / brentq(excess, low, most, xtol=1e-9), delta))


def from_scores(
    scores: Floats,
    members: Bools,
    delta: float,
    significance: float,
    epsilon_of: Callable[[int, int, int, float, float], float] = one_run_epsilon,
) -> Bound:
    """The best bound over the shares `GUESSED`: the highest scores are guessed members, as many of the lowest not.

    Parameters
    ----------
    scores, members : ``[m]``, what the attack says and the coins.
    epsilon_of : `one_run_epsilon`, or `gaussian_epsilon` where the claim is a Gaussian mechanism.
    """
    m, level = len(scores), significance / len(GUESSED)
    order = np.argsort(-scores, kind="stable")
    best = Bound(0.0, delta, significance, 0, 0, 0.0)
    ceiling = 0.0
    for share in GUESSED:
        half = max(1, int(share * m) // 2)
        guesses = 2 * half
        if guesses > m:
            continue
        correct = int(members[order[:half]].sum() + (~members[order[m - half :]]).sum())
        ceiling = max(ceiling, epsilon_of(m, guesses, guesses, delta, level))
        if correct > half:
            found = epsilon_of(m, guesses, correct, delta, level)
            if found > best.epsilon:
                best = Bound(found, delta, significance, guesses, correct, 0.0)
    return Bound(best.epsilon, delta, significance, best.guesses, best.correct, ceiling)


def clopper_pearson(successes: int, trials: int, significance: float) -> tuple[float, float]:
    """One-sided lower and upper confidence bounds on a probability, each false with probability `significance`."""
    low = float(beta.ppf(significance, successes, trials - successes + 1)) if successes > 0 else 0.0
    high = float(beta.ppf(1 - significance, successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high


def two_rates_epsilon(hits: int, members: int, false: int, others: int, delta: float, significance: float) -> float:
    """``ln((TPR_low - delta) / FPR_high)`` or, if larger, that of guessing the opposite: both rates by Clopper-Pearson.

    `hits` of `members` independent runs with the canary, and `false` of `others` runs without it, were guessed to have
    it. Two bounds, at half of the significance each.
    """
    tpr_low, _ = clopper_pearson(hits, members, significance / 2)
    _, fpr_high = clopper_pearson(false, others, significance / 2)
    ratios = ((tpr_low - delta) / fpr_high, (1 - fpr_high - delta) / (1 - tpr_low))
    return max(0.0, *(math.log(ratio) for ratio in ratios if ratio > 0))


def _largest(excess: Callable[[float], float]) -> float:
    """The root of a rising function on [0, _MOST]; 0 where it is positive from the start."""
    if excess(0.0) > 0:
        return 0.0
    high = 1.0
    while excess(high) < 0 and high < _MOST:
        high *= 2
    return float(brentq(excess, 0.0, high, xtol=1e-4)) if high < _MOST else _MOST
