"""Mixing matrices: who weighs whose value how much, how fast that reaches consensus, and whether it is sound.

``W[i, j]`` is the weight of node j's value in node i's average; rows sum to 1. On a directed graph the edge u -> v
means that v receives from u, so its weight is ``W[v, u]``. Everything is float64 and sparse; ``n`` counts the nodes.

References: Xiao & Boyd, "Fast linear iterations for distributed averaging" (2004) for the weights; Boyd et al.,
"Randomized gossip algorithms" (2006) for expected matrices; Nabli & Oyallon, "DADAO" (arXiv 2208.00779) for chi_1
and chi_2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsim.core.arrays import Array
from fedsim.core.errors import InputError
from fedsim.core.libraries import nx, sparse
from fedsim.core.registry import lookup, register
from fedsim.graphs import spectrum
from fedsim.graphs.file_weights import weights_of_file
from fedsim.graphs.rates import DENSE, chi_1_of, chi_2_of, laplacian

Matrix = Any  # scipy.sparse.csr_array [n, n] float64; scipy has no type information

TOLERANCE = 1e-12


def mixing_matrix(graph: nx.Graph[Any], weights: str) -> Matrix:
    """The mixing matrix ``[n, n]`` of `graph` (nodes ``0 .. n-1``) under the rule called `weights`.

    Registered rules: ``metropolis``, ``max_degree``, ``lazy``, ``uniform``, ``push``, ``file``, ``push_file``; or
    ``"pkg.mod:function"``, called with the graph and returning an ``[n, n]`` array, dense or sparse, whose rows sum to
    1, or its columns where the function has an attribute ``columns`` that is true.

    Raises
    ------
    InputError
        The rule is unknown, does not apply to directed graphs, or returns something that is not row-stochastic.
    """
    try:
        rule: Callable[[nx.Graph[Any]], Matrix] = lookup("mixing", weights)
        W = sparse.csr_array(rule(graph), dtype=np.float64)
        n = graph.number_of_nodes()
        if W.shape != (n, n):
            raise InputError(f"'{weights}' returned a matrix of shape {W.shape}, allowed: ({n}, {n})")
        check_mixing(W, doubly_stochastic=False, columns=getattr(rule, "columns", False))
        _check_links(W, graph, weights)
    except InputError as error:
        raise error.under("weights") from None
    return W


def _check_links(W: Matrix, graph: nx.Graph[Any], weights: str) -> None:
    """Nodes mix what their neighbours send: weight between others would be messages over links that are not there."""
    links = adjacency(graph)
    others = sparse.csr_array(W - sparse.diags_array(W.diagonal()))
    missing = sparse.coo_array(others - others.multiply(links.T != 0))  # row i of the transpose: who sends to node i
    missing.eliminate_zeros()
    if missing.nnz:
        i, j = int(missing.row[0]), int(missing.col[0])
        found = f"'{weights}' gives node {i} a share of what node {j} has, but the graph has no link from {j} to {i}"
        raise InputError(f"{found}; allowed: weight on the graph's links and on the diagonal")


@register.mixing("metropolis")
def metropolis(graph: nx.Graph[Any]) -> Matrix:
    """``w_ij = 1 / (1 + max(deg_i, deg_j))`` on edges: symmetric, doubly stochastic, needs only neighbours' degrees."""
    A = _undirected(graph, "metropolis").tocoo()
    degree = degrees(A)
    weight = 1.0 / (1.0 + np.maximum(degree[A.row], degree[A.col]))
    return _with_diagonal(sparse.coo_array((weight, (A.row, A.col)), shape=A.shape))


@register.mixing("max_degree")
def max_degree(graph: nx.Graph[Any]) -> Matrix:
    """``w_ij = 1 / (1 + max_k deg_k)`` on edges: symmetric, doubly stochastic, one global number."""
    A = _undirected(graph, "max_degree")
    return _with_diagonal(A / (1.0 + degrees(A).max()))


