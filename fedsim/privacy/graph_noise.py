"""What noise reveals on a graph: DECOR's correlated noise, and noise that is added once and then gossiped.

Both are Gaussian mechanisms with a linear view, so their loss is one number: ``mu^2 = Delta^2 / sigma^2 * leverage``,
with the leverage of a node between 0 (nothing is seen) and 1 (its noisy value is seen by itself, local DP).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsim.core.arrays import Floats
from fedsim.core.libraries import nx

_SPAN = 1e-9  # a direction that is new by less than this share of its length counts as seen before


def laplacian(graph: nx.Graph[int]) -> Floats:
    """L = D - A of an undirected graph on nodes 0 to n - 1, every edge of weight 1, ``[n, n]``."""
    return np.asarray(nx.laplacian_matrix(graph, nodelist=range(len(graph)), weight=None).toarray(), dtype=np.float64)


def decor_leverage(L: Floats, ratio: float, participant: bool) -> float:
    """``max_i [(I + ratio^2 L)^-1]_ii``: what correlated noise leaves of a node's own, 1 for ratio 0, to 1/n.

    DECOR (arXiv 2405.01031): node i adds its own noise of variance s^2 and, per edge, noise of variance (ratio s)^2
    that its neighbour subtracts; all nodes' messages together have the covariance s^2 (I + ratio^2 L). An outside
    eavesdropper who sees every message of every node faces that. A `participant` also knows its own noise and the
    noise of its edges: what protects the others is the graph without it (this project's derivation).

    Parameters
    ----------
    L : the graph's Laplacian ``[n, n]``.
    ratio : std of an edge's noise over std of a node's own noise.
    participant : the worst single participant instead of an outside eavesdropper.
    """
    if not participant:
        return _largest_variance(L, ratio)
    return max(_largest_variance(_without(L, u), ratio) for u in range(len(L)))


def _largest_variance(L: Floats, ratio: float) -> float:
    return float(np.diag(np.linalg.inv(np.eye(len(L)) + ratio**2 * L)).max(initial=0.0))


def _without(L: Floats, u: int) -> Floats:
    """The Laplacian of the graph without node `u`."""
    rest = np.flatnonzero(np.arange(len(L)) != u)
    smaller = L[np.ix_(rest, rest)].copy()
    smaller[np.diag_indices(len(rest))] += L[rest, u]  # -1 for each edge that went with u
    return smaller


def gossip_leverage(W: Floats, steps: int, observer: int) -> Floats:
    """How much of each node's noisy value an observer learns from `steps` gossip steps, ``[n]`` in [0, 1].

    Every node u adds noise to its value once, y_u = x_u + N(0, sigma^2), and then all gossip, y <- W y. Node v sees
    what its neighbours send, (W^t y)_w for t < steps, and knows y_v and its noise. All of that is linear in the same
    noise, so v's loss about u is ``mu^2 = Delta^2 / sigma^2 * |P e_u|^2``, exactly, with P the projection onto the
    span of the rows (W^t)_w without their v-th entry. 1 is local DP. (The observer's own entry is 0.)

    Muffliato (arXiv 2206.05091) adds up the rows one by one instead, as if each came with noise of its own; see
    `paper_leverage`.
    """
    n = len(W)
    basis = np.zeros((0, n))
    own = np.zeros(n)
    own[observer] = 1.0
    basis = _extend(basis, [own])[0]
    front = [np.eye(n)[w] for w in _neighbours(W, observer)]
    for _ in range(steps):
        basis, new = _extend(basis, front)
        # W^t e_w, up to what is spanned already: the directions found last, once more through W.
        front = [W.T @ row for row in new]
        if not new:
            break
    return np.asarray(np.minimum((basis[1:] ** 2).sum(0), 1.0))


def paper_leverage(W: Floats, steps: int, observer: int) -> Floats:
    """Muffliato's sum, ``min(1, sum_{t < steps} sum_w (W^t)_wu^2 / |(W^t)_w|^2)`` over the observer's neighbours w.

    Not a bound for an observer that keeps what it received: on a ring with Metropolis weights it says 1/3 for a node
    two hops away after two steps, although (y_0 + y_1 + y_2) / 3, y_0 and y_1 give y_2 itself. From t = 0 on, where
    the neighbours' own values are sent (the released code begins at t = 1).
    """
    total, power = np.zeros(len(W)), np.eye(len(W))
    for _ in range(steps):
        for w in _neighbours(W, observer):
            total += power[w] ** 2 / (power[w] @ power[w])
        power = power @ W
    total[observer] = 0.0
    return np.asarray(np.minimum(total, 1.0))


def _neighbours(W: Floats, v: int) -> list[int]:
    return [int(w) for w in np.flatnonzero(W[v]) if w != v]


def _extend(basis: Floats, rows: list[Floats]) -> tuple[Floats, list[Floats]]:
    """The orthonormal `basis` with the directions of `rows` that are new, and those directions."""
    new: list[Floats] = []
    for row in rows:
        rest: Any = row
        for _ in range(2):  # twice is enough (Kahan)
            rest = rest - basis.T @ (basis @ rest)
        size = float(np.linalg.norm(rest))
        if size > _SPAN * float(np.linalg.norm(row)):
            basis = np.vstack([basis, rest / size])
            new.append(rest / size)
    return basis, new
