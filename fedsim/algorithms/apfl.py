"""APFL (Deng et al., arXiv 2003.13461, Algorithm 1): each client mixes a model of its own with the common one.

The common model is FedAvg's, whatever alpha is. Models are mixed, as in the paper; the authors' code
(github.com/MLOPTPSU/FedTorch) mixes the outputs of the two models instead, which for linear models is the same. There
alpha is updated in the first local step of a round, after the models, with ``0.02 alpha`` added to its derivative;
here in every local step, with the derivative where the gradient was taken and nothing added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.algorithms.base import Effort, Message, Oracle, Positive, Report, State
from fedsim.algorithms.dspodfl import DFedAvg
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.needs import Needs
from fedsim.algorithms.own_model import OwnModel
from fedsim.core.errors import InputError
from fedsim.core.registry import register
from fedsim.core.types import Probability, dot


@dataclass(frozen=True, kw_only=True)
class APFLClient(OwnModel):
    """``v = v - personal_lr alpha g_i(alpha v + (1 - alpha) x)`` beside every step of x, on the same minibatch.

    The client's own model is ``alpha v + (1 - alpha) x`` with the model x that it received last.

    Parameters
    ----------
    alpha : share of v: 0 is the common model, 1 is training alone. Where it is adaptive, what it starts from.
    adaptive : whether each client moves its own alpha along its loss, ``alpha = alpha - alpha_lr <v - x, g_i>``, within
        0 and 1.
    alpha_lr : learning rate of alpha (default: `lr`).
    """

    alpha: Probability = 0.5
    adaptive: bool = False
    alpha_lr: Positive | None = None

    def check(self, num_clients: int) -> None:
        super().check(num_clients)
        if self.alpha_lr is not None and not self.adaptive:
            message = f"found {self.alpha_lr:g}, but alpha is fixed; allowed: adaptive: true, or no such key"
            raise InputError(message, key="alpha_lr")

    @property
    def calls_per_step(self) -> int:
        return 2

    def init_client(self, params: Tensor) -> State:
        alpha = {"alpha": torch.full_like(params[..., :1], self.alpha)} if self.adaptive else {}
        return {**super().init_client(params), **alpha}

    def start(self, received: Message, client: State) -> State:
        alpha = {"alpha": client["alpha"]} if self.adaptive else {}
        return {**super().start(received, client), **alpha}

    def mixed(self, x: Tensor, rows: State) -> Tensor:
        """``alpha v + (1 - alpha) x``"""
        return torch.lerp(x, rows["v"], rows["alpha"] if self.adaptive else self.alpha)

    def local_step(self, oracle: Oracle, local: State, received: Message, client: State) -> State:
        x, v = local["x"], local["v"]
        after, g = super().local_step(oracle, local, received, client), self.gradient(oracle, self.mixed(x, local))
        if not self.adaptive:
            return {**after, **self.step_own(oracle, local, self.alpha * g)}
        alpha = local["alpha"]
        moved = torch.addcmul(alpha, dot(v - x, g), self._scaled(oracle, self.alpha_lr), value=-1.0).clamp(0, 1)
        return {**after, **self.step_own(oracle, local, alpha * g), "alpha": moved}

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        travels, stays, kept = super().message(local, received, client, effort)
        return travels, stays, ({**kept, "alpha": local["alpha"]} if self.adaptive else kept)

    def personal_model(self, received: Message, client: State) -> Tensor:
        return self.mixed(received["x"].expand_as(client["v"]), client)


@register.algorithm("apfl")
@dataclass(frozen=True, kw_only=True)
class APFL(APFLClient, FedAvg):
    """APFL under a server: x is FedAvg's, and clients use ``alpha v_i + (1 - alpha) x``."""

    needs: ClassVar[Needs] = Needs(own_models=True)


@register.algorithm("gossip_apfl")
@dataclass(frozen=True, kw_only=True)
class GossipAPFL(APFLClient, DFedAvg):
    """APFL on a graph, our extension: x_i is DFedAvg's, and node i uses ``alpha v_i + (1 - alpha) x_i``."""

    needs: ClassVar[Needs] = Needs(own_models=True)
