"""What a graph and its mixing matrix promise, told in plain numbers."""

from __future__ import annotations

import math
from typing import Any, cast

from fedsim.core.libraries import nx
from fedsim.graphs import spectrum
from fedsim.graphs.cleaning import remarks_of
from fedsim.graphs.mixing import (
    Matrix,
    adjacency,
    chi_1_found,
    chi_2,
    degrees,
    has_bridge,
    is_doubly_stochastic,
    is_symmetric,
    spectral_gap_found,
)
from fedsim.graphs.rates import EXACT_CHI_2


def summary(graph: nx.Graph[Any], W: Matrix) -> dict[str, Any]:
    """What a graph and its mixing matrix promise, as plain numbers; None where something is not defined or too costly.

    Keys: ``nodes``, ``edges``, ``directed``, ``connected``, ``degree_min``, ``degree_mean``, ``degree_max`` (out-degree
    if directed), ``diameter`` (hops), ``spectral_gap``, ``chi_1``, ``chi_2``, ``symmetric``, ``doubly_stochastic``,
    ``latency_ms`` and ``bandwidth_mbps`` (``[min, max]``, where edges have them),
    and ``notes``: why something is None, an estimate, or what reading a
    graph file changed and left unused. Above 5000 nodes ``diameter`` is None and ``diameter_at_least`` and
    ``diameter_at_most`` are given; above 3000 ``chi_2`` is None where it is not quick.
    """
    n = graph.number_of_nodes()
    directed = graph.is_directed()
    connected = bool(nx.is_strongly_connected(cast(Any, graph)) if directed else nx.is_connected(graph))
    A = adjacency(graph)
    degree = degrees(A)
    notes: list[str] = []
    gap, exact = spectral_gap_found(W)
    result: dict[str, Any] = {
        "nodes": n,
        "edges": graph.number_of_edges(),
        "directed": directed,
        "connected": connected,
        "degree_min": int(degree.min()),
        "degree_mean": float(degree.mean()),
        "degree_max": int(degree.max()),
        "diameter": None,
        "spectral_gap": gap,
        "chi_1": None,
        "chi_2": None,
        "symmetric": is_symmetric(W),
        "doubly_stochastic": is_doubly_stochastic(W),
    }
    if math.isnan(gap):
        result["spectral_gap"] = None
        notes.append("spectral_gap: the eigenvalue iteration did not converge")
    elif not exact:
        notes.append("spectral_gap: an estimate, at most that (the iteration did not converge)")
    if not connected:
        notes.append("diameter, chi_1, chi_2: the graph is not connected by itself")
    else:
        low, high = spectrum.diameter(A)
        if n <= spectrum.EXACT_DIAMETER and low == high:
            result["diameter"] = low
        else:
            result |= {"diameter_at_least": low, "diameter_at_most": high}
            notes.append("diameter: too large to search from every node, a lower bound and an upper bound")
    if connected and directed:
        notes.append("chi_1, chi_2: defined for undirected graphs")
    elif connected and n > 1:
        result["chi_1"], exact = chi_1_found(graph)
        if not exact:
            notes.append("chi_1: an estimate, at least that (the iteration did not converge)")
        if n <= EXACT_CHI_2 or has_bridge(graph):
            result["chi_2"] = chi_2(graph)
        else:
            notes.append(f"chi_2: not computed above {EXACT_CHI_2} nodes")
    having = [data for _, _, data in graph.edges(data=True) if data]
    for key in ("latency_ms", "bandwidth_mbps"):
        values = [data[key] for data in having if key in data]
        if values:
            result[key] = [float(min(values)), float(max(values))]
    return {**result, "notes": notes + remarks_of(graph)}
