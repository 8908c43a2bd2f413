"""Power-of-Choice (Cho, Wang and Joshi, arXiv 2010.01243, AISTATS 2022): of some candidates those that lose most.

In every round d `candidates` are drawn without replacement with probability p_i, and the m that lose most with the
present model take part. A larger d makes a run faster at first and leaves it further from the optimum of the mean.

The paper combines the m models by their plain mean, whatever the clients' sizes, which is ``weighting: uniform`` of the
algorithm. Where ``rpow-d`` takes the mean loss over a client's last local work, here it is that of the model that the
client received then, on all of its samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedsim.core import rng
from fedsim.core.arrays import Floats, Ints
from fedsim.core.errors import InputError
from fedsim.core.registry import register
from fedsim.core.types import Count
from fedsim.participation.selection import Known, Pool, Reported, Selection

_LAST = "last"


@register.selection("power_of_choice")
@dataclass(frozen=True, kw_only=True)
class PowerOfChoice(Selection):
    """The m candidates with the highest loss; equal ones in random order.

    Parameters
    ----------
    candidates : d, at least the cohort's size.
    variant : ``pow-d``, candidates evaluate all of their samples; ``cpow-d``, `samples` of them; ``rpow-d``, nobody is
        asked, and what a client lost when it last took part counts: infinitely much where it never has.
    samples : of a candidate in ``cpow-d``.
    draw : candidates are drawn by ``importance`` p_i, as in the paper, or ``uniform``: as cohorts without a selection.
    """

    candidates: Count
    variant: Literal["pow-d", "cpow-d", "rpow-d"] = "pow-d"
    samples: Count = 32
    draw: Literal["importance", "uniform"] = "importance"

    def check(self, size: int, clients: int) -> None:
        if not size <= self.candidates <= clients:
            message = f"found {self.candidates}, allowed: {size} (the clients of a round) to {clients} (all)"
            raise InputError(message, key="candidates")

    def fresh(self, clients: int) -> Known:
        return {_LAST: np.full(clients, np.inf)} if self.variant == "rpow-d" else {}

    def choose(self, pool: Pool, known: Known) -> Ints:
        candidates = self._candidates(pool)
        ties = rng.uniform(rng.key(pool.seed, "power_of_choice_ties", candidates, pool.number))
        order = np.lexsort((ties, -self._lost(pool, candidates, known)))
        return candidates[order[: pool.size]]

    def learn(self, known: Known, reported: Reported) -> Known:
        if self.variant != "rpow-d" or not len(reported.clients):
            return known
        last = known[_LAST].copy()
        last[reported.clients] = reported.losses("full").mean
        return {_LAST: last}

    def _candidates(self, pool: Pool) -> Ints:
        if self.draw == "uniform":
            return pool.draw(self.candidates)
        share = pool.importance[pool.clients]
        count = min(self.candidates, int((share > 0).sum()))
        generator = rng.generator(pool.seed, "power_of_choice", pool.number)
        return np.sort(generator.choice(pool.clients, size=count, replace=False, p=share / share.sum()))

    def _lost(self, pool: Pool, candidates: Ints, known: Known) -> Floats:
        if self.variant == "rpow-d":
            return known[_LAST][candidates]
        return pool.losses(candidates, "full" if self.variant == "pow-d" else self.samples).mean
