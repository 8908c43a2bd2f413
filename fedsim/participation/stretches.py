"""Communication over virtual time: windows of seconds in which the Poisson clocks of links have rates of their own.

The counterpart of `windows` for nodes that know no rounds (see there for the source). A clock keeps its draws: its k-th
gap is the k-th draw of a unit exponential, used up by the clock's own rate as that changes. So ticks before the first
window are those without it, and how a run's time is cut into rounds changes none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Discriminator, Field, field_validator

from fedsim.core.arrays import Floats, Ints
from fedsim.core.clock import TICKS_PER_SECOND
from fedsim.core.errors import InputError
from fedsim.core.one_of import Chosen, OneOf
from fedsim.core.types import NonNegative
from fedsim.participation.windows import (
    ConstantLevel,
    CosineRamp,
    LinearRamp,
    Merge,
    Window,
    check_apart,
    decimal,
    merges_of,
    plain_level,
)

FAR = 2.0**62
"""No clock rings from that tick (after seven months) on, nor does a run last so long: sums stay 64-bit integers."""
_LONGEST = int(FAR) // TICKS_PER_SECOND
_HALVINGS = 60
"""Of a ramp, to find a tick on it: more than a float can tell apart."""


class ConstantRate(ConstantLevel):
    """The same all the time."""

    value: NonNegative


class LinearRate(LinearRamp):
    """From `first` to `last` in a straight line."""

    first: NonNegative
    last: NonNegative


class CosineRate(CosineRamp):
    """From `first` to `last` along half a cosine."""

    first: NonNegative
    last: NonNegative


_Rates = Annotated[
    ConstantRate | LinearRate | CosineRate,
    Discriminator("model"),
    OneOf(
        allowed="allowed: a rate, {linear: [first, last]} or {cosine: [first, last]}",
        plain=plain_level,
        plain_type=float | dict[str, list[float]],
        what="rate",
    ),
]


class Rate(Chosen[_Rates]):
    """Ticks per virtual second of every link over a window: ``2.0`` · ``{linear: [0, 1]}`` · ``{cosine: [1, 0]}``."""

    @property
    def ends(self) -> tuple[float, float]:
        """Those at the beginning and at the end of the window."""
        return self.root.at(0, 2), self.root.at(1, 2)


class Stretch(Window):
    """Virtual time in which links or models are treated in another way than in the rest of a run.

    Parameters
    ----------
    from, until : virtual seconds, or fractions of the run's time; a window has what comes after `from`, up to `until`.
    links : the rate of every link's clock meanwhile, in place of ``participation.links``.
    merge : whether all nodes take the mean of all models at the end of each round that ends meanwhile.
    """

    begins: Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, le=1)] = Field(validation_alias="from")
    links: Rate | None = None  # type: ignore[assignment]

    @field_validator("begins", "until")
    @classmethod
    def _bounded(cls, value: int | float) -> int | float:
        if value > _LONGEST:
            raise ValueError(f"found {value:g} virtual seconds, allowed: at most {_LONGEST:g}")
        return value

    def ticks(self, end: int) -> tuple[int, int]:
        """The ticks after which it begins and up to which it lasts, of a run of `end` ticks."""
        begins, until = (
            v * TICKS_PER_SECOND if isinstance(v, int) else math.floor(decimal(v) * end)
            for v in (self.begins, self.until)
        )
        return begins, until


class _Piece(NamedTuple):
    """After tick `begins` and up to tick `until` all links have this rate."""

    begins: int
    until: int
    rate: Rate | None
    """None: their own rates."""


@dataclass(frozen=True)
class Timetable:
    """The windows of a run of `rounds` rounds of `length` ticks each.

    Raises
    ------
    InputError
        A window is empty, has no end of a round although nodes are to merge there, or overlaps another; keys are those
        of the list (``0.until``).
    """

    windows: Sequence[Stretch]
    rounds: int
    length: int

    def __post_init__(self) -> None:
        end = self.rounds * self.length

        def empty(window: Window) -> str:
            return (
                f"found a window from {window.begins} until {window.until}, which has no time of the run's "
                f"{end / TICKS_PER_SECOND:g} virtual seconds; allowed: some (1 is a second, 1.0 the end)"
            )

        ticks = [w.ticks(end) for w in self.windows]
        spans = [(begins + 1, min(until, end)) for begins, until in ticks]
        check_apart(self.windows, spans, empty, lambda t: f"virtual second {t / TICKS_PER_SECOND:g}")
        for i, window in enumerate(self.windows):
            first, last = self._merged(window)
            if window.merge and last < first:
                seconds = self.length / TICKS_PER_SECOND
                message = (
                    f"found a merge, but no round of {seconds:g} seconds ends in the window; allowed: one that has"
                )
                raise InputError(message, key=f"{i}.merge")

    def merges(self, number: int) -> bool:
        """Whether nodes merge at the end of round `number`."""
        return any(w.merge and (s := self._merged(w))[0] <= number <= s[1] for w in self.windows)

    def merges_in(self, merge: Merge) -> int:
        """How often nodes merge in the run, by its windows or by `merge`, its end included."""
        return merges_of([self._merged(w) for w in self.windows if w.merge], merge, self.rounds)

    def spans(self) -> list[tuple[float, float]]:
        """From and until, in rounds, of the windows in which links have rates of their own."""
        end = self.rounds * self.length
        ticks = [w.ticks(end) for w in self.windows if w.links is not None]
        return [(begins / self.length, min(until, end) / self.length) for begins, until in ticks]

    def most(self) -> float:
        """The highest rate of any window."""
        return max((max(w.links.ends) for w in self.windows if w.links is not None), default=0.0)

    def _merged(self, window: Stretch) -> tuple[int, int]:
        """The first and the last round that ends in a window; the last is below the first where none does."""
        begins, until = window.ticks(self.rounds * self.length)
        return begins // self.length + 1, min(until // self.length, self.rounds)

    # --- clocks -------------------------------------------------------------------------------------------------------

    @cached_property
    def _pieces(self) -> list[_Piece]:
        """All time, in its order."""
        ends = [(*w.ticks(self.rounds * self.length), w.links) for w in self.windows if w.links is not None]
        pieces, now = [], 0
        for begins, until, rate in sorted(ends, key=lambda end: end[0]):
            if now < begins:
                pieces.append(_Piece(now, begins, None))
            pieces.append(_Piece(begins, until, rate))
            now = until
        return [*pieces, _Piece(now, np.iinfo(np.int64).max, None)]

    def after(self, last: Ints, gap: Floats, mean: Floats) -> Ints:
        """The next tick ``[m]`` of links whose clocks ticked at `last`, after unit exponential gaps of these lengths.

        `mean` ``[m]`` are the ticks between two of them at their own rates.
        """
        at, left, open_ = last.copy(), gap.copy(), np.arange(len(last))
        begins = np.array([piece.begins for piece in self._pieces])
        while len(open_):
            where = np.searchsorted(begins, at[open_], side="right") - 1
            later = []
            for k in np.unique(where).tolist():
                rows, piece = open_[where == k], self._pieces[k]
                if piece.rate is None or piece.rate.ends[0] == piece.rate.ends[1]:
                    at[rows], left[rows] = _constant(piece, at[rows], left[rows], mean[rows])
                else:
                    at[rows], left[rows] = _ramp(piece, at[rows], left[rows])
                later.append(rows[left[rows] >= 0])
            open_ = np.concatenate(later)
        return at


def until_tick(last: Ints, gap: Floats, mean: Floats) -> Ints:
    """The tick ``[m]`` that comes unit exponential gaps after `last` where there are `mean` ticks between two."""
    with np.errstate(invalid="ignore", over="ignore"):
        far = np.nan_to_num(gap * mean, nan=FAR, posinf=FAR)
    ticks: Ints = last + np.clip(far, 1.0, FAR).astype(np.int64)
    return ticks


def _constant(piece: _Piece, at: Ints, left: Floats, mean: Floats) -> tuple[Ints, Floats]:
    """Ticks in a piece, and what is left of a gap that goes beyond its end (-1: nothing, for the clock ticks)."""
    if piece.rate is not None:
        rate = piece.rate.ends[0]
        mean = np.full(len(at), TICKS_PER_SECOND / rate if rate > 0 else np.inf)
    found = until_tick(at, left, mean)
    inside = found <= piece.until
    rest = np.maximum(left - (piece.until - at) / mean, 0.0)
    return np.where(inside, found, piece.until), np.where(inside, -1.0, rest)


def _ramp(piece: _Piece, at: Ints, left: Floats) -> tuple[Ints, Floats]:
    """As `_constant`, where the rate changes: the tick at which its integral is that of the gap, by halving."""
    assert piece.rate is not None
    (first, last), length = piece.rate.ends, piece.until - piece.begins
    area = piece.rate.root.area  # type: ignore[union-attr]

    def used(progress: Floats) -> Floats:
        return np.asarray(length / TICKS_PER_SECOND * (first * progress + (last - first) * area(progress)))

    now = (at - piece.begins) / length
    wanted, whole = used(now) + left, float(used(np.ones(1))[0])
    low, high = now, np.ones(len(at))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        early = used(middle) < wanted
        low, high = np.where(early, middle, low), np.where(early, high, middle)
    found = np.clip(piece.begins + (high * length).astype(np.int64), at + 1, piece.until)
    inside = wanted <= whole
    return np.where(inside, found, piece.until), np.where(inside, -1.0, wanted - whole)
