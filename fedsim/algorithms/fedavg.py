"""FedAvg (McMahan et al. 2017, arXiv 1602.05629, Algorithm 1), with server learning rate and momentum.

The momentum is FedAvgM's (arXiv 1909.06335). FAL (arXiv 2208.03635) is FedAvg on inputs that are attacked.

Deltas are averaged instead of models, which is the same for ``server_lr: 1`` and no server momentum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fedsim.algorithms.base import Aggregate, Decay, Message, Round, ServerAlgorithm, State
from fedsim.algorithms.needs import Needs
from fedsim.core.registry import register


@register.algorithm("fedavg")
@dataclass(frozen=True, kw_only=True)
class FedAvg(ServerAlgorithm):
    """``x = x + server_lr * v,  v = server_momentum * v + sum_i w_i delta_i``

    FedAvgM's rule; with ``server_momentum: 0`` (default) it is FedAvg. The first round has v = sum_i w_i delta_i.

    Sources: McMahan et al. 2017, arXiv 1602.05629, Algorithm 1; for the server's momentum, arXiv 1909.06335.
    """

    needs: ClassVar[Needs] = Needs(personal=True)
    server_momentum: Decay = 0.0

    def init(self, params: torch.Tensor) -> State:
        return {"x": params, "v": torch.zeros_like(params)} if self.server_momentum > 0 else {"x": params}

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        return self.server_step(state, aggregate(messages["delta"]))

    def server_step(self, state: State, mean_delta: torch.Tensor) -> State:
        """Move the server along an aggregated delta, with momentum where there is any."""
        if self.server_momentum == 0:
            return {**state, "x": torch.add(state["x"], mean_delta, alpha=self.server_lr)}
        v = torch.add(mean_delta, state["v"], alpha=self.server_momentum)
        return {**state, "x": torch.add(state["x"], v, alpha=self.server_lr), "v": v}


@register.algorithm("fal")
@dataclass(frozen=True, kw_only=True)
class FAL(FedAvg):
    """Federated Adversarial Learning (arXiv 2208.03635): FedAvg on inputs that the section ``adversary`` attacks.

    The paper's mean over clients is ``weighting: uniform``. Its body could not be read: whether it attacks the model of
    each local step or the received one is not known to us; ``adversary.attack_on`` says which.
    """

    needs: ClassVar[Needs] = replace(FedAvg.needs, adversary=True)
