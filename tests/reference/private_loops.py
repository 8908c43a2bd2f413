"""DIFF2-GD and DP-GD the slow, obvious way: numpy, one client and one example after the other.

A network of one softplus layer under the squared error, its gradient written out by hand. Nothing here is imported from
the code under test; the noise vectors are given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Example = tuple[Array, float]


def gradient(w: Array, example: Example, hidden: int) -> Array:
    """Of ``(v . softplus(W x + b) + c - y)^2`` by (W, b, v, c), flat in this order."""
    x, y = example
    d = len(x)
    W, b = w[: hidden * d].reshape(hidden, d), w[hidden * d : hidden * (d + 1)]
    v, c = w[hidden * (d + 1) : -1], w[-1]
    z = W @ x + b
    h = np.log1p(np.exp(z))
    error = 2.0 * (v @ h + c - y)
    inner = error * v / (1.0 + np.exp(-z))
    return np.concatenate([np.outer(inner, x).ravel(), inner, error * h, [error]])


def shortened(g: Array, bound: float) -> Array:
    length = float(np.sqrt((g**2).sum()))
    return g * (bound / length) if length > bound else g


def diff2(
    w: Array,
    clients: list[list[Example]],
    trace: list[dict[str, Any]],
    grad: Callable[[Array, Example], Array],
    lr: float,
    T: int,
    C1: float,
    C2: float,
    noise: Callable[[int, float], Array],
) -> Array:
    """Final parameters. `noise(round, C)` is what is added to a round's mean, C being that round's clip norm."""
    before, v = w.copy(), np.zeros_like(w)
    for row in trace:
        r = row["round"] - 1
        restart = r % T == 0
        C = C1 if restart else C2 * float(np.sqrt(((w - before) ** 2).sum()))
        mean = np.zeros_like(w)
        for p, weight in zip(row["clients"], row["weights"], strict=True):
            own = np.zeros_like(w)
            for example in clients[p]:
                g = grad(w, example) if restart else grad(w, example) - grad(before, example)
                own += shortened(g, C)
            mean += weight * own / len(clients[p])
        mean += noise(row["round"], C)
        v = mean if restart else v + mean
        w, before = w - lr * v, w
    return w
