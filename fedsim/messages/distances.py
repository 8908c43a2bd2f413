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
_INFINITE = 1e150
"""From it on squares are not finite in float64 either."""

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


def finite(tensors: Sequence[Tensor]) -> Tensor:
    """Which rows ``[m]`` have nothing but finite numbers, none so large that its square is not."""
    return largest(tensors) < _INFINITE


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
    found = torch.zeros(len(rows), dtype=torch.float64, device=rows.tensors[0].device)
    at = None if centre is None else _blocks_of(rows, centre)
    for block in rows.blocks():
        found += (block.square() if at is None else (block - next(at)).square_()).sum(1)
    return found.sqrt()


def products(rows: Table, other: int) -> Tensor:
    """Inner products of the rows with row `other`, ``[m]`` in float64."""
    found = torch.zeros(len(rows), dtype=torch.float64, device=rows.tensors[0].device)
    for block in rows.blocks():
        found += (block * block[other]).sum(1)
    return found


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
