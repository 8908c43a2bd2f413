"""The rules of a graph's nodes written the slow, obvious way: numpy, one node, one neighbour after the other.

A node has its own vector ``own``, hears ``heard`` (neighbour number to vector) and weighs its links by ``w`` (neighbour
number to w_ij). Where distances are equal, the lower number comes first. `b` is the weight that attackers may have.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Heard = dict[int, Array]
Weights = dict[int, float]


def far(u: Array, v: Array) -> float:
    return math.dist(u, v)  # right where squares overflow, too


def by_distance(own: Array, heard: Heard) -> list[int]:
    return sorted(heard, key=lambda j: (far(heard[j], own), j))


def gossip(own: Array, heard: Heard, w: Weights) -> Array:
    result = own.copy()
    for j in heard:
        result = result + w[j] * (heard[j] - own)
    return result


def nna(own: Array, heard: Heard, f: int) -> Array:
    kept = by_distance(own, heard)[: max(len(heard) - f, 0)]
    total = own.copy()
    for j in kept:
        total = total + heard[j]
    return total / (len(kept) + 1)


def clipped(own: Array, heard: Heard, w: Weights, tau: float) -> Array:
    result = own.copy()
    for j in heard:
        step, length = heard[j] - own, far(heard[j], own)
        result = result + w[j] * (step if length <= tau else step * (tau / length))
    return result


def second_largest(own: Array, heard: Heard) -> float:
    lengths = [far(heard[j], own) for j in by_distance(own, heard)]
    return lengths[-2] if len(lengths) > 1 else lengths[-1]


def largest_weights(w: Weights, f: int) -> float:
    return sum(sorted(w.values(), reverse=True)[:f])


def cs_he(own: Array, heard: Heard, w: Weights, b: float) -> Array:
    if b == 0:
        return gossip(own, heard, w)
    reached, squares = 0.0, 0.0
    for j in by_distance(own, heard):
        reached += w[j]
        if reached <= sum(w.values()) - b + 1e-12:
            squares += w[j] * far(heard[j], own) ** 2
    return clipped(own, heard, w, np.sqrt(squares / b))


def cs_plus(own: Array, heard: Heard, w: Weights, b: float) -> Array:
    if b == 0:
        return gossip(own, heard, w)
    reached, tau = 0.0, 0.0
    for j in by_distance(own, heard):
        reached += w[j]
        if reached <= sum(w.values()) - 2 * b + 1e-12:
            tau = far(heard[j], own)
    return clipped(own, heard, w, tau)


def gts(own: Array, heard: Heard, w: Weights, b: float) -> Array:
    left, result = sum(w.values()) - b, own.copy()
    for j in by_distance(own, heard):
        result = result + min(max(left, 0.0), w[j]) * (heard[j] - own)
        left -= w[j]
    return result


def bridge(own: Array, heard: Heard, f: int) -> Array:
    f = min(f, len(heard) // 2)
    result = own.copy()
    for c in range(len(own)):
        kept = sorted(float(heard[j][c]) for j in heard)[f : len(heard) - f]
        result[c] = (own[c] + sum(kept)) / (len(kept) + 1)
    return result


def ios(own: Array, heard: Heard, w: Weights, f: int) -> Array:
    at_home = 1.0 - sum(w.values())
    kept = sorted(heard)

    def average() -> Array:
        total = at_home * own
        for j in kept:
            total = total + w[j] * heard[j]
        return total / (at_home + sum(w[j] for j in kept))

    for _ in range(min(f, len(heard))):
        centre = average()
        worst = max(kept, key=lambda j: (far(heard[j], centre), -j))
        kept.remove(worst)
    return average()


def median(own: Array, heard: Heard) -> Array:
    return np.median(np.stack([own, *heard.values()]), axis=0)


RULES: dict[str, Callable[[Array, Heard, Weights, int], Array]] = {
    "nna": lambda own, heard, w, f: nna(own, heard, f),  # noqa: ARG005
    "clipped_gossip": lambda own, heard, w, f: clipped(own, heard, w, second_largest(own, heard)),  # noqa: ARG005
    "cs_he": lambda own, heard, w, f: cs_he(own, heard, w, largest_weights(w, f)),
    "cs_plus": lambda own, heard, w, f: cs_plus(own, heard, w, largest_weights(w, f)),
    "gts": lambda own, heard, w, f: gts(own, heard, w, largest_weights(w, f)),
    "bridge": lambda own, heard, w, f: bridge(own, heard, f),  # noqa: ARG005
    "ios": ios,
    "median": lambda own, heard, w, f: median(own, heard),  # noqa: ARG005
}
"""By their names in a scenario; f is what a node is to tolerate."""