@register.mixing("lazy")
def lazy(graph: nx.Graph[Any]) -> Matrix:
    """``(I + metropolis) / 2``: symmetric, doubly stochastic, no negative eigenvalue."""
    _undirected(graph, "lazy")
    return (sparse.eye_array(graph.number_of_nodes(), format="csr") + metropolis(graph)) / 2.0


@register.mixing("uniform")
def uniform(graph: nx.Graph[Any]) -> Matrix:
    """``w_ij = 1 / (1 + deg_i)`` over i and the neighbours it hears; row-stochastic.

    Doubly stochastic only where every node hears and is heard by equally many (regular and exponential graphs); on
    other graphs it moves the network average towards well-connected nodes.
    """
    A = adjacency(graph).T.tocsr()  # row v: from whom v receives
    A = A + sparse.eye_array(A.shape[0], format="csr")
    return sparse.csr_array(sparse.diags_array(1.0 / degrees(A)) @ A)


@register.mixing("push")
def push(graph: nx.Graph[Any]) -> Matrix:
    """``w_ij = 1 / (1 + outdeg_j)`` over j and those it sends to: columns sum to 1, and each node knows its own."""
    A = sparse.csr_array(adjacency(graph).T + sparse.eye_array(graph.number_of_nodes(), format="csr"))
    return sparse.csr_array(A @ sparse.diags_array(1.0 / degrees(A.T)))


push.columns = True  # type: ignore[attr-defined] # what it sums to 1 over


@register.mixing("file")
def file(graph: nx.Graph[Any]) -> Matrix:
    """The weights of a graph file's edges, ``mixing_weight``; each node keeps what its row leaves of 1.

    On a directed graph the weight of u -> v is what v gives to u's value.

    Raises
    ------
    InputError
        An edge has no weight, or the weights at a node sum to more than 1.
    """
    return weights_of_file(graph, "file", TOLERANCE, sent=False)


@register.mixing("push_file")
def push_file(graph: nx.Graph[Any]) -> Matrix:
    """The weights of a graph file's edges as shares of what nodes send: u keeps what its column leaves of 1.

    Raises
    ------
    InputError
        An edge has no weight, or what a node sends sums to more than 1.
    """
    return weights_of_file(graph, "push_file", TOLERANCE, sent=True)


push_file.columns = True  # type: ignore[attr-defined]
file.of_file = push_file.of_file = True  # type: ignore[attr-defined] # edges of files must have weights


def of_file(weights: str | None) -> bool:
    """Whether the rule called `weights` takes the weights of a file's edges."""
    return weights is not None and getattr(lookup("mixing", weights), "of_file", False)


def check_mixing(W: Matrix, doubly_stochastic: bool, columns: bool = False) -> None:
    """Check that `W` is non-negative and its rows sum to 1 within 1e-12, its columns too or, with `columns`, instead.

    Raises
    ------
    InputError
        Naming the first entry, row or column that is wrong, and its value.
    """
    W = sparse.csr_array(W)
    if W.ndim != 2 or W.shape[0] != W.shape[1]:
        raise InputError(f"a mixing matrix is square; found shape {W.shape}")
    if not np.isfinite(W.data).all():
        raise InputError("a mixing matrix is finite; found nan or infinity")
    if W.nnz and W.data.min() < 0:
        entries = W.tocoo()
        k = int(np.argmin(entries.data))
        where = f"[{entries.row[k]}, {entries.col[k]}]"
        raise InputError(f"a mixing matrix is non-negative; found {entries.data[k]:.6g} at {where}")
    for axis, what in ((1, "row"), (0, "column")):
        if not doubly_stochastic and columns == (axis == 1):
            continue
        sums = np.asarray(W.sum(axis=axis)).ravel()
        worst = int(np.argmax(np.abs(sums - 1.0)))
        if abs(sums[worst] - 1.0) > TOLERANCE:
            hint = " (weights: metropolis gives a doubly stochastic matrix on undirected graphs)" if axis == 0 else ""
            raise InputError(f"{what} {worst} of the mixing matrix sums to {sums[worst]:.15g}, must be 1{hint}")


