"""Eigenvalues and distances of large sparse graphs: exact where that is affordable, else told as an estimate.

Three ways, by what a graph is like. One that looks the same from every node (a ring, a complete or exponential graph)
has a circulant matrix, whose eigenvalues are a Fourier sum. A thin one (a path, a tree, a grid) mixes slowly, so
iterations take for ever, but its Laplacian can be factored: Lanczos on the inverse needs a few steps. The others mix
fast, and plain Lanczos finds their extreme eigenvalues.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.core.arrays import Array
from fedsim.core.libraries import sparse

Matrix = Any  # scipy.sparse.csr_array [n, n] float64; scipy has no type information

EXACT_DIAMETER = 5000  # up to here a search from every node is afforded
_MOST_VISITS = 1e9  # of edges, in all those searches
_PRECISION = 1e-7  # relative, of what is called exact
_STEPS = 1000
_THIN = 30  # entries per row of a factor that is cheaper than iterations
_MOST_ENTRIES = 2e8  # of a factor that is made at all, about 2 GB


@dataclass(frozen=True)
class Extremes:
    """The smallest and the largest eigenvalue on vectors of mean zero, and how far off each may be."""

    low: float
    high: float
    low_error: float
    high_error: float


def circulant(A: Matrix) -> tuple[Array, Array] | None:
    """Offsets and values of the first row where every row is the one above, shifted by one; None elsewhere."""
    A = sparse.csr_array(A)
    n, counts = A.shape[0], np.diff(A.indptr)
    if n == 0 or counts.min() != counts.max() or counts[0] == 0:
        return None
    rows = np.repeat(np.arange(n), counts)
    offsets = (A.indices - rows) % n
    order = np.lexsort((offsets, rows))
    offsets, values = offsets[order].reshape(n, -1), A.data[order].reshape(n, -1)
    if (offsets != offsets[0]).any() or np.abs(values - values[0]).max() > 1e-15:
        return None
    return offsets[0], values[0]


def circulant_laplacian(offsets: Array, weights: Array, n: int) -> Array:
    """Eigenvalues ``[n]`` of the symmetric Laplacian with ``-weights`` at these offsets: ``2 w sin^2(pi k o / n)``."""
    wave = np.arange(n, dtype=np.int64)
    values = np.zeros(n)
    for offset, weight in zip(offsets.tolist(), weights.tolist(), strict=True):
        if offset:
            values += 2.0 * weight * np.sin(math.pi * (wave * offset % n) / n) ** 2
    return values


def symmetric_gap(W: Matrix) -> tuple[float, bool]:
    """1 minus the second largest absolute eigenvalue of a large symmetric `W` whose rows sum to 1; whether it is exact.

    Otherwise it is an upper bound.
    """
    n = W.shape[0]
    row = circulant(W)
    if row is not None:
        from_one = circulant_laplacian(*row, n)[1:]
        return float(np.minimum(from_one, 2.0 - from_one).min()), True
    eye = sparse.eye_array(n, format="csr")
    entries = factor_entries(W)
    if entries > _THIN * n:
        found = lanczos(lambda x: W @ x, n, _gap_is_settled)
        if _gap_is_settled(found) or entries > _MOST_ENTRIES:
            return min(1.0 - found.high, 1.0 + found.low), _gap_is_settled(found)
    upper = near_zero(eye - W)
    found = lanczos(lambda x: W @ x, n, lambda e: _away(e, upper) or _gap_is_settled(e))
    if _away(found, upper):
        return upper, True
    # An eigenvalue near -1 decides; I + W is a Laplacian's sign pattern turned round, its inverse iteration as good.
    from scipy.sparse.linalg import eigsh

    lower = float(eigsh(sparse.csc_array(eye + W), k=1, sigma=-1e-6, return_eigenvectors=False)[0])
    return min(upper, lower), True


def asymmetric_radius(W: Matrix) -> float:
    """The spectral radius of ``W - 1 1^T / n`` of a large matrix by Arnoldi iteration; nan where it is slow."""
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigs

    n = W.shape[0]
    row = circulant(W)
    if row is not None:
        values = np.zeros(n)
        np.add.at(values, row[0], row[1])
        around: float = np.abs(np.fft.fft(values)[1:]).max()
        return around
    operator = LinearOperator((n, n), matvec=lambda x: W @ x - x.mean(axis=0), dtype=np.float64)
    start = np.random.Generator(np.random.Philox(0)).standard_normal(n)  # same graph, same digits
    size, restarts = (60, 100) if n <= 20_000 else (20, max(5, 2_000_000 // n))
    try:
        values = eigs(operator, k=1, which="LM", ncv=size, maxiter=restarts, v0=start, return_eigenvectors=False)
    except ArpackNoConvergence:
        return math.nan
    largest: float = np.abs(values).max()
    return largest


def second_smallest(L: Matrix) -> tuple[float, bool]:
    """The second smallest eigenvalue of a large connected graph's Laplacian; whether exact, else an upper bound."""
    n = L.shape[0]
    row = circulant(L)
    if row is not None:
        return float(circulant_laplacian(row[0], -row[1], n)[1:].min()), True
    entries = factor_entries(L)
    if entries > _THIN * n:
        found = lanczos(lambda x: L @ x, n, _low_is_settled)
        if _low_is_settled(found) or entries > _MOST_ENTRIES:
            return found.low, _low_is_settled(found)
    return near_zero(L), True


def near_zero(L: Matrix) -> float:
    """The second smallest eigenvalue of a Laplacian by Lanczos on its inverse, with node 0 grounded."""
    from scipy.sparse.linalg import splu

    n = L.shape[0]
    grounded = sparse.csc_array(L)[1:, 1:]
    factor = splu(grounded, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})

    def solve(x: Array) -> Array:
        return np.concatenate([[0.0], factor.solve(x[1:])])

    found = lanczos(solve, n, lambda e: e.high_error <= _PRECISION * e.high)
    return 1.0 / found.high


