"""What is done to the rows of a round before a robust rule sees them: ``aggregator.pre``.

Each is a linear map of rows that is chosen by whole messages: numbers of one per client are averaged over the same
clients, but never clipped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsim.core import rng
from fedsim.core.errors import InputError
from fedsim.core.fields import PartOf
from fedsim.core.job import RunFacts
from fedsim.core.registry import Part, register
from fedsim.core.types import Count, Positive
from fedsim.messages.base import Arrived
from fedsim.messages.distances import RowMap, Table, norms, square_distances


@dataclass(frozen=True, kw_only=True)
class PreAggregation(Part, ABC):
    """Base of the parts that ``aggregator.pre`` names."""

    draws: ClassVar[bool] = False
    """Whether it draws anew in every round."""
    pairs: ClassVar[int] = 0
    """How often it compares all pairs of messages in a round."""

    @abstractmethod
    def change(self, rows: Table, f: int, arrived: Arrived, run: RunFacts) -> RowMap:
        """What becomes of rows ``[m, w]`` of any tensor: ``[m', w]``, chosen by the whole messages `rows`."""

    def check(self, told: int | None) -> None:
        """Raise InputError where keys do not fit the rule, which is `told` to tolerate that many attackers."""

    def needs(self, m: int, told: int | None) -> str | None:
        """Why m rows are too few (None: they suffice)."""
        return None

    def rows(self, m: int) -> int:
        """How many rows become of m."""
        return m

    def withstands(self, m: int, told: int | None) -> int:
        """How many attackers among m rows it can take, where the rule is `told` that number."""
        return m

    def faults(self, f: int, lost: int) -> int:
        """How many attackers it tolerates where the rule tolerates `f`, and `lost` of them are known already."""
        return f


@dataclass(frozen=True, kw_only=True)
class _ToldByTheRule(PreAggregation):
    """It tolerates as many attackers as the rule, unless `f` says another number."""

    f: Annotated[int, Field(ge=0)] | None = None

    def check(self, told: int | None) -> None:
        if self.f is None and told is None:
            name = type(self).__name__.lower()
            raise InputError(f"the rule has no f that {name} could take, allowed: {{name: {name}, f: ...}}", key="pre")

    def needs(self, m: int, told: int | None) -> str | None:
        f = self.f if self.f is not None else told or 0
        if m > 2 * f:
            return None
        return f"{type(self).__name__} with f = {f} needs at least {2 * f + 1} messages (2f + 1), found {m}"

    def withstands(self, m: int, told: int | None) -> int:
        return self.f if self.f is not None else told or 0

    def faults(self, f: int, lost: int) -> int:
        return f if self.f is None else max(self.f - lost, 0)


@register.pre("nnm")
@dataclass(frozen=True, kw_only=True)
class NNM(_ToldByTheRule):
    """Nearest-neighbour mixing: every row becomes the mean of its m - f nearest rows, itself included (Allouah et al.,
    arXiv 2302.01772)."""

    pairs: ClassVar[int] = 1

    def change(self, rows: Table, f: int, arrived: Arrived, run: RunFacts) -> RowMap:
        distances = square_distances(rows)
        kept = len(distances) - f
        nearest = distances.argsort(dim=1, stable=True)[:, :kept]
        chosen = torch.zeros_like(distances).scatter_(1, nearest, 1.0)
        return lambda values, _: (chosen.to(values.dtype) @ values) / kept


@register.pre("bucketing")
@dataclass(frozen=True, kw_only=True)
class Bucketing(PreAggregation):
    """Means of `s` rows each, in an order that is drawn anew in every round; the last may be of fewer (Karimireddy et
    al., arXiv 2006.09365)."""

    draws: ClassVar[bool] = True
    s: Count

    def change(self, rows: Table, f: int, arrived: Arrived, run: RunFacts) -> RowMap:
        m = len(rows)
        word = rng.key(run.seed, "bucketing", arrived.number)
        order = np.argsort(rng.permute(word, np.arange(m), m))
        return lambda values, _: buckets(values, order.tolist(), self.s)

    def rows(self, m: int) -> int:
        return -(-m // self.s)


def buckets(values: Tensor, order: list[int], s: int) -> Tensor:
    """Means of every s rows in that order, ``[m, w] -> [ceil(m / s), w]``."""
    return torch.stack([values[order[a : a + s]].mean(0) for a in range(0, len(order), s)])


@register.pre("clip")
@dataclass(frozen=True, kw_only=True)
class Clip(PreAggregation):
    """Every message is scaled down to Euclidean norm `c`; shorter ones stay as they are."""

    c: Positive

    def change(self, rows: Table, f: int, arrived: Arrived, run: RunFacts) -> RowMap:
        return scaled(norms(rows), torch.tensor(self.c, dtype=torch.float64))


@register.pre("arc")
@dataclass(frozen=True, kw_only=True)
class ARC(_ToldByTheRule):
    """The floor(2f/m (m - f)) longest messages are scaled down to the norm of the next one (Allouah et al., arXiv
    2405.14432)."""

    def change(self, rows: Table, f: int, arrived: Arrived, run: RunFacts) -> RowMap:
        size = norms(rows)
        m = len(size)
        clipped = 2 * f * (m - f) // m
        return scaled(size, size.sort(stable=True).values[m - clipped - 1])


def scaled(size: Tensor, bound: Tensor) -> RowMap:
    """Rows of norms `size` scaled down to norm `bound`; numbers of one per client stay as they are."""
    factor = torch.where(size <= bound, torch.ones_like(size), bound / size).unsqueeze(1)
    return lambda values, vector: values * factor.to(values.dtype) if vector else values


PreAggregations = Annotated[tuple[PreAggregation, ...], PartOf("pre", "pre", many=True)]
"""The key of a robust rule: one of them by its name or as a mapping, or a list of such."""
