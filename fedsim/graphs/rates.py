"""chi_1 and chi_2 of a graph whose links fire at rates: how fast two-by-two averaging spreads what nodes know.

Both are of the Laplacian ``Lambda = sum_ij r_ij (e_i - e_j)(e_i - e_j)^T``, in the unit of time of the rates; with
rates of 1 they are those of the graph itself. Source: Nabli & Oyallon, "DADAO" (arXiv 2208.00779).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedsim.core.arrays import Floats, Ints
from fedsim.core.errors import InputError
from fedsim.core.libraries import sparse
from fedsim.graphs import spectrum
from fedsim.graphs.spectrum import Matrix

DENSE = 1500  # up to here a dense eigenvalue solver is quick and cannot fail to converge
EXACT_CHI_2 = 3000  # and up to here a dense inverse


def laplacian(n: int, links: npt.ArrayLike, rates: npt.ArrayLike | None = None) -> Matrix:
    """``sum_ij r_ij (e_i - e_j)(e_i - e_j)^T`` of undirected `links` ``[E, 2]`` and their rates ``[E]`` (None: 1)."""
    i, j = np.asarray(links, dtype=np.int64).reshape(-1, 2).T
    r = np.ones(len(i)) if rates is None else np.asarray(rates, dtype=np.float64)
    fires = r > 0
    i, j, r = i[fires], j[fires], r[fires]
    rows, columns = np.concatenate([i, j]), np.concatenate([j, i])
    A = sparse.csr_array((np.concatenate([r, r]), (rows, columns)), shape=(n, n))
    return sparse.csr_array(sparse.diags_array(np.asarray(A.sum(axis=1)).ravel(), format="csr") - A)


def chi_1_of(L: Matrix) -> tuple[float, bool]:
    """1 over the smallest positive eigenvalue of a connected graph's Laplacian; whether exact, else a lower bound."""
    if L.shape[0] <= DENSE:
        return float(1.0 / np.linalg.eigvalsh(L.toarray())[1]), True
    smallest, exact = spectrum.second_smallest(L)
    return 1.0 / smallest, exact


def chi_2_of(L: Matrix, links: npt.ArrayLike) -> float:
    """Half the largest effective resistance ``(e_i - e_j)^T L^+ (e_i - e_j)`` over `links` ``[E, 2]``."""
    n, ends = L.shape[0], np.asarray(links, dtype=np.int64).reshape(-1, 2)
    if n <= EXACT_CHI_2:
        J = np.full((n, n), 1.0 / n)
        inverse = np.linalg.inv(L.toarray() + J)  # = L^+ + J, and J cancels in the differences below
        i, j = ends.T
        return float((inverse[i, i] + inverse[j, j] - 2 * inverse[i, j]).max() / 2)
    from scipy.sparse.linalg import splu

    solve = splu(sparse.csc_array(L)[1:, 1:]).solve  # node 0 grounded
    largest = 0.0
    for start in range(0, len(ends), 256):
        i, j = ends[start : start + 256].T
        column = np.arange(len(i))
        potential = np.zeros((n, len(i)))
        potential[i, column] += 1.0
        potential[j, column] -= 1.0
        potential[1:] = solve(potential[1:])
        potential[0] = 0.0
        largest = max(largest, float((potential[i, column] - potential[j, column]).max()))
    return largest / 2


def chi(n: int, links: Ints, rates: Floats) -> tuple[float, float]:
    """(chi_1, chi_2) of `links` ``[E, 2]`` that fire at `rates` ``[E]``; those of rate 0 are not there.

    chi_2 is over the links that fire.

    Raises
    ------
    InputError
        Links that fire do not connect the nodes, or the graph is so large that chi_1 could not be settled.
    """
    fires = np.asarray(rates) > 0
    graph = sparse.csr_array((np.ones(int(fires.sum())), tuple(links[fires].T)), shape=(n, n))
    parts, _ = sparse.csgraph.connected_components(graph, directed=False)
    if n < 2 or parts > 1:
        raise InputError(
            f"found links of positive rate that leave {parts} groups of nodes apart, for which chi_1 and chi_2 are not "
            "defined; allowed: rates above 0 on links that connect at least 2 nodes"
        )
    equal = float(rates[fires][0]) if len(np.unique(rates[fires])) == 1 else None
    L = laplacian(n, links[fires], None if equal is not None else rates[fires])
    scale = 1.0 if equal is None else equal  # the graph's own constants over the rate
    first, exact = chi_1_of(L)
    if not exact:
        raise InputError(f"chi_1 of this graph of {n} nodes could not be settled; allowed: a graph that mixes faster")
    return first / scale, chi_2_of(L, links[fires]) / scale
