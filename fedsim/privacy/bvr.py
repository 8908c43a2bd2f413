"""Noise for diff2_bvr: on the mean of every gradient round, and on every minibatch difference of the client that walks.

The relation is leaving one example out (its vector replaced by zero), with public denominators n_p and b: sensitivity
``C a`` of the mean and ``C3 |y - y'|`` of a minibatch sum. A client's examples take part in every gradient round (an
exact Gaussian composition) and in the Poisson batches of the client's own turns; epsilon is the worst client's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsim.algorithms.base import Round
from fedsim.algorithms.diff2_bvr import Diff2Bvr
from fedsim.core.arrays import Floats, Ints
from fedsim.core.errors import InputError, RunError
from fedsim.core.oracle import Oracle, Plan, Task
from fedsim.core.registry import register
from fedsim.core.types import Aggregate, BatchSize, Message, NoiseMultiplier, State
from fedsim.messages.aggregators import Mean
from fedsim.participation.base import Setting
from fedsim.privacy.accounting import Profile, Release, calibrate, epsilon, scaled
from fedsim.privacy.base import Bound, Mechanism, WrappedTask
from fedsim.privacy.clipping import max_coefficient, sensitivity
from fedsim.privacy.gaussian import counts
from fedsim.privacy.ledger import Claim, PrivacyLedger
from fedsim.privacy.noise import gaussian
from fedsim.privacy.others import not_for

_RELATION = "add-remove"


@register.privacy("gaussian_bvr")
@dataclass(frozen=True, kw_only=True)
class GaussianBvr(Mechanism):
    """Noise for ``diff2_bvr``, this project's own construction: central on means, at the client in its local steps.

    Parameters
    ----------
    noise_multiplier, difference_noise_multiplier, inner_noise_multiplier : z of the restarts, the difference rounds and
        the local steps (default: that of the restarts), instead of `epsilon`.
    inner_share : share of the budget that the local steps get, about.
    """

    difference_noise_multiplier: NoiseMultiplier | None = None
    inner_noise_multiplier: NoiseMultiplier | None = None
    inner_share: Annotated[float, Field(gt=0, lt=1)] = 0.5

    def bind(self, setting: Setting) -> Bound:
        algorithm = setting.algorithm
        if not isinstance(algorithm, Diff2Bvr):
            raise not_for(setting, "diff2_bvr")
        self._check(setting, algorithm)
        task = setting.task
        rates = np.minimum(algorithm.inner_batch / task.sizes, 1.0)
        profiles = self._profiles(setting.rounds, algorithm, rates)
        worst = max(profiles, key=lambda p: epsilon(p, self.delta))
        allowed = {release: count for profile in profiles for release, count in profile.items()}
        claim = Claim(
            "example", "add-remove", "central",
            "an example's vector is left out; against everybody who sees the models, but not against the server",
            "everybody in gradient rounds, Poisson batches in local steps",
        )  # fmt: skip
        ledger = PrivacyLedger(claim, self.delta, task.num_clients, self.epsilon, worst, allowed)
        return BoundBvr(self, setting, algorithm, ledger, allowed, rates)

    def _profiles(self, rounds: int, algorithm: Diff2Bvr, rates: Floats) -> list[Profile]:
        """What the examples of each client take part in over the whole run, without repetitions."""
        n1, n2 = counts(-(-rounds // 2), algorithm.restart_every)
        walks, n, steps = rounds // 2, len(rates), algorithm.inner_steps - 1
        turns = np.array([len(range(p, walks, n)) for p in range(n)])
        kinds = sorted({(float(q), int(t) * steps) for q, t in zip(rates, turns, strict=True)})
        given = self.noise_multiplier
        if given is not None:
            second, third = self.difference_noise_multiplier, self.inner_noise_multiplier
            z1, z2, z3 = given, given if second is None else second, given if third is None else third
        else:
            outer = 1.0 - self.inner_share
            most = max((q * math.sqrt(t) for q, t in kinds), default=0.0)
            z1, z2 = math.sqrt(n1 / (0.8 * outer)), math.sqrt(max(n2, 1) / (0.2 * outer))
            z3 = max(most / math.sqrt(self.inner_share), 0.5)

        def profile(q: float, t: int, scale: float = 1.0) -> dict[Release, int]:
            made = {Release("restart", z1): n1, Release("difference", z2): n2, Release("inner", z3, q): t}
            return scaled({r: k for r, k in made.items() if k > 0}, scale)

        scale = 1.0
        if self.epsilon is not None:
            worst = [(q, t) for q, t in kinds if not any(a >= q and b >= t and (a, b) != (q, t) for a, b in kinds)]
            scale = max(calibrate(profile(q, t), self.epsilon, self.delta) for q, t in worst)
        return [profile(q, t, scale) for q, t in kinds]

    def _check(self, setting: Setting, algorithm: Diff2Bvr) -> None:
        self.check_target()
        for key in ("difference_noise_multiplier", "inner_noise_multiplier"):
            if getattr(self, key) is not None and self.epsilon is not None:
                raise InputError("found beside epsilon, allowed: one of the two", f"privacy.{key}")
        for key in ("clip_norm", "difference_clip", "inner_clip"):
            if getattr(algorithm, key) is None:
                raise InputError("missing: without a bound no noise would hide one example", f"algorithm.{key}")
        if self.trust != "central":
            raise InputError(f"found '{self.trust}', allowed: central", "privacy.trust")
        if not isinstance(setting.aggregator, Mean):
            raise InputError("the sensitivity is that of a mean, allowed: mean", "aggregator.name")


class BoundBvr(Bound):
    """The noise of one run."""

    def __init__(
        self,
        mechanism: GaussianBvr,
        setting: Setting,
        algorithm: Diff2Bvr,
        ledger: PrivacyLedger,
        allowed: Profile,
        rates: Floats,
    ) -> None:
        super().__init__(mechanism, setting, ledger)
        self.algorithm, self.rates = algorithm, rates
        self.z = {release.kind: release.z for release in allowed}
        sizes = setting.task.sizes
        uniform = np.full(len(sizes), 1.0 / len(sizes))
        self.coefficient = max_coefficient(
            setting.task.importance if algorithm.weighting == "samples" else uniform, sizes
        )

    def task(self, task: Task) -> Task:
        return _WalkTask(task, self)

    def whose_turn(self, number: int) -> int:
        """The client that walks in round `number`."""
        return (number // 2 - 1) % len(self.rates)

    def charge(self, clients: Ints, rounds: Ints, steps: Ints) -> None:
        number = int(rounds[0])
        if not self.algorithm.walks(number):
            kind = "restart" if self.algorithm.restarts(number) else "difference"
            self.ledger.append(Release(kind, self.z[kind]))
        elif self.algorithm.inner_steps > 1:
            client = self.whose_turn(number)
            release = Release("inner", self.z["inner"], float(self.rates[client]))
            self.ledger.append(release, self.algorithm.inner_steps - 1, np.array([client]))

    def aggregate(self, round: Round, state: State, messages: Message, aggregate: Aggregate) -> Aggregate:
        """In gradient rounds ``mean + z Delta N(0, I)``."""
        if self.algorithm.walks(round.number):
            return aggregate
        z = self.z["restart" if self.algorithm.restarts(round.number) else "difference"]

        def private(values: Tensor) -> Tensor:
            mean = aggregate(values)
            self.under_noise(round.number, mean)
            noise = gaussian(
                self.seeds, "server", round.number, width=mean.shape[-1], device=mean.device, dtype=mean.dtype
            )
            return mean + z * sensitivity(1.0, self.coefficient, _RELATION) * self.algorithm.radius(state) * noise[0]

        return private


class _WalkTask(WrappedTask):
    """Poisson batches and noise in the rounds of local steps, for the client whose turn it is; nobody else computes."""

    def __init__(self, inner: Task, bound: BoundBvr) -> None:
        super().__init__(inner)
        self.bound = bound

    def plan(self, clients: Ints, rounds: Ints, steps: Ints, batch_size: BatchSize, epochs: bool) -> Plan:
        number = int(rounds[0])
        if not self.bound.algorithm.walks(number):
            return _Once(self.inner.plan(clients, rounds, np.ones_like(steps), "full", False))
        rates = np.where(clients == self.bound.whose_turn(number), self.bound.rates[clients], 0.0)
        plan = self.inner.poisson_plan(clients, rounds, steps, rates, self.bound.samples_from)
        return _Walk(plan, self.bound, clients, rounds, rates * self.sizes[clients])


class _Once(Plan):
    """The whole data in the first step; nobody asks in the others."""

    def __init__(self, inner: Plan) -> None:
        self.inner = inner

    def begin(self, received: Message) -> None:
        self.inner.begin(received)

    def oracle(self, step: int, count: int, lr: Tensor) -> Oracle:
        return self.inner.oracle(0, count, lr)


class _Walk(Plan):
    def __init__(self, inner: Plan, bound: BoundBvr, clients: Ints, rounds: Ints, expected: Floats) -> None:
        self.inner, self.bound, self.clients, self.rounds, self.expected = inner, bound, clients, rounds, expected

    def begin(self, received: Message) -> None:
        self.inner.begin(received)

    def oracle(self, step: int, count: int, lr: Tensor) -> Oracle:
        return _WalkOracle(self.inner.oracle(step, count, lr), self, step, count)


_REFUSED = "found a call for gradients without noise; a private walk releases clipped differences only"


class _WalkOracle(Oracle):
    """``sum_{j in S} clip(difference) + z3 bound N(0, I)``, and in place of the size of S what is expected of it."""

    def __init__(self, clean: Oracle, plan: _Walk, step: int, count: int) -> None:
        super().__init__(clean.lr)
        self.clean, self.plan, self.step, self.count = clean, plan, step, count

    @property
    def samples(self) -> Tensor:
        expected = self.plan.expected[: self.count]
        return torch.as_tensor(expected, dtype=self.lr.dtype, device=self.lr.device).unsqueeze(1)

    def clipped_sum(
        self, x: Tensor, bound: Tensor | float, minus: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        total = self.clean.clipped_sum(x, bound, minus, dtype)
        who, when = self.plan.clients[: self.count], self.plan.rounds[: self.count]
        mine = np.flatnonzero(self.plan.expected[: self.count])
        noise = gaussian(
            self.plan.bound.seeds, "walk", who[mine], when[mine], self.step,
            width=x.shape[-1], device=x.device, dtype=x.dtype,
        )  # fmt: skip
        rows = torch.as_tensor(mine, device=x.device)
        scale = torch.as_tensor(bound, dtype=x.dtype, device=x.device).expand(len(x), 1)[rows]
        return total.index_add(0, rows, self.plan.bound.z["inner"] * scale * noise)

    def grad(self, x: Tensor) -> Tensor:
        raise RunError(_REFUSED)

    def per_sample_grad(self, x: Tensor) -> Tensor:
        raise RunError(_REFUSED)
