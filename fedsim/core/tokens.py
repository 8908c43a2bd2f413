"""Token ids: integers that stand for characters, bytes or words, from the reader to the embedding.

They are stored in the smallest integer type that holds them, and are int64 where a model sees them. Targets that are
tokens are int64, `IGNORED` where nothing is to be predicted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from fedsim.core.arrays import Array

IGNORED = -100
"""A target that does not count, as in ``torch.nn.functional.cross_entropy``."""

_STORED = (np.uint8, np.int16, np.int32)


@dataclass(frozen=True)
class Tokens:
    """What a data set's integers are.

    Attributes
    ----------
    vocabulary
        Inputs are 0 to that number - 1; None: inputs are no tokens.
    language
        Whether targets are tokens, so that a perplexity says something.
    positions
        Targets are ``[N, positions]``; None: one per row, ``[N]``.
    ragged
        Whether some targets do not count, so that rows differ in how many do.
    """

    vocabulary: int | None = None
    language: bool = False
    positions: int | None = None
    ragged: bool = False

    @property
    def single(self) -> bool:
        """Whether every row has one target, and it counts."""
        return self.positions is None and not self.ragged


def compact(ids: Array) -> Array:
    """The ids in the smallest of uint8, int16, int32 and int64 that holds them."""
    if not ids.size:
        return ids
    low, high = int(ids.min()), int(ids.max())
    for kind in _STORED:
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return ids.astype(kind)
    return ids.astype(np.int64)


def widened(x: Tensor) -> Tensor:
    """What a model sees of inputs as they are stored: integers as int64, numbers as they are."""
    return x if x.is_floating_point() else x.long()


def outside(x: Tensor, vocabulary: int) -> tuple[int, int] | None:
    """The first row of ``[N, ...]`` with an id outside of 0 to `vocabulary` - 1, and that id; None: there is none."""
    flat = x.flatten(1)
    if not len(flat) or not flat.shape[1]:
        return None
    wrong = (flat.amin(1).long() < 0) | (flat.amax(1).long() >= vocabulary)
    if not bool(wrong.any()):
        return None
    row = int(wrong.int().argmax())
    ids = flat[row].long()
    return row, int(ids[(ids < 0) | (ids >= vocabulary)][0])


def record(tokens: Tokens | None) -> dict[str, Any] | None:
    """JSON, from which ``Tokens(**...)`` makes it again."""
    return None if tokens is None else dict(vars(tokens))
