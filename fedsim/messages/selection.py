"""Robust rules that compare whole messages: they choose some, or weigh all by how far away they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.core.registry import register
from fedsim.core.types import Count, NonNegative, Positive
from fedsim.messages.distances import Table, combination, norms, square_distances
from fedsim.messages.robust import Attackers, Combine, RobustRule, Turn, massed, mean_around_median

Closest = Literal["m-f-2", "m-f-1"] | Count


@dataclass(frozen=True, kw_only=True)
class _Scored(RobustRule):
    """Rules that score a row by its nearest others.

    Parameters
    ----------
    f : the number of attackers to tolerate.
    closest : how many of the nearest others count: ``m-f-2`` (Blanchard et al.), ``m-f-1`` (ByzFL), or a number.
    """

    pairs: ClassVar[int] = 1
    f: Attackers
    closest: Closest = "m-f-2"

    @property
    def least(self) -> tuple[int, str]:
        least = 2 * self.f + 3
        if isinstance(self.closest, int) and self.closest + 1 > least:
            return self.closest + 1, "closest + 1"
        return least, "2f + 3"

    def withstands(self, m: int) -> int:
        return min(self.f, max((m - 3) // 2, 0))

    def scores(self, rows: Table, f: int) -> Tensor:
        """Of every row the sum of its smallest squared distances to others, ``[m]``."""
        return scores(square_distances(rows), f, self.closest)


def scores(distances: Tensor, f: int, closest: int | str = "m-f-2") -> Tensor:
    """Krum's scores from squared distances ``[m, m]``: of every row the sum of its smallest ones to other rows."""
    m = len(distances)
    count = closest if isinstance(closest, int) else m - f - (1 if closest == "m-f-1" else 2)
    others = distances.clone().fill_diagonal_(torch.inf).sort(dim=1).values
    return others[:, : max(1, min(count, m - 1))].sum(1)


@register.aggregator("krum")
@dataclass(frozen=True, kw_only=True)
class Krum(_Scored):
    """The message with the smallest sum of squared distances to its nearest others (Blanchard et al., NeurIPS 2017)."""

    def decide(self, rows: Table, f: int, turn: Turn) -> Combine:
        chosen = int(self.scores(rows, f).argmin())
        return lambda part, weights, _: massed(weights, part[chosen])


@register.aggregator("multi_krum")
@dataclass(frozen=True, kw_only=True)
class MultiKrum(_Scored):
    """The mean of the `keep` messages with the best scores of krum, scored once.

    Parameters
    ----------
    keep : how many (default: m - f).
    """

    keep: Count | None = None

    @property
    def least(self) -> tuple[int, str]:
        least, formula = super().least
        return (self.keep, "keep") if self.keep is not None and self.keep > least else (least, formula)

    def withstands(self, m: int) -> int:
        return min(super().withstands(m), m - (self.keep or 0))

    def decide(self, rows: Table, f: int, turn: Turn) -> Combine:
        m = len(rows)
        best = self.scores(rows, f).argsort(stable=True)[: m - f if self.keep is None else self.keep]
        return lambda part, weights, _: massed(weights, part[best].mean(0))


@register.aggregator("bulyan")
@dataclass(frozen=True, kw_only=True)
class Bulyan(RobustRule):
    """m - 2f times krum on what is left of the messages, then per coordinate the mean of the m - 4f values of the
    chosen that are nearest to their median (El Mhamdi et al., arXiv 1802.07927)."""

    pairs: ClassVar[int] = 1
    f: Attackers

    @property
    def least(self) -> tuple[int, str]:
        return 4 * self.f + 3, "4f + 3"

    def withstands(self, m: int) -> int:
        return min(self.f, max((m - 3) // 4, 0))

    def decide(self, rows: Table, f: int, turn: Turn) -> Combine:
        distances = square_distances(rows)
        left = list(range(len(distances)))
        chosen: list[int] = []
        for _ in range(len(distances) - 2 * f):
            chosen.append(left.pop(int(scores(distances[left][:, left], f).argmin())))
        kept = torch.tensor(sorted(chosen), device=distances.device)
        return lambda part, weights, _: massed(weights, mean_around_median(part[kept], 2 * f))


@register.aggregator("geometric_median")
@dataclass(frozen=True, kw_only=True)
class GeometricMedian(RobustRule):
    """The point with the smallest sum of distances to all messages, by Weiszfeld's steps (RFA, arXiv 1912.13445).

    Parameters
    ----------
    nu : distances below it count as it: ``z = sum_i v_i / max(|v_i - z|, nu)``, normalised.
    iters, tol : steps at most, and the change of a coordinate, relative to the largest one or 1, that ends them; a
        change that the type of the numbers cannot tell from 0 ends them, too.
    start : the mean of the messages, or zero.
    """

    nu: Positive = 1e-6
    iters: Count = 1000
    tol: NonNegative = 1e-12
    start: Literal["mean", "zero"] = "mean"

    def decide(self, rows: Table, f: int, turn: Turn) -> Combine:
        shares = self.shares(rows.settled())
        return lambda part, weights, _: massed(weights, shares.to(part.dtype) @ part)

    def shares(self, rows: Table) -> Tensor:
        """How much of each row the result has, ``[m]`` in float64, with sum 1."""
        m = len(rows)
        shares = torch.full((m,), 1.0 / m, dtype=torch.float64, device=rows.tensors[0].device)
        z = combination(rows, shares) if self.start == "mean" else [v.new_zeros(v.shape[-1]) for v in rows.tensors]
        finest = float(torch.finfo(rows.tensors[0].dtype).eps)
        for _ in range(self.iters):
            inverse = 1.0 / norms(rows, z).clamp_min(self.nu)
            shares = inverse / inverse.sum()
            last, z = z, combination(rows, shares)
            change = max(float((a - b).abs().max()) for a, b in zip(z, last, strict=True))
            largest = max(1.0, *(float(v.abs().max()) for v in last))
            if change <= max(self.tol, finest if self.tol > 0 else 0.0) * largest:
                break
        return shares
