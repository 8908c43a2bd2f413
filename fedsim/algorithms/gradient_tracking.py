"""Gradient tracking (DIGing, arXiv 1607.03218; DSGT, arXiv 1805.11454), in its adapt-then-combine form.

Every node tracks the network's mean gradient in y; the exact optimum is reached with a constant step and full
gradients, where DGD keeps a gap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedsim.algorithms.base import Aggregate, Effort, GossipAlgorithm, Message, Oracle, Report, Round, State
from fedsim.algorithms.needs import Needs
from fedsim.algorithms.work import Work
from fedsim.core.errors import InputError
from fedsim.core.registry import register
from fedsim.core.types import BatchSize


@register.algorithm("gradient_tracking")
@dataclass(frozen=True, kw_only=True)
class GradientTracking(GossipAlgorithm):
    """``x_i+ = sum_j w_ij (x_j - lr y_j);  y_i+ = sum_j w_ij y_j + g_i(x_i+) - g_i(x_i)``

    with y_i = g_i(x_i) at the start.

    Invariant: mean(y) = mean(g) in every round. A round evaluates g at the round's x, completes y with it, steps, and
    mixes both, which is the same recursion; two vectors are sent. Every node must compute in every round (a node that
    skips breaks the tracking).
    """

    needs: ClassVar[Needs] = Needs(
        compute="always",
        steps="own",
        linear_mixing="the nodes' y sum to the sum of their gradients only where a matrix mixes them",
    )
    batch_size: BatchSize = "full"

    def check(self, num_clients: int) -> None:
        super().check(num_clients)
        work, epochs = self.work()
        if epochs or work != Work.model_validate(1):
            raise InputError(
                "gradient tracking takes exactly one local step per round",
                key="local_epochs" if epochs else "local_steps",
            )
        for name in ("momentum", "weight_decay"):
            if getattr(self, name) > 0:
                raise InputError(f"gradient tracking has no {name}: set it to 0", key=name)

    def init(self, params: torch.Tensor) -> State:
        return {"x": params, "y": torch.zeros_like(params)}

    def init_client(self, params: torch.Tensor) -> State:
        return {"g": torch.zeros_like(params)}

    def broadcast(self, state: State) -> Message:
        return {"x": state["x"], "y": state["y"]}

    def start(self, received: Message, client: State) -> State:
        return {"x": received["x"], "y": received["y"], "g": client["g"]}

    def local_step(self, oracle: Oracle, local: State, received: Message, client: State) -> State:
        g = self.gradient(oracle, local["x"])
        y = local["y"] + g - local["g"]
        return {"x": torch.addcmul(local["x"], y, oracle.lr, value=-1.0), "y": y, "g": g}

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        return {"x": local["x"], "y": local["y"]}, {}, {"g": local["g"]}

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        return {"x": aggregate(messages["x"]), "y": aggregate(messages["y"])}
