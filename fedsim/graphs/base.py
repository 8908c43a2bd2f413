"""What a kind of graph is: a part that ``topology: {graph: NAME, ...}`` names, or somebody's own function."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedsim.core.errors import InputError
from fedsim.core.libraries import nx
from fedsim.core.registry import Part
from fedsim.graphs.cleaning import remarks_of, tidy
from fedsim.graphs.matching import matched
from fedsim.graphs.mixing_matrix import BaseMixing
from fedsim.graphs.presence import Presence


@dataclass(frozen=True, kw_only=True)
class Graph(Part, ABC):
    """One kind of graph; its fields are its keys in a scenario."""

    @abstractmethod
    def build(self, n: int | None, seed: int) -> list[nx.Graph[Any]]:
        """One graph, or a sequence of them, on `n` nodes (None: as many as the graph itself says)."""

    def mixing(self, n: int) -> BaseMixing | None:
        """Who meets whom in a round of `n` nodes and how they mix, where no links and weights say so for all rounds."""
        return None

    def presence(self, graphs: list[nx.Graph[Any]]) -> Presence | None:
        """When the links and nodes of what `build` gave are there (None: always); asked once."""
        return None

    def located(self, base: Path) -> Graph:
        """The same with its relative paths relative to the folder `base`."""
        return self

    @classmethod
    def from_function(cls, name: str, function: Any, keys: Mapping[str, Any]) -> Graph:
        """The graph that somebody's own ``function(n, seed, ...)`` makes; InputError where `keys` do not fit it."""
        if not callable(function):
            raise InputError(f"'{name}' is {type(function).__name__}, not a function of n, seed and the keys given")
        try:
            inspect.signature(function).bind(2, 0, **keys)
        except TypeError as error:
            raise InputError(f"'{name}' cannot be called with n, seed and the keys given: {error}") from None
        except ValueError:  # some built-in callables have no signature
            pass
        return OwnGraph(called=name, function=function, keys=keys)


@dataclass(frozen=True, kw_only=True)
class OwnGraph(Graph):
    """What somebody's own `function` makes: called with ``n``, ``seed`` and the keys, a networkx graph or a list."""

    called: str
    function: Callable[..., Any]
    keys: Mapping[str, Any]

    @property
    def given_keys(self) -> dict[str, Any]:
        """The keys as the scenario has them."""
        return dict(self.keys)

    def build(self, n: int | None, seed: int) -> list[nx.Graph[Any]]:
        name = self.called
        try:
            result = self.function(n, seed, **self.keys)
        except InputError:
            raise
        except Exception as error:  # somebody's own code may fail in any way
            raise InputError(f"'{name}' failed: {type(error).__name__}: {error}", key="graph") from error
        graphs = [result] if isinstance(result, nx.Graph) else list(result) if isinstance(result, list | tuple) else []
        if not graphs or not all(isinstance(g, nx.Graph) for g in graphs):
            found = type(result).__name__
            raise InputError(f"'{name}' returned {found}, allowed: a networkx graph or a list of them", key="graph")
        sizes = {g.number_of_nodes() for g in graphs}
        if len(sizes) > 1 or (n is not None and sizes != {n}):
            message = f"'{name}' returned graphs of {sorted(sizes)} nodes, allowed: {n or 'all the same number'}"
            raise InputError(message, key="graph")
        try:
            places = [f"graph {k}" for k in range(len(graphs))]
            same = matched([tidy(g) for g in graphs], [True] * len(graphs), places)
        except InputError as error:
            raise InputError(replace(p, key="graph") for p in error.problems) from None
        if same[0].number_of_nodes() != graphs[0].number_of_nodes():
            message = f"'{name}' returned graphs whose nodes have different names ({remarks_of(same[0])[0]})"
            raise InputError(f"{message}; allowed: the same in all", key="graph")
        return same
