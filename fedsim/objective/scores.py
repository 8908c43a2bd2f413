"""What an evaluation adds up: losses and right guesses, of one target per sample or of every token that counts."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fedsim.core.tokens import IGNORED


class Sums(NamedTuple):
    """Of some samples: the sum of their targets' losses, how many guesses are right, and how many targets count."""

    loss: Tensor
    right: Tensor
    targets: int


def counted(targets: Tensor) -> Tensor:
    """How many targets of each row ``[N]`` or ``[N, positions]`` count, ``[N]``."""
    kept = targets != IGNORED
    return kept.long() if kept.dim() == 1 else kept.sum(-1)


def summed(losses: Tensor, guesses: Tensor | None, targets: Tensor, single: bool) -> Sums:
    """Of losses ``[N]``, each a mean over its row's targets, and guesses of the targets' shape."""
    right = torch.zeros_like(targets) if guesses is None else guesses == targets
    if single:
        return Sums(losses.sum(dtype=torch.float64), right.sum(), len(targets))
    each = counted(targets)
    return Sums((losses.double() * each).sum(), right.sum(), int(each.sum()))
