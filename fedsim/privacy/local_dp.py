"""Local DP for client updates: every message is clipped and noised at the client, before anybody else sees it.

Client level, replace one client by any other: ``sent = clip_C(message) + N(0, (z 2 C)^2 I)``. No amplification by
sampling or shuffling is claimed, and all messages of a client count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.algorithms.base import Effort, ServerAlgorithm
from fedsim.core.arrays import Ints
from fedsim.core.errors import InputError
from fedsim.core.job import Job
from fedsim.core.registry import register
from fedsim.core.types import Message, Positive
from fedsim.participation.base import Setting
from fedsim.privacy.accounting import Release, calibrate, scaled
from fedsim.privacy.base import Bound, Mechanism
from fedsim.privacy.exposure import messages_per_client
from fedsim.privacy.ledger import Claim, PrivacyLedger
from fedsim.privacy.noise import gaussian
from fedsim.privacy.updates import clip_update


@register.privacy("local_dp")
@dataclass(frozen=True, kw_only=True)
class LocalDP(Mechanism):
    """``sent = clip_C(message) + N(0, (z 2 C)^2 I)`` at each client; vectors of one message are clipped as one.

    For algorithms under a server, synchronous or on the clock; on a graph ``decor`` with ``correlation: 0`` does it.

    Parameters
    ----------
    clip_norm : C, the bound on each message. Without it nothing is clipped, and nothing is private.
    """

    trust: Literal["local"] = "local"
    counts_on_messages: ClassVar[bool] = False
    personal: ClassVar[bool] = True
    clip_norm: Positive | None = None

    def bind(self, setting: Setting) -> Bound:
        self.check_target()
        if self.clip_norm is None and self.noise_multiplier != 0:
            raise InputError("missing; allowed: the bound on each message", key="privacy.clip_norm")
        if not isinstance(setting.algorithm, ServerAlgorithm):
            message = "local_dp protects messages to a server; allowed on a graph: decor (correlation: 0 is local DP)"
            raise InputError(message, key="privacy.mechanism")
        check_messages(setting.algorithm, setting.task.dim)
        unit = {Release("message", 1.0): int(messages_per_client(setting).max())}
        z = self.noise_multiplier
        if z is None:
            assert self.epsilon is not None
            z = calibrate(unit, self.epsilon, self.delta)
        claim = Claim("client", "replace-one", "local", "against everybody, the server included", "none is claimed")
        ledger = PrivacyLedger(claim, self.delta, setting.task.num_clients, self.epsilon, scaled(unit, z))
        return _BoundLocal(self, setting, ledger, z)


def check_messages(algorithm: ServerAlgorithm, d: int) -> None:
    """Raise InputError unless messages are changes: zero when nothing was done, vectors of d numbers."""
    params = torch.linspace(-1.0, 1.0, max(3, d), dtype=torch.float64)  # of one or two a number looks like a vector
    client, one = algorithm.fresh_client(params.unsqueeze(0)), params.new_ones((1, 1))
    received = algorithm.receive(algorithm.broadcast(algorithm.init(params)), client)
    received = {k: v.reshape(1, -1) for k, v in received.items()}
    sent, _, _ = algorithm.message(algorithm.start(received, client), received, client, Effort(one, one, one))
    odd = [k for k, v in sent.items() if v.shape[-1] != len(params) or bool(v.any())]
    if odd:
        raise InputError(
            f"{type(algorithm).__name__} sends '{odd[0]}', which is no change of d numbers: clipping would destroy it; "
            "allowed: algorithms that send changes, such as fedavg, fedprox, scaffold and feddyn, or dp_sgd",
            key="algorithm.name",
        )


class _BoundLocal(Bound):
    """Local DP in one run."""

    def __init__(self, mechanism: LocalDP, setting: Setting, ledger: PrivacyLedger, z: float) -> None:
        super().__init__(mechanism, setting, ledger)
        self.clip = mechanism.clip_norm if mechanism.clip_norm is not None else float("inf")
        self.std = z * 2.0 * self.clip if z > 0 else 0.0
        self.one = Release("message", z)

    def charge(self, clients: Ints, rounds: Ints, steps: Ints) -> None:
        self.ledger.append(self.one, 1, clients)

    def outgoing(self, messages: Message, job: Job) -> Message:
        names = list(messages)
        widths = [messages[k].shape[-1] for k in names]
        whole: Tensor = torch.cat([messages[k] for k in names], dim=-1) if len(names) > 1 else messages[names[0]]
        whole, _ = clip_update(whole, self.clip)
        if self.std > 0:
            whole = whole + self.std * gaussian(
                self.seeds, "message", job.clients, job.rounds,
                width=whole.shape[-1], device=whole.device, dtype=whole.dtype,
            )  # fmt: skip
        return dict(zip(names, torch.split(whole, widths, dim=-1), strict=True))
