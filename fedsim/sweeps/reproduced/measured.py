"""The numbers of a reproduction: a quantity of each run, rows over seeds, and whether claims hold of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsim.core.metrics import TABLE, Metric, metric
from fedsim.sweeps.reproduced.files import Check, Quantity

_LAST = 0.75
"""From this share of a run on, its last quarter."""


@dataclass(frozen=True)
class Cell:
    """A quantity of a row: the values of its runs by seed; None of a run that never reached its target, or failed."""

    values: Mapping[int, float | None]
    better: str

    @property
    def median(self) -> float | None:
        """The median over seeds; a run without a value counts as the worst one."""
        return _plain(statistics.median(_worth(v, self.better) for v in self.values.values()))

    @property
    def range(self) -> tuple[float | None, float | None]:
        """The smallest and the largest value; None stands for runs without one."""
        worth = sorted(_worth(v, self.better) for v in self.values.values())
        return _plain(worth[0]), _plain(worth[-1])


@dataclass(frozen=True)
class Verdict:
    """Whether a claim holds of the medians, and of how many seeds taken alone."""

    says: str
    holds: bool
    seeds: int
    of: int


def take(rows: Sequence[Mapping[str, Any]], quantity: Quantity, columns: Mapping[str, Metric] = TABLE) -> float | None:
    """A run's value of `quantity` from the rows of its metrics; None where it has none."""
    found = [(row, float(row[quantity.of])) for row in rows if _finite(row.get(quantity.of))]
    if not found:
        return None
    larger = metric(quantity.of, columns).larger_is_better is not False
    if quantity.take == "first":
        assert quantity.target is not None
        hits = (r for r, v in found if (v >= quantity.target if larger else v <= quantity.target))
        return next((float(row[quantity.at]) for row in hits if _finite(row.get(quantity.at))), None)
    values = [value for _, value in found]
    if quantity.take == "last":
        return None if _finite(rows[-1].get(quantity.of)) is False else values[-1]
    if quantity.take == "best":
        return max(values) if larger else min(values)
    counted = [(float(row[quantity.along]), value) for row, value in found if _finite(row.get(quantity.along))]
    if not counted:
        return None
    late = [value for along, value in counted if along >= _LAST * counted[-1][0]]
    return statistics.fmean(late) if quantity.take == "mean" else statistics.pstdev(late)


def cells(runs: Iterable[Mapping[str, Any]], quantities: Mapping[str, Quantity]) -> dict[str, dict[str, Cell]]:
    """By quantity and row, what the runs of a results file have."""
    found: dict[str, dict[str, dict[int, float | None]]] = {name: {} for name in quantities}
    for run in runs:
        for name in quantities:
            found[name].setdefault(run["row"], {})[run["seed"]] = run["values"].get(name)
    return {n: {r: Cell(values, quantities[n].better) for r, values in of.items()} for n, of in found.items()}


def judge(check: Check, of: Mapping[str, Cell]) -> Verdict:
    """Whether a claim holds of the rows of its quantity."""
    medians = {name: cell.median for name, cell in of.items()}
    seeds = sorted({seed for cell in of.values() for seed in cell.values})
    alone = [{name: cell.values.get(seed) for name, cell in of.items()} for seed in seeds]
    better = next(iter(of.values())).better
    return Verdict(check.says, _holds(check, medians, better), sum(_holds(check, a, better) for a in alone), len(seeds))


def _holds(check: Check, values: Mapping[str, float | None], better: str) -> bool:
    if check.best is None:
        got = {name: values[name] for name in check.near}
        return all(v is not None and abs(v - wanted) <= check.within * abs(wanted)
                   for v, wanted in zip(got.values(), check.near.values(), strict=True))  # fmt: skip
    first = values[check.best]
    others = [values[name] for name in check.than or [n for n in values if n != check.best]]
    return first is not None and all(v is None or _beats(first, v, check.by, better) for v in others)


def _beats(first: float, other: float, by: float, better: str) -> bool:
    """By a factor of at least `by`; where that is 1 a tie is no victory."""
    ahead, behind = (first * by, other) if better == "lower" else (other * by, first)
    return ahead < behind if by == 1 else ahead <= behind


def _worth(value: float | None, better: str) -> float:
    return value if value is not None else math.inf if better == "lower" else -math.inf


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
