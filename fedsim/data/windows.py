"""From the ids of texts to rows ``[N, context]`` with what is to be predicted of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fedsim.core.arrays import Array, Ints
from fedsim.core.limits import check_room
from fedsim.core.tokens import IGNORED
from fedsim.data.tokenizers import Encoded

Predict = Literal["label", "next", "every"]
_CHUNK = 2**22  # ids that are gathered at a time


@dataclass(frozen=True)
class Windows:
    """Rows of texts.

    Attributes
    ----------
    x
        ``[N, context]`` in the type of `padding`'s vocabulary.
    y
        The next token, ``[N]`` or at every position ``[N, context]``, `IGNORED` where there is none; None for labels.
    text
        ``[N]`` which text a row is of.
    short
        The first row that had to be padded, or None.
    """

    x: Array
    y: Array | None
    text: Ints
    short: int | None


def windows(texts: Encoded, predict: Predict, context: int, stride: int, padding: int | None) -> Windows:
    """Cut texts.

    ``every``: rows of `context` tokens that begin `stride` apart, each with the tokens one further; what is missing at
    the end of a text is padded. ``next``: the `context` tokens before one token, for tokens that are `stride` apart.
    ``label``: the first `context` tokens. The last two are padded in front, so that the last position is a token's.
    Texts of one token predict nothing.
    """
    lengths, begins = texts.lengths, texts.offsets[:-1]
    if predict == "label":
        which = np.arange(len(lengths))
        ends = np.minimum(lengths, context)
        starts = ends - context
    elif predict == "next":
        counts = np.where(lengths > 1, 1 + np.maximum(lengths - 1 - context, 0) // stride, 0)
        which = np.repeat(np.arange(len(lengths)), counts)
        ends = np.minimum(lengths[which] - 1, context) + stride * _within(counts)
        starts = ends - context
    else:
        counts = np.where(lengths > 1, -(-(lengths - 1) // stride), 0)
        which = np.repeat(np.arange(len(lengths)), counts)
        starts = stride * _within(counts)
        ends = starts + context
    needed = len(which) * context * (texts.ids.itemsize + 8 * (predict == "every")) + 17 * max(context, _CHUNK)
    check_room(needed, f"{len(which):,} rows of {context:,} tokens", "context")
    low, high = begins[which], texts.offsets[1:][which]
    x, inside = _gathered(texts.ids, begins[which] + starts, low, high, context, padding or 0, texts.ids.dtype)
    y: Array | None = None
    if predict == "next":
        y = texts.ids[begins[which] + ends].astype(np.int64)
    elif predict == "every":
        y, _ = _gathered(texts.ids, begins[which] + starts + 1, low, high, context, IGNORED, np.dtype(np.int64))
    short = np.flatnonzero(~inside)
    return Windows(x, y, which, int(short[0]) if len(short) else None)


def _within(counts: Ints) -> Ints:
    """0, 1, ... for each of the rows of a text."""
    return np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)


def _gathered(
    ids: Array, starts: Ints, low: Ints, high: Ints, context: int, fill: int, dtype: np.dtype[Any]
) -> tuple[Array, Array]:
    """``ids[starts:starts + context]`` of each row, `fill` outside of ``low`` to ``high``; and which are all inside."""
    rows: Array = np.full((len(starts), context), fill, dtype=dtype)
    inside = (starts >= low) & (starts + context <= high)
    step, places = max(1, _CHUNK // context), np.arange(context)
    for first in range(0, len(starts), step):
        part = slice(first, first + step)
        at = starts[part, None] + places
        valid = (at >= low[part, None]) & (at < high[part, None])
        rows[part][valid] = ids[at[valid]]
    return rows, inside
