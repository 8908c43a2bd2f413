"""BEER (Zhao, Li, Li, Richtarik, Chi, NeurIPS 2022, arXiv 2201.13320): gradient tracking with compressed messages.

Nodes keep copies of each other's models and of each other's trackers, both moved by compressed differences: two
compressed vectors cross a link in a round. With full gradients and a constant step the exact optimum is reached, where
CHOCO-SGD keeps a gap. C is the scenario's ``compression``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.algorithms.base import Aggregate, Effort, GossipAlgorithm, Message, Oracle, Report, Round, State
from fedsim.algorithms.choco import LINEAR, Consensus
from fedsim.algorithms.needs import Needs
from fedsim.algorithms.work import Work
from fedsim.core.errors import InputError
from fedsim.core.registry import register
from fedsim.core.types import BatchSize


@register.algorithm("beer")
@dataclass(frozen=True, kw_only=True)
class Beer(GossipAlgorithm):
    """``x+ = x + gamma (W h - h) - lr v;  h+ = h + C(x+ - h);  v+ = v + gamma (W k - k) + g(x+) - g(x);  k+ = k + C(v+ - k)``

    with h = k = 0 and v = g(x) at the start; mean(v) = mean(g) in every round.

    A round evaluates g at the round's x, completes v with it, sends the changes of h and k, and steps, which is the same
    recursion: round 1 sends nothing new. Every node computes in every round and every link fires.

    Parameters
    ----------
    gamma : the step of a node towards what it hears, above 0 and at most 1.
    """  # noqa: E501

    needs: ClassVar[Needs] = Needs(
        symmetric=True, compute="always", links="always", steps="own", compression="copies", linear_mixing=LINEAR
    )
    batch_size: BatchSize = "full"
    gamma: Consensus = 0.1

    def check(self, num_clients: int) -> None:
        super().check(num_clients)
        work, epochs = self.work()
        if epochs or work != Work.model_validate(1):
            key = "local_epochs" if epochs else "local_steps"
            raise InputError("BEER takes exactly one local step per round", key=key)
        for name in ("momentum", "weight_decay"):
            if getattr(self, name) > 0:
                raise InputError(f"BEER has no {name}: set it to 0", key=name)

    def init(self, params: Tensor) -> State:
        return {"x": params, "u": torch.zeros_like(params), "began": params.new_zeros((*params.shape[:-1], 1))}

    def broadcast(self, state: State) -> Message:
        return dict(state)

    def start(self, received: Message, client: State) -> State:
        return {"x": received["x"], "v": received["u"], "g": torch.zeros_like(received["x"])}

    def local_step(self, oracle: Oracle, local: State, received: Message, client: State) -> State:
        """``v = u + g(x)``, u what the last round left of v; the step itself is taken where neighbours are heard."""
        g = self.direction(oracle, local["x"], received, client)
        return {**local, "v": local["v"] + g, "g": g}

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        began = received["began"]
        return {"h": began * received["x"], "k": began * local["v"]}, {"v": local["v"], "g": local["g"]}, client

    def combine(self, state: State, messages: Message, round: Round, aggregate: Aggregate) -> State:
        """``x = x + gamma (W h - h) - lr v;  u = v + gamma (W k - k) - g``"""
        h, k, v = messages["h"], messages["k"], messages["v"]
        x = state["x"] + self.gamma * (aggregate(h) - h) - round.lr * v
        u = v + self.gamma * (aggregate(k) - k) - messages["g"]
        return {"x": x, "u": u, "began": torch.ones_like(state["began"])}