def is_symmetric(W: Matrix) -> bool:
    """Whether ``W = W^T`` within 1e-12."""
    W = sparse.csr_array(W)
    difference = abs(W - W.T)
    return bool(difference.nnz == 0 or difference.max() <= TOLERANCE)


def is_doubly_stochastic(W: Matrix) -> bool:
    """Whether `W` is non-negative with rows and columns that sum to 1 within 1e-12."""
    try:
        check_mixing(W, doubly_stochastic=True)
    except InputError:
        return False
    return True


def spectral_gap(W: Matrix) -> float:
    """1 minus the second largest absolute eigenvalue of a row-stochastic `W`; 0 where averaging does not converge.

    Since ``W 1 = 1``, the matrix ``W - 1 1^T / n`` has the eigenvalues of `W` with one 1 replaced by 0, whether or not
    `W` is symmetric, so the answer is 1 minus its spectral radius. Dense up to 1500 nodes, `spectrum` above: there it
    may be an upper bound, see `spectral_gap_found`; nan for a large asymmetric matrix where iterations are slow.
    """
    return spectral_gap_found(W)[0]


def spectral_gap_found(W: Matrix) -> tuple[float, bool]:
    """`spectral_gap`, and whether it is exact; of a large graph it may be an upper bound."""
    W = sparse.csr_array(W)
    n = W.shape[0]
    symmetric = is_symmetric(W)
    if n <= DENSE:
        deflated = W.toarray() - 1.0 / n
        values = np.linalg.eigvalsh(deflated) if symmetric else np.linalg.eigvals(deflated)
        radius = float(np.abs(values).max())
    elif symmetric:
        return spectrum.symmetric_gap(W)
    else:
        radius = spectrum.asymmetric_radius(W)
    gap = 1.0 - radius
    return (0.0 if abs(gap) < 1e-14 else gap), not math.isnan(gap)


def chi_1(graph: nx.Graph[Any], rates: npt.ArrayLike | None = None) -> float:
    """The inverse of the smallest positive eigenvalue of the Laplacian of a connected undirected graph (DADAO).

    `rates` weigh the links, in the order i < j, sorted (None: 1).

    Raises
    ------
    InputError
        The graph is directed, not connected, or has one node.
    """
    return chi_1_found(graph, rates)[0]


def chi_1_found(graph: nx.Graph[Any], rates: npt.ArrayLike | None = None) -> tuple[float, bool]:
    """`chi_1`, and whether it is exact; of a large graph it may be a lower bound."""
    return chi_1_of(laplacian(graph.number_of_nodes(), _links(graph, "chi_1"), rates))


def chi_2(graph: nx.Graph[Any], rates: npt.ArrayLike | None = None) -> float:
    """Half the largest effective resistance ``(e_i - e_j)^T L^+ (e_i - e_j)`` over edges (i, j) (DADAO).

    `rates` weigh the links, in the order i < j, sorted (None: 1).

    Raises
    ------
    InputError
        The graph is directed, not connected, or has one node.
    """
    links = _links(graph, "chi_2")
    if rates is None and has_bridge(graph):
        return 0.5  # all current between a bridge's ends crosses it: resistance 1, and no edge has more
    return chi_2_of(laplacian(graph.number_of_nodes(), links, rates), links)


