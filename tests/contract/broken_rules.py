"""Rules of a server that break one law each."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

import fedsim


@dataclass(frozen=True)
class Boasts(fedsim.Aggregator):
    """The largest value of each coordinate, which one client decides."""

    def tolerates(self, m: int) -> int:
        return m // 3

    def __call__(self, values: Tensor, weights: Tensor) -> Tensor:
        return weights.sum() * values.max(dim=0).values


@dataclass(frozen=True)
class TakesAnything(fedsim.Aggregator):
    """A middle value, which is NaN where one value is."""

    def tolerates(self, m: int) -> int:
        return (m - 1) // 2

    def __call__(self, values: Tensor, weights: Tensor) -> Tensor:
        return weights.sum() * values.median(dim=0).values


@dataclass(frozen=True)
class NeverEnough(fedsim.Aggregator):
    """It combines no number of messages."""

    def needs(self, m: int) -> str | None:
        return "more"

    def __call__(self, values: Tensor, weights: Tensor) -> Tensor:
        return weights @ values
