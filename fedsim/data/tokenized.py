"""What a data set's integers are, where it does not say so itself."""

from __future__ import annotations

import torch

from fedsim.core.tokens import IGNORED, Tokens
from fedsim.data.sets import Dataset


def tokens_of(data: Dataset) -> Tokens:
    """What the data say of their integers, or what these show: the largest id, and the shape of the targets."""
    if data.tokens is not None:
        return data.tokens
    if data.num_classes is None:
        return Tokens(_vocabulary(data))
    ragged = any(bool((y == IGNORED).any()) for y in (data.train_y, data.test_y))
    return Tokens(_vocabulary(data), False, data.train_y.shape[1] if data.train_y.dim() > 1 else None, ragged)


def _vocabulary(data: Dataset) -> int | None:
    if data.train_x.is_floating_point():
        return None
    largest = [int(torch.max(x)) for x in (data.train_x, data.test_x) if x.numel()]
    return max([*largest, 0]) + 1
