"""Gossip participation: sporadic computation and links on a graph, and DSpodFL's delay metric.

Source of both: arXiv 2402.03448 (the metric: section 5).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar, Literal

import numpy as np

from fedsim.algorithms.base import Algorithm, GossipAlgorithm
from fedsim.core import rng
from fedsim.core.arrays import Bools, Floats, Ints
from fedsim.core.clock import TICKS_PER_SECOND, seconds
from fedsim.core.oracle import Task
from fedsim.core.registry import register
from fedsim.devices.system import Durations
from fedsim.graphs.mixing_matrix import BaseMixing, MixingMatrix
from fedsim.graphs.network import Network
from fedsim.participation.base import Arrival, Dispatch, Event, Participation
from fedsim.participation.laws import Law, ProbabilityLaw

_ONE = Law(fixed=1.0)


@register.participation("gossip")
@dataclass(frozen=True, kw_only=True)
class Gossip(Participation):
    """Every round every node mixes over the links that fire, and the nodes whose turn it is compute.

    Parameters
    ----------
    compute : probability d_i that node i computes in a round.
    links : probability b_ij that a link is used in a round, both ways at once (a directed edge by itself).

    Algorithms that always compute or always communicate (DGD, randomized gossip, ...) use these for the delay metric
    only. In virtual time a round lasts until the slowest node that computes is done, and then until the slowest link
    that fires has carried its message (see `system` and the latencies of graph files); without either, 1 second.
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
        whole = [MixingMatrix(m.matrix, task.device) for m in network.mixings]
        draws: dict[Any, Floats] = {}

        def realise(number: int) -> tuple[int, Floats, Floats, Bools, Bools, Ints, Ints]:
            """The graph, d, b, who computes, what fires, and the local work of a round."""
            which = network.topology.at(number - 1)
            links = network.mixings[which].links
            d, b = self._probabilities(draws, network.mixings[which], n, seed, number, which)
            computes = _bernoulli(d, rng.key(seed, "compute", nodes, number), algorithm.indicators["compute"])
            fires = _bernoulli(b, rng.key(seed, "link", *links.T, number), algorithm.indicators["links"])
            if number % algorithm.period(d):
                fires = np.zeros_like(fires)
            units, per_unit = algorithm.steps_by_unit(task, nodes, np.full(n, number, dtype=np.int64), seed)
            units = computes * units
            return which, d, b, computes, fires, units, units * per_unit

        def length(number: int, which: int, fires: Bools, steps: Ints) -> int:
            """Ticks of a round: the slowest computation, then the slowest link."""
            if durations is None:
                return TICKS_PER_SECOND
            slowest_link = int(durations.links[which][fires].max(initial=0)) if durations.links else 0
            return max(durations.longest(np.flatnonzero(steps), number - 1, steps) + slowest_link, 1)

        def ends(number: int, now: int, steps: Ints) -> list[int]:
            """Ticks at which nodes are done with their local work."""
            if durations is None:
                return [now + TICKS_PER_SECOND * (k > 0) for k in steps.tolist()]
            return [now + durations.of(i, number - 1, k) if k else now for i, k in enumerate(steps.tolist())]

        now = 0
        for number in range(1, start + 1) if durations is not None else ():
            which, _, _, _, fires, _, steps = realise(number)
            now += length(number, which, fires, steps)
        now = now if durations is not None else start * TICKS_PER_SECOND
        for number in count(start + 1):
            which, d, b, computes, fires, units, steps = realise(number)
            base, rounds = network.mixings[which], np.full(n, number, dtype=np.int64)
            yield Dispatch(nodes, rounds, steps, start=now, ends=ends(number, now, steps))
            mixing = whole[which] if fires.all() else MixingMatrix(base.realised(fires), task.device)
            trace = {"compute": np.flatnonzero(computes), "edges": base.links[fires], "steps": steps}
            now += length(number, which, fires, steps)
            delays = normalised_delays(
                base, units, fires, np.maximum(d, self.compute.floor), np.maximum(b, self.links.floor)
            )
            yield Arrival(
                number, seconds(now), nodes, rounds, steps, stale, int(fires[base.entry_links].sum()),
                mixing=mixing, delays=delays, trace=trace,
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


def normalised_delays(base: BaseMixing, units: Any, fires: Any, d: Floats, b: Floats) -> tuple[float, float]:
    """(tau_proc, tau_trans) of one round, normalised: one in which everybody computes once and every link fires once
    costs 1 + 1.

    `units` ``[n]`` computations and `fires` ``[links]`` uses, each costing one over its `d` and `b` (above 0). Several
    local steps count as that many computations.
    """
    processing = float((units / d).sum() / (1.0 / d).sum())
    per_entry = (1.0 / b)[base.entry_links] / base.degrees[base.entry_rows]
    if len(per_entry) == 0:
        return processing, 0.0
    return processing, float((per_entry * fires[base.entry_links]).sum() / per_entry.sum())


def _bernoulli(probability: Floats, keys: Any, indicator: str) -> Bools:
    if indicator == "always":
        return np.ones(len(probability), dtype=bool)
    return np.asarray(rng.uniform(keys) < probability)
