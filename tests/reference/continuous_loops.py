"""DADAO and ACiD the obvious way: one event after the other, every node's vectors through a matrix exponential.

Events are ``[seconds, node]`` (a gradient) or ``[seconds, node, node]`` (two nodes communicate), as in a trace, or
``[seconds]`` (all nodes take the mean).
`grad(i, x)` is node i's exact gradient. Written from the papers' equations, apart from the package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from scipy.linalg import expm

Array = np.ndarray[Any, Any]
Grad = Callable[[int, Array], Array]


def laplacian(n: int, edges: Iterable[Sequence[int]], rates: Any) -> Array:
    found = np.zeros((n, n))
    for (i, j), r in zip(edges, np.broadcast_to(rates, len(list(edges))), strict=True):
        e = np.eye(n)[i] - np.eye(n)[j]
        found += r * np.outer(e, e)
    return found


def chi(n: int, edges: Sequence[Sequence[int]], rates: Any) -> tuple[float, float]:
    L = laplacian(n, edges, rates)
    P = np.linalg.pinv(L)
    return 1 / np.linalg.eigvalsh(L)[1], max(P[i, i] + P[j, j] - 2 * P[i, j] for i, j in edges) / 2


class _Lazy:
    """``state [n, vectors, d]``, each node's as after its own last event."""

    def __init__(self, A: Array, state: Array) -> None:
        self.A, self.state, self.last = A, state, np.zeros(len(state))

    def reach(self, i: int, t: float) -> Array:
        self.state[i] = expm(self.A * (t - self.last[i])) @ self.state[i]
        self.last[i] = t
        return self.state[i]

    def merge(self, t: float) -> None:
        for i in range(len(self.state)):
            self.reach(i, t)
        self.state[:] = self.state.mean(0)

    def at(self, t: float) -> Array:
        return np.stack([expm(self.A * (t - u)) @ s for s, u in zip(self.state, self.last, strict=True)])


def dadao(
    events: Iterable[Sequence[float]], grad: Grad, x0: Array, mu: float, L: float, chi_1: float, end: float
) -> Array:
    """The six vectors ``[n, 6, d]`` of all nodes at `end`: x, x~, y, y~, z, z~. `x0` ``[n, d]``."""
    nu = mu / 2
    q = np.sqrt(nu / L)
    eta, alpha, alpha_t, theta = q / 8, q / 4, q / 8, 1 / (2 * q)
    A = np.array(
        [
            [-eta, eta, 0, 0, 0, 0],
            [eta, -eta, 0, 0, 0, 0],
            [0, 0, -alpha, alpha, 0, 0],
            [0, -theta * nu, -theta, 0, -theta, 0],
            [0, 0, 0, 0, -alpha, alpha],
            [0, 0, 0, 0, alpha_t, -alpha_t],
        ]
    )
    nodes = _Lazy(A, np.stack([x0, x0, *np.zeros((4, *x0.shape))], axis=1))
    for t, *ends in events:
        if len(ends) == 1:
            x, x_t, _, y_t, _, _ = s = nodes.reach(int(ends[0]), t)
            e = grad(int(ends[0]), x) - nu * x - y_t
            s[0], s[1], s[3] = x - e / (4 * L), x_t - e / (4 * np.sqrt(L * nu)), y_t + (q / 4 + 1) * e
        else:
            a, b = (nodes.reach(int(i), t) for i in ends)
            m = a[2] + a[4] - b[2] - b[4]
            for s, sign in ((a, 1), (b, -1)):
                s[4] -= sign * m / 2
                s[5] -= sign * 2 * chi_1 / q * m
    return nodes.at(end)


def acid(
    events: Iterable[Sequence[float]], grad: Grad, x0: Array, lr: float, eta: float, alpha_t: float, end: float,
    momentum: float = 0.0, weight_decay: float = 0.0, alpha: float = 0.5,
) -> Array:  # fmt: skip
    """x and x~ ``[n, 2, d]`` of all nodes at `end`. `x0` ``[n, d]``."""
    nodes, v = _Lazy(eta * np.array([[-1.0, 1.0], [1.0, -1.0]]), np.stack([x0, x0], axis=1)), np.zeros_like(x0)
    for t, *ends in events:
        if not ends:
            nodes.merge(t)
        elif len(ends) == 1:
            i = int(ends[0])
            s = nodes.reach(i, t)
            v[i] = momentum * v[i] + grad(i, s[0]) + weight_decay * s[0]
            s -= lr * v[i]
        else:
            a, b = (nodes.reach(int(i), t) for i in ends)
            m = a[0] - b[0]
            a -= np.stack([alpha * m, alpha_t * m])
            b += np.stack([alpha * m, alpha_t * m])
    return nodes.at(end)
