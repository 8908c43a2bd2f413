"""DP-SGD (Abadi et al., arXiv 1607.00133) as an oracle: whatever algorithm a scenario names, its gradients are private.

Example level, add or remove one example (the sizes n_i of clients are public): every client's messages are private by
themselves, against the server, the other clients and whoever sees all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.core.arrays import Ints
from fedsim.core.errors import InputError
from fedsim.core.oracle import Oracle, Plan, Task
from fedsim.core.registry import register
from fedsim.core.types import BatchSize, Fraction, Positive
from fedsim.objective.supervised import SupervisedTask
from fedsim.participation.base import Setting
from fedsim.privacy.accounting import Release, calibrate, scaled
from fedsim.privacy.base import Bound, Mechanism
from fedsim.privacy.exposure import gradients_per_client
from fedsim.privacy.ledger import Claim, PrivacyLedger
from fedsim.privacy.noise import gaussian
from fedsim.privacy.oracle import PrivateTask, Question, calls_per_step


@register.privacy("dp_sgd")
@dataclass(frozen=True, kw_only=True)
class PrivateSGD(Mechanism):
    """``v_i = (1 / (q n_i)) (sum_{j in S} clip_C(g_j) + N(0, (z C)^2 I))`` in place of every minibatch gradient.

    S holds each of client i's n_i examples with probability q, independently in every step (Poisson sampling); the
    denominator is the public q n_i, never the size of S, and an empty S still releases its noise. A step that asks for
    gradients at c points uses the same S for all of them, which is one sampled release with multiplier z / sqrt(c).

    Parameters
    ----------
    clip_norm : C, the bound on each example's gradient. Without it nothing is clipped, and nothing is private.
    sampling_rate : q, in place of the algorithm's `batch_size`. Left out for ``batch_size: full``, where it is 1.
    """

    trust: Literal["local"] = "local"
    counts_on_messages: ClassVar[bool] = False
    clip_norm: Positive | None = None
    sampling_rate: Fraction | None = None

    def bind(self, setting: Setting) -> Bound:
        self.check_target()
        algorithm, q = setting.algorithm, self._rate(setting)
        if self.clip_norm is None and self.noise_multiplier != 0:
            raise InputError("missing; allowed: the bound on each example's gradient", key="privacy.clip_norm")
        if algorithm.local_epochs is not None:
            raise InputError(
                "found local epochs: they walk through shuffled examples, for which the epsilon of Poisson sampling "
                "does not hold; allowed: local_steps",
                key="algorithm.local_epochs",
            )
        calls = calls_per_step(algorithm)
        most = int(gradients_per_client(setting).max())
        unit = {Release("gradient", calls**-0.5, q): most}
        z = self.noise_multiplier
        if z is None:
            assert self.epsilon is not None
            z = calibrate(unit, self.epsilon, self.delta)
        claim = Claim(
            "example", "add-remove", "local", "against the server, other clients and everybody who sees messages",
            f"Poisson at rate {q:.6g}, anew in every local step" if q < 1 else "none, every example in every step",
        )  # fmt: skip
        ledger = PrivacyLedger(claim, self.delta, setting.task.num_clients, self.epsilon, scaled(unit, z))
        return _BoundSGD(self, setting, ledger, z, q, calls)

    def _rate(self, setting: Setting) -> float:
        full = setting.algorithm.batch_size == "full"
        if self.sampling_rate is None:
            if not full:
                raise InputError(
                    "missing; allowed: the probability with which each example is in a batch (batch_size is not used: "
                    "batches of fixed size are not Poisson sampled), or algorithm.batch_size: full",
                    key="privacy.sampling_rate",
                )
            return 1.0
        if full and self.sampling_rate < 1:
            raise InputError(f"found full beside sampling_rate {self.sampling_rate:g}", key="algorithm.batch_size")
        if self.sampling_rate < 1 and not isinstance(setting.task, SupervisedTask):
            message = "found a rate below 1, but these clients have no examples to sample; allowed: 1"
            raise InputError(message, key="privacy.sampling_rate")
        return self.sampling_rate


class _BoundSGD(Bound):
    """DP-SGD's oracle in one run."""

    def __init__(
        self, mechanism: PrivateSGD, setting: Setting, ledger: PrivacyLedger, z: float, q: float, calls: int
    ) -> None:
        super().__init__(mechanism, setting, ledger)
        self.clip = mechanism.clip_norm if mechanism.clip_norm is not None else float("inf")
        self.std = z * self.clip if z > 0 else 0.0
        self.rate, self.calls = q, calls
        self.one = Release("gradient", z * calls**-0.5, q)

    def task(self, task: Task) -> Task:
        return _SampledTask(task, self)

    def charge(self, clients: Ints, rounds: Ints, steps: Ints) -> None:
        self.ledger.append(self.one, steps, clients)


class _SampledTask(PrivateTask):
    """Poisson minibatches with clipped sums, noise, and public denominators."""

    def __init__(self, inner: Task, bound: _BoundSGD) -> None:
        super().__init__(inner, bound.calls)
        self.bound = bound

    def release(self, oracle: Oracle, x: Tensor, question: Question) -> Tensor:
        b = self.bound
        total = oracle.clipped_sum(x, b.clip)
        if b.std > 0:
            q = question
            parts = (q.clients, q.rounds, q.step, q.call)
            total = total + b.std * gaussian(
                b.seeds, "gradient", *parts, width=self.dim, device=x.device, dtype=x.dtype
            )
        expected = b.rate * self.sizes[question.clients]
        return total / torch.as_tensor(expected, dtype=x.dtype, device=x.device).unsqueeze(1)

    def minibatches(self, clients: Ints, rounds: Ints, steps: Ints, batch_size: BatchSize, epochs: bool) -> Plan:
        if self.bound.rate == 1:
            return self.inner.plan(clients, rounds, steps, "full", False)
        rates = np.full(len(clients), self.bound.rate)
        return self.inner.poisson_plan(clients, rounds, steps, rates, self.bound.samples_from)

    def samples_per_step(self, clients: Ints, steps: Ints, batch_size: BatchSize, epochs: bool) -> Ints:
        expected: Ints = np.rint(steps * self.bound.rate * self.sizes[clients]).astype(np.int64)
        return expected
