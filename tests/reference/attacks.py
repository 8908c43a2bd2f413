"""Attacks the slow, obvious way: numpy, one attacker and one coordinate at a time."""

from __future__ import annotations

import math
from itertools import combinations
from statistics import NormalDist, stdev
from typing import Any

import numpy as np

Rows = Any  # [h, d] float64


def alie(honest: Rows, z: float) -> Any:
    return np.array([np.mean(c) - z * stdev(c) for c in honest.T.tolist()])


def auto_z(n: int, b: int) -> float:
    """How many standard deviations a majority needs at least: b attackers and s honest senders beyond."""
    s = n // 2 + 1 - b
    return NormalDist().inv_cdf((n - b - s) / (n - b))


def ipm(honest: Rows, eps: float) -> Any:
    return np.array([-eps * np.mean(c) for c in honest.T])


def min_max(honest: Rows, direction: str) -> Any:
    """The largest gamma by trying: doubled while it fits, then halved between what fits and what does not."""
    mean = honest.mean(0)
    p = {"std": -honest.std(0, ddof=1), "sign": -np.sign(mean), "unit": -mean / math.sqrt((mean**2).sum())}[direction]
    diameter = max(math.dist(a, b) for a, b in combinations(honest, 2))

    def fits(gamma: float) -> bool:
        return max(math.dist(row, mean + gamma * p) for row in honest) <= diameter

    low, high = 0.0, 1.0
    while fits(high):
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return mean + low * p


def reversed_labels(labels: list[int], classes: int) -> list[int]:
    return [list(reversed(range(classes)))[y] for y in labels]


def more_than(most: int, clients: int, attackers: int, cohort: int) -> float:
    """P(a cohort drawn without replacement has more than `most` attackers), by counting cohorts."""
    whole = math.comb(clients, cohort)
    return sum(
        math.comb(attackers, k) * math.comb(clients - attackers, cohort - k) for k in range(most + 1, cohort + 1)
    ) / whole  # fmt: skip


# --- graphs -----------------------------------------------------------------------------------------------------------


def metropolis(n: int, edges: list[tuple[int, int]]) -> Any:
    degree = [sum(i in e for e in edges) for i in range(n)]
    W = np.zeros((n, n))
    for i, j in edges:
        W[i, j] = W[j, i] = 1 / (1 + max(degree[i], degree[j]))
    for i in range(n):
        W[i, i] = 1 - sum(W[i, j] for j in range(n) if j != i)
    return W


def without(W: Any, attackers: set[int]) -> Any:
    """The matrix of the honest nodes in which attackers' weight stays at home."""
    honest = [i for i in range(len(W)) if i not in attackers]
    left = np.array([[W[i, j] for j in honest] for i in honest])
    for k, i in enumerate(honest):
        left[k, k] += sum(W[i, j] for j in attackers)
    return left


def gap(W: Any) -> float:
    return float(1 - np.sort(np.abs(np.linalg.eigvals(W)))[-2])


def dissensus(target: Any, honest: dict[int, Any], weights: dict[int, float], attackers: list[int], eps: float) -> Any:
    """What every attacker tells a node: `honest` are the messages of its honest neighbours."""
    pull = sum(weights[j] * (honest[j] - target) for j in honest)
    return target - eps * pull / sum(weights[j] for j in attackers)
