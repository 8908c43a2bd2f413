"""Robust rules of a server as loops over rows and coordinates, written to be read: lists of lists of floats."""

from __future__ import annotations

import math

Rows = list[list[float]]
Row = list[float]


def column(V: Rows, j: int) -> list[float]:
    return [row[j] for row in V]


def mean(V: Rows) -> Row:
    return [sum(column(V, j)) / len(V) for j in range(len(V[0]))]


def middle(values: list[float]) -> float:
    ordered = sorted(values)
    m = len(ordered)
    return ordered[m // 2] if m % 2 else (ordered[m // 2 - 1] + ordered[m // 2]) / 2


def median(V: Rows) -> Row:
    return [middle(column(V, j)) for j in range(len(V[0]))]


def trimmed_mean(V: Rows, f: int) -> Row:
    kept = [sorted(column(V, j))[f : len(V) - f] for j in range(len(V[0]))]
    return [sum(values) / len(values) for values in kept]


def meamed(V: Rows, f: int) -> Row:
    result = []
    for j in range(len(V[0])):
        values = column(V, j)
        centre = middle(values)
        nearest = sorted(range(len(V)), key=lambda i: (abs(values[i] - centre), i))[: len(V) - f]
        result.append(sum(values[i] for i in nearest) / len(nearest))
    return result


def square(a: Row, b: Row) -> float:
    return math.dist(a, b) * math.dist(a, b)  # infinite where it overflows


def krum_scores(V: Rows, f: int, others: int = 2) -> list[float]:
    """The sum of the m - f - `others` smallest squared distances to other rows, at least one."""
    count = max(len(V) - f - others, 1)
    return [sum(sorted(square(v, w) for k, w in enumerate(V) if k != i)[:count]) for i, v in enumerate(V)]


def krum(V: Rows, f: int) -> Row:
    found = krum_scores(V, f)
    return V[found.index(min(found))]


def multi_krum(V: Rows, f: int, keep: int | None = None) -> Row:
    found = krum_scores(V, f)
    best = sorted(range(len(V)), key=lambda i: (found[i], i))
    return mean([V[i] for i in best[: len(V) - f if keep is None else keep]])


def bulyan(V: Rows, f: int) -> Row:
    left, chosen = list(range(len(V))), []
    for _ in range(len(V) - 2 * f):
        found = krum_scores([V[i] for i in left], f)
        chosen.append(left.pop(found.index(min(found))))
    return meamed([V[i] for i in sorted(chosen)], 2 * f)


def geometric_median(V: Rows, nu: float = 1e-6, steps: int = 1000, tol: float = 1e-12, zero: bool = False) -> Row:
    z = [0.0] * len(V[0]) if zero else mean(V)
    for _ in range(steps):
        weights = [1 / max(math.dist(v, z), nu) for v in V]
        new = [sum(w * v[j] for w, v in zip(weights, V, strict=True)) / sum(weights) for j in range(len(z))]
        done = max(abs(a - b) for a, b in zip(new, z, strict=True)) <= tol * max(1.0, *(abs(a) for a in z))
        z = new
        if done:
            break
    return z


def clipped(v: Row, tau: float) -> Row:
    size = math.hypot(*v)
    return v if size <= tau else [x * tau / size for x in v]


def centered_clipping(V: Rows, v: Row, tau: float, iters: int = 1) -> Row:
    for _ in range(iters):
        moves = mean([clipped([x - y for x, y in zip(row, v, strict=True)], tau) for row in V])
        v = [x + y for x, y in zip(v, moves, strict=True)]
    return v


def fltrust(V: Rows, g: Row) -> Row:
    length = math.hypot(*g)
    trust, scaled = [], []
    for v in V:
        size = math.hypot(*v)
        trust.append(max(0.0, sum(x * y for x, y in zip(g, v, strict=True)) / (length * size)))
        scaled.append([x * length / size for x in v])
    return [sum(t * v[j] for t, v in zip(trust, scaled, strict=True)) / sum(trust) for j in range(len(g))]


def nnm(V: Rows, f: int) -> Rows:
    made = []
    for v in V:
        nearest = sorted(range(len(V)), key=lambda k: (square(v, V[k]), k))[: len(V) - f]
        made.append(mean([V[k] for k in nearest]))
    return made


def bucketing(V: Rows, s: int, order: list[int]) -> Rows:
    return [mean([V[i] for i in order[a : a + s]]) for a in range(0, len(V), s)]


def arc(V: Rows, f: int) -> Rows:
    count = int(2 * f / len(V) * (len(V) - f))
    sizes = sorted(math.hypot(*v) for v in V)
    return [clipped(v, sizes[len(V) - count - 1]) for v in V]
