"""Distances between whole messages, in bounded memory: differences of blocks of columns, never the Gram formula.

Squares of a block's differences are summed in the rows' own type, blocks in float64: ``|a|^2 + |b|^2 - 2 a.b`` in
float32 gives negative squares where rows are close to each other. Numbers whose squares would overflow float32 are
taken in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 2**18
"""Numbers of a block: all rows of some columns, which fit the cache together with their differences."""
_PART = 2**22
"""Numbers of a tensor that is worked on as a whole; of a larger one it is columns of that many."""
_LARGE = 1e15
"""Beyond it squares are not taken in float32."""
_SQUARABLE = 1e150
"""From it on squares are not finite in float64 either."""
_SUMMABLE = 2.0**1000
"""Up to it sums of some numbers, and Euclidean norms, are finite in float64."""
_SMALL = 1e-140
"""Below it squares in float64 lose digits."""
_ROUNDING = 2.0**-40
"""Relative difference up to which distances are equal but for rounding."""

RowMap = Callable[[Tensor, bool], Tensor]
"""``[m, w] -> [m', w]``, the same for all columns; it is told whether they are a vector's, not a number per client."""


def by_columns(rule: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """``rule(values)`` of a rule ``[m, w] -> [..., w]`` that treats every column alike, in bounded memory."""
    if values.numel() <= _PART:
        return rule(values)
    return torch.cat([rule(part) for part in _split(values, _PART)], dim=-1)


@dataclass(frozen=True)
class Table:
    """Whole messages as rows: the vectors of each client side by side, as tensors ``[m, d_k]`` of one number of rows.

    `maps` are applied to every block one after the other, so that a table of other rows needs no memory.
    """

    tensors: Sequence[Tensor]
    maps: tuple[RowMap, ...] = ()
    large: bool = False

    def __len__(self) -> int:
        return len(next(self.blocks())) if self.maps else len(self.tensors[0])

    def blocks(self) -> Iterator[Tensor]:
        """All columns, some at a time: ``[m, w]``."""
        for tensor in self.tensors:
            for part in _split(tensor, _BLOCK):
                block = part.double() if self.large else part.contiguous()
                for change in self.maps:
                    block = change(block, True)
                yield block

    def mapped(self, change: RowMap) -> Table:
        """The table of other rows."""
        return Table(self.tensors, (*self.maps, change), self.large)

    def settled(self) -> Table:
        """The same table with its maps applied once, for whoever goes over it many times."""
        if not self.maps:
            return self
        made = list(self.tensors)
        for change in self.maps:
            made = [by_columns(lambda part, change=change: change(part, True), tensor) for tensor in made]  # type: ignore[misc]
        return Table(made, (), self.large)


def table(tensors: Sequence[Tensor]) -> Table:
    """The table of these tensors, all of whose numbers are finite."""
    return Table(tuple(tensors), large=bool((largest(tensors) > _LARGE).any()))


def largest(tensors: Sequence[Tensor]) -> Tensor:
    """The largest absolute value of every row, ``[m]`` in float64; NaN where it has one."""
    found = torch.zeros(len(tensors[0]), dtype=torch.float64, device=tensors[0].device)
    for tensor in tensors:
        for part in _split(tensor, _PART):
            found = torch.maximum(found, torch.linalg.vector_norm(part, torch.inf, dim=-1).double())
    return found


def finite(tensors: Sequence[Tensor], squared: bool) -> Tensor:
    """Which rows ``[m]`` have finite numbers alone, and a finite norm; where it is `squared`, a finite square of it."""
    return largest(tensors) < (_SQUARABLE if squared else _SUMMABLE)


def subtractable(values: Tensor) -> Tensor:
    """Which rows of ``[k, d]`` have nothing but finite numbers, so small that a difference of differences is finite
    and has a norm that is: up to an eighth of what the type can hold, and to 2^1000."""
    largest: Tensor = torch.linalg.vector_norm(values, torch.inf, dim=-1)
    return largest <= min(torch.finfo(values.dtype).max / 8, _SUMMABLE)


def lengths(vectors: Tensor) -> Tensor:
    """Euclidean norms over the last axis, summed in float64; right also where squares overflow or underflow."""
    found: Tensor = torch.linalg.vector_norm(vectors, dim=-1, dtype=torch.float64)
    extreme = (found < _SMALL) | found.isinf()
    if vectors.dtype == torch.float64 and bool(extreme.any()):
        rows = vectors[extreme]
        unit = exponents(rows)
        found[extreme] = torch.linalg.vector_norm(rows / unit, dim=-1) * unit.squeeze(-1)
    return found


def ranks(distances: Tensor) -> Tensor:
    """The places of the distances ``[r, n]`` of a row in their order, in float64: those that differ by rounding alone
    have one place.

    They are compared with the next one in the order. A tolerance that grows with the largest would let whoever sends
    something huge make ties of all others.
    """
    ordered, at = distances.sort(dim=1, stable=True)
    apart = ordered[:, :-1] < ordered[:, 1:] * (1.0 - _ROUNDING)
    places = torch.zeros_like(ordered)
    places[:, 1:] = apart.cumsum(1)
    return torch.empty_like(places).scatter_(1, at, places)


def exponents(values: Tensor) -> Tensor:
    """The powers of two up to the largest absolute values over the last axis: ``[..., d] -> [..., 1]`` in float64.

    Dividing by them rounds nothing and leaves numbers below 2, whose squares are finite.
    """
    largest = torch.linalg.vector_norm(values, torch.inf, dim=-1, keepdim=True).double()
    return torch.exp2((torch.frexp(largest).exponent - 1).double())


def _split(values: Tensor, numbers: int, rows: int | None = None) -> Sequence[Tensor]:
    """The columns of ``[m, d]`` (or ``[d]``, beside a tensor of so many rows) in parts of about so many numbers."""
    width = max(1, numbers // max(rows or len(values), 1))
    return [values[..., first : first + width] for first in range(0, values.shape[-1], width)]


def square_distances(rows: Table) -> Tensor:
    """Squared Euclidean distances between all rows, ``[m, m]`` in float64."""
    m = len(rows)
    first = next(rows.blocks())
    found = torch.zeros((m, m), dtype=torch.float64, device=first.device)
    for block in rows.blocks():
        for i in range(m - 1):
            found[i, i + 1 :] += (block[i + 1 :] - block[i]).square_().sum(1)
    return found + found.T


def norms(rows: Table, centre: Sequence[Tensor] | None = None) -> Tensor:
    """Euclidean norms of the rows ``[m]`` in float64, or of their differences from `centre`, a ``[d_k]`` per tensor."""

    def blocks() -> Iterator[Tensor]:
        at = None if centre is None else _blocks_of(rows, centre)
        for block in rows.blocks():
            yield block if at is None else block - next(at)

    found = torch.zeros(len(rows), dtype=torch.float64, device=rows.tensors[0].device)
    for block in blocks():
        found += block.square().sum(1)
    if not bool(found.isinf().any()):
        return found.sqrt()
    unit, found = exponents(torch.stack([block.abs().amax(1) for block in blocks()], dim=1)), torch.zeros_like(found)
    for block in blocks():
        found += (block / unit).square().sum(1)
    return found.sqrt() * unit.squeeze(1)


def cosines(rows: Table, other: int, size: Tensor) -> Tensor:
    """Cosines of the angles between the rows, whose norms are `size`, and row `other`, ``[m]`` in float64; 0 with 0."""
    unit = exponents(size.unsqueeze(1))  # products of the rows themselves may be infinite
    found, part = torch.zeros_like(size), size / unit.squeeze(1)
    for block in rows.blocks():
        scaled = block / unit.to(block.dtype)
        found += (scaled * scaled[other]).sum(1)
    return torch.where(part * part[other] > 0, found / (part * part[other]), 0.0)


def combination(rows: Table, shares: Tensor) -> list[Tensor]:
    """``shares [m] @ rows``, one ``[d_k]`` a tensor; of a settled table."""
    return [by_columns(lambda part: shares.to(part.dtype) @ part, tensor) for tensor in rows.tensors]


def moved(change: Callable[[Tensor, Tensor], Tensor], rows: Tensor, point: Tensor) -> Tensor:
    """``change(rows [m, w], point [w]) -> [w]`` of some columns at a time: ``[d]``."""
    parts = zip(_split(rows, _PART), _split(point, _PART, len(rows)), strict=True)
    return torch.cat([change(part, at) for part, at in parts])


def _blocks_of(rows: Table, centre: Sequence[Tensor]) -> Iterator[Tensor]:
    for tensor, middle in zip(rows.tensors, centre, strict=True):
        yield from _split(middle, _BLOCK, len(tensor))
