"""DP-FedAvg (McMahan et al., arXiv 1710.06963): whole clients are protected, by clipping their updates.

Client level, add or remove one client. The norm may adapt to the updates (arXiv 1905.03871).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fedsim.algorithms.base import Round, ServerAlgorithm
from fedsim.core.arrays import Ints
from fedsim.core.errors import InputError
from fedsim.core.job import Job
from fedsim.core.registry import register
from fedsim.core.types import Aggregate, Count, Message, Positive, State
from fedsim.participation.base import Setting
from fedsim.participation.synchronous import Synchronous
from fedsim.privacy.accounting import Release, calibrate
from fedsim.privacy.adaptive import Adaptive, update_noise
from fedsim.privacy.base import Bound, Mechanism
from fedsim.privacy.ledger import Claim, PrivacyLedger
from fedsim.privacy.noise import gaussian
from fedsim.privacy.updates import check_server, clip_update, importance

_BIT, _CLIP = "privacy.within", "privacy.clip"


@register.privacy("dp_fedavg")
@dataclass(frozen=True, kw_only=True)
class DPFedAvg(Mechanism):
    """``mean = sum_{p in S} w_p clip_C(delta_p) + N(0, (z C max_p w_p)^2 I)`` with public weights ``w_p = p_p / q``.

    S is a Poisson sample of the clients at rate q (``participation.sampling: poisson``), or all of them. The weights do
    not depend on who is in S, an empty S still releases its noise, and the heaviest client sets the sensitivity: with
    ``weighting: uniform``, w = 1 / (q P).

    Sources: McMahan et al., arXiv 1710.06963; for the adaptive clip norm, arXiv 1905.03871.

    Parameters
    ----------
    clip_norm : C, the bound on each client's update. Without it nothing is clipped, and nothing is private.
    adaptive : let C follow a quantile of the updates' norms instead (see `Adaptive`); its budget comes out of z.
    trust : ``central``, or ``secagg``: every client adds a share of the noise, and the server sees only the sum.
    honest : secagg: clients that surely add their share (default: all).
    """

    personal: ClassVar[bool] = True
    trust: Literal["central", "secagg"] = "central"
    clip_norm: Positive | None = None
    adaptive: Adaptive | None = None
    honest: Count | None = None

    def bind(self, setting: Setting) -> Bound:
        self.check_target()
        check_server(setting, "dp_fedavg")
        if self.clip_norm is not None and self.adaptive is not None:
            raise InputError("found beside adaptive, which starts at adaptive.initial", key="privacy.clip_norm")
        if self.clip_norm is None and self.adaptive is None and self.noise_multiplier != 0:
            raise InputError(
                "missing; allowed: the bound on each client's update, or adaptive", key="privacy.clip_norm"
            )
        q = sampling_rate(setting)
        self._check_trust(setting, q)
        z = self.noise_multiplier
        if z is None:
            assert self.epsilon is not None
            z = calibrate({Release("round", 1.0, q): setting.rounds}, self.epsilon, self.delta)
        claim = Claim(
            "client", "add-remove", self.trust, "against everybody who sees the models" + (
                " except the server" if self.trust == "central" else ", and the server, which sees sums"
            ), f"Poisson at rate {q:.6g}, anew in every round" if q < 1 else "none, every client in every round",
        )  # fmt: skip
        release = Release("round", z, q)
        ledger = PrivacyLedger(claim, self.delta, setting.task.num_clients, self.epsilon, {release: setting.rounds})
        return _BoundFedAvg(self, setting, ledger, release)

    def _check_trust(self, setting: Setting, q: float) -> None:
        if self.honest is not None and self.trust != "secagg":
            raise InputError("clients add shares of the noise only under trust: secagg", key="privacy.honest")
        if self.trust != "secagg":
            return
        assert isinstance(setting.participation, Synchronous)
        p = setting.participation
        if q < 1 or p.dropout > 0 or p.deadline is not None:
            raise InputError(
                "found a cohort that changes: with fewer shares than planned the sum has too little noise; allowed "
                "with secagg: every client in every round, no dropout, no deadline",
                key="privacy.trust",
            )
        if self.adaptive is not None:
            raise InputError(
                "needs noise of its own at the server, allowed with: trust: central", key="privacy.adaptive"
            )
        if self.honest is not None and self.honest > setting.task.num_clients:
            raise InputError(
                f"found {self.honest}, allowed: at most data.clients = {setting.task.num_clients}", key="privacy.honest"
            )


def sampling_rate(setting: Setting) -> float:
    """q of Poisson sampled clients, 1 where all take part.

    Raises
    ------
    InputError
        Cohorts are chosen in a way for which no amplification is known here.
    """
    p = setting.participation
    assert isinstance(p, Synchronous)
    n = setting.task.num_clients
    rate = p.rate(n)
    if setting.algorithm.needs.begins_with_everybody and rate < 1:
        raise InputError("all its clients take part in the first round, which is not sampled", key="algorithm.name")
    if p.stragglers > 0:
        raise InputError(
            "found stragglers, who are chosen among the cohort: with one client more or less others would be slow, and "
            "their updates would change too; allowed: 0, or unequal local_steps",
            key="participation.stragglers",
        )
    if setting.durations is not None and (setting.durations.presence or setting.durations.leaves) is not None:
        raise InputError(
            "found clients that come and go: who is there in a round depends on how long those before took, and so "
            "on who took part in them; allowed: always there (dp_ftrl, local_dp and dp_sgd do not mind)",
            key="system",
        )
    if p.sampling == "poisson":
        return rate
    if p.sampling == "weighted" or rate < 1:
        raise InputError(
            f"found '{p.sampling}' cohorts: epsilon is known for Poisson sampled ones, each client with probability "
            "fraction by itself and nobody drawn again where there are none; allowed: poisson, or every client",
            key="participation.sampling",
        )
    return 1.0


class _BoundFedAvg(Bound):
    """DP-FedAvg in one run; it keeps the clip norm."""

    answers_empty = True

    def __init__(self, mechanism: DPFedAvg, setting: Setting, ledger: PrivacyLedger, one: Release) -> None:
        super().__init__(mechanism, setting, ledger)
        assert isinstance(setting.algorithm, ServerAlgorithm)
        self.algorithm = setting.algorithm
        n, p = setting.task.num_clients, importance(setting)
        self.adaptive, self.one, self.cohort = mechanism.adaptive, one, n * one.q
        self.clip = self.adaptive.initial if self.adaptive else mechanism.clip_norm or float("inf")
        self.weights = p / one.q
        self.bit_std = self.adaptive.std(self.cohort) if self.adaptive else 0.0
        self.multiplier = update_noise(one.z, self.bit_std) if self.adaptive else one.z
        self.share = (mechanism.honest or n) ** -0.5 if mechanism.trust == "secagg" else None

    @property
    def std(self) -> float:
        """Std per coordinate of the noise on the weighted sum, at the present clip norm."""
        return self.multiplier * self.clip * float(self.weights.max()) if self.multiplier > 0 else 0.0

    def charge(self, clients: Ints, rounds: Ints, steps: Ints) -> None:
        # rounds that are made again have the cohort that they had: together they are one release with less noise
        release = Release(self.one.kind, self.one.z * (1 + self.attempts) ** -0.5, self.one.q)
        self.ledger.append(release if self.attempts else self.one)

    def broadcast(self, message: Message) -> Message:
        if self.adaptive is None:
            return message
        return {**message, _CLIP: message["x"].new_tensor([self.clip])}

    def beside(self, x: Tensor) -> tuple[Message, Message]:
        one = x.new_zeros((1, 1))
        return ({}, {}) if self.adaptive is None else ({_CLIP: one}, {_BIT: one})

    def outgoing(self, messages: Message, job: Job) -> Message:
        bound = job.received[_CLIP] if self.adaptive else self.clip
        delta, within = clip_update(messages["delta"], bound)
        if self.share is not None and self.std > 0:
            noise = gaussian(
                self.seeds,
                "share",
                job.clients,
                job.rounds,
                width=delta.shape[-1],
                device=delta.device,
                dtype=delta.dtype,
            )
            own = torch.as_tensor(self.weights[job.clients], dtype=delta.dtype, device=delta.device).unsqueeze(1)
            delta = delta + noise * (self.std * self.share) / own
        sent = {**messages, "delta": delta}
        return {**sent, _BIT: within.to(delta.dtype) - 0.5} if self.adaptive else sent

    def aggregate(self, round: Round, state: State, messages: Message, aggregate: Aggregate) -> Aggregate:
        within = messages[_BIT].sum(0) if self.adaptive else messages["delta"].new_zeros(0)
        mean = self._mean(round, messages["delta"], within)
        if self.adaptive is not None:
            self._adapt(self.adaptive, round.number, messages[_BIT])
        return lambda values, weights=None: mean  # noqa: ARG005 - `check_server` made sure that this is all it is

    def _mean(self, round: Round, delta: Tensor, within: Tensor) -> Tensor:
        """``sum_p w_p delta_p + noise``, ``[m, d] -> [d]``; `within` gets noise in this round, too."""
        total = (self.algorithm.importance(round) / self.one.q).squeeze(-1) @ delta
        if self.share is not None or self.std == 0:
            return total
        self.under_noise(round.number, torch.cat([total, within]))
        noise = gaussian(self.seeds, "sum", round.number, width=len(total), device=total.device, dtype=total.dtype)
        return total + self.std * noise[0]

    def _adapt(self, rule: Adaptive, number: int, bits: Tensor) -> None:
        noise = gaussian(self.seeds, "within", number, width=1, device=torch.device("cpu"), dtype=torch.float64)
        self.clip = rule.step(self.clip, float(bits.sum()) + self.bit_std * float(noise), self.cohort)

    def save(self) -> dict[str, Any]:
        return {**super().save(), "clip": self.clip}

    def load(self, saved: Mapping[str, Any]) -> None:
        super().load(saved)
        self.clip = saved["clip"]
