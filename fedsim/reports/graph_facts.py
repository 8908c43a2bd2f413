"""``fedsim.topology``: what ``fedsim topology`` prints and draws, for programs and notebooks."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.core.documents import flow
from fedsim.core.errors import InputError
from fedsim.core.registry import spelled
from fedsim.reports.plan import describe_topology, scenario_topology
from fedsim.scenario.load import given
from fedsim.scenario.sections import Scenario

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class GraphFacts:
    """A graph and what is known of it.

    Attributes
    ----------
    name : what it is called.
    facts : spectral gap, diameter, degrees, ... by the names that ``fedsim topology`` prints.
    graph : the networkx graph; of a sequence the first.
    """

    name: str
    facts: Mapping[str, Any]
    graph: Any

    def plot(self) -> Figure:
        """The picture; a notebook shows it, ``figure.savefig`` writes it."""
        from fedsim.figures.topology import topology_figure

        return topology_figure(self.graph, self.name)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(k)}</td><td>{html.escape(str(v))}</td></tr>" for k, v in self.facts.items()
        )
        return f"<div><b>{html.escape(self.name)}</b><table><tbody>{rows}</tbody></table></div>"


def topology(
    what: str | Path | Scenario | Mapping[str, Any] | Callable[..., Any],
    nodes: int | None = None,
    weights: str | None = None,
    **keys: Any,
) -> GraphFacts:
    """Facts and the graph of a registered graph, a graph file, or a scenario's topology.

    Parameters
    ----------
    what : the name of a graph, a class or function of one's own that makes one, a file of one, a scenario's file, or a
        scenario itself.
    nodes : how many there are, of a name.
    weights : mixing weights, of a name or a file.
    **keys : keys of the graph: ``topology("random_geometric", 20, radius=0.4)``.

    Raises
    ------
    InputError
        No such graph, file or key, or the graph is not connected.
    """
    if isinstance(what, (Scenario, Mapping)):
        more = {"nodes": nodes, "weights": weights, **keys}
        if found := [name for name, value in more.items() if value is not None]:
            raise InputError(f"found {', '.join(found)} with a scenario, which says that itself; allowed: leave it out")
        facts, graph = scenario_topology(given(what))
    else:
        if nodes is not None and (isinstance(nodes, bool) or not isinstance(nodes, Integral)):
            raise InputError(f"found {nodes!r}, allowed: a whole number", key="nodes")
        nodes = None if nodes is None else int(nodes)
        keys = {k: v.item() if isinstance(v, np.generic) else v for k, v in keys.items()}
        facts, graph = describe_topology(
            str(spelled(what)), nodes, [f"{k}={flow(v)}" for k, v in keys.items()], weights
        )
    return GraphFacts(str(facts.pop("name")), facts, graph)
