"""Combining messages: a server's aggregation is a one-row mixing matrix, gossip's an ``[n, n]`` one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from fedsim.core.arrays import Ints
from fedsim.core.job import RunFacts
from fedsim.core.registry import Part, register
from fedsim.core.types import Aggregate, Message, State
from fedsim.messages.base import Arrived

COMBINES = ("__call__", "bind", "bind_in", "decide")
"""Methods of a rule one of which makes what it hands back."""


class Aggregator(Part):
    """What a server does with the cohort's messages.

    A rule that looks at one tensor at a time defines ``__call__``; one that has to see whole messages (to choose some
    clients, say) or keeps something between rounds overrides `bind`. Every rule keeps the mass of the weights: where
    all rows are alike, v, it returns ``sum(w) v``, so that the weights of virtual time (de-biasing, staleness) hold.
    """

    linear: ClassVar[bool] = False
    """Whether it is ``weights @ values``: sums of parts may then stand for rows, and noise for a sum holds."""

    @property
    def is_linear(self) -> bool:
        """Whether it is a weighted sum with the keys that it has, which protects against no message."""
        return self.linear

    @property
    def everyone(self) -> str | None:
        """Why all clients have to take part in every round, where they have to."""
        return None

    @property
    def on_graph(self) -> str | None:
        """Why it is no rule of a graph's nodes, where it is none."""
        return None

    def check_clients(self, clients: int) -> None:
        """Raise InputError where keys do not fit the number of clients."""

    def check_run(self, run: RunFacts) -> None:
        """Raise InputError where keys do not fit the run, whose attackers are known."""

    def needs(self, m: int) -> str | None:
        """Why it cannot combine m messages, which are too few for it (None: it can)."""
        return None

    def tolerates(self, m: int) -> int:
        """How many attackers among m messages leave the result near the honest ones."""
        return 0

    def lacks(self, clients: Ints) -> str | None:
        """Why it cannot combine the messages of these clients (None: it can); such a round is skipped."""
        return self.needs(len(clients))

    def fresh(self, form: Message) -> State:
        """What it keeps between rounds, before the first one; `form` is one client's message, rows of one."""
        return {}

    def bind(self, messages: Message, weights: Tensor, state: State) -> tuple[Aggregate, State]:
        """The round's ``aggregate(values[, weights])`` and what it keeps from now on; called once in every round.

        `messages` are what arrived, rows ``[m, d]`` (or ``[m, 1]``) by name, and `weights` ``[m]`` theirs. `aggregate`
        gets rows of the same clients in the same order, `messages` or what the algorithm makes of them.
        """
        return (lambda values, given=None: self(values, weights if given is None else given)), state

    def bind_in(
        self, messages: Message, weights: Tensor, state: State, arrived: Arrived, run: RunFacts
    ) -> tuple[Aggregate, State]:
        """As `bind`, for rules that have to know the round and whose messages these are: `arrived.clients` ``[m]``."""
        return self.bind(messages, weights, state)

    def __call__(self, values: Tensor, weights: Tensor) -> Tensor:
        """Combine rows of one tensor: values ``[m, d]``, weights ``[m]`` -> ``[d]``."""
        only = {"values": values}
        result: Tensor = self.bind(only, weights, self.fresh({"values": values[:1]}))[0](values)
        return result

    def __init_subclass__(cls, **keys: Any) -> None:
        super().__init_subclass__(**keys)
        own = (cls.bind is Aggregator.bind, cls.bind_in is Aggregator.bind_in, cls.__call__ is Aggregator.__call__)
        if all(own):
            raise TypeError(f"{cls.__name__} defines neither __call__ nor bind, allowed: an aggregator has one of them")


@register.aggregator("mean")
@dataclass(frozen=True)
class Mean(Aggregator):
    """``sum_i w_i v_i``; weights are used as they are, not renormalised."""

    linear: ClassVar[bool] = True

    def __call__(self, values: Tensor, weights: Tensor) -> Tensor:
        return weights @ values