def lanczos(apply: Callable[[Array], Array], n: int, settled: Callable[[Extremes], bool]) -> Extremes:
    """Extreme eigenvalues of a symmetric map on the vectors of mean zero, until `settled` or ``_STEPS`` are taken.

    Without reorthogonalisation: rounding only makes copies of eigenvalues that have converged, and each step costs a
    product and a few vectors whatever their number. Bounds are from the residual (Parlett, "The symmetric eigenvalue
    problem", chapter 13).
    """
    from scipy.linalg import eigh_tridiagonal

    start = np.random.Generator(np.random.Philox(0)).standard_normal(n)  # same graph, same digits
    v = start - start.mean()
    v /= _norm(v)
    before, beta = np.zeros(n), 0.0
    diagonal: list[float] = []
    beside: list[float] = []
    found = Extremes(math.nan, math.nan, math.inf, math.inf)
    for step in range(1, _STEPS + 1):
        w = apply(v)
        w = w - w.mean()
        alpha = float((v * w).sum())
        w -= alpha * v + beta * before
        beta = _norm(w)
        diagonal.append(alpha)
        exhausted = beta <= 1e-12 * max(map(abs, diagonal))
        if step % 20 == 0 or step == _STEPS or exhausted or step == n - 1:
            ends = [
                eigh_tridiagonal(diagonal, beside, select="i", select_range=(at, at)) for at in (0, len(diagonal) - 1)
            ]
            (low, low_vector), (high, high_vector) = ends
            found = Extremes(
                float(low[0]),
                float(high[0]),
                beta * abs(float(low_vector[-1, 0])),
                beta * abs(float(high_vector[-1, 0])),
            )
            if exhausted or settled(found):
                break
        beside.append(beta)
        before, v = v, w / beta
        v -= v.mean()  # again: of a small difference, what was subtracted above is not all
    return found


def _norm(v: Array) -> float:
    """Summed up here: BLAS divides it among threads, which give other digits for every number of cores, and wait for
    each other for milliseconds where others have one of these."""
    return math.sqrt(float((v * v).sum()))


def _gap_is_settled(e: Extremes) -> bool:
    gaps = ((1.0 - e.high, e.high_error), (1.0 + e.low, e.low_error))
    (gap, error), (other, other_error) = sorted(gaps)
    return error <= _PRECISION * gap and other - other_error > gap - error


def _low_is_settled(e: Extremes) -> bool:
    return e.low_error <= _PRECISION * e.low


def _away(e: Extremes, gap: float) -> bool:
    """Whether the lowest eigenvalue is farther from -1 than `gap`."""
    return 1.0 + e.low - 2.0 * e.low_error - 1e-3 * (e.high - e.low) > gap


def factor_entries(A: Matrix) -> float:
    """About how many entries a factor of a symmetric matrix has: its envelope, once trees that hang on are cut off."""
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    pattern = sparse.csr_array((np.ones(A.nnz), A.indices, A.indptr), shape=A.shape)
    n: int = A.shape[0]
    pattern = pattern - sparse.diags_array(pattern.diagonal(), format="csr")
    pattern.eliminate_zeros()
    for _ in range(50):  # leaves are eliminated first and leave nothing behind
        degree = np.diff(pattern.indptr)
        keep = np.flatnonzero(degree > 1)
        if len(keep) in (0, len(degree)):
            break
        pattern = sparse.csr_array(pattern[keep][:, keep])
    order = reverse_cuthill_mckee(sparse.csr_matrix(pattern), symmetric_mode=True)
    if len(order) == 0:
        return 2.0 * n
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    entries = pattern.tocoo()
    first = place.copy()
    np.minimum.at(first, entries.row, place[entries.col])
    return float((place - first).sum()) + 2.0 * n


def diameter(A: Matrix) -> tuple[int, int]:
    """A lower and an upper bound of the largest hop count of a connected graph; equal where that is afforded."""
    n = A.shape[0]
    bounds = diameter_bounds(A)
    if n > EXACT_DIAMETER or n * A.nnz > _MOST_VISITS or bounds[0] == bounds[1]:
        return bounds
    exact = exact_diameter(A)
    return exact, exact


def diameter_bounds(A: Matrix) -> tuple[int, int]:
    """A lower and an upper bound of the largest hop count of a connected graph, by a few searches from good ends."""
    directed = bool(abs(A - A.T).nnz)
    near, back = hops(A, 0), hops(A.T.tocsr() if directed else A, 0)
    if circulant(A) is not None:  # every node sees the same
        return int(near.max()), int(near.max())
    far = int(np.argmax(near))
    across = hops(A, far)
    lower = max(int(across.max()), int(near.max()), int(back.max()))
    upper = int(near.max() + back.max())
    if not directed:
        end = hops(A, int(np.argmax(across)))
        middle = int(np.argmin(np.maximum(across, end)))
        lower = max(lower, int(end.max()))
        upper = min(upper, 2 * int(hops(A, middle).max()))
    return lower, max(upper, lower)


def hops(A: Matrix, source: int) -> Array:
    """Hop counts ``[n]`` from one node."""
    from scipy.sparse.csgraph import dijkstra

    return np.asarray(dijkstra(A, unweighted=True, indices=source))


def exact_diameter(A: Matrix) -> int:
    """The largest hop count, by a search from every node."""
    from scipy.sparse.csgraph import dijkstra

    nodes = np.arange(A.shape[0])
    return max(
        int(dijkstra(A, unweighted=True, indices=nodes[start : start + 512]).max())
        for start in range(0, len(nodes), 512)
    )
