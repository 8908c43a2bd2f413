"""The ledger: every private release is written down before it happens, and refused where the budget would not hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from fedsim.core.arrays import Ints
from fedsim.core.errors import RunError
from fedsim.privacy.accounting import (
    Profile,
    Release,
    epsilon,
    epsilon_closed_form,
    epsilon_pld,
    epsilon_rdp,
)

_SLACK = 1 + 1e-6  # of a budget: calibration is exact up to rounding
_MOST_PROFILES = 16
Entry = tuple[Release, "int | Ints", "Ints | None"]
"""A release, how often, and whose (None: everybody's), as `PrivacyLedger.append` takes them."""
KNOWN_SEED = (
    "noise and samples whose seed is known: here they are drawn from noise_seed and seed so that runs can be repeated"
)
NOT_COVERED = (
    "choices made by looking at results on the data: learning rates, clip norms, stopping, model selection",
    "preprocessing that looks at the data, such as scaling to its mean and deviation",
    "the metrics of this run: they are computed from the data without noise, for the simulation's reader only",
    KNOWN_SEED,
    "messages that the system model loses: they are taken as seen by nobody",
)


class BudgetExceeded(RunError):
    """A release was refused because it would have spent more than the budget."""


@dataclass(frozen=True)
class Claim:
    """What an epsilon of the ledger means.

    `unit`: what one neighbouring data set differs in. `adjacency`: how. `trust`: who adds noise. `against`: who may
    look without learning more than epsilon allows. `sampling`: how the data or clients of a release are chosen.
    """

    unit: Literal["example", "client"]
    adjacency: Literal["replace-one", "add-remove"]
    trust: Literal["central", "secagg", "local"]
    against: str
    sampling: str


class PrivacyLedger:
    """What has been released so far, per protected unit, and what it amounts to.

    Parameters
    ----------
    claim : what is protected, and against whom.
    delta : at which epsilon is stated.
    num_clients : how many clients there are; epsilon is the worst one's.
    budget : the epsilon that must not be passed (None: no limit).
    planned : the worst client's releases of the whole run, which have been found to stay within the budget.
    allowed : where clients' releases differ, the largest count of each that any of them has planned (default:
        `planned`).
    """

    def __init__(
        self,
        claim: Claim,
        delta: float,
        num_clients: int,
        budget: float | None = None,
        planned: Profile | None = None,
        allowed: Profile | None = None,
    ) -> None:
        self.claim, self.delta, self.num_clients, self.budget = claim, delta, num_clients, budget
        self.planned: dict[Release, int] = dict(planned or {})
        self.allowed = self.planned if allowed is None else dict(allowed)
        self._taken: list[Entry] = []
        self._common: dict[Release, int] = {}
        self._own: dict[Release, Ints] = {}
        self._known: dict[frozenset[tuple[Release, int]], float] = {}

    def append(self, release: Release, count: int | Ints = 1, clients: Ints | None = None) -> None:
        """Write down `count` releases of everybody, or of `clients` (a count for all of them or one for each).

        Raises
        ------
        BudgetExceeded
            They would spend more than the budget; nothing has been written down, and nothing may be released.
        """
        if self.budget is not None and self._most(release, count, clients) > self.allowed.get(release, 0):
            self._check(release, count, clients)
        self._taken.append((release, count, clients))
        self.add((release, count, clients))

    def taken(self) -> list[Entry]:
        """What `append` has taken since this was last asked."""
        taken, self._taken = self._taken, []
        return taken

    def add(self, entry: Entry) -> None:
        """Count what has been released, whatever the budget."""
        release, count, clients = entry
        if clients is None:
            assert isinstance(count, int)
            self._common[release] = self._common.get(release, 0) + count
        else:
            own = self._own.setdefault(release, np.zeros(self.num_clients, dtype=np.int64))
            np.add.at(own, clients, count)

    def epsilon(self) -> float:
        """Spent so far by whoever spent most, at `delta`."""
        return max((self._epsilon(profile) for profile in self.profiles()), default=0.0)

    def profiles(self) -> Iterator[Profile]:
        """What each kind of client has spent; of many kinds, one that is at least as bad as each of them."""
        if not self._own:
            yield dict(self._common)
            return
        releases = sorted(self._own)
        table = np.unique(np.stack([self._own[r] for r in releases]), axis=1)
        if all(r.q == 1 and r.z > 0 for r in releases):
            spent = (table.T / np.array([r.z for r in releases]) ** 2).sum(1)
            table = table[:, [int(spent.argmax())]]
        elif len(releases) == 1 or table.shape[1] > _MOST_PROFILES:
            table = table.max(axis=1, keepdims=True)
        for column in table.T:
            own = {r: int(n) + self._common.get(r, 0) for r, n in zip(releases, column, strict=True) if n > 0}
            yield {**self._common, **own}

    def report(self) -> dict[str, Any]:
        """What the run spent and what that means, as ``privacy.json`` has it."""
        worst = max(self.profiles(), key=self._epsilon, default={})
        finite = bool(worst) and all(r.z > 0 for r in worst)
        closed = finite and all(r.q == 1 for r in worst)
        by_rdp = epsilon_rdp(worst, self.delta) if finite else None
        return {
            "epsilon": self._epsilon(worst),
            "delta": self.delta,
            "budget": self.budget,
            "by": "closed form" if closed else "PLD",
            "closed_form": epsilon_closed_form(worst, self.delta) if closed else None,
            "pld": epsilon_pld(worst, self.delta) if by_rdp is not None and by_rdp < 60 else None,
            "rdp": by_rdp,
            **asdict(self.claim),
            "clients": self.num_clients,
            "releases": [{**asdict(r), "count": n} for r, n in sorted(worst.items())],
            "not_covered": list(NOT_COVERED),
        }

    def save(self) -> dict[str, Any]:
        """JSON's types, for checkpoints."""
        own = [
            {**asdict(r), "clients": np.flatnonzero(n).tolist(), "counts": n[n > 0].tolist()}
            for r, n in self._own.items()
        ]
        return {"common": [{**asdict(r), "count": n} for r, n in self._common.items()], "own": own}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Continue from what `save` gave.

        Raises
        ------
        BudgetExceeded
            What was spent is already more than the budget.
        """
        self._common = {Release(r["kind"], r["z"], r["q"]): r["count"] for r in saved["common"]}
        self._own = {}
        for r in saved["own"]:
            own = self._own[Release(r["kind"], r["z"], r["q"])] = np.zeros(self.num_clients, dtype=np.int64)
            own[r["clients"]] = r["counts"]
        if self.budget is not None and self.epsilon() > self.budget * _SLACK:
            raise self._exceeded(self.epsilon())

    def _most(self, release: Release, count: int | Ints, clients: Ints | None) -> int:
        """The largest count of `release` that any client would come to."""
        own = self._own.get(release)
        common = self._common.get(release, 0)
        if clients is None:
            return common + int(np.max(count)) + (0 if own is None else int(own.max()))
        return common + int(np.max(count if own is None else own[clients] + count, initial=0))

    def _check(self, release: Release, count: int | Ints, clients: Ints | None) -> None:
        trial = PrivacyLedger(self.claim, self.delta, self.num_clients)
        trial._common, trial._own = dict(self._common), {r: n.copy() for r, n in self._own.items()}
        trial._known = self._known
        trial.add((release, count, clients))
        assert self.budget is not None
        if trial.epsilon() > self.budget * _SLACK:
            raise self._exceeded(trial.epsilon())

    def _exceeded(self, would: float) -> BudgetExceeded:
        return BudgetExceeded(
            f"the privacy budget is used up: the next release would spend epsilon {would:.4g} at delta {self.delta:g}, "
            f"the budget is {self.budget:g}. Nothing was released beyond it; allowed: a larger epsilon, more noise or "
            "fewer rounds"
        )

    def _epsilon(self, profile: Profile) -> float:
        key = frozenset(profile.items())
        if key not in self._known:
            self._known[key] = epsilon(profile, self.delta)
        return self._known[key]


def finite(value: float) -> float | None:
    """`value`, or None (JSON's null) for a release without noise."""
    return value if math.isfinite(value) else None
