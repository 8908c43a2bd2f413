"""Graphs that take turns, with the same node under the same number in all of them.

Every file numbers its nodes in its own order. What is the same node in two files is what has the same name there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from fedsim.core.errors import InputError
from fedsim.core.libraries import nx
from fedsim.graphs.cleaning import REMARKS, numbering, remarks_of

_SHOWN = 5


def matched(graphs: Sequence[nx.Graph[Any]], named: Sequence[bool], places: Sequence[str]) -> list[nx.Graph[Any]]:
    """`graphs` whose nodes of one name have one number; those that one lacks are in it without links.

    The numbers are those of the first graph, new nodes of later ones after them. Graphs that are only numbered, as
    generated ones and files that call their nodes 0 to n - 1, keep their numbers, unless one that is named has some of
    these names.

    Parameters
    ----------
    graphs, named : simple graphs on ``0 .. n-1``, and whether their labels are names that somebody gave.
    places : what messages call each graph.

    Raises
    ------
    InputError
        Two nodes of a graph have one name, so that nobody can tell which is which in the others.
    """
    called = [_names(graph) for graph in graphs]
    numbers = [names == list(map(str, range(len(names)))) for names in called]
    own = {name for names, n, plain in zip(called, named, numbers, strict=True) if n and not plain for name in names}
    which = [k for k, plain in enumerate(numbers) if named[k] and (not plain or not own or own & set(called[k]))]
    if all(called[k] == called[which[0]] for k in which):
        return list(graphs)
    for k in which:
        twice = [name for name, count in Counter(called[k]).items() if count > 1]
        if twice:
            message = f"found two nodes called '{twice[0]}' in {places[k]}, but nodes of graphs that take turns are"
            raise InputError(f"{message} matched by their names; allowed: a label or name for each", key="graphs")
    order = numbering(list(dict.fromkeys(name for k in which for name in called[k])))
    about = {name: graphs[k].nodes[i] for k in reversed(which) for i, name in enumerate(called[k])}
    found, said = list(graphs), []
    for k in which:
        found[k] = _numbered(graphs[k], called[k], order, about)
        lacks = [f"'{name}'" for name in order if name not in set(called[k])]
        if lacks:
            more = f" and {len(lacks) - _SHOWN} more" if len(lacks) > _SHOWN else ""
            said.append(f"{places[k]} lacks {', '.join(lacks[:_SHOWN])}{more}: without links while it is in force")
    if said:
        found[0].graph[REMARKS] = "\n".join([*remarks_of(found[0]), *said])
    return found


def _names(graph: nx.Graph[Any]) -> list[str]:
    return [str(graph.nodes[i].get("label", i)) for i in range(graph.number_of_nodes())]


def _numbered(
    graph: nx.Graph[Any], called: list[str], order: dict[Any, int], about: dict[str, dict[str, Any]]
) -> nx.Graph[Any]:
    """`graph` with the numbers of `order`, and the nodes that it lacks as others describe them (`about`)."""
    found = type(graph)()
    found.graph.update(graph.graph)
    own = dict(zip(called, (graph.nodes[i] for i in range(len(called))), strict=True))
    for name, number in sorted(order.items(), key=lambda item: item[1]):
        found.add_node(number, **own.get(name, about[name]))
    found.add_edges_from((order[called[u]], order[called[v]], data) for u, v, data in graph.edges(data=True))
    return found
