"""Events of continuous time in levels few of which need rows of other shards.

A level holds events no two of which share a node. Those whose nodes are all in one shard cost no message, so it pays to
keep the others back until several of them can be carried out together: every exchange between shards is a round trip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from fedsim.core.arrays import Floats, Ints


@dataclass(frozen=True)
class Level:
    """The work of different nodes, ``[m]`` in ascending order, and the `matrix` ``[m, m]`` that mixes them.

    The other fields are as in a `Job`.
    """

    nodes: Ints
    rounds: Ints
    steps: Ints
    elapsed: Floats | None
    matrix: sparse.csr_array


def regrouped(levels: Sequence[Level], owner: Ints, every: int) -> list[Level]:
    """The same events in levels of which only every `every`-th mixes nodes of different shards.

    `owner` ``[n]`` is the shard of every node. Every node has its events in the order it had them, and every event has
    the nodes and weights it had, so that no number changes.
    """
    nodes, rounds, steps, elapsed = (
        np.concatenate([getattr(level, name) for level in levels]) for name in ("nodes", "rounds", "steps", "elapsed")
    )
    first = np.cumsum([0, *(len(level.nodes) for level in levels)])
    whole = _stacked([level.matrix for level in levels])
    count, event = connected_components(whole, directed=False)  # rows that mix are one event
    rows = np.repeat(np.arange(len(nodes)), np.diff(whole.indptr))
    crossing = np.zeros(count, dtype=bool)
    crossing[event[rows[owner[nodes[rows]] != owner[nodes[whole.indices]]]]] = True
    if not crossing.any():
        return list(levels)
    free, at = np.zeros(len(owner), dtype=np.int64), np.zeros(count, dtype=np.int64)
    for begin, end in zip(first[:-1].tolist(), first[1:].tolist(), strict=True):
        mine, here = event[begin:end], nodes[begin:end]
        np.maximum.at(at, mine, free[here])
        there = at[mine]
        there = np.where(crossing[mine], -(-there // every) * every, there)
        at[mine] = there
        free[here] = there + 1
    level = at[event]
    order = np.lexsort((nodes, level))
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(level[order])) + 1, [len(order)]])
    matrix = _permuted(whole, order)
    return [
        Level(nodes[mine], rounds[mine], steps[mine], elapsed[mine], _block(matrix, begin, end))
        for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
        for mine in [order[begin:end]]
    ]


def _stacked(matrices: Sequence[sparse.csr_array]) -> sparse.csr_array:
    """A block-diagonal matrix; the entries of a row stay in their order."""
    size = np.cumsum([0, *(m.shape[0] for m in matrices)])
    entries = np.cumsum([0, *(m.nnz for m in matrices)])
    starts = [m.indptr[:-1] + begin for m, begin in zip(matrices, entries[:-1], strict=True)]
    columns = [m.indices + begin for m, begin in zip(matrices, size[:-1], strict=True)]
    data, indptr = np.concatenate([m.data for m in matrices]), np.concatenate([*starts, entries[-1:]])
    return sparse.csr_array((data, np.concatenate(columns), indptr), shape=(size[-1], size[-1]))


def _permuted(matrix: sparse.csr_array, order: Ints) -> sparse.csr_array:
    """Rows and columns in another order; the entries of a row stay in theirs."""
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    count = np.diff(matrix.indptr)[order]
    starts = np.concatenate([[0], np.cumsum(count)])
    entries = np.repeat(matrix.indptr[order] - starts[:-1], count) + np.arange(starts[-1])
    return sparse.csr_array((matrix.data[entries], place[matrix.indices[entries]], starts), shape=matrix.shape)


def _block(matrix: sparse.csr_array, begin: int, end: int) -> sparse.csr_array:
    """Rows from `begin` to `end` of a block-diagonal matrix, with the columns of their block."""
    part = slice(matrix.indptr[begin], matrix.indptr[end])
    starts = matrix.indptr[begin : end + 1] - part.start
    return sparse.csr_array((matrix.data[part], matrix.indices[part] - begin, starts), shape=(end - begin,) * 2)
