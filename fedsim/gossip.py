"""Gossip participation: sporadic computation and links on a graph, and DSpodFL's delay metric.

Source of both: arXiv 2402.03448 (the metric: section 5).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from fedsim import rng
from fedsim.aggregators import BaseMixing, MixingMatrix
from fedsim.algorithms.base import Algorithm, GossipAlgorithm
from fedsim.errors import InputError
from fedsim.laws import Law, ProbabilityLaw
from fedsim.mixing import is_doubly_stochastic, is_symmetric, mixing_matrix
from fedsim.participation import Arrival, Dispatch, Event, Participation
from fedsim.registry import register
from fedsim.system import Durations
from fedsim.task import Task
from fedsim.topology import Topology

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
_ONE = Law(fixed=1.0)


@dataclass(frozen=True)
class Network:
    """A topology with the mixing matrix of each of its graphs."""

    topology: Topology
    mixings: tuple[BaseMixing, ...]


@register.participation("gossip")
@dataclass(frozen=True, kw_only=True)
class Gossip(Participation):
    """Every round every node mixes over the links that fire, and the nodes whose turn it is compute.

    Parameters
    ----------
    compute : probability d_i that node i computes in a round.
    links : probability b_ij that a link is used in a round, both ways at once (a directed edge by itself).

    Algorithms that always compute or always communicate (DGD, randomized gossip, ...) use these for the delay metric
    only.
    """

    setting: ClassVar[Literal["server", "gossip"]] = "gossip"
    compute: ProbabilityLaw = _ONE
    links: ProbabilityLaw = _ONE

    def events(
        self, task: Task, algorithm: Algorithm, seed: int, start: int, network: Any, durations: Durations | None = None
    ) -> Iterator[Event]:
        assert isinstance(algorithm, GossipAlgorithm)
        assert isinstance(network, Network)
        n = task.num_clients
        nodes, stale = np.arange(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        work, epochs = algorithm.work()
        whole = [MixingMatrix(m.matrix, task.device) for m in network.mixings]
        draws: dict[Any, Floats] = {}
        number = start
        while True:
            number += 1
            which = network.topology.at(number - 1)
            base = network.mixings[which]
            d, b = self._probabilities(draws, base, n, seed, number, which)
            computes = _bernoulli(d, rng.key(seed, "compute", nodes, number), algorithm.indicators["compute"])
            fires = _bernoulli(b, rng.key(seed, "link", *base.links.T, number), algorithm.indicators["links"])
            if number % algorithm.period(d):
                fires = np.zeros_like(fires)
            rounds = np.full(n, number, dtype=np.int64)
            units = work.of(nodes, rounds, seed)
            steps = computes * (units * task.steps_per_epoch(nodes, algorithm.batch_size) if epochs else units)
            yield Dispatch(nodes, rounds, steps)
            mixing = whole[which] if fires.all() else MixingMatrix(base.realised(fires), task.device)
            trace = {"compute": np.flatnonzero(computes), "edges": base.links[fires], "steps": steps}
            yield Arrival(
                number, float(number), nodes, rounds, steps, stale, int(fires[base.entry_links].sum()),
                mixing=mixing, delays=self._delays(base, units * computes, fires, d, b), trace=trace,
            )  # fmt: skip

    def _probabilities(
        self, draws: dict[Any, Floats], base: BaseMixing, n: int, seed: int, number: int, which: int
    ) -> tuple[Floats, Floats]:
        """d ``[n]`` and b ``[links]`` in force in this round; drawn when they change, kept in `draws`."""
        nodes_key, links_key = ("compute", self.compute.epoch(number)), ("links", which, self.links.epoch(number))
        if nodes_key not in draws:
            draws[nodes_key] = self.compute.draw(n, seed, "node", number)
        if links_key not in draws:
            draws[links_key] = self.links.draw(len(base.links), seed, "link", number)
        return draws[nodes_key], draws[links_key]

    def _delays(self, base: BaseMixing, units: Any, fires: Bools, d: Floats, b: Floats) -> tuple[float, float]:
        """(tau_proc, tau_trans) of one iteration, normalised: a round in which everybody computes once and every link
        fires costs 1 + 1.

        Several local steps count as that many computations.
        """
        slow = 1.0 / np.maximum(d, self.compute.floor)
        processing = float((units * slow).sum() / slow.sum())
        per_entry = (1.0 / np.maximum(b, self.links.floor))[base.entry_links] / base.degrees[base.entry_rows]
        if len(per_entry) == 0:
            return processing, 0.0
        return processing, float((per_entry * fires[base.entry_links]).sum() / per_entry.sum())


def _bernoulli(probability: Floats, keys: Any, indicator: str) -> Bools:
    if indicator == "always":
        return np.ones(len(probability), dtype=bool)
    return np.asarray(rng.uniform(keys) < probability)


def build_network(topology: Topology, weights: str, algorithm: GossipAlgorithm) -> Network:
    """Mixing matrices of all graphs of a topology, checked for what the algorithm needs.

    Raises
    ------
    InputError
        The graph is directed where the algorithm needs symmetric weights, or the weights are not doubly stochastic.
    """
    mixings = []
    for graph in topology.graphs:
        matrix = mixing_matrix(graph, weights)
        name = type(algorithm).__name__
        found = "a directed graph" if topology.directed else "asymmetric weights"
        if algorithm.needs_symmetric and not is_symmetric(matrix):
            raise InputError(
                f"{name} needs symmetric mixing weights on an undirected graph: links fire in both directions at once, "
                f"and an idle link's weight stays at home; found {found}. "
                "Allowed: an undirected graph with metropolis, max_degree or lazy weights",
                key="graph" if topology.directed else "weights",
            )
        if not is_doubly_stochastic(matrix):
            raise InputError(
                f"{name} averages over the network only with a doubly stochastic mixing matrix; found '{weights}' "
                "weights whose columns do not sum to 1 on this graph, which would weigh well-connected nodes more. "
                "Allowed: metropolis, max_degree, lazy",
                key="weights",
            )
        mixings.append(BaseMixing(matrix, topology.directed))
    return Network(topology, tuple(mixings))
