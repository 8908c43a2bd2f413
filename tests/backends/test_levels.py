"""Events of continuous time in other levels: fewer exchanges between shards, and not a number changes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import networkx as nx
import numpy as np
import pytest
from scipy import sparse

from fedsim.backends.levels import Level, regrouped
from fedsim.backends.placement import place_graph

Array = np.ndarray[Any, Any]
GRAPHS: dict[str, nx.Graph] = {
    "torus": nx.convert_node_labels_to_integers(nx.grid_2d_graph(10, 10, periodic=True)),
    "ring": nx.cycle_graph(9),
    "complete": nx.complete_graph(7),
    "none": nx.empty_graph(8),
}


def levels_of(graph: nx.Graph, events: int) -> list[Level]:
    """Nodes and links at random, as early as their nodes allow; link weights differ."""
    random, n, links = np.random.default_rng(3), len(graph), [*graph.edges]
    reached, found, done = [0] * n, [], [0] * n
    for _ in range(events):
        alone = not links or random.random() < 0.5
        ends = [int(random.integers(n))] if alone else [*links[random.integers(len(links))]]
        place = max(reached[i] for i in ends)
        for i in ends:
            reached[i] = place + 1
        found.append((place, ends, float(random.uniform(0.1, 0.5))))
    levels = []
    for place in range(max(reached)):
        mine = [(ends, weight) for at, ends, weight in found if at == place]
        nodes = np.sort([i for ends, _ in mine for i in ends])
        matrix = np.eye(len(nodes))
        for ends, weight in mine:
            if len(ends) == 2:
                i, j = np.searchsorted(nodes, ends)
                matrix[[i, j], [i, j]], matrix[[i, j], [j, i]] = 1 - weight, weight
        for i in nodes:
            done[i] += 1
        rounds = np.array([done[i] for i in nodes])  # which event of its node it is
        steps = np.array([int(any(ends == [i] for ends, _ in mine)) for i in nodes])
        levels.append(Level(nodes, rounds, steps, random.exponential(size=len(nodes)), sparse.csr_array(matrix)))
    return levels


def carried_out(levels: list[Level], n: int) -> tuple[Array, Array]:
    """A number per node after all events, and how many of them each had."""
    x, done = np.linspace(-1.0, 2.0, n), np.zeros(n, dtype=np.int64)
    for level in levels:
        assert np.array_equal(level.nodes, np.unique(level.nodes))
        done[level.nodes] += 1
        assert np.array_equal(level.rounds, done[level.nodes])  # a node's events stay in their order
        here = x[level.nodes] * np.exp(-level.elapsed) + level.steps * np.sin(level.rounds)
        data, at, starts = level.matrix.data, level.matrix.indices, level.matrix.indptr
        x[level.nodes] = [sum(data[e] * here[at[e]] for e in range(a, b)) for a, b in pairwise(starts)]
    return x, done


def crossing(level: Level, owner: Array) -> bool:
    entries = sparse.coo_array(level.matrix)
    return bool((owner[level.nodes[entries.row]] != owner[level.nodes[entries.col]]).any())


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("every", [1, 4])
def test_no_number_changes(graph: str, shards: int, every: int) -> None:
    links, n = GRAPHS[graph], len(GRAPHS[graph])
    owner = place_graph(np.ones(n), sparse.csr_array(nx.to_scipy_sparse_array(links)), shards)
    before = levels_of(links, 12 * n)
    after = regrouped(before, owner, every)
    one, other = carried_out(before, n), carried_out(after, n)
    assert np.array_equal(one[0], other[0])
    assert np.array_equal(one[1], other[1])
    assert sum(len(level.nodes) for level in after) == one[1].sum() >= 12 * n


def test_shards_meet_less_often() -> None:
    """On a torus of 100 nodes in two halves: one exchange in four levels at most, and few levels more."""
    graph, n = GRAPHS["torus"], 100
    owner = place_graph(np.ones(n), sparse.csr_array(nx.to_scipy_sparse_array(graph)), 2)
    before = levels_of(graph, 1500)
    after = regrouped(before, owner, 4)
    meetings = [sum(crossing(level, owner) for level in levels) for levels in (before, after)]
    assert meetings[1] < 0.5 * meetings[0]
    assert 4 * meetings[1] <= len(after) + 3
    assert len(after) < 1.5 * len(before)
