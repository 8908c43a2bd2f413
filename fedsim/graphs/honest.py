"""What attackers are to a graph: how much of them its honest nodes hear, and what is left without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.core.arrays import Floats, Ints
from fedsim.core.errors import InputError
from fedsim.core.libraries import sparse
from fedsim.graphs.cleaning import components
from fedsim.graphs.mixing import spectral_gap
from fedsim.graphs.network import Network


@dataclass(frozen=True)
class HonestGraph:
    """The honest nodes of a graph, or of graphs that take turns.

    Attributes
    ----------
    nodes
        The honest nodes, ascending ``[h]``.
    heard
        Attackers among those that each of them receives from ``[h]``, the most in any of the graphs.
    weight
        The mixing weight of these together ``[h]``; its largest is ``delta_max``.
    pieces
        The parts into which the honest nodes fall without the attackers; one where they are connected.
    gap
        The spectral gap of the mixing matrix in which attackers' weight stays at home, of the first graph; 0 where the
        honest nodes are not connected.
    """

    nodes: Ints
    heard: Ints
    weight: Floats
    pieces: tuple[tuple[int, ...], ...]
    gap: float

    @property
    def connected(self) -> bool:
        return len(self.pieces) == 1

    @property
    def delta_max(self) -> float:
        return float(self.weight.max())


def check_connected(network: Network, attackers: Sequence[int]) -> None:
    """Raise InputError where the honest nodes are not connected without the attackers."""
    pieces = _pieces(network, np.isin(np.arange(network.topology.num_nodes), attackers))
    if len(pieces) == 1:
        return
    shown = "; ".join("{" + ", ".join(map(str, p[:5])) + (", ..." if len(p) > 5 else "") + "}" for p in pieces[:3])
    more = f" and {len(pieces) - 3} more" if len(pieces) > 3 else ""
    raise InputError(
        f"without the attackers the honest nodes fall into {len(pieces)} parts, {shown}{more}, which no rule brings "
        "together; allowed: fewer attackers, other ones, or allow_disconnected: true",
        key="attack.attackers",
    )


def honest_graph(network: Network, attackers: Sequence[int]) -> HonestGraph:
    """The honest part of `network`."""
    n = network.topology.num_nodes
    evil = np.isin(np.arange(n), attackers)
    nodes = np.flatnonzero(~evil)
    heard, weight = np.zeros(len(nodes), dtype=np.int64), np.zeros(len(nodes))
    for mixing in network.mixings:
        off = sparse.coo_array(mixing.matrix)
        reaches = (off.row != off.col) & evil[off.col] & ~evil[off.row]
        heard = np.maximum(heard, np.bincount(off.row[reaches], minlength=n)[nodes])
        weight = np.maximum(weight, np.bincount(off.row[reaches], off.data[reaches], minlength=n)[nodes])
    pieces = _pieces(network, evil)
    gap = spectral_gap(honest_matrix(network.mixings[0].matrix, evil)) if len(pieces) == 1 else 0.0
    return HonestGraph(nodes, heard, weight, pieces, gap)


def honest_matrix(matrix: Any, evil: Any) -> Any:
    """What honest nodes would do if the weight of attackers stayed at home: ``w_ii + sum_{j evil} w_ij`` on the
    diagonal, csr ``[h, h]``; `evil` ``[n]`` says who attacks."""
    nodes = np.flatnonzero(~evil)
    rows = sparse.csr_array(matrix)[nodes]
    stays = np.asarray(rows[:, np.flatnonzero(evil)].sum(axis=1)).reshape(-1)
    return sparse.csr_array(rows[:, nodes] + sparse.diags_array(stays))


def _pieces(network: Network, evil: Any) -> tuple[tuple[int, ...], ...]:
    """Nodes of the connected parts, the largest first, of the union of all graphs without attackers."""
    graphs = network.topology.graphs
    ends = np.concatenate([np.array(list(g.edges()), dtype=np.int64).reshape(-1, 2) for g in graphs])
    ends = ends[~evil[ends].any(axis=1)]
    nodes = np.flatnonzero(~evil)
    _, member = components(len(evil), ends, network.topology.directed)
    found: dict[int, list[int]] = {}
    for node in nodes.tolist():
        found.setdefault(int(member[node]), []).append(node)
    return tuple(tuple(p) for p in sorted(found.values(), key=lambda p: (-len(p), p[0])))
