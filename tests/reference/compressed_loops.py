"""Compressed methods written the slow, obvious way: numpy, client after client, node after node.

Each replays a run's trace (who took part, who computed, which links fired) and returns the final parameters. A
compressor is ``C(v, u)`` with the uniforms u ``[d]`` that it may use; `draws` gives those of a client in a round.
"""

from __future__ import annotations

from collections.abc import Callable
from math import floor, log2, sqrt
from typing import Any

import numpy as np
from gossip_loops import Edges, metropolis, mix

from fedsim.core import rng

Array = np.ndarray[Any, Any]
Trace = list[dict[str, Any]]
Compress = Callable[[Array, Array], Array]


def draws(seed: int, client: int, round: int, place: int, d: int) -> Array:
    """Uniform numbers in [0, 1), one per coordinate of the vector number `place` of a message."""
    key = rng.fold(rng.key(seed, "compress", client, round), place)
    return np.array([rng.uniform(rng.fold(key, j)).item() for j in range(d)])


def top_k(k: int) -> Compress:
    def compress(v: Array, u: Array) -> Array:  # noqa: ARG001
        kept = sorted(range(len(v)), key=lambda j: (-abs(v[j]), j))[:k]
        return np.array([v[j] if j in kept else 0.0 for j in range(len(v))])

    return compress


def rand_k(k: int) -> Compress:
    def compress(v: Array, u: Array) -> Array:
        kept = sorted(range(len(v)), key=lambda j: (u[j], j))[:k]
        return np.array([v[j] if j in kept else 0.0 for j in range(len(v))])

    return compress


def sign(v: Array, u: Array) -> Array:  # noqa: ARG001
    size = sum(abs(a) for a in v) / len(v)
    return np.array([size if a >= 0 else -size for a in v])


def qsgd(levels: int) -> Compress:
    """Divided by 1 + omega, as feedback needs it."""

    def compress(v: Array, u: Array) -> Array:
        size, d = sqrt(sum(a * a for a in v)), len(v)
        if size == 0:
            return np.zeros(d)
        out = []
        for a, chance in zip(v, u, strict=True):
            share = levels * abs(a) / size
            level = floor(share) + (1 if chance < share - floor(share) else 0)
            out.append(size * np.sign(a) * level / levels)
        return np.array(out) / (1 + min(d / levels**2, sqrt(d) / levels))

    return compress


def natural(v: Array, u: Array) -> Array:
    """Divided by 9/8, as feedback needs it."""
    out = []
    for a, chance in zip(v, u, strict=True):
        low = 2.0 ** floor(log2(abs(a))) if a else 0.0
        out.append(np.sign(a) * (2 * low if a and chance < abs(a) / low - 1 else low))
    return np.array(out) / (9 / 8)


def ef21(
    problem: Any, trace: Trace, gamma: float, compress: Compress, seed: int, scales: list[float] | None = None,
    full: bool = False,
) -> Array:  # fmt: skip
    """``g_i += C(grad_i / scale_i - g_i)`` of the round's clients; ``x -= gamma (1/n) sum_i scale_i g_i``."""
    n, d = problem.n, problem.d
    x, g, scale = problem.x0.copy(), np.zeros((n, d)), scales or [1.0] * n
    for row in trace:
        for i in row["clients"]:
            wanted = problem.grad(i, x) / scale[i]
            u = draws(seed, i, row["round"], 0, d)
            g[i] = wanted if full and row["round"] == 1 else g[i] + compress(wanted - g[i], u)
        x = x - gamma * sum(scale[i] * g[i] for i in range(n)) / n
    return x


def choco(
    problem: Any, trace: Trace, edges: Edges, lr: float, gamma: float, compress: Compress, seed: int, order: str
) -> Array:
    """Every node's copy of every neighbour is one row here: all neighbours have the same one."""
    n, d = problem.n, problem.d
    x, hat, r = np.tile(problem.x0, (n, 1)), np.zeros((n, d)), metropolis(n, edges)
    for row in trace:
        for i in row["compute"]:
            for _ in range(row["steps"][i]):
                x[i] = x[i] - lr * problem.grad(i, x[i])
        if order == "gmc":
            x = x + gamma * (mix(r, edges, hat, False) - hat)
        number = row["round"] + (order == "gmc")  # which a round of the product sends in the next one
        for i in range(n):
            hat[i] = hat[i] + compress(x[i] - hat[i], draws(seed, i, number, 0, d))
        if order == "gcm":
            x = x + gamma * (mix(r, edges, hat, False) - hat)
    return x


def deepsqueeze(
    problem: Any, trace: Trace, edges: Edges, lr: float, gamma: float, compress: Compress, seed: int
) -> Array:
    n, d = problem.n, problem.d
    x, e, r = np.tile(problem.x0, (n, 1)), np.zeros((n, d)), metropolis(n, edges)
    for row in trace:
        for i in row["compute"]:
            for _ in range(row["steps"][i]):
                x[i] = x[i] - lr * problem.grad(i, x[i])
        q = np.zeros((n, d))
        for i in range(n):
            q[i] = compress(x[i] + e[i], draws(seed, i, row["round"], 0, d))
            e[i] = x[i] + e[i] - q[i]
        x = x + gamma * (mix(r, [(a, b) for a, b in row["edges"]], q, False) - q)
    return x


def beer(problem: Any, rounds: int, edges: Edges, lr: float, gamma: float, compress: Compress, seed: int) -> Array:
    """As in the paper: the step, the copies of models, the tracker, the copies of trackers."""
    n, d = problem.n, problem.d
    r, x = metropolis(n, edges), np.tile(problem.x0, (n, 1))
    h, k = np.zeros((n, d)), np.zeros((n, d))
    g = np.array([problem.grad(i, x[i]) for i in range(n)])
    v = g.copy()
    for t in range(1, rounds + 1):
        x = x + gamma * (mix(r, edges, h, False) - h) - lr * v
        for i in range(n):
            h[i] = h[i] + compress(x[i] - h[i], draws(seed, i, t + 1, 0, d))
        new = np.array([problem.grad(i, x[i]) for i in range(n)])
        v = v + gamma * (mix(r, edges, k, False) - k) + new - g
        g = new
        for i in range(n):
            k[i] = k[i] + compress(v[i] - k[i], draws(seed, i, t + 1, 1, d))
    return x
