"""A model that says with how many threads of PyTorch it is computed."""

from __future__ import annotations

import torch
from torch import nn


class Counting(nn.Module):
    """Outputs are scaled by the number of threads within operators."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(x.flatten(1))
        return torch.get_num_threads() * out
