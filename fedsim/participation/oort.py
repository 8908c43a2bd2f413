"""Oort's guided selection (Lai et al., arXiv 2010.06081, OSDI 2021, Algorithm 1): clients of use, and fast ones.

A client's utility is ``|B_i| sqrt(mean of loss^2 over B_i)``, B_i its samples, of the model that it received when it
last took part. It is clipped at a quantile, scaled to [0, 1] as in the official code (github.com/SymbioticLab/Oort),
raised by ``sqrt(0.1 log t / t_i)`` for what is old (t_i: the round in which it was last seen), and multiplied by
``(T / seconds_i)^alpha`` where the client took longer than T. A share of the cohort, the exploration, are clients that
were never seen.

What is left out: the pacer that changes T, the exclusion of clients that took part often, and that explorers are drawn
by what is known of their speed: here they are drawn alike. Losses are of the received model, not of the local steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from fedsim.core import rng
from fedsim.core.arrays import Floats, Ints
from fedsim.core.registry import register
from fedsim.core.types import BatchSize, Fraction, NonNegative, Probability, Seconds
from fedsim.participation.selection import Known, Pool, Reported, Selection

_UTILITY, _SECONDS, _SEEN = "utility", "seconds", "seen"
_NARROW = 1e-4  # least range that utilities are divided by


@register.selection("oort")
@dataclass(frozen=True, kw_only=True)
class Oort(Selection):
    """Clients whose score is at least `cut_off` of the m-th best, drawn in proportion to it, and unseen ones.

    Parameters
    ----------
    preferred : T, seconds that a client may take without a penalty (none: nobody is penalised).
    penalty : alpha, the exponent of the penalty.
    exploration, exploration_decay, exploration_min : share of the cohort that was never seen, multiplied by the decay
        in every round, down to the least.
    clip : quantile at which utilities are clipped.
    cut_off : share of the m-th best score from which on clients may be drawn.
    samples : of a client that its utility is estimated on, or ``full``.
    """

    preferred: Seconds | None = None
    penalty: NonNegative = 2.0
    exploration: Probability = 0.9
    exploration_decay: Fraction = 0.98
    exploration_min: Probability = 0.2
    clip: Fraction = 0.95
    cut_off: Annotated[float, Field(gt=0, le=1)] = 0.95
    samples: BatchSize = "full"

    def fresh(self, clients: int) -> Known:
        return {_UTILITY: np.zeros(clients), _SECONDS: np.zeros(clients), _SEEN: np.zeros(clients)}

    def choose(self, pool: Pool, known: Known) -> Ints:
        generator = rng.generator(pool.seed, "oort", pool.number)
        seen = known[_SEEN][pool.clients] > 0
        tried, unseen = pool.clients[seen], pool.clients[~seen]
        wanted = min(pool.size, len(pool.clients))
        exploit = min(int(wanted * (1 - self.explored(pool.number))), len(tried))
        exploit = max(exploit, wanted - len(unseen))  # where too few are unseen
        chosen = self._exploited(tried, exploit, self.scores(tried, pool.number, known), generator)
        others = generator.choice(unseen, size=wanted - exploit, replace=False)
        return np.concatenate([chosen, others])

    def learn(self, known: Known, reported: Reported) -> Known:
        if not len(reported.clients):
            return known
        found = {name: values.copy() for name, values in known.items()}
        lost = reported.losses(self.samples)
        found[_UTILITY][reported.clients] = reported.samples * np.sqrt(lost.square)
        found[_SECONDS][reported.clients] = reported.seconds
        found[_SEEN][reported.clients] = reported.number
        return found

    def explored(self, number: int) -> float:
        """Share of the cohort of round `number` that explores."""
        return max(self.exploration * self.exploration_decay**number, self.exploration_min)

    def scores(self, clients: Ints, number: int, known: Known) -> Floats:
        """Scores of clients that were seen, ``[k]``."""
        if not len(clients):
            return np.zeros(0)
        utility, took, seen = (known[name][clients] for name in (_UTILITY, _SECONDS, _SEEN))
        finite = utility[np.isfinite(utility)]
        utility = np.minimum(utility, finite.max() if len(finite) else 1.0)  # losses beyond all numbers
        ordered = np.sort(utility)
        most, least = ordered[min(int(len(ordered) * self.clip), len(ordered) - 1)], 0.999 * ordered[0]
        score = (np.minimum(utility, most) - least) / max(ordered[-1] - least, _NARROW)
        score = score + np.sqrt(0.1 * math.log(number) / seen)
        if self.preferred is None:
            return np.asarray(score)
        return np.asarray(score * np.minimum(1.0, self.preferred / np.maximum(took, 1e-9)) ** self.penalty)

    def _exploited(self, tried: Ints, count: int, score: Floats, generator: np.random.Generator) -> Ints:
        if count == 0:
            return tried[:0]
        order = np.lexsort((tried, -score))
        good = order[score[order] >= self.cut_off * score[order[count - 1]]]
        weight = np.maximum(score[good], 1e-12)
        return np.asarray(generator.choice(tried[good], size=count, replace=False, p=weight / weight.sum()))
