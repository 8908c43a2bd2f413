"""Combining messages: a server's aggregation is a one-row mixing matrix, gossip's an ``[n, n]`` one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from fedsim.core.registry import Part, register


class Aggregator(Part, ABC):
    """What a server does with the cohort's messages: values ``[m, d]``, weights ``[m]`` -> ``[d]``."""

    @abstractmethod
    def __call__(self, values: Tensor, weights: Tensor) -> Tensor:
        """Combine the rows of `values`."""


@register.aggregator("mean")
@dataclass(frozen=True)
class Mean(Aggregator):
    """``sum_i w_i v_i``; weights are used as they are, not renormalised."""

    def __call__(self, values: Tensor, weights: Tensor) -> Tensor:
        return weights @ values


@register.aggregator("median")
@dataclass(frozen=True)
class Median(Aggregator):
    """Coordinate-wise median, unweighted, for even m the mean of the middle two (Yin et al., arXiv 1803.01498)."""

    def __call__(self, values: Tensor, weights: Tensor) -> Tensor:
        ordered = values.sort(dim=0).values
        m = len(values)
        return (ordered[(m - 1) // 2] + ordered[m // 2]) / 2


@register.aggregator("trimmed_mean")
@dataclass(frozen=True)
class TrimmedMean(Aggregator):
    """Coordinate-wise trimmed mean (Yin et al., arXiv 1803.01498).

    Per coordinate the floor(trim * m) largest and smallest values are dropped and the weights of the others
    renormalised; ``trim: 0`` is the mean for weights that sum to 1.
    """

    trim: Annotated[float, Field(ge=0, lt=0.5)] = 0.1

    def __call__(self, values: Tensor, weights: Tensor) -> Tensor:
        m = len(values)
        cut = int(self.trim * m + 1e-9)
        if cut == 0:
            return weights @ values
        ordered, rank = values.sort(dim=0)
        kept, w = ordered[cut : m - cut], weights[rank[cut : m - cut]]
        return (w * kept).sum(0) / w.sum(0)
