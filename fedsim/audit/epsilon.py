"""Audits of a claimed epsilon: is there an attack that succeeds more often than epsilon allows?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from fedsim.audit.base import Audit, Claimed, Finding, Subject
from fedsim.audit.bounds import Bound, from_scores, gaussian_epsilon, one_run_epsilon, two_rates_epsilon
from fedsim.audit.canaries import needed_claim, scored_run
from fedsim.core.arrays import Bools, Floats
from fedsim.core.registry import register

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ATTACKER = (
    "The attacker knows the algorithm, the model and all data but the coins, has put canaries into the data whose "
    "clipped gradients lie in coordinates of their own, and sees {seen}. It must say how each canary's coin fell."
)
_NOTHING = (
    "A bound below the claim shows nothing: it is what a healthy audit gives. A bound above it shows that the claim is "
    "false, up to the stated probability of error."
)
Significance = Annotated[float, Field(gt=0, lt=0.5)]


@register.audit("canaries")
@dataclass(frozen=True, kw_only=True)
class OneRunAudit(Audit):
    """Lower bound on epsilon from one run with many canaries (Steinke et al. 2023, arXiv 2305.08846).

    Where all releases are one Gaussian mechanism the f-DP bound (arXiv 2410.22235) is computed as well, which is
    tighter; each gets half of `significance`, the probability that the audit accuses a sound run.
    """

    canaries: Annotated[int, Field(ge=20)] = 500
    significance: Significance = 0.05

    def run(self, subject: Subject) -> Finding:
        subject.say("canaries: one run")
        scores, coins, claim, sees = scored_run(subject, self.canaries)
        level = self.significance / 2 if claim.gaussian else self.significance
        bounds = {"one_run": from_scores(scores, coins, claim.delta, level, one_run_epsilon)}
        if claim.gaussian:
            bounds["gaussian"] = from_scores(scores, coins, claim.delta, level, gaussian_epsilon)
        results: dict[str, Any] = {
            "claimed_epsilon": claim.epsilon, "delta": claim.delta,
            "lower_bound": max(b.epsilon for b in bounds.values()),
            "confidence": 1 - self.significance, "canaries": len(coins), "runs": 1,
        }  # fmt: skip
        for name, bound in bounds.items():
            results[name] = {
                "lower_bound": bound.epsilon, "guesses": bound.guesses, "correct": bound.correct,
                "most_it_could_show": bound.ceiling,
            }  # fmt: skip
        return _finding(results, bounds, claim, scores, coins, sees)


@register.audit("repeated")
@dataclass(frozen=True, kw_only=True)
class RepeatedAudit(Audit):
    """Lower bound on epsilon from many runs with one canary each, both error rates by Clopper-Pearson.

    `runs` are independent; half of them choose the threshold, the others test it. For runs that take seconds.
    """

    runs: Annotated[int, Field(ge=10)] = 200
    significance: Significance = 0.05

    def run(self, subject: Subject) -> Finding:
        needed_claim(subject)
        scores, coins = np.empty(self.runs), np.empty(self.runs, dtype=np.bool_)
        for i in range(self.runs):
            if i % 10 == 0:
                subject.say(f"repeated: run {i + 1} of {self.runs}")
            one_score, one_coin, claim, sees = scored_run(subject, 1, i + 1)
            scores[i], coins[i] = one_score[0], one_coin[0]
        half = self.runs // 2
        threshold = best_threshold(scores[:half], coins[:half], claim.delta, self.significance)
        bound = tested(scores[half:], coins[half:], threshold, claim.delta, self.significance)
        results: dict[str, Any] = {
            "claimed_epsilon": claim.epsilon, "delta": claim.delta, "lower_bound": bound.epsilon,
            "confidence": 1 - self.significance, "canaries": 1, "runs": self.runs, "tested_runs": bound.guesses,
            "correct": bound.correct, "most_it_could_show": bound.ceiling,
        }  # fmt: skip
        return _finding(results, {"repeated": bound}, claim, scores, coins, sees)


def best_threshold(scores: Floats, coins: Bools, delta: float, significance: float) -> float:
    """The threshold, between two scores, that bounds epsilon best on these runs."""
    order = np.sort(scores)
    middles = (order[1:] + order[:-1]) / 2
    found = [tested(scores, coins, float(t), delta, significance).epsilon for t in middles]
    best = np.flatnonzero(np.asarray(found) == max(found))
    return float(middles[best[len(best) // 2]])


def tested(scores: Floats, coins: Bools, threshold: float, delta: float, significance: float) -> Bound:
    """The bound from guessing coin 1 above the threshold."""
    guessed = scores > threshold
    members, others = int(coins.sum()), int((~coins).sum())
    found = two_rates_epsilon(
        int(guessed[coins].sum()), members, int(guessed[~coins].sum()), others, delta, significance
    )
    ceiling = two_rates_epsilon(members, members, 0, others, delta, significance)
    return Bound(found, delta, significance, len(scores), int((guessed == coins).sum()), ceiling)


def _finding(
    results: dict[str, Any], bounds: dict[str, Bound], claim: Claimed, scores: Floats, coins: Bools, seen: str
) -> Finding:
    alarm = None
    low = results["lower_bound"]
    if low > claim.epsilon:
        alarm = (
            f"epsilon is at least {low:.3g} with confidence {results['confidence']:.3g}, but {claim.epsilon:.3g} is "
            f"claimed (delta {claim.delta:g}): the claim is false"
        )
    notes = [_NOTHING]
    most = max(b.ceiling for b in bounds.values())
    if most <= claim.epsilon:
        notes.append(
            f"This audit cannot refute the claim: with {len(coins)} canaries or runs it could show {most:.3g} at most. "
            "Use more."
        )

    def compared() -> Figure:
        from fedsim.figures.audit import bounds_figure

        return bounds_figure({name: (b.epsilon, b.ceiling) for name, b in bounds.items()}, claim.epsilon)

    def histogram() -> Figure:
        from fedsim.figures.audit import scores_figure

        return scores_figure(scores, coins)

    figures = {"epsilon": partial(compared), "scores": partial(histogram)}
    return Finding(_ATTACKER.format(seen=seen), results, alarm, tuple(notes), figures)
