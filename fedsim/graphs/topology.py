"""Graphs of nodes: generators, files and sequences of graphs, and what a scenario's ``topology:`` section means.

A graph here is simple, has nodes ``0 .. n-1`` (names stay in the node attribute ``label``) and is connected, strongly
where it is directed; of a sequence only the union must be. On a directed graph u -> v means v receives from u.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.core import rng
from fedsim.core.errors import InputError
from fedsim.core.fields import part_from
from fedsim.core.libraries import nx
from fedsim.core.registry import lookup, names, register
from fedsim.core.types import Count
from fedsim.graphs import peers as peers  # registers them
from fedsim.graphs import random_graphs as random_graphs
from fedsim.graphs.base import Graph
from fedsim.graphs.cleaning import components, labels, remarks_of
from fedsim.graphs.edge_values import Weight
from fedsim.graphs.files import GraphFile
from fedsim.graphs.generators import Generated as Generated
from fedsim.graphs.matching import matched
from fedsim.graphs.mixing import mixing_matrix, of_file
from fedsim.graphs.mixing_matrix import BaseMixing
from fedsim.graphs.presence import Presence

OWN = "its own"
"""What the weights of nodes are called that meet anew in every round."""


@dataclass(frozen=True)
class Topology:
    """A graph, or several that take turns: graph ``(round // every) % len(graphs)`` is in force in `round`."""

    graphs: tuple[nx.Graph[Any], ...]
    every: int = 1
    name: str = "graph"
    names: tuple[str, ...] | None = None
    """What a file or somebody's own graph calls its nodes; None where they are only numbered."""

    mixing: BaseMixing | None = None
    """Where nodes meet anew in every round: who, and how they mix."""
    presence: Presence | None = None
    """When links and nodes are there; None: always."""

    def matrix(self, weights: str) -> Any:
        """The mixing matrix ``[n, n]`` of the first graph; of nodes that meet anew in every round, on average."""
        return mixing_matrix(self.graphs[0], weights) if self.mixing is None else self.mixing.matrix

    def at(self, round: int) -> int:
        """Index into `graphs` of the one in force in `round` (from 0)."""
        return (round // self.every) % len(self.graphs)

    @property
    def num_nodes(self) -> int:
        return self.graphs[0].number_of_nodes()

    @property
    def directed(self) -> bool:
        return self.graphs[0].is_directed()


def topology_of(
    kind: Graph, weights: str | None, n: int | None, seed: int, base: Path, name: str, columns: bool = False
) -> tuple[Topology, str]:
    """The topology that a scenario's ``topology:`` section describes, and the name of its mixing weights.

    Parameters
    ----------
    kind : the kind of graph.
    weights : the rule that the section names; None: ``metropolis`` on undirected graphs, ``uniform`` on directed ones.
    columns : for an algorithm to which a column-stochastic matrix will do, and ``push`` is the rule on directed graphs.
    n : the number of clients; None when there are none, and the graph must know its own size.
    seed : for random graphs.
    base : the folder that relative paths are relative to.
    name : what the graph is called; a file's graph has the file's name.

    Raises
    ------
    InputError
        A file that cannot be read, a size that does not fit, or a graph that is not connected.
    """
    kind = kind.located(base)
    graphs = (_weighing(kind) if of_file(weights) else kind).build(n, seed)
    presence = kind.presence(graphs)
    _check_connected(graphs, kind)
    default = ("push" if columns else "uniform") if graphs[0].is_directed() else "metropolis"
    name = Path(kind.path).stem if isinstance(kind, GraphFile) else name
    mixing = kind.mixing(graphs[0].number_of_nodes())
    if mixing is not None and weights is not None:
        raise InputError(f"found '{weights}', but '{name}' has weights of its own; allowed: remove it", key="weights")
    rule = OWN if mixing is not None else weights or default
    return Topology(tuple(graphs), getattr(kind, "every", 1), name, _names(kind, graphs), mixing, presence), rule


def build_topology(section: Mapping[str, Any], n: int | None, seed: int, base: Path) -> tuple[Topology, str]:
    """`topology_of` what a mapping ``{graph: NAME, weights: RULE, ...fields of the graph}`` says."""
    if "graph" not in section:
        raise InputError(
            f"found {section!r}, allowed: a mapping with the key 'graph' (one of {', '.join(names('graph'))})"
        )
    if "weights" in section:
        try:
            lookup("mixing", section["weights"])
        except InputError as error:
            raise error.under("weights") from None
    kind = part_from("graph", "graph", {k: v for k, v in section.items() if k != "weights"})
    return topology_of(kind, section.get("weights"), n, seed, base, str(section["graph"]))


@register.graph("sequence")
@dataclass(frozen=True, kw_only=True)
class Sequence(Graph):
    """Graphs that take turns, `every` rounds each; only their union must be connected.

    Nodes of files are matched by their names (see `fedsim.graphs.matching`).
    """

    graphs: list[dict[str, Any]]
    every: Count = 1
    kinds: tuple[Graph, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.graphs:
            raise InputError("found an empty list, allowed: one or more mappings {graph: ..., ...}", key="graphs")
        kinds: list[Graph] = []
        for index, section in enumerate(self.graphs):
            try:
                if section.get("graph") == "sequence":
                    raise InputError("a sequence cannot hold a sequence; list its graphs instead", key="graph")
                kinds.append(part_from("graph", "graph", section))
                if type(kinds[-1]).mixing is not Graph.mixing:
                    message = f"'{section['graph']}' draws peers in every round, and cannot take turns with others"
                    raise InputError(message, key="graph")
                if getattr(kinds[-1], "spells", None) is not None:
                    message = "found a graph whose links come and go in a sequence; allowed: one of the two"
                    raise InputError(message, key="spells")
            except InputError as error:
                raise error.under(f"graphs.{index}") from None
        object.__setattr__(self, "kinds", tuple(kinds))

    def located(self, base: Path) -> Sequence:
        found = copy(self)
        object.__setattr__(found, "kinds", tuple(kind.located(base) for kind in self.kinds))
        return found

    def build(self, n: int | None, seed: int) -> list[nx.Graph[Any]]:
        built: list[list[nx.Graph[Any]]] = []
        for index, kind in enumerate(self.kinds):
            size = None if isinstance(kind, GraphFile) else n  # a file may lack nodes that are in others
            try:
                built.append(kind.build(size, int(rng.key(seed, "topology", index)[0])))
            except InputError as error:
                raise error.under(f"graphs.{index}") from None
        owners = [(index, graph) for index, graphs in enumerate(built) for graph in graphs]
        found = matched(
            [graph for _, graph in owners],
            [not isinstance(self.kinds[index], Generated) for index, _ in owners],
            [f"graphs.{index}" for index, _ in owners],
        )
        self._check(found, n)
        repeats = [getattr(self.kinds[index], "every", 1) for index, _ in owners]
        return [graph for graph, times in zip(found, repeats, strict=True) for _ in range(times)]

    def _check(self, graphs: list[nx.Graph[Any]], n: int | None) -> None:
        """Raise InputError where graphs do not fit each other, or `n` clients."""
        for what, values in (
            ("numbers of nodes", {str(g.number_of_nodes()) for g in graphs}),
            ("kinds", {"directed" if g.is_directed() else "undirected" for g in graphs}),
        ):
            if len(values) > 1:
                message = f"found graphs of different {what} ({', '.join(sorted(values))}); allowed: all the same"
                raise InputError(message, key="graphs")
        found = graphs[0].number_of_nodes()
        if n is not None and found != n:
            lacking = "; ".join(line for line in remarks_of(graphs[0]) if line.startswith("graphs."))
            message = f"the graphs have {found} nodes together, but there are {n} clients"
            raise InputError(f"{message}{f': {lacking}' if lacking else ''}", key="graphs")


def _weighing(kind: Graph) -> Graph:
    """`kind` with the mixing weights of its files read; the attribute is ``weight`` where no key names another."""
    if isinstance(kind, GraphFile) and kind.weight is None:
        return replace(kind, weight=Weight())
    if isinstance(kind, Sequence):
        found = copy(kind)
        object.__setattr__(found, "kinds", tuple(_weighing(inner) for inner in kind.kinds))
        return found
    return kind


def _names(kind: Graph, graphs: list[nx.Graph[Any]]) -> tuple[str, ...] | None:
    """What the nodes are called; None where they are only numbered, as those of generated graphs."""
    if isinstance(kind, Generated):
        return None
    found = tuple(labels(graphs[0]))
    return None if found == tuple(map(str, range(len(found)))) else found


def _check_connected(graphs: list[nx.Graph[Any]], kind: Graph) -> None:
    n, directed = graphs[0].number_of_nodes(), graphs[0].is_directed()
    ends = np.concatenate([np.array(list(g.edges()), dtype=np.int64).reshape(-1, 2) for g in graphs])
    count, member = components(n, ends, directed)
    if count == 1:
        return
    order = np.argsort(member, kind="stable")
    pieces = np.split(order, np.flatnonzero(np.diff(member[order])) + 1)
    parts = sorted(pieces, key=lambda c: (-len(c), int(c[0])))
    names = labels(graphs[0]) if n <= 100_000 else list(map(str, range(n)))
    shown = [", ".join(names[i] for i in c[:5]) + (f", ... ({len(c)} nodes)" if len(c) > 5 else "") for c in parts[:5]]
    more = f" and {len(parts) - 5} more" if len(parts) > 5 else ""
    what = "the graph" if len(graphs) == 1 else "the union of the sequence"
    files = [one.path for one in getattr(kind, "kinds", (kind,)) if isinstance(one, GraphFile)]
    what += f" of {', '.join(dict.fromkeys(files))}" if files else ""
    strongly = "strongly " if directed else ""
    message = f"{what} is not {strongly}connected; its {count} components: {'; '.join(f'{{{s}}}' for s in shown)}{more}"
    if isinstance(kind, GraphFile):
        ways = ["directed: false lets its edges work both ways"] if directed else []
        message += f"; {', '.join([*ways, 'component: largest keeps the largest'])}"
    raise InputError(message, key="graph")