def expected_mixing(W: Matrix, links: npt.ArrayLike, probabilities: npt.ArrayLike) -> Matrix:
    """``E[P] = I - sum over links of b_ij r_ij (e_i - e_j)(e_i - e_j)^T`` (DSpodFL, arXiv 2402.03448).

    Parameters
    ----------
    W : csr_array [n, n]
        The symmetric mixing matrix with entries ``r_ij``.
    links : int array [l, 2]
        The undirected links (i, j), each once.
    probabilities : float array [l] or a number
        ``b_ij``: how probable it is that a link fires in an iteration.

    Raises
    ------
    InputError
        `W` is not symmetric, a link is not in `W` or there twice, or a probability is outside [0, 1].
    """
    W = sparse.csr_array(W)
    n = W.shape[0]
    pairs = np.asarray(links, dtype=np.int64).reshape(-1, 2)
    b = np.broadcast_to(np.asarray(probabilities, dtype=np.float64), (len(pairs),))
    if not is_symmetric(W):
        raise InputError("expected mixing needs a symmetric mixing matrix (a link works in both directions)")
    if pairs.size and (pairs.min() < 0 or pairs.max() >= n):
        raise InputError(
            f"found a link with node {pairs.min() if pairs.min() < 0 else pairs.max()}, allowed: 0 to {n - 1}"
        )
    if not ((b >= 0) & (b <= 1)).all():
        raise InputError(f"found link probabilities from {b.min()} to {b.max()}, allowed: 0 to 1")
    if len(np.unique(np.sort(pairs, axis=1), axis=0)) != len(pairs):
        raise InputError("a link is there twice; each undirected link may be given once")
    i, j = pairs.T
    r = np.asarray(W[i, j]).ravel() if len(pairs) else np.zeros(0)
    missing = np.flatnonzero((r == 0) | (i == j))
    if len(missing):
        u, v = pairs[missing[0]]
        raise InputError(f"the link ({u}, {v}) has no weight in the mixing matrix: it is not an edge of the graph")
    flow = sparse.coo_array((np.tile(b * r, 2), (np.concatenate([i, j]), np.concatenate([j, i]))), shape=(n, n))
    return _with_diagonal(flow)


def adjacency(graph: nx.Graph[Any]) -> Matrix:
    """``[n, n]`` with 1.0 at [u, v] for the edge u -> v; edge weights of the graph are not used."""
    n = graph.number_of_nodes()
    edges = _edges(graph)
    if not graph.is_directed():
        edges = np.concatenate([edges, edges[:, ::-1]])
    return sparse.csr_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(n, n))


def has_bridge(graph: nx.Graph[Any]) -> bool:
    """Whether an undirected graph has a link without which it would fall apart; at once where degrees tell."""
    degrees = {degree for _, degree in graph.degree()}
    if 1 in degrees:
        return True
    if all(degree % 2 == 0 for degree in degrees):  # then every cut has an even number of links
        return False
    return bool(nx.has_bridges(graph))


def _undirected(graph: nx.Graph[Any], rule: str) -> Matrix:
    if graph.is_directed():
        raise InputError(
            f"'{rule}' needs an undirected graph: it gives both ends of an edge the same weight, and on a directed "
            "graph only one end receives; allowed for directed graphs: uniform, or push with sgp and push_diging"
        )
    return adjacency(graph)


def degrees(A: Matrix) -> Array:
    """Of an adjacency matrix, or the sums of any one's rows: ``[n]``."""
    return np.asarray(A.sum(axis=1)).ravel()


def _with_diagonal(off_diagonal: Matrix) -> Matrix:
    """Fill the diagonal so that rows sum to 1."""
    W = sparse.csr_array(off_diagonal)
    return sparse.csr_array(W + sparse.diags_array(1.0 - degrees(W), format="csr"))


def _links(graph: nx.Graph[Any], what: str) -> Array:
    """Edges ``[E, 2]`` of a connected undirected graph, i < j, sorted."""
    if graph.is_directed():
        raise InputError(f"{what} is defined for undirected graphs; this one is directed")
    if graph.number_of_nodes() < 2 or not nx.is_connected(graph):
        raise InputError(f"{what} is defined for connected graphs of at least 2 nodes")
    i, j = np.sort(_edges(graph), axis=1).T
    order = np.lexsort((j, i))
    return np.stack([i[order], j[order]], axis=1)


def _edges(graph: nx.Graph[Any]) -> Array:
    """``[E, 2]`` in the graph's own order."""
    return np.fromiter(chain.from_iterable(graph.edges()), dtype=np.int64).reshape(-1, 2)
