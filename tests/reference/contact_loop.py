"""Gossip over links and nodes that come and go, the slow, obvious way: every spell is asked in every round."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Spells = list[tuple[float, float]]
Links = dict[tuple[int, int], Spells]
Nodes = dict[int, Spells]


def holds(spells: Spells, t: float) -> bool:
    """Whether some spell [start, end) has `t`; without spells: always."""
    return not spells or any(start <= t < end for start, end in spells)


def present(n: int, links: Links, nodes: Nodes, t: float) -> tuple[set[Any], set[int]]:
    """The links and the nodes that are there at `t`."""
    there = {i for i in range(n) if holds(nodes.get(i, []), t)}
    return {(i, j) for (i, j), spells in links.items() if i in there and j in there and holds(spells, t)}, there


def replay(
    problem: Any, trace: list[dict[str, Any]], links: Links, nodes: Nodes, lr: float,
    adapt_first: bool, average: bool = False,
) -> Array:  # fmt: skip
    """Final parameters ``[n, d]`` of DSpodFL (`adapt_first`: of DFedAvg) with one step per node that computes.

    Weights are 1 / (1 + max degree) of the links that are there in the round; links are those that fired. With
    `average` nodes that were not there in the round before take the mean of what they hear, and nobody hears them.
    """
    n = problem.n
    x = np.tile(problem.x0, (n, 1))
    for row in trace:
        k = row["round"]
        up, there = present(n, links, nodes, k)
        before = present(n, links, nodes, k - 1)[1] if k > 1 else there
        new = there - before if average else set()
        degree = [sum(i in link for link in up) for i in range(n)]
        assert (len(there), len(up)) == (row["nodes_there"], row["links_there"])
        assert set(row["compute"]) <= there - new
        assert {tuple(e) for e in row["edges"]} <= up
        step = np.zeros_like(x)
        for i in row["compute"]:
            step[i] = -lr * problem.grad(i, x[i])
        sent = x + step if adapt_first else x
        after = sent.copy()
        heard: dict[int, list[Array]] = {}
        for i, j in row["edges"]:
            assert not {i, j} <= new
            for a, b in ((i, j), (j, i)):
                if a in new:
                    heard.setdefault(a, []).append(sent[b])
            if not {i, j} & new:
                r = 1 / (1 + max(degree[i], degree[j]))
                after[i] += r * (sent[j] - sent[i])
                after[j] += r * (sent[i] - sent[j])
        for i, models in heard.items():
            after[i] = np.mean(models, axis=0)
        x = after if adapt_first else after + step
    return x
