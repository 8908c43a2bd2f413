"""Robust rules of a server: what is combined stays near the honest messages whatever some clients send.

`RobustRule.of` is the rule alone: rows ``[m, d]`` to ``[d]``, without weights, normalised (equal rows v give v). What
a run asks for goes through `bind_in`, which keeps the mass of the weights, looks at whole messages, leaves rows out
that are not finite (each of them counts as one of the `f` attackers) and applies what `pre` names before the rule.

A rule of messages of several vectors chooses once: `decide` sees all vectors side by side and says how rows of any
tensor are combined. Numbers of one per client take no part in distances.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsim.core.errors import InputError, RunError
from fedsim.core.job import Contribution, RunFacts
from fedsim.core.registry import register
from fedsim.core.returned import formed
from fedsim.core.types import Aggregate, Message, State
from fedsim.messages.aggregators import Aggregator
from fedsim.messages.base import Arrived
from fedsim.messages.distances import RowMap, Table, by_columns, finite, table
from fedsim.messages.ordering import ordered, ranked
from fedsim.messages.pre import PreAggregation, PreAggregations
from fedsim.messages.vectors import is_vector, vectors

Attackers = Annotated[int, Field(ge=0)]
"""How many of a round's messages a rule is told to tolerate; it is not how many attackers there are."""

Combine = Callable[[Tensor, Tensor | None, bool], Tensor]
"""Rows of some columns ``[m, w]`` and weights ``[m]`` to ``[w]``: sum(w) R(rows), without weights R(rows).

It is told whether they are columns of a vector; otherwise they are numbers, one per client.
"""


@dataclass(frozen=True)
class Turn:
    """The round that a rule combines, and whose rows are left of it (positions in `arrived.clients`)."""

    arrived: Arrived
    run: RunFacts
    left: Tensor


