"""Combining messages: a server's aggregation is a one-row mixing matrix, gossip's an ``[n, n]`` one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from fedsim.core.registry import Part, register
from fedsim.core.types import Aggregate, Message, State


class Aggregator(Part):
    """What a server does with the cohort's messages.

    A rule that looks at one tensor at a time defines ``__call__``; one that has to see whole messages (to choose some
    clients, say) or keeps something between rounds overrides `bind`. Every rule keeps the mass of the weights: where
    all rows are alike, v, it returns ``sum(w) v``, so that the weights of virtual time (de-biasing, staleness) hold.
    """

    linear: ClassVar[bool] = False
    """Whether it is ``weights @ values``: sums of parts may then stand for rows, and noise for a sum holds."""

    def fresh(self, form: Message) -> State:
        """What it keeps between rounds, before the first one; `form` is one client's message, rows of one."""
        return {}

    def bind(self, messages: Message, weights: Tensor, state: State) -> tuple[Aggregate, State]:
        """The round's ``aggregate(values[, weights])`` and what it keeps from now on; called once in every round.

        `messages` are what arrived, rows ``[m, d]`` (or ``[m, 1]``) by name, and `weights` ``[m]`` theirs. `aggregate`
        gets rows of the same clients in the same order, `messages` or what the algorithm makes of them.
        """
        return (lambda values, given=None: self(values, weights if given is None else given)), state

    def __call__(self, values: Tensor, weights: Tensor) -> Tensor:
        """Combine rows of one tensor: values ``[m, d]``, weights ``[m]`` -> ``[d]``."""
        only = {"values": values}
        result: Tensor = self.bind(only, weights, self.fresh({"values": values[:1]}))[0](values)
        return result

    def __init_subclass__(cls, **keys: Any) -> None:
        super().__init_subclass__(**keys)
        if cls.bind is Aggregator.bind and cls.__call__ is Aggregator.__call__:
            raise TypeError(f"{cls.__name__} defines neither __call__ nor bind, allowed: an aggregator has one of them")


@register.aggregator("mean")
@dataclass(frozen=True)
class Mean(Aggregator):
    """``sum_i w_i v_i``; weights are used as they are, not renormalised."""

    linear: ClassVar[bool] = True

    def __call__(self, values: Tensor, weights: Tensor) -> Tensor:
        return weights @ values


@register.aggregator("median")
@dataclass(frozen=True)
class Median(Aggregator):
    """Coordinate-wise median, for even m the mean of the middle two (Yin et al., arXiv 1803.01498).

    It does not weigh clients against each other; the sum of the weights scales it, as it scales the mean.
    """

    def __call__(self, values: Tensor, weights: Tensor) -> Tensor:
        ordered = values.sort(dim=0).values
        m = len(values)
        return weights.sum() * (ordered[(m - 1) // 2] + ordered[m // 2]) / 2


@register.aggregator("trimmed_mean")
@dataclass(frozen=True)
class TrimmedMean(Aggregator):
    """Coordinate-wise trimmed mean (Yin et al., arXiv 1803.01498).

    Per coordinate the floor(trim * m) largest and smallest values are dropped and the weights of the others scaled to
    the sum of all; ``trim: 0`` is the mean.
    """

    trim: Annotated[float, Field(ge=0, lt=0.5)] = 0.1

    def __call__(self, values: Tensor, weights: Tensor) -> Tensor:
        m = len(values)
        cut = int(self.trim * m + 1e-9)
        if cut == 0:
            return weights @ values
        ordered, rank = values.sort(dim=0)
        kept, w = ordered[cut : m - cut], weights[rank[cut : m - cut]]
        return weights.sum() * (w * kept).sum(0) / w.sum(0)
