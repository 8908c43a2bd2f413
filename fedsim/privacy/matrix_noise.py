"""Noise that is correlated over rounds: which noise a prefix sum gets, and how far one client can move all of them.

The matrix mechanism ``A X + B Z`` with A = B C (Kairouz et al., arXiv 2103.00039, and the matrix factorization line of
work): round t adds ``(C^-1 Z)_t``, Z of std ``z * clip * sensitivity``. One client that takes part in the rounds of a
pattern moves C X by at most ``clip * |C pattern|`` (for C without negative entries), whatever it sends.
"""

from __future__ import annotations

import numpy as np

from fedsim.core.arrays import Floats, Ints

Node = tuple[int, int]
"""(level, index): the rounds ``index * 2^level + 1`` to ``(index + 1) * 2^level``."""


def prefix_nodes(t: int) -> list[Node]:
    """The complete tree nodes whose rounds are 1 to t, largest first: at most log2(t) + 1 of them."""
    nodes: list[Node] = []
    start = 0
    for level in range(t.bit_length() - 1, -1, -1):
        if t >> level & 1:
            nodes.append((level, start >> level))
            start += 1 << level
    return nodes


def tree_sensitivity(rounds: Ints, length: int) -> float:
    """|C pattern| of binary-tree aggregation over `length` rounds for a client that takes part in `rounds` (from 1).

    A node that holds k of its rounds moves by at most k clips. Only complete nodes with an even index are ever used:
    of two siblings, a prefix that ends inside the right one needs the left, and one that goes on needs their parent.
    """
    total = 0.0
    for level in range(length.bit_length()):
        index = (np.asarray(rounds, dtype=np.int64) - 1) >> level
        used = (index < length >> level) & (index % 2 == 0)
        total += float((np.bincount(index[used], minlength=1).astype(np.float64) ** 2).sum())
    return float(np.sqrt(total))


def toeplitz_inverse(coefficients: Floats, length: int) -> Floats:
    """First column ``[length]`` of C where C^-1 is lower-triangular Toeplitz with these first entries (the first is 1).

    ``c_0 = 1;  c_k = - sum_{j=1..k} a_j c_{k-j}``, the power series 1 / a.
    """
    a = np.asarray(coefficients, dtype=np.float64)
    c = np.zeros(length)
    c[0] = 1.0
    for k in range(1, length):
        j = np.arange(1, min(k, len(a) - 1) + 1)
        c[k] = -(a[j] * c[k - j]).sum()
    return c


def toeplitz_sensitivity(rounds: Ints, length: int, column: Floats) -> float:
    """| |C| pattern | for a lower-triangular Toeplitz C with first column `column` ``[length]``."""
    pattern = np.zeros(length)
    pattern[np.asarray(rounds, dtype=np.int64) - 1] = 1.0
    return float(np.linalg.norm(np.convolve(np.abs(column), pattern)[:length]))


def square_root_bands(bands: int) -> Floats:
    """The first coefficients of (1 - s)^(1/2): C^-1 close to the inverse square root of the prefix-sum matrix."""
    a = np.ones(bands)
    for k in range(1, bands):
        a[k] = a[k - 1] * (2 * k - 3) / (2 * k)
    return a
