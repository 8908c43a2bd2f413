"""Gaussian noise for DIFF2 and DP-GD: one vector per round, or its shares at the clients.

Replacing one example moves a round's mean by at most ``Delta = 2 C a``: C the round's clip norm, which everybody knows
(C2 |x - x'| depends on released iterates only), a the largest weight of an example, ``max_p w_p / n_p``. Noise of
standard deviation ``z Delta`` then makes the rounds Gaussian mechanisms with constant z, and everybody taking part in
every round, they compose exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsim.algorithms.base import Round
from fedsim.algorithms.diff2 import Diff2
from fedsim.core.arrays import Ints
from fedsim.core.errors import InputError
from fedsim.core.job import Job
from fedsim.core.registry import register
from fedsim.core.types import Aggregate, Count, Message, NoiseMultiplier, State
from fedsim.messages.aggregators import Mean
from fedsim.participation.base import Setting
from fedsim.privacy.accounting import Release, mu_for
from fedsim.privacy.base import Bound, Mechanism
from fedsim.privacy.clipping import max_coefficient, sensitivity
from fedsim.privacy.ledger import Claim, PrivacyLedger
from fedsim.privacy.noise import gaussian
from fedsim.privacy.others import not_for

_PAPER_SPLIT = 1.25  # u of the authors' code: 1 / u of the Renyi budget goes to the restarts
_AGAINST = {
    "central": "against everybody who sees the models, but not against the server",
    "secagg": "against everybody who sees the models, and the server, which sees only sums",
    "local": "against everybody, the server included",
}


@register.privacy("gaussian")
@dataclass(frozen=True, kw_only=True)
class Gaussian(Mechanism):
    """Noise of standard deviation ``z * 2 C max_i a_i`` on each round's mean of clipped vectors; for ``diff2``.

    Parameters
    ----------
    noise_multiplier, difference_noise_multiplier : z of the restarts and of the rounds between, instead of `epsilon`.
    calibration : ``exact``, the noise that spends `epsilon` exactly; ``paper``, that of the DIFF2 authors' code, which
        is 18 to 21 % more.
    restart_share : share of the budget (of mu^2) for the restarts; 0.8 is the paper's split.
    honest : with ``trust: secagg``, how many clients are trusted to add their share (default: all).
    """

    difference_noise_multiplier: NoiseMultiplier | None = None
    calibration: Literal["exact", "paper"] = "exact"
    restart_share: Annotated[float, Field(gt=0, lt=1)] = 0.8
    honest: Count | None = None

    def bind(self, setting: Setting) -> Bound:
        algorithm = setting.algorithm
        if type(algorithm) is not Diff2:
            raise not_for(setting, "diff2 (with restart_every: 1, DP-GD)")
        self._check(setting, algorithm)
        restarts, differences = counts(setting.rounds, algorithm.restart_every)
        z1, z2 = self.multipliers(setting.rounds, algorithm.restart_every)
        planned = {Release("restart", z1): restarts}
        if differences:
            planned[Release("difference", z2)] = differences
        claim = Claim("example", "replace-one", self.trust, _AGAINST[self.trust], "none: all examples in every round")
        ledger = PrivacyLedger(claim, self.delta, setting.task.num_clients, self.epsilon, planned)
        return BoundGaussian(self, setting, algorithm, ledger, z1, z2)

    def multipliers(self, rounds: int, restart_every: int) -> tuple[float, float]:
        """z of restarts and of difference rounds.

        Exact: ``z1 = sqrt(N1 / (s mu^2))``, ``z2 = sqrt(N2 / ((1 - s) mu^2))``. Paper, with Renyi order
        ``alpha = 1 + ceil(2 ln(1/delta) / epsilon)``: ``z1 = sqrt(u alpha R / (T epsilon))``,
        ``z2 = sqrt(u / (u - 1) alpha R / epsilon)``; for T = 1 ``z = sqrt(alpha R / epsilon)``.
        """
        self.check_target()
        if self.epsilon is None:
            assert self.noise_multiplier is not None
            second = self.difference_noise_multiplier
            return self.noise_multiplier, self.noise_multiplier if second is None else second
        n1, n2 = counts(rounds, restart_every)
        if self.calibration == "paper":
            alpha, u = 1 + math.ceil(2 * math.log(1 / self.delta) / self.epsilon), _PAPER_SPLIT
            unit = alpha * rounds / self.epsilon
            return (
                (math.sqrt(unit), 1.0)
                if restart_every == 1
                else (math.sqrt(u * unit / restart_every), math.sqrt(u / (u - 1) * unit))
            )
        mu = mu_for(self.epsilon, self.delta)
        if n2 == 0:
            return math.sqrt(n1) / mu, 1.0
        return math.sqrt(n1 / self.restart_share) / mu, math.sqrt(n2 / (1 - self.restart_share)) / mu

    def _check(self, setting: Setting, algorithm: Diff2) -> None:
        self.check_target()
        if self.difference_noise_multiplier is not None and self.epsilon is not None:
            raise InputError("found beside epsilon, allowed: one of the two", "privacy.difference_noise_multiplier")
        needed = ("clip_norm",) if algorithm.restart_every == 1 else ("clip_norm", "difference_clip")
        for key in needed:
            if getattr(algorithm, key) is None:
                raise InputError("missing: without a bound one example could move the model by any amount, and no "
                                 "noise would hide it", f"algorithm.{key}")  # fmt: skip
        if not isinstance(setting.aggregator, Mean):
            raise InputError(
                "the sensitivity of a mean is what the noise is made for, allowed: mean", "aggregator.name"
            )
        if self.honest is not None and (self.trust != "secagg" or self.honest > setting.task.num_clients):
            raise InputError(
                f"found {self.honest} with trust {self.trust}, allowed: with trust secagg, at most data.clients = "
                f"{setting.task.num_clients}", "privacy.honest",
            )  # fmt: skip


def counts(rounds: int, restart_every: int) -> tuple[int, int]:
    """Restarts and difference rounds of a run: ``ceil(R / T)`` and the others."""
    restarts = math.ceil(rounds / restart_every)
    return restarts, rounds - restarts


class BoundGaussian(Bound):
    """The noise of one run."""

    def __init__(
        self, mechanism: Gaussian, setting: Setting, algorithm: Diff2, ledger: PrivacyLedger, z1: float, z2: float
    ) -> None:
        super().__init__(mechanism, setting, ledger)
        self.algorithm, self.trust, self.z = algorithm, mechanism.trust, (z1, z2)
        task = setting.task
        n = task.num_clients
        self.sizes = task.sizes
        self.weights = task.importance if algorithm.weighting == "samples" else np.full(n, 1.0 / n)
        self.coefficient = max_coefficient(self.weights, self.sizes)
        self.shares = mechanism.honest or n

    def charge(self, clients: Ints, rounds: Ints, steps: Ints) -> None:
        restart = self.algorithm.restarts(int(rounds[0]))
        self.ledger.append(Release("restart", self.z[0]) if restart else Release("difference", self.z[1]))

    def aggregate(self, round: Round, state: State, messages: Message, aggregate: Aggregate) -> Aggregate:
        """With a trusted server: ``mean + z Delta N(0, I)``, one draw."""
        z = self._z(round.number)
        if self.trust != "central" or z == 0:
            return aggregate
        bound = sensitivity(1.0, self.coefficient, "replace-one")

        def private(values: Tensor) -> Tensor:
            mean = aggregate(values)
            self.under_noise(round.number, mean)
            noise = gaussian(
                self.seeds, "server", round.number, width=mean.shape[-1], device=mean.device, dtype=mean.dtype
            )
            return mean + z * bound * self.algorithm.radius(state) * noise[0]

        return private

    def outgoing(self, messages: Message, job: Job) -> Message:
        """At the clients: shares that add up to the same noise, or noise that hides each message by itself."""
        z = self._z(int(job.rounds[0]))
        if self.trust == "central" or z == 0:
            return messages
        mean, clients = messages["mean"], job.clients
        if self.trust == "secagg":
            bound = sensitivity(1.0, self.coefficient, "replace-one") / (self.weights[clients] * math.sqrt(self.shares))
        else:
            bound = sensitivity(1.0, 1.0, "replace-one") / self.sizes[clients]
        scale = torch.as_tensor(z * bound, dtype=mean.dtype, device=mean.device).unsqueeze(1)
        noise = gaussian(
            self.seeds, "client", job.rounds, clients, width=mean.shape[-1], device=mean.device, dtype=mean.dtype
        )
        return {**messages, "mean": mean + scale * self.algorithm.radius(job.received) * noise}

    def _z(self, number: int) -> float:
        return self.z[0] if self.algorithm.restarts(number) else self.z[1]
