"""Push-sum as a loop over nodes that send, written from the papers; lost messages stay with their senders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Edges = Sequence[tuple[int, int]]


def send(n: int, edges: Edges, fired: Edges, values: Array) -> Array:
    """Every node divides what it has into equal shares for itself and those it has links to."""
    shares = [1 / (1 + sum(u == node for u, _ in edges)) for node in range(n)]
    after = np.zeros_like(values)
    for node in range(n):
        for u, v in edges:
            if u == node:
                after[v if (u, v) in fired else u] += shares[u] * values[u]
        after[node] += shares[node] * values[node]
    return after


def sgp(problem: Any, trace: Sequence[Any], edges: Edges, lr: float) -> tuple[Array, Array]:
    """``x = C (x - lr g(z));  w = C w;  z = x / w`` (arXiv 1811.10792, Algorithm 1): z ``[n, d]`` and w ``[n]``."""
    x, w = np.tile(problem.x0, (problem.n, 1)), np.ones(problem.n)
    for row in trace:
        fired = {(e[0], e[1]) for e in row["edges"]}
        z = x / w[:, None]
        for i in row["compute"]:
            y = z[i].copy()
            for _ in range(row["steps"][i]):
                y = y - lr * problem.grad(i, y)
            x[i] += y - z[i]
        x, w = send(problem.n, edges, fired, x), send(problem.n, edges, fired, w)
    return x / w[:, None], w


def push_diging(problem: Any, trace: Sequence[Any], edges: Edges, lr: float) -> tuple[Array, Array, float]:
    """``u = C (u - lr y);  v = C v;  x+ = u / v;  y = C y + g(x+) - g(x)``; and how far sum y was from sum g."""
    n = problem.n
    u, v = np.tile(problem.x0, (n, 1)), np.ones(n)
    x = u.copy()
    y = np.stack([problem.grad(i, x[i]) for i in range(n)])
    apart = 0.0
    for row in trace:
        fired = {(e[0], e[1]) for e in row["edges"]}
        u, v, y = (send(n, edges, fired, a) for a in (u - lr * y, v, y))
        after = u / v[:, None]
        for i in range(n):
            y[i] += problem.grad(i, after[i]) - problem.grad(i, x[i])
        x = after
        apart = max(apart, float(np.abs(y.sum(0) - sum(problem.grad(i, x[i]) for i in range(n))).max()))
    return x, v, apart
