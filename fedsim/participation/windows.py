"""Communication over time on a graph: windows of rounds with links of their own, and rounds in which all nodes merge.

Source: Zhu et al., "On the Surprising Effectiveness of a Single Global Merging in Decentralized Learning" (arXiv
2507.06542). Windows are half-open and exact: their ends are round numbers or fractions of a run's rounds, taken as the
decimals that were written. The authors compare floats instead, and every schedule of theirs but the fixed one ends in a
merge that it does not name.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Discriminator, Field, model_serializer, model_validator

from fedsim.core.arrays import Floats
from fedsim.core.errors import InputError
from fedsim.core.one_of import Chosen, Form, OneOf
from fedsim.core.types import Count, Probability

Edge = Annotated[int, Field(ge=1)] | Annotated[float, Field(ge=0, le=1)]
"""Where a window begins or ends: a round number (1, 2, ...), or a fraction of the run's rounds (0.9)."""


class _Ramp(Form):
    older = ("first", "last")
    first: Probability
    last: Probability

    @abstractmethod
    def share(self, progress: float) -> float:
        """How much of the way from `first` to `last` is done at `progress` (0 to 1)."""

    @abstractmethod
    def area(self, progress: Floats) -> Floats:
        """The integral of `share` from 0 to `progress`."""

    def at(self, place: int, places: int) -> float:
        """The value in round `place` (0, 1, ...) of `places`."""
        share = self.share(place / (places - 1)) if places > 1 else 0.0
        return self.first + (self.last - self.first) * share


class ConstantLevel(Form):
    """The same in all rounds."""

    model: Literal["fixed"]
    value: Probability

    def at(self, place: int, places: int) -> float:
        return self.value

    def written(self) -> Any:
        return self.value


class LinearRamp(_Ramp):
    """From `first` in the first round to `last` in the last one, in even steps."""

    model: Literal["linear"]

    def share(self, progress: float) -> float:
        return progress

    def area(self, progress: Floats) -> Floats:
        return progress * progress / 2


class CosineRamp(_Ramp):
    """From `first` in the first round to `last` in the last one, along half a cosine."""

    model: Literal["cosine"]

    def share(self, progress: float) -> float:
        return (1.0 - math.cos(math.pi * progress)) / 2.0

    def area(self, progress: Floats) -> Floats:
        return np.asarray(progress - np.sin(np.pi * progress) / np.pi) / 2


def plain_level(value: Any) -> dict[str, Any] | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return {"model": "fixed", "value": value}
    name, ends = _only(value)
    if name in ("linear", "cosine") and isinstance(ends, list) and len(ends) == 2:
        return {"model": name, "first": ends[0], "last": ends[1]}
    return None


def _only(value: Any) -> tuple[Any, Any]:
    """The key and the value of a mapping of one entry."""
    return next(iter(value.items())) if isinstance(value, Mapping) and len(value) == 1 else (None, None)


_Levels = Annotated[
    ConstantLevel | LinearRamp | CosineRamp,
    Discriminator("model"),
    OneOf(
        allowed="allowed: a probability, {linear: [first, last]} or {cosine: [first, last]}",
        plain=plain_level,
        plain_type=float | dict[Literal["linear", "cosine"], list[float]],
        what="level",
    ),
]


class Level(Chosen[_Levels]):
    """A probability that may change over a window: ``0.5`` · ``{linear: [0, 1]}`` · ``{cosine: [1, 0]}``."""

    def constant(self, value: float) -> bool:
        """Whether it is `value` all the time."""
        return self.root.at(0, 2) == self.root.at(1, 2) == value


