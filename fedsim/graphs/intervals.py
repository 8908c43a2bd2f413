"""When items (links, nodes) are there: half-open intervals of whole instants, never a table of items and rounds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fedsim.core.arrays import Bools, Ints

FOREVER = 2**62
"""The end of an interval that has none; no run lasts so long."""


@dataclass(frozen=True)
class Intervals:
    """Item ``items[k]`` is there at instants ``starts[k] <= t < ends[k]``; items without an interval always are.

    Intervals are sorted by item and start, and those of one item do not overlap.
    """

    count: int
    items: Ints
    starts: Ints
    ends: Ints

    @classmethod
    def always(cls, count: int) -> Intervals:
        """`count` items that are always there."""
        none = np.empty(0, dtype=np.int64)
        return cls(count, none, none, none)

    @classmethod
    def of(cls, count: int, spans: Iterable[tuple[int, int, int]]) -> Intervals:
        """Of ``(item, start, end)`` in any order; an item whose intervals are all empty is never there."""
        rows = np.array(list(spans), dtype=np.int64).reshape(-1, 3)
        return cls(count, *rows[np.lexsort((rows[:, 1], rows[:, 0]))].T)

    @property
    def changes(self) -> bool:
        """Whether some item is not always there."""
        return len(self.items) > 0

    def at(self, instant: int) -> Bools:
        """Which items are there at `instant`, ``[count]``."""
        there = np.ones(self.count, dtype=bool)
        there[self.items] = False
        there[self.items[(self.starts <= instant) & (instant < self.ends)]] = True
        return there

    def has(self, item: int, instant: int) -> bool:
        """Whether one item is there at `instant`."""
        first, last = np.searchsorted(self.items, [item, item + 1])
        if first == last:
            return True
        k = first + int(np.searchsorted(self.starts[first:last], instant, side="right")) - 1
        return bool(k >= first and instant < self.ends[k])

    def spans(self, item: int) -> list[tuple[int, int]]:
        """The intervals of one item."""
        first, last = np.searchsorted(self.items, [item, item + 1])
        if first == last:
            return [(0, FOREVER)]
        return list(zip(self.starts[first:last].tolist(), self.ends[first:last].tolist(), strict=True))

    def within(self, others: Intervals, ends: Ints) -> Intervals:
        """These items at the instants at which their two ends ``[count, 2]``, items of `others`, are there, too."""
        if not others.changes:
            return self
        moving = np.zeros(others.count, dtype=bool)
        moving[others.items] = True
        touched = moving[ends[:, 0]] | moving[ends[:, 1]]
        kept = ~touched[self.items]
        rows = [*zip(self.items[kept].tolist(), self.starts[kept].tolist(), self.ends[kept].tolist(), strict=True)]
        for item in np.flatnonzero(touched).tolist():
            found = self.spans(item)
            for end in ends[item].tolist():
                found = _both(found, others.spans(end))
            rows += [(item, a, b) for a, b in found] or [(item, 0, 0)]
        return Intervals.of(self.count, rows)


def _both(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The intersection of two ascending lists of intervals."""
    found, i, j = [], 0, 0
    while i < len(one) and j < len(other):
        start, end = max(one[i][0], other[j][0]), min(one[i][1], other[j][1])
        if start < end:
            found.append((start, end))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return found
