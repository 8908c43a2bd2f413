"""An attacker on a graph for tests of rules, importable by actors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.core.job import RunFacts
from fedsim.messages.base import Arrived
from fedsim.messages.edge_attacks import EdgeAttack
from fedsim.messages.target import Target


@dataclass(frozen=True, kw_only=True)
class Apart(EdgeAttack):
    """Pulls two clusters at 0 and 1 apart: each hears of a point at distance 1 on the side away from the other."""

    def tell(self, target: Target, key: str, arrived: Arrived, run: RunFacts) -> Tensor:
        x = target.known[target.own]
        return torch.where(x < 0.5, -1.0, 2.0).to(x.dtype).expand_as(target.evil)
