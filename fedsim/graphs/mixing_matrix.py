"""Mixing matrices: of a physical graph, and as realised in a round by the links that fire."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedsim.core import rng
from fedsim.core.arrays import Bools, Floats, Ints
from fedsim.core.crew import PORTION, apart, beside, shares
from fedsim.core.libraries import sparse
from fedsim.core.types import Aggregate

_DENSE_SHARE = 0.3  # above this share of non-zeros one dense matrix product is faster than gathering rows


class MixingMatrix:
    """A realised mixing matrix ``[n, n]``, applied to all nodes' rows at once; only its non-zeros cost anything.

    A shard of the nodes has a part of it, ``[m, k]``: its own nodes' rows over all the nodes that reach them. It is
    `dense` where the whole is, since the two ways add up in other orders (None: as `is_dense` has it).
    """

    def __init__(self, matrix: sparse.csr_array, device: torch.device, dense: bool | None = None) -> None:
        self.matrix = matrix
        self.device = device
        self.dense = is_dense(matrix) if dense is None else dense
        self._columns = torch.as_tensor(matrix.indices.astype(np.int64), device=device)
        self._starts = torch.as_tensor(matrix.indptr[:-1].astype(np.int64), device=device)
        self._data: Tensor | None = None

    def __call__(self, values: Tensor) -> Tensor:
        """``W @ values``: ``[k, d] -> [m, d]``, a new tensor."""
        if self.dense:
            return torch.as_tensor(self.matrix.toarray(), dtype=values.dtype, device=self.device) @ values
        # A weighted sum of gathered rows per node; about twice as fast as a sparse matrix product on a CPU.
        weights = self._weights(values.dtype)
        rows = self.matrix.shape[0]
        parts = shares(rows, self._touched(values))
        if self.device.type != "cpu" or len(parts) == 1:
            return _summed(self._columns, values, self._starts, weights)
        result = values.new_empty((rows, values.shape[-1]))

        def mix(nodes: slice) -> None:
            first, last = int(self.matrix.indptr[nodes.start]), int(self.matrix.indptr[nodes.stop])
            columns, starts = self._columns[first:last], self._starts[nodes] - first
            result[nodes] = _summed(columns, values, starts, weights[first:last])

        apart(mix, parts)
        return result

    def ahead(self, values: Tensor) -> Callable[[Tensor], Aggregate]:
        """Have a free thread mix `values` where it is no work for several threads.

        ``ahead(values)(sent)`` is this matrix where `sent` are the same numbers: it is asked with them once they are
        there, and mixes anew what else it is asked for.
        """
        touched = self._touched(values)
        if self.device.type != "cpu" or touched < PORTION or len(shares(self.matrix.shape[0], touched)) > 1:
            return lambda _: self
        return partial(_Ahead, self, beside(partial(self, values)))

    def _touched(self, values: Tensor) -> int:
        """Bytes that it reads and writes where it gathers rows."""
        return int(self.matrix.nnz + self.matrix.shape[0]) * values.shape[-1] * values.element_size()

    def _weights(self, dtype: torch.dtype) -> Tensor:
        """The non-zeros in that type; where the matrix is that of all rounds, they are made once."""
        if self._data is None or self._data.dtype != dtype:
            self._data = torch.as_tensor(self.matrix.data, dtype=dtype, device=self.device)
        return self._data

    def isolating(self, away: Bools) -> MixingMatrix:
        """This square matrix where no link of the rows `away` fires: what it would have carried stays at home."""
        entries = sparse.coo_array(self.matrix)
        rows, columns, data = entries.row, entries.col, entries.data
        crosses = (rows != columns) & (away[rows] | away[columns])
        stays = np.bincount(rows[crosses], data[crosses], minlength=len(away))
        matrix = sparse.coo_array((np.where(crosses, 0.0, data), (rows, columns)), shape=self.matrix.shape).tocsr()
        matrix = sparse.csr_array(matrix + sparse.diags_array(np.where(away, 0.0, stays)))
        matrix.setdiag(np.where(away, 1.0, matrix.diagonal()))
        matrix.eliminate_zeros()
        matrix.sort_indices()
        return MixingMatrix(matrix, self.device)


class _Ahead:
    """A mixing that was begun before it was known what is mixed: of anything but `sent` it is made anew."""

    def __init__(self, mix: Aggregate, result: Callable[[], Tensor], sent: Tensor) -> None:
        self.mix, self.result, self.sent, self.version = mix, result, sent, sent._version
        self.left = True  # the caller may change what it gets

    def __call__(self, values: Tensor) -> Tensor:
        if self.left and values is self.sent and values._version == self.version:
            self.left = False
            return self.result()
        mixed: Tensor = self.mix(values)
        return mixed


def is_dense(matrix: sparse.csr_array) -> bool:
    """Whether a whole matrix is applied as a dense product.

    Not where every node meets one other at most: gathering two rows reads the least there is, and a product of few rows
    rounds by its shape on some processors, so that a shard's would not be the whole's.
    """
    most = int(np.diff(matrix.indptr).max(initial=0))
    return most > 2 and matrix.nnz > _DENSE_SHARE * matrix.shape[0] * matrix.shape[1]


def _summed(columns: Tensor, values: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """``torch.nn.functional.embedding_bag``, whose checks take part of a round of small models."""
    scale_by_frequency, sum_mode, sparse = False, 0, False
    found: Tensor = torch.embedding_bag(values, columns, starts, scale_by_frequency, sum_mode, sparse, weights)[0]
    return found


def repeated(exchange: Aggregate, times: int) -> Aggregate:
    """One exchange between neighbours after the other; ``W^times @ values`` of a mixing matrix."""
    if times == 1:
        return exchange

    def mix(values: Tensor) -> Tensor:
        for _ in range(times):
            values = exchange(values)
        return values

    return mix


class BaseMixing:
    """The mixing matrix R of a physical graph, from which every round's realised matrix is made.

    `links` ``[E, 2]`` are the graph's links (undirected: i < j, both directions fire together; directed: source,
    target).
    """

    redrawn: ClassVar[bool] = False
    """Whether nodes meet others in every round, so that none has neighbours that stay."""
    moves_mean: ClassVar[bool] = False
    """Whether columns of a realised matrix need not sum to 1."""
    share: float = 1.0
    """How often a link is used of the times that it may be: less where nodes draw whom they meet."""

    def __init__(self, matrix: sparse.csr_array, directed: bool) -> None:
        entries = sparse.coo_array(matrix)
        self.n = entries.shape[0]
        missing = np.setdiff1d(np.arange(self.n), entries.row[entries.row == entries.col])
        rows, columns = np.concatenate([entries.row, missing]), np.concatenate([entries.col, missing])
        order = np.lexsort((columns, rows))
        rows, columns = rows[order].astype(np.int64), columns[order].astype(np.int64)
        data = np.concatenate([entries.data, np.zeros(len(missing))])[order]
        self.matrix = sparse.csr_array(
            (data, columns, np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=self.n))])), shape=entries.shape
        )
        self._rows, self._columns, self._data, self._off = rows, columns, data, rows != columns
        ends = np.stack([columns, rows], 1)[self._off]
        self.links, inverse = np.unique(ends if directed else np.sort(ends, axis=1), axis=0, return_inverse=True)
        self.entry_rows = rows[self._off]
        """Receiving node of every off-diagonal entry, and the link it uses."""
        self.entry_links = inverse.reshape(-1)
        self.degrees = np.bincount(self.entry_rows, minlength=self.n)
        self.link_weights = np.zeros(len(self.links))
        """r_ij of every link (of an undirected graph)."""
        self.link_weights[self.entry_links] = data[self._off]

    @property
    def pair_weights(self) -> Floats:
        """With what weight the two ends of every link mix where they do so by themselves ``[links]``."""
        return self.link_weights

    def fires(self, chance: Floats, seed: int, number: int) -> Bools:
        """Which links are used in round `number`, each with its probability ``[links]``."""
        if bool((chance >= 1).all()):
            return np.ones(len(chance), dtype=bool)
        return np.asarray(rng.uniform(rng.key(seed, "link", *self.links.T, number)) < chance)

    @property
    def hears(self) -> Ints:
        """How many others each node hears where every link that may fire in a round does, ``[n]``."""
        return self.degrees

    def realised(self, fired: Bools) -> sparse.csr_array:
        """``p_ij = r_ij`` where link ij fired, ``p_ii = 1 - sum_j p_ij``.

        What an idle link would have carried stays at home.
        """
        if fired.all():
            return self.matrix
        data, keep = self._data.copy(), np.ones(len(self._data), dtype=bool)
        active = fired[self.entry_links]
        keep[self._off] = active
        off_data = self._data[self._off]
        data[~self._off] = 1.0 - np.bincount(self.entry_rows, np.where(active, off_data, 0.0), minlength=self.n)
        starts = np.concatenate([[0], np.cumsum(np.bincount(self._rows[keep], minlength=self.n))])
        return sparse.csr_array((data[keep], self._columns[keep], starts), shape=(self.n, self.n))