@dataclass(frozen=True, kw_only=True)
class RobustRule(Aggregator):
    """Base of robust rules; `pre` names what is done to the rows before the rule.

    Parameters
    ----------
    pre : one of `nnm`, `bucketing`, `clip` and `arc`, or a list of them, applied in that order.
    """

    pairs: ClassVar[int] = 0
    """How often it compares all pairs of messages in a round."""
    pre: PreAggregations | None = None

    # --- what a rule says ---------------------------------------------------------------------------------------------

    @abstractmethod
    def decide(self, rows: Table, f: int, turn: Turn) -> Combine:
        """How rows are combined, from whole messages, `f` of which may be anything; `rows` are what `pre` made."""

    @property
    def least(self) -> tuple[int, str]:
        """The fewest rows it is defined for, and the formula for that number."""
        f = self.told
        return (1, "1") if f is None else (2 * f + 1, "2f + 1")

    @property
    def weighs(self) -> bool:
        """Whether weights count for more than their sum."""
        return False

    @property
    def on_graph(self) -> str | None:
        for part in self.pre or ():
            if part.draws:
                return f"{type(part).__name__.lower()} draws anew in every round, which is one of a server"
        return None

    @property
    def told(self) -> int | None:
        """The number of attackers that it is told to tolerate, where a key says it."""
        f: int | None = getattr(self, "f", None)
        return f

    def faults(self, m: int) -> int:
        """How many of m messages it takes to be attackers'."""
        return 0 if self.told is None else self.told

    def withstands(self, m: int) -> int:
        """How many attackers among m rows leave the rule's result near the honest ones."""
        return (m - 1) // 2 if self.told is None else min(self.told, (m - 1) // 2)

    def tolerates(self, m: int) -> int:
        rows, most = m, m
        for part in self.pre or ():
            most, rows = min(most, part.withstands(rows, self.told)), part.rows(rows)
        return min(most, self.withstands(rows))

    # --- what is asked of it ------------------------------------------------------------------------------------------

    def __post_init__(self) -> None:
        for part in self.pre or ():
            part.check(self.told)

    def needs(self, m: int) -> str | None:
        rows = m
        for part in self.pre or ():
            why = part.needs(rows, self.told)
            if why is not None:
                return why
            rows = part.rows(rows)
        least, formula = self.least
        if rows >= least:
            return None
        f = "" if self.told is None else f" with f = {self.told}"
        what, of = ("messages", "") if rows == m else ("rows", f" of {m} messages")
        return f"{type(self).__name__}{f} needs at least {least} {what} ({formula}), found {rows}{of}"

    def of(self, values: Tensor) -> Tensor:
        """The rule alone, ``[m, d] -> [d]``: without weights and normalised.

        Raises
        ------
        RunError
            There are too few rows, see `needs`.
        """
        return self.combined([values], *alone(len(values)))(values, None, True)

    def bind(self, messages: Message, weights: Tensor, state: State) -> tuple[Aggregate, State]:
        return self.bind_in(messages, weights, state, *alone(len(weights)))

    def bind_in(
        self, messages: Message, weights: Tensor, state: State, arrived: Arrived, run: RunFacts
    ) -> tuple[Aggregate, State]:
        names = compared(messages, run)
        combine = self.combined([messages[k][:] for k in names], arrived, run)

        def aggregate(values: Tensor, given: Tensor | None = None) -> Tensor:
            return combine(values[:], weights if given is None else given, is_vector(values, messages, names))

        return aggregate, state

    def combined(self, wide: Sequence[Tensor], arrived: Arrived, run: RunFacts) -> Combine:
        """The rule with what comes before it, chosen by messages whose vectors are `wide`; for tensors of all rows."""
        ready = self.ready(wide, arrived, run)
        if ready is None:
            return _nothing
        rule = self.decide(ready.rows, ready.f, ready.turn)

        def combine(values: Tensor, weights: Tensor | None, vector: bool) -> Tensor:
            values, weights = ready.kept(values, weights)
            return by_columns(lambda part: rule(ready.changed(part, vector), weights, vector), values)

        return combine

    def ready(self, wide: Sequence[Tensor], arrived: Arrived, run: RunFacts) -> Ready | None:
        """What the rule works on; None where nobody's message is finite."""
        m = len(wide[0])
        why = self.needs(m)
        if why is not None:
            raise RunError(f"aggregator: {why}")
        good = finite(wide, squared=self.pairs > 0 or any(part.pairs for part in self.pre or ()))
        left = torch.nonzero(good).squeeze(1)
        lost = m - len(left)
        if lost == m:
            return None
        rows = table(wide if not lost else [v[left] for v in wide])
        f, maps = max(self.faults(m) - lost, 0), list[RowMap]()
        for part in self.pre or ():
            change = _looked_at(part, part.rows(len(rows)), part.change(rows, part.faults(f, lost), arrived, run))
            rows, maps = rows.mapped(change), [*maps, change]
        return Ready(rows, f, Turn(arrived, run, left), lost > 0, tuple(maps))


def _looked_at(part: PreAggregation, m: int, change: RowMap) -> RowMap:
    """The `change` of a part that makes m rows, whose results are looked at."""
    return lambda values, vector: formed(change(values, vector), (m, values.shape[-1]), values.dtype, part, "change")


