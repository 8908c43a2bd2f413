"""FedNova (arXiv 2007.07481): normalised averaging, so that clients with more local steps do not pull harder.

As in the official code ||a_i||_1 follows local momentum (and the proximal term) and the local momentum buffer is zeroed
every round.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fedsim.algorithms.base import Aggregate, Effort, Message, Report, Round, State
from fedsim.algorithms.fedprox import FedProx
from fedsim.algorithms.needs import Needs
from fedsim.core.errors import InputError
from fedsim.core.registry import register


@register.algorithm("fednova")
@dataclass(frozen=True, kw_only=True)
class FedNova(FedProx):
    """``d_i = delta_i / ||a_i||_1;  x = x + server_lr * tau_eff * sum_i w_i d_i;  tau_eff = sum_i w_i ||a_i||_1``

    (with mu: ``tau_eff = sum_i w_i tau_i``).

    ||a_i||_1 is the number of steps tau_i, with momentum r ``sum_j (1 - r^j) / (1 - r)``, with a proximal term
    ``sum_j (1 - lr mu)^j``.
    """

    needs: ClassVar[Needs] = replace(FedProx.needs, steps="linear")
    mu: float = 0.0

    def check(self, num_clients: int) -> None:
        super().check(num_clients)
        if self.mu < 0:
            raise InputError(f"found {self.mu}, allowed: a number >= 0", key="mu")
        if self.mu > 0 and float(self.step_weight_sum(torch.tensor(2.0))) != 2:
            raise InputError(
                "FedNova's normaliser is known for momentum or for mu, not for both: set one of them to 0", key="mu"
            )

        if self.mu > 0 and self.clip is not None and self.clipping != "gradient":
            raise InputError(
                f"found '{self.clipping}', but FedNova's normaliser is known for a clipped gradient; allowed: gradient",
                key="clipping",
            )

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        normaliser = self._normaliser(effort)
        return {"d": (local["x"] - received["x"]) / normaliser.clamp_min(1e-12), "norm": normaliser}, {}, client

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        tau_eff = aggregate(round.steps if self.mu > 0 else messages["norm"])
        return self.server_step(state, tau_eff * aggregate(messages["d"]))

    def _normaliser(self, effort: Effort) -> torch.Tensor:
        if self.mu == 0:
            return self.step_weight_sum(effort.steps)
        shrink = 1.0 - effort.lr * self.mu
        return (1.0 - shrink**effort.steps) / (effort.lr * self.mu)
