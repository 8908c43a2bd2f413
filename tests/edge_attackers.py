"""Attackers on a graph for tests of rules, importable by actors: they send what they make of what a receiver hears."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.core.arrays import Ints
from fedsim.core.job import RunFacts
from fedsim.messages.attackers import Attackers
from fedsim.messages.base import Arrived
from fedsim.messages.heard import Heard


@dataclass(frozen=True, kw_only=True)
class EdgeAttack(Attackers):
    """Node after node: what the attackers near it tell it, from its own message and those of its honest neighbours."""

    kind: Literal["alie", "mean_flip", "dissensus", "nan"]
    strength: float = 1.0

    def edges(self, heard: Heard, arrived: Arrived, run: RunFacts) -> Heard:
        entries, messages = [], []
        for row, own in enumerate(heard.own.tolist()):
            mine = np.flatnonzero(heard.rows == row)
            evil = mine[np.isin(heard.senders[mine], self.attacking(run))]
            good = np.setdiff1d(mine, evil)
            if len(evil):
                told = self.told(heard, own, good, heard.matrix.data[evil].sum())
                entries += evil.tolist()
                messages += [told] * len(evil)
        return heard.told(np.array(entries), torch.stack(messages)) if entries else heard

    def told(self, heard: Heard, own: int, good: Ints, evil_weight: float) -> Tensor:
        x, columns = heard.values[own], heard.matrix.indices[good]
        known = heard.values[torch.as_tensor(columns)]  # the receiver's own among them
        if self.kind == "alie":
            return known.mean(0) - self.strength * known.std(0)
        if self.kind == "mean_flip":
            return -self.strength * known.mean(0)
        if self.kind == "nan":
            return torch.full_like(x, torch.nan)
        pull = torch.as_tensor(heard.matrix.data[good], dtype=x.dtype) @ (known - x)
        return x - self.strength * pull / evil_weight


@dataclass(frozen=True, kw_only=True)
class Apart(EdgeAttack):
    """Pulls two clusters at 0 and 1 apart: each hears of a point at distance 1 on the side away from the other."""

    kind: Literal["alie", "mean_flip", "dissensus", "nan"] = "nan"

    def told(self, heard: Heard, own: int, good: Ints, evil_weight: float) -> Tensor:
        return torch.where(heard.values[own] < 0.5, -1.0, 2.0).to(heard.values.dtype)
