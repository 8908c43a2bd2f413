"""The gossip algorithms written the slow, obvious way: numpy, node after node, neighbour after neighbour.

Each replays a trace (who computed with how many steps, which edges fired) and returns the nodes' parameters ``[n, d]``.
A graph is a list of edges; ``graph(k)`` gives the one in force in round k = 1, 2, ...
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Edges = list[tuple[int, int]]
Trace = list[dict[str, Any]]


def metropolis(n: int, edges: Edges) -> Array:
    """r_ij = 1 / (1 + max(|N_i|, |N_j|)) with the degrees of the physical graph."""
    degree = [sum(i in e for e in edges) for i in range(n)]
    r = np.zeros((n, n))
    for i, j in edges:
        r[i, j] = r[j, i] = 1 / (1 + max(degree[i], degree[j]))
    return r


def uniform_directed(n: int, edges: Edges) -> Array:
    """Node v weighs itself and everybody it hears alike: r_vu = 1 / (1 + in-degree of v) for u -> v."""
    r = np.zeros((n, n))
    for u, v in edges:
        r[v, u] = 1 / (1 + sum(e[1] == v for e in edges))
    return r


def mix(r: Array, fired: Edges, values: Array, directed: bool) -> Array:
    """``v_i + sum_j r_ij (v_j - v_i)`` over the edges that fired, from the old values."""
    result = values.copy()
    for u, v in fired:
        result[v] += r[v, u] * (values[u] - values[v])
        if not directed:
            result[u] += r[u, v] * (values[v] - values[u])
    return result


def local(problem: Any, i: int, x: Array, steps: int, lr: float, momentum: float, weight_decay: float) -> Array:
    y, v = x.copy(), np.zeros_like(x)
    for _ in range(steps):
        v = momentum * v + problem.grad(i, y) + weight_decay * y
        y = y - lr * v
    return y


def weights(n: int, edges: Edges, directed: bool) -> Array:
    return uniform_directed(n, edges) if directed else metropolis(n, edges)


def meeting(n: int, fired: Edges, directed: bool) -> Array:
    """Peers that are drawn in every round: a node takes the plain mean of its own and those that it hears."""
    r = np.zeros((n, n))
    for v in range(n):
        heard = [e[0] for e in fired if e[1] == v] + ([] if directed else [e[1] for e in fired if e[0] == v])
        r[v, heard] = 1 / (1 + len(heard))
    return r


def gossip(
    problem: Any, trace: Trace, graph: Callable[[int], Edges] | None, lr: Callable[[int], float], adapt_first: bool,
    directed: bool = False, momentum: float = 0.0, weight_decay: float = 0.0,
) -> Array:  # fmt: skip
    """DSpodFL's Eq. 2, ``theta_i + sum_j r_ij vhat_ij (theta_j - theta_i) - lr v_i g_i(theta_i)``.

    With `adapt_first` the local steps come first and the mixing after them (DFedAvg). Without a graph nodes meet
    peers. At the end of a row that merges all nodes take the mean.
    """
    x = np.tile(problem.x0, (problem.n, 1))
    for row in trace:
        k = row["round"]
        after = x.copy()
        for i in row["compute"]:
            after[i] = local(problem, i, x[i], row["steps"][i], lr(k), momentum, weight_decay)
        fired = [(e[0], e[1]) for e in row["edges"]]
        r = meeting(problem.n, fired, directed) if graph is None else weights(problem.n, graph(k), directed)
        x = mix(r, fired, after, directed) if adapt_first else mix(r, fired, x, directed) + (after - x)
        if row.get("merge"):
            x = np.tile(x.mean(0), (problem.n, 1))
    return x


def gradient_tracking(
    problem: Any, trace: Trace, graph: Callable[[int], Edges] | None, lr: float, directed: bool = False
) -> Array:
    """DIGing as printed: ``x_i+ = sum_j w_ij (x_j - lr y_j);  y_i+ = sum_j w_ij y_j + g_i(x_i+) - g_i(x_i)``.

    It starts from y_i = g_i(x_i). Without a graph nodes meet peers. In a row that merges x_i+ and the sum over y_j are
    replaced by their means over the nodes, and the gradient is then that at the merged model.
    """
    x = np.tile(problem.x0, (problem.n, 1))
    y = np.stack([problem.grad(i, x[i]) for i in range(problem.n)])
    for row in trace:
        fired = [(e[0], e[1]) for e in row["edges"]]
        n = problem.n
        r = meeting(n, fired, directed) if graph is None else weights(n, graph(row["round"]), directed)
        new, y = mix(r, fired, x - lr * y, directed), mix(r, fired, y, directed)
        if row.get("merge"):
            new, y = np.tile(new.mean(0), (n, 1)), np.tile(y.mean(0), (n, 1))
        for i in range(n):
            y[i] += problem.grad(i, new[i]) - problem.grad(i, x[i])
        x = new
    return x