@dataclass(frozen=True)
class Ready:
    """What is left for a rule: the table that `pre` made of finite rows, and how other tensors become such rows."""

    rows: Table
    f: int
    turn: Turn
    fewer: bool
    maps: tuple[RowMap, ...]

    def kept(self, values: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Rows of finite messages with weights of the same sum, those of rows that `pre` makes being alike."""
        left = self.turn.left
        if self.fewer:
            values = values[left]
        if weights is not None and (self.fewer or self.maps):
            alike = weights.sum().expand(len(self.rows)) / len(self.rows)
            rest = weights[left].sum()
            weights = alike if self.maps or rest == 0 else weights[left] * (weights.sum() / rest)
        return values, weights

    def changed(self, part: Tensor, vector: bool) -> Tensor:
        """The rows that `pre` makes."""
        for change in self.maps:
            part = change(part, vector)
        return part


def compared(messages: Message, run: RunFacts) -> list[str]:
    """The names of what messages are compared by: their vectors, where there are any; not numbers, one per client."""
    return vectors(messages, run.numbers) or list(messages)


def _nothing(values: Tensor, weights: Tensor | None, vector: bool) -> Tensor:  # noqa: ARG001
    """What comes of messages none of which is finite; the run ends with a sentence."""
    return values.new_full(values.shape[1:], torch.nan)


def massed(weights: Tensor | None, result: Tensor) -> Tensor:
    """``sum(w) R``; without weights R."""
    return result if weights is None else weights.sum() * result


def alone(m: int) -> tuple[Contribution, RunFacts]:
    """The round of m clients where nobody says which it is."""
    one = np.ones(m, dtype=np.int64)
    return Contribution(1, np.arange(m), one, one), RunFacts(0, m)


# --- coordinate by coordinate -----------------------------------------------------------------------------------------


@register.aggregator("median")
@dataclass(frozen=True, kw_only=True)
class Median(RobustRule):
    """Coordinate-wise median, for even m the mean of the middle two (Yin et al., arXiv 1803.01498).

    It does not weigh clients against each other; the sum of the weights scales it, as it scales the mean.
    """

    def decide(self, rows: Table, f: int, turn: Turn) -> Combine:
        return lambda part, weights, _: massed(weights, median(part))


@register.aggregator("trimmed_mean")
@dataclass(frozen=True)
class TrimmedMean(RobustRule):
    """Coordinate-wise trimmed mean (Yin et al., arXiv 1803.01498).

    Per coordinate the `f` (or floor(trim * m)) largest and smallest values are dropped and the weights of the others
    scaled to the sum of all; with nothing to drop it is the weighted mean. With neither key `trim` is 0.1.
    """

    trim: Annotated[float, Field(ge=0, lt=0.5)] | None = None
    f: Attackers | None = None

    def __post_init__(self) -> None:
        if self.trim is not None and self.f is not None:
            raise InputError("found both 'f' and 'trim', allowed: one of the two", key="trim")
        if self.trim is None and self.f is None:
            object.__setattr__(self, "trim", 0.1)
        super().__post_init__()

    @property
    def weighs(self) -> bool:
        return self.pre is None

    @property
    def is_linear(self) -> bool:
        return self.pre is None and (self.trim == 0 or self.f == 0)

    def bind_in(
        self, messages: Message, weights: Tensor, state: State, arrived: Arrived, run: RunFacts
    ) -> tuple[Aggregate, State]:
        if self.is_linear:  # sums of parts may stand for rows
            return (lambda values, given=None: (weights if given is None else given) @ values), state
        return super().bind_in(messages, weights, state, arrived, run)

    def faults(self, m: int) -> int:
        return self.f if self.f is not None else int((self.trim or 0.0) * m + 1e-9)

    def withstands(self, m: int) -> int:
        return min(self.faults(m), (m - 1) // 2)

    def decide(self, rows: Table, f: int, turn: Turn) -> Combine:
        def combine(part: Tensor, weights: Tensor | None, vector: bool) -> Tensor:  # noqa: ARG001
            if f == 0:
                return part.mean(0) if weights is None else weights @ part
            m = len(part)
            if weights is None:
                return ordered(part)[f : m - f].mean(0)
            middle = ranked(part)[f : m - f]
            w = weights[middle]
            return weights.sum() * (w * part.gather(0, middle)).sum(0) / w.sum(0)

        return combine


@register.aggregator("meamed")
@dataclass(frozen=True, kw_only=True)
class MeaMed(RobustRule):
    """Mean around the median: per coordinate the mean of the m - f values nearest to it (Xie et al., arXiv
    1802.10116)."""

    f: Attackers

    def decide(self, rows: Table, f: int, turn: Turn) -> Combine:
        return lambda part, weights, _: massed(weights, mean_around_median(part, f))


def median(values: Tensor) -> Tensor:
    """Coordinate-wise, for an even number of rows the mean of the middle two: ``[m, w] -> [w]``."""
    rising, m = ordered(values), len(values)
    return (rising[(m - 1) // 2] + rising[m // 2]) / 2


def mean_around_median(values: Tensor, drop: int) -> Tensor:
    """Per coordinate the mean of all values but the `drop` farthest from the median: ``[m, w] -> [w]``."""
    if drop == 0:
        return values.mean(0)
    far = (values - median(values)).abs()
    return values.gather(0, ranked(far)[: len(values) - drop]).mean(0)
