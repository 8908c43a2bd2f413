"""A topology with the mixing matrix of each of its graphs, checked for what an algorithm needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedsim.core.arrays import Floats, Ints
from fedsim.core.clock import TICKS_PER_SECOND
from fedsim.core.errors import InputError
from fedsim.core.libraries import sparse
from fedsim.graphs.mixing import TOLERANCE, check_mixing, is_doubly_stochastic, is_symmetric, mixing_matrix
from fedsim.graphs.mixing_matrix import BaseMixing
from fedsim.graphs.presence import There
from fedsim.graphs.push import PushMixing
from fedsim.graphs.rates import chi
from fedsim.graphs.topology import Topology

_COME_AND_GO = ("metropolis", "max_degree", "lazy", "file")
"""Rules whose matrix is doubly stochastic whatever links there are."""
_KEPT = 8
_LONGEST = 3e7
"""Seconds of a message over a link (a year); ticks of links are 64-bit integers."""


@dataclass(frozen=True)
class Network:
    """A topology with the mixing matrix of each of its graphs."""

    topology: Topology
    mixings: tuple[BaseMixing, ...]
    weights: str = ""
    _kept: dict[bytes, BaseMixing] = field(default_factory=dict, repr=False, compare=False)

    @property
    def changes(self) -> bool:
        """Whether nodes do not have the same neighbours in all rounds."""
        return len(self.mixings) > 1 or self.mixings[0].redrawn or self.topology.presence is not None

    def among(self, there: There) -> BaseMixing:
        """The mixing matrix of the links that are there, by the rule of the weights; nodes that are away keep theirs.

        Where every link is, it is that of the whole graph itself. Links are in the order of the whole graph's.
        """
        whole, presence = self.mixings[0], self.topology.presence
        if presence is None or there.links.all():
            return whole
        key = np.packbits(there.links).tobytes()
        if key not in self._kept:
            if len(self._kept) >= _KEPT:
                self._kept.pop(next(iter(self._kept)))
            matrix = mixing_matrix(presence.subgraph(there.links), self.weights) if there.links.any() else None
            self._kept[key] = BaseMixing(sparse.eye_array(whole.n, format="csr") if matrix is None else matrix, False)
        return self._kept[key]

    def chi(self, rates: Floats) -> tuple[float, float]:
        """(chi_1, chi_2) of the first graph with its links weighted by their rates ``[links]``; see `rates.chi`."""
        return chi(self.mixings[0].n, self.mixings[0].links, rates * self.mixings[0].share)

    def link_ticks(self, message_bytes: int) -> list[Ints]:
        """Ticks of one message over each link of each graph: latency_ms + bytes / bandwidth_mbps; 0 where unknown."""
        return [
            np.array([_link_ticks(graph.edges[u, v], message_bytes) for u, v in mixing.links.tolist()], dtype=np.int64)
            if any("latency_ms" in data or "bandwidth_mbps" in data for *_, data in graph.edges(data=True))
            else np.zeros(len(mixing.links), dtype=np.int64)
            for graph, mixing in zip(self.topology.graphs, self.mixings, strict=True)
        ]


def build_network(topology: Topology, weights: str, name: str, needs_symmetric: bool, columns: bool = False) -> Network:
    """Mixing matrices of all graphs of a topology, checked for what the algorithm called `name` needs.

    `columns`: it is enough that their columns sum to 1.

    Raises
    ------
    InputError
        The graph is directed where the algorithm needs symmetric weights, or the weights are not doubly stochastic.
    """
    if topology.mixing is not None:
        if (needs_symmetric or columns) and topology.mixing.moves_mean:
            message = f"{name} needs links that work both ways, found pulls; allowed: symmetric: true"
            raise InputError(message, key="symmetric")
        return Network(topology, (topology.mixing,))
    if topology.presence is not None and weights not in _COME_AND_GO:
        message = f"found '{weights}', but links come and go, and its columns need not sum to 1 while some are away"
        raise InputError(f"{message}; allowed: {', '.join(_COME_AND_GO)}", key="weights")
    mixings: list[BaseMixing] = []
    for graph in topology.graphs:
        matrix = mixing_matrix(graph, weights)
        found = "a directed graph" if topology.directed else "asymmetric weights"
        if needs_symmetric and not is_symmetric(matrix):
            raise InputError(
                f"{name} needs symmetric mixing weights on an undirected graph: links fire in both directions at once, "
                f"and an idle link's weight stays at home; found {found}. "
                "Allowed: an undirected graph (directed: false reads the edges of a file so) with metropolis, "
                "max_degree or lazy weights",
                key="graph" if topology.directed else "weights",
            )
        if columns:
            mixings.append(_pushing(matrix, topology.directed, weights, name))
            continue
        if not is_doubly_stochastic(matrix):
            rows = np.abs(np.asarray(matrix.sum(axis=1)).ravel() - 1.0).max() <= TOLERANCE
            uneven = "columns" if rows else "rows"
            raise InputError(
                f"{name} averages over the network only with a doubly stochastic mixing matrix; found '{weights}' "
                f"weights whose {uneven} do not sum to 1 on this graph, which would weigh well-connected nodes more. "
                "Allowed: metropolis, max_degree, lazy, or the algorithms sgp and push_diging with push",
                key="weights",
            )
        mixings.append(BaseMixing(matrix, topology.directed))
    return Network(topology, tuple(mixings), weights)


def _pushing(matrix: Any, directed: bool, weights: str, name: str) -> PushMixing:
    """Mixing for an algorithm that divides by its weights."""
    try:
        check_mixing(matrix, doubly_stochastic=False, columns=True)
    except InputError as error:
        found = f"{name} needs weights that sum to 1 over what every node sends"
        found = f"{found}, and with '{weights}' {error.problems[0].message}"
        message = f"{found}; allowed: push, push_file, or weights of an undirected graph such as metropolis"
        raise InputError(message, key="weights") from None
    return PushMixing(matrix, directed)


def _link_ticks(edge: Mapping[str, Any], message_bytes: int) -> int:
    """Latency and transfer time of one message over an edge of a graph file."""
    transfer = 8 * message_bytes / (float(edge["bandwidth_mbps"]) * 1e6) if "bandwidth_mbps" in edge else 0.0
    time = float(edge.get("latency_ms", 0.0)) / 1e3 + transfer
    if time > _LONGEST:
        raise InputError(f"a message takes {time:.3g} s over a link, allowed: at most {_LONGEST:.2g} s", key="topology")
    return round(time * TICKS_PER_SECOND)
