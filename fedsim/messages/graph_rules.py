"""How the nodes of a graph combine what they hear, each for itself, where a mixing matrix would trust everybody."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from fedsim.core import rng
from fedsim.core.arrays import Ints
from fedsim.core.crew import each
from fedsim.core.errors import InputError
from fedsim.core.job import Contribution
from fedsim.core.returned import formed
from fedsim.core.types import Aggregate, Message, State
from fedsim.messages.aggregators import COMBINES, Aggregator
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

    weighs: ClassVar[bool] = True
    """Whether weights of links count."""

    @abstractmethod
    def combine(self, near: Near) -> Tensor:
        """What the receivers of `near` make of what they have, ``[r, d]``."""

    def check(self, degree: int) -> None:
        """Raise InputError where it can do nothing at a node with so many neighbours."""

    @property
    def tolerated(self) -> int | None:
        """f, the attackers among its neighbours that a node is to tolerate; None where the rule has no such number."""
        found = getattr(self, "f", None)
        return found if isinstance(found, int) else None

    def most(self, degree: int, late: bool = False) -> int | None:
        """The largest f with which it can do something at a node with so many neighbours; None: there is none.

        With `late` it does not wait for f of them.
        """
        for f in range(self.tolerated or 0, -1, -1):
            try:
                self.tolerating(f).check(max(degree - (f if late else 0), 0))
            except InputError:
                continue
            return f if self.tolerated is not None else None
        return None

    def tolerating(self, f: int) -> GraphRule:
        """The rule that is to tolerate that many, where it has such a number."""
        changed: Any = self
        return cast(GraphRule, replace(changed, f=f)) if self.tolerated is not None else self

    def mix(self, heard: Heard) -> Tensor:
        """What every receiver makes of what it hears, ``[m, d]``: a new tensor."""
        values = heard.values
        result = values[torch.as_tensor(heard.own, device=values.device)]
        parts = list(heard.neighbourhoods())

        def some(part: tuple[Ints, Near]) -> None:
            rows, near = part
            made = formed(self.combine(near), (len(rows), values.shape[-1]), None, self, "combine")
            result[torch.as_tensor(rows, device=values.device)] = made.to(values.dtype)

        if values.device.type == "cpu":
            each([lambda part=part: some(part) for part in parts])  # type: ignore[misc]
        else:
            for part in parts:
                some(part)
        return result


@dataclass(frozen=True)
class EachNode(GraphRule):
    """A server's rule at every node, on its own and its neighbours' messages alike: links have no weights.

    A node that hears too few in an exchange, since links do not fire or messages are not finite, keeps its own.
    """

    rule: Aggregator

    weighs: ClassVar[bool] = False

    @property
    def tolerated(self) -> int | None:
        found = getattr(self.rule, "f", None)
        return found if isinstance(found, int) else None

    def tolerating(self, f: int) -> GraphRule:
        changed: Any = self.rule
        return self if self.tolerated is None else EachNode(cast(Aggregator, replace(changed, f=f)))

    def check(self, degree: int) -> None:
        why = self.rule.needs(degree + 1)
        if why is not None:
            raise InputError(why, key="name" if self.tolerated is None else "f")

    def combine(self, near: Near) -> Tensor:
        rule, m = self._without(near.lost), near.degree + 1
        if rule.needs(m) is not None:
            return near.own
        values, heard = near.all(), near.heard
        weights = values.new_full((m,), 1.0 / m)
        one, result = np.ones(m, dtype=np.int64), torch.empty_like(near.own)
        for row, node in enumerate(heard.nodes[near.rows].tolist()):
            arrived = Contribution(heard.round, near.numbers[row], heard.round * one, one)
            seed = int(rng.key(heard.run.seed, "at node", node, heard.exchange)[0]) >> 1
            found, _ = rule.bind_in({"values": values[row]}, weights, {}, arrived, replace(heard.run, seed=seed))
            made = found(values[row])
            result[row] = formed(made, result.shape[1:], None, rule, *COMBINES)
        return result

    def _without(self, lost: int) -> Aggregator:
        """The rule where that many messages have been dropped already."""
        f = self.tolerated
        if not lost or not f:
            return self.rule
        changed: Any = self.rule
        return cast(Aggregator, replace(changed, f=max(f - lost, 0)))


def rule_of(aggregator: Aggregator) -> GraphRule | None:
    """What an `aggregator` is at the nodes of a graph; None: the mixing matrix, as for the mean."""
    if isinstance(aggregator, GraphRule):
        return aggregator
    return None if aggregator.linear else EachNode(aggregator)
