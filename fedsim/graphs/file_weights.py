"""Mixing by the weights that a graph file's edges have."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsim.core.errors import InputError
from fedsim.core.libraries import nx, sparse


def weights_of_file(graph: nx.Graph[Any], name: str, tolerance: float, sent: bool) -> Any:
    """The sparse matrix ``[n, n]`` of the rule called `name`: the weight of u -> v is what v gives to u's value.

    Each node keeps what its row leaves of 1; where it `sent` by these weights, what its column does.

    Raises
    ------
    InputError
        An edge has no weight, or the weights at a node sum to more than 1, by more than `tolerance`.
    """
    found = [(u, v, data["mixing_weight"]) for u, v, data in graph.edges(data=True) if "mixing_weight" in data]
    if len(found) < graph.number_of_edges() or not found:
        raise InputError(
            f"'{name}' takes the weights of a graph file's edges; allowed: graph: file, with "
            "weight: {attribute: NAME} where the attribute is not called weight"
        )
    u, v, weight = (np.array(column) for column in zip(*found, strict=True))
    u, v = u.astype(np.int64), v.astype(np.int64)
    rows, columns = (v, u) if graph.is_directed() else (np.concatenate([u, v]), np.concatenate([v, u]))
    n = graph.number_of_nodes()
    off = sparse.coo_array((weight if graph.is_directed() else np.tile(weight, 2), (rows, columns)), shape=(n, n))
    sums = np.asarray(sparse.csr_array(off.T if sent else off).sum(axis=1)).ravel()
    worst = int(np.argmax(sums))
    if sums[worst] > 1.0 + tolerance:
        called = repr(graph.nodes[worst].get("label", worst))
        what = f"the weights that node {called} sends with" if sent else f"the weights at node {called}"
        raise InputError(f"{what} sum to {sums[worst]:.6g}, allowed: at most 1")
    kept = np.maximum(1.0 - sums, 0.0)
    return sparse.csr_array(sparse.csr_array(off) + sparse.diags_array(kept, format="csr"))