class Window(BaseModel):
    """Rounds in which links or models are treated in another way than in the rest of a run.

    Parameters
    ----------
    from, until : the first round, and the first one after it; fractions a and b of R rounds select those with
        ``a R < k <= b R``.
    links : the probability of every link in these rounds, in place of ``participation.links``.
    merge : whether all nodes take the mean of all models at the end of each of these rounds.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    begins: Edge = Field(validation_alias="from")
    until: Edge
    links: Level | None = None
    merge: bool = False

    @model_validator(mode="after")
    def _does_something(self) -> Window:
        if self.links is None and not self.merge:
            raise ValueError("a window without links and without merge changes nothing, allowed: one of them or both")
        return self

    @model_serializer
    def _written(self) -> dict[str, Any]:
        links = None if self.links is None else self.links.root.written()
        found = {"from": self.begins, "until": self.until, "links": links, "merge": self.merge or None}
        return {k: v for k, v in found.items() if v is not None}

    @property
    def moves(self) -> bool:
        """Whether its rounds depend on how many the run has."""
        return isinstance(self.begins, float) or isinstance(self.until, float)

    def span(self, rounds: int) -> tuple[int, int]:
        """Its first and its last round of a run of `rounds`; the last is below the first where there is none."""
        first, last = self.written(rounds)
        return first, min(last, rounds)

    def written(self, rounds: int) -> tuple[int, int]:
        """`span` where the run does not end before: ramps go over all of it, so that longer runs are the same."""
        first = self.begins if isinstance(self.begins, int) else math.floor(decimal(self.begins) * rounds) + 1
        last = self.until - 1 if isinstance(self.until, int) else math.floor(decimal(self.until) * rounds)
        return first, last


def decimal(value: float) -> Fraction:
    """The decimal number that somebody wrote."""
    return Fraction(repr(value))


class _Merges(Form):
    @abstractmethod
    def due(self, number: int) -> bool:
        """Whether nodes merge at the end of round `number`."""


class NeverMerge(_Merges):
    """Nodes never merge."""

    model: Literal["never"]

    def due(self, number: int) -> bool:
        return False

    def written(self) -> Any:
        return self.model


class FinalMerge(NeverMerge):
    """What is reported and saved at the end is merged; the run itself, and a run that continues it, are not."""

    model: Literal["final"]  # type: ignore[assignment]


class PeriodicMerge(_Merges):
    """Nodes merge at the end of every `every`-th round."""

    older = ("every",)
    older_name = "every"
    model: Literal["periodic"]
    every: Count

    def due(self, number: int) -> bool:
        return number % self.every == 0


class ListedMerge(_Merges):
    """Nodes merge at the end of these rounds."""

    older = ("rounds",)
    older_name = "rounds"
    model: Literal["listed"]
    rounds: Annotated[list[Count], Field(min_length=1)]

    def due(self, number: int) -> bool:
        return number in self.rounds


def _merge(value: Any) -> dict[str, Any] | None:
    if value in ("never", "final"):
        return {"model": value}
    name, given = _only(value)
    return (
        {"model": {"every": "periodic", "rounds": "listed"}[name], name: given} if name in ("every", "rounds") else None
    )


class Merge(
    Chosen[
        Annotated[
            NeverMerge | FinalMerge | PeriodicMerge | ListedMerge,
            Discriminator("model"),
            OneOf(
                allowed="allowed: never, final, {every: k} or {rounds: [k, ...]}",
                plain=_merge,
                plain_type=Literal["never", "final"] | dict[Literal["every", "rounds"], int | list[int]],
                what="merge",
            ),
        ]
    ]
):
    """When all nodes take the mean of all models: ``never`` · ``final`` · ``{every: 10}`` · ``{rounds: [50, 100]}``."""

    def due(self, number: int) -> bool:
        """Whether it is at the end of round `number`."""
        return self.root.due(number)

    def count(self, first: int, last: int) -> int:
        """How often it is in rounds `first` to `last`."""
        if isinstance(self.root, PeriodicMerge):
            return max(last // self.root.every - (first - 1) // self.root.every, 0)
        return sum(first <= k <= last for k in set(self.root.rounds)) if isinstance(self.root, ListedMerge) else 0

    def check(self, rounds: int) -> None:
        """Raise InputError where nodes would merge, but not in any of a run's `rounds` rounds."""
        if self.ever and not self.final and not self.count(1, rounds):
            message = f"found {self.model_dump()}, which is in none of the run's {rounds} rounds; allowed: one of them"
            raise InputError(message, key="participation.merge")

    @property
    def ever(self) -> bool:
        """Whether there is a merge at all."""
        return self.final or not isinstance(self.root, NeverMerge)

    @property
    def final(self) -> bool:
        """Whether it is after the last round."""
        return isinstance(self.root, FinalMerge)


NEVER = Merge.model_validate("never")


@dataclass(frozen=True)
class Schedule:
    """The windows of a run of `rounds` rounds.

    Raises
    ------
    InputError
        A window selects no round, or two select the same one; keys are those of the list (``0.until``).
    """

    windows: Sequence[Window]
    rounds: int

    def __post_init__(self) -> None:
        def empty(window: Window) -> str:
            return (
                f"found a window from {window.begins} until {window.until}, which selects none of the run's "
                f"{self.rounds} rounds; allowed: at least one (until is the first round after it; 1 is a round, 1.0 "
                "the end)"
            )

        check_apart(self.windows, [w.span(self.rounds) for w in self.windows], empty, lambda k: f"round {k}")

    def links(self, number: int) -> float | None:
        """The probability of all links in round `number` (None: that of the mode)."""
        for window in self.windows:
            first, last = window.written(self.rounds)
            if first <= number <= last and window.links is not None:
                return window.links.root.at(number - first, last - first + 1)
        return None

    def merges(self, number: int) -> bool:
        """Whether nodes merge at the end of round `number`."""
        return any(w.merge and (s := w.span(self.rounds))[0] <= number <= s[1] for w in self.windows)

    def merges_in(self, merge: Merge) -> int:
        """How often nodes merge in the run, by its windows or by `merge`, its end included."""
        return merges_of([w.span(self.rounds) for w in self.windows if w.merge], merge, self.rounds)


def check_apart(
    windows: Sequence[Window],
    spans: Sequence[tuple[int, int]],
    empty: Callable[[Window], str],
    shared: Callable[[int], str],
) -> None:
    """Raise InputError where the first and last moments of a window are none, or where two windows share one.

    `empty` says the former, and `shared` what they share.
    """
    for i, (window, (first, last)) in enumerate(zip(windows, spans, strict=True)):
        if last < first:
            raise InputError(empty(window), key=f"{i}.until")
    ordered = sorted((first, last, i) for i, (first, last) in enumerate(spans))
    for (_, last, i), (first, _, j) in pairwise(ordered):
        if first <= last:
            message = f"found windows {i} and {j} that both have {shared(first)}, allowed: windows that do not overlap"
            raise InputError(message, key=f"{j}.from")


def merges_of(spans: Sequence[tuple[int, int]], merge: Merge, rounds: int) -> int:
    """How often nodes merge in `rounds` rounds: in all rounds of `spans`, and by `merge`, the end included."""
    inside = sum(b - a + 1 - merge.count(a, b) for a, b in spans)
    return inside + merge.count(1, rounds) + merge.final
