"""What a kind of graph promises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np

from fedsim.contract.tools import LawBrokenError, global_seed, same_from_yaml
from fedsim.core.errors import InputError
from fedsim.graphs.base import Graph, OwnGraph
from fedsim.graphs.topology import Topology, topology_of

_SIZES = (16, 12, 9, None, 6, 3)
"""Numbers of clients to try: a kind may fit only some, or (None) know its own."""
_SEED, _ROUNDS, _NEAR = 1, 8, 1e-9


def graph_laws(kind: Graph) -> Mapping[str, Callable[[], str]]:
    """Laws of one kind of graph."""
    laws: dict[str, Callable[[], str]] = {
        "a connected graph, a node per client": partial(_nodes, kind),
        "same seed, same graph": partial(_seed, kind),
        "rows of its mixing sum to 1": partial(_mixing, kind),
    }
    if not isinstance(kind, OwnGraph):  # what a function is called with is in the scenario as it was given
        laws["YAML round trip"] = partial(same_from_yaml, kind)
    return laws


def _topology(kind: Graph) -> Topology:
    """On the first of `_SIZES` that it fits; InputError where it fits none."""
    refused: list[InputError] = []
    for size in _SIZES:
        try:
            found, _ = topology_of(kind, None, size, _SEED, Path.cwd(), type(kind).__name__)
        except InputError as error:
            refused.append(error)
            continue
        if size is not None and found.num_nodes != size:
            raise LawBrokenError(f"for {size} clients it has {found.num_nodes} nodes, allowed: as many as clients")
        return found
    raise refused[0]


def _nodes(kind: Graph) -> str:
    topology = _topology(kind)
    for graph in topology.graphs:
        if list(graph.nodes) != list(range(topology.num_nodes)):
            shown = list(graph.nodes)[:5]
            raise LawBrokenError(f"nodes are {shown}, allowed: 0 to {topology.num_nodes - 1} in order (graphs.tidy)")
        if graph.is_multigraph() or nx.number_of_selfloops(graph):
            raise LawBrokenError("it has parallel edges or loops, allowed: one edge between two nodes")
    count = f"{len(topology.graphs)} graphs of " if len(topology.graphs) > 1 else ""
    links = sum(g.number_of_edges() for g in topology.graphs)
    return f"{count}{topology.num_nodes} nodes, {links} {'directed ' if topology.directed else ''}links"


def _seed(kind: Graph) -> str:
    found = []
    for state in (1, 2):
        with global_seed(state):
            found.append([_written(graph) for graph in _topology(kind).graphs])
    if len(found[0]) != len(found[1]):
        raise LawBrokenError(f"it gives {len(found[0])} graphs, then {len(found[1])}")
    for one, other in zip(*found, strict=True):
        for what, first, second in zip(("nodes", "links"), one, other, strict=True):
            if first != second:
                raise LawBrokenError(f"{what} or their attributes differ the second time; draw from the `seed` it gets")
    return "the same nodes, links and attributes"


def _written(graph: nx.Graph[Any]) -> tuple[str, str]:
    return repr(sorted(graph.nodes(data=True))), repr(sorted(graph.edges(data=True), key=lambda e: e[:2]))


def _mixing(kind: Graph) -> str:
    """Where nodes meet anew in every round: whom they hear, the same in every process, and what weighs 1."""
    topology = _topology(kind)
    mixing = topology.mixing
    if mixing is None:
        return "its links stay; weights are the scenario's"
    chance = np.ones(len(mixing.links))
    for number in range(1, _ROUNDS + 1):
        rounds = []
        for state in (1, 2):
            with global_seed(state):
                rounds.append(mixing.realised(mixing.fires(chance, _SEED, number)).toarray())
        if not np.array_equal(*rounds):
            raise LawBrokenError(
                f"round {number} mixes otherwise the second time; draw from rng.key(seed, ..., number)"
            )
        rows, columns = rounds[0].sum(1), rounds[0].sum(0)
        if rounds[0].min() < 0 or np.abs(rows - 1).max() > _NEAR:
            raise LawBrokenError(
                f"in round {number} rows sum to {rows.min():.6g} to {rows.max():.6g} and the least weight is "
                f"{rounds[0].min():.6g}, allowed: weights from 0 on that sum to 1"
            )
        if not mixing.moves_mean and np.abs(columns - 1).max() > _NEAR:
            raise LawBrokenError(f"in round {number} a column sums to {columns.max():.6g}; say `moves_mean = True`")
    return f"{_ROUNDS} rounds"
