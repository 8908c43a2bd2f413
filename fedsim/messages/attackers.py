"""Who attacks: how many clients, and where on the graph they sit.

Attackers are a set that is fixed for a run. How many there are is said by `attackers`; how many a rule is told to
tolerate is a key of the rule, and neither is derived from the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedsim.core import rng
from fedsim.core.arrays import Floats, Ints
from fedsim.core.errors import InputError
from fedsim.core.job import RunFacts
from fedsim.core.types import Message
from fedsim.messages.base import MessageTransform

if TYPE_CHECKING:
    import networkx as nx

Number = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
Placement = Literal["random", "degree", "betweenness", "cut"]


@dataclass(frozen=True, kw_only=True)
class Attackers(MessageTransform):
    """Base of all that ``attack.name`` names: clients that do not keep to the protocol.

    Parameters
    ----------
    attackers : how many clients attack, their share of all, or their numbers.
    placement : who they are where their numbers are not given: drawn from the seed (``random``), the nodes of the
        highest ``degree`` or ``betweenness`` (ties: the lower number), or a minimum vertex ``cut`` of the graph, filled
        up by degree.
    allow_disconnected : run although the honest nodes of the graph are not connected without the attackers.
    """

    vectors_only: ClassVar[bool] = True

    attackers: Number | Share | list[int]
    placement: Placement = "random"
    allow_disconnected: bool = False

    @property
    def on_messages(self) -> bool:
        """Whether it changes messages; otherwise it changes attackers' data alone, and they follow the protocol."""
        return True

    @property
    def changes_by(self) -> str | None:
        """The key that makes an attack on data one on messages, too; its default would leave them as they are."""
        return None

    def attacking(self, run: RunFacts) -> Ints:
        """The attackers' numbers, ascending."""
        if run.attackers is not None:
            return np.array(run.attackers, dtype=np.int64)
        return self.placed(run.seed, run.num_clients)

    def dishonest(self, run: RunFacts) -> Ints:
        return self.attacking(run) if self.on_messages else np.empty(0, dtype=np.int64)

    def placed(self, seed: int, n: int, graph: nx.Graph[Any] | None = None) -> Ints:
        """Choose the attackers among `n` clients, on `graph` where there is one.

        Raises
        ------
        InputError
            There are no such clients, no honest one is left, or the placement asks for a graph that is not there.
        """
        if isinstance(self.attackers, list):
            return self._listed(self.attackers, n)
        some = isinstance(self.attackers, float)
        count = max(1, round(self.attackers * n)) if some else int(self.attackers)
        if count >= n:
            message = f"found {self.attackers} of {n} clients, allowed: not all, so that somebody is honest"
            raise InputError(message, key="attack.attackers")
        if self.placement == "random":
            draws = rng.uniform(rng.key(seed, "attackers", np.arange(n)))
            return np.sort(np.argsort(draws, kind="stable")[:count]).astype(np.int64)
        if graph is None:
            message = f"found '{self.placement}', but under a server there is no graph; allowed: random"
            raise InputError(message, key="attack.placement")
        return np.sort(placed_on(graph, self.placement, count))

    def _listed(self, given: list[int], n: int) -> Ints:
        if self.placement != "random":
            message = f"found '{self.placement}' beside a list of attackers, allowed: one of the two"
            raise InputError(message, key="attack.placement")
        if len(set(given)) < len(given):
            raise InputError(f"found {given}, allowed: each client once", key="attack.attackers")
        odd = [i for i in given if not 0 <= i < n]
        if odd:
            raise InputError(f"found client {odd[0]}, allowed: 0 to {n - 1}", key="attack.attackers")
        if len(given) >= n:
            message = f"found {len(given)} of {n} clients, allowed: not all, so that somebody is honest"
            raise InputError(message, key="attack.attackers")
        return np.array(sorted(given), dtype=np.int64)

    def check(self, form: Message, run: RunFacts) -> None:
        self.attacking(run)


def placed_on(graph: nx.Graph[Any], placement: Placement, count: int) -> Ints:
    """The `count` nodes of `graph` that come first by `placement`: ``degree``, ``betweenness`` or ``cut``."""
    _, values = centrality(graph, placement)
    order = _highest(values)
    if placement == "cut":
        import networkx as nx

        cut = np.zeros(len(values), dtype=bool)
        cut[list(nx.minimum_node_cut(graph))] = True
        order = np.concatenate([order[cut[order]], order[~cut[order]]])
    return order[:count]


def centrality(graph: nx.Graph[Any], placement: Placement) -> tuple[str, Floats]:
    """What `placement` goes by, ``betweenness`` or (also for ``cut``) ``degree``, and its value at every node."""
    nodes = range(graph.number_of_nodes())
    if placement != "betweenness":
        return "degree", np.array([graph.degree[i] for i in nodes], dtype=np.float64)
    import networkx as nx

    found = nx.betweenness_centrality(graph)
    # equal nodes differ in the last bits by the order in which their paths were added up
    return "betweenness", np.array([found[i] for i in nodes]).round(12)


def _highest(values: Floats) -> Ints:
    """Positions by falling value, the lower one first among equals."""
    return np.argsort(-values, kind="stable").astype(np.int64)
