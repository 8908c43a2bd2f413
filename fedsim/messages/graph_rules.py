"""How the nodes of a graph combine what they hear, each for itself, where a mixing matrix would trust everybody."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.core.arrays import Ints
from fedsim.core.crew import each
from fedsim.core.errors import InputError
from fedsim.core.types import Aggregate, Message, State
from fedsim.messages.aggregators import Aggregator
from fedsim.messages.heard import Heard, Near


class GraphRule(Aggregator):
    """A rule of a graph's nodes: everyone combines its own message and those of its neighbours.

    A rule says in `combine` what becomes of some neighbourhoods of equal size at once. It sees no more than a node
    does, so that shards compute the same numbers.
    """

    def bind(self, messages: Message, weights: Tensor, state: State) -> tuple[Aggregate, State]:
        """A server has no neighbourhood.

        Raises
        ------
        InputError
            Always.
        """
        raise InputError(f"{type(self).__name__} is a rule of a graph's nodes, allowed with a server: another rule")

    @abstractmethod
    def combine(self, near: Near) -> Tensor:
        """What the receivers of `near` make of what they have, ``[r, d]``."""

    def check(self, degrees: Ints) -> None:
        """Raise InputError where nodes with so many neighbours, ``[n]``, are too few for it."""

    @property
    def tolerated(self) -> int | None:
        """f, the attackers among its neighbours that a node is to tolerate; None where the rule has no such number."""
        found = getattr(self, "f", None)
        return found if isinstance(found, int) else None

    def mix(self, heard: Heard) -> Tensor:
        """What every receiver makes of what it hears, ``[m, d]``: a new tensor."""
        values = heard.values
        result = values[torch.as_tensor(heard.own, device=values.device)]
        parts = list(heard.neighbourhoods())

        def some(part: tuple[Ints, Near]) -> None:
            rows, near = part
            result[torch.as_tensor(rows, device=values.device)] = self.combine(near).to(values.dtype)

        if values.device.type == "cpu":
            each([lambda part=part: some(part) for part in parts])  # type: ignore[misc]
        else:
            for part in parts:
                some(part)
        return result


@dataclass(frozen=True)
class EachNode(GraphRule):
    """A server's rule at every node, on its own and its neighbours' messages alike: links have no weights."""

    rule: Aggregator

    @property
    def tolerated(self) -> int | None:
        found = getattr(self.rule, "f", None)
        return found if isinstance(found, int) else None

    def combine(self, near: Near) -> Tensor:
        values = near.all()
        weights = values.new_full((values.shape[1],), 1.0 / values.shape[1])
        return torch.stack([self.rule(rows, weights) for rows in values])


def rule_of(aggregator: Aggregator) -> GraphRule | None:
    """What an `aggregator` is at the nodes of a graph; None: the mixing matrix, as for the mean."""
    if isinstance(aggregator, GraphRule):
        return aggregator
    return None if aggregator.linear else EachNode(aggregator)
