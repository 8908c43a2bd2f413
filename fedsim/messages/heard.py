"""What the nodes of a graph hear of each other in one exchange: messages, whose they are, and the weights of links.

A graph rule combines it, and an attack on a graph's edges changes it first. It is the same in one process, where there
is a row per node, and in a shard, which has its own nodes' rows and those of the neighbours that reach them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedsim.core.arrays import Ints
from fedsim.core.job import RunFacts
from fedsim.core.libraries import sparse
from fedsim.messages.distances import lengths, ranks, subtractable

PART_BYTES = 2**25
"""Bytes of neighbours' messages that are gathered at a time."""


@dataclass(frozen=True)
class Heard:
    """What some nodes, the receivers, hear in one exchange.

    Attributes
    ----------
    values : messages ``[k, d]``, one row each.
    nodes : whose message each row is, ``[k]``; a node has several rows where it sends different ones to different
        neighbours.
    matrix : weights ``[m, k]``, a row per receiver. The entries of a row are in the order of the senders' numbers, so
        that ties are broken alike wherever it is computed.
    own : the row of `values` that is the receiver's own, ``[m]``.
    round, exchange : the number of the round, and how often these nodes have mixed in it before.
    run : what draws are keyed with.
    """

    values: Tensor
    nodes: Ints
    matrix: sparse.csr_array
    own: Ints
    round: int = 1
    exchange: int = 0
    run: RunFacts = RunFacts(0, 0)  # noqa: RUF009 - frozen

    @property
    def receivers(self) -> Ints:
        """The receivers' numbers, ``[m]``."""
        return self.nodes[self.own]

    @cached_property
    def rows(self) -> Ints:
        """The receiver (a row of `matrix`) of every entry, ``[nnz]``."""
        return np.repeat(np.arange(len(self.own)), np.diff(self.matrix.indptr))

    @cached_property
    def senders(self) -> Ints:
        """The sender's number of every entry, ``[nnz]``."""
        numbers: Ints = self.nodes[self.matrix.indices]
        return numbers

    def only(self, rows: Ints) -> Heard:
        """What those of the receivers (rows of `matrix`) hear."""
        return replace(self, matrix=sparse.csr_array(self.matrix[rows]), own=self.own[rows])

    def told(self, entries: Ints, messages: Tensor) -> Heard:
        """This, but in those `entries` of the matrix (positions, ``[p]``) `messages` ``[p, d]`` are heard instead."""
        columns = self.matrix.indices.copy()
        columns[entries] = len(self.values) + np.arange(len(entries))
        values = torch.cat([self.values, messages])
        shape = (len(self.own), len(values))
        matrix = sparse.csr_array((self.matrix.data, columns, self.matrix.indptr), shape=shape)
        return replace(self, values=values, nodes=np.concatenate([self.nodes, self.senders[entries]]), matrix=matrix)

    def without(self, entries: Ints) -> Heard:
        """This, where those `entries` (positions) are not heard; their weight stays with the receiver."""
        keep = np.ones(self.matrix.nnz, dtype=bool)
        keep[entries] = False
        data = self.matrix.data.copy()
        mine = np.flatnonzero(self.matrix.indices == self.own[self.rows])
        data[mine] += np.bincount(self.rows[entries], data[entries], minlength=len(self.own))[self.rows[mine]]
        starts = np.concatenate([[0], np.cumsum(np.bincount(self.rows[keep], minlength=len(self.own)))])
        matrix = sparse.csr_array((data[keep], self.matrix.indices[keep], starts), shape=self.matrix.shape)
        return replace(self, matrix=matrix)

    def neighbourhoods(self) -> Iterator[tuple[Ints, Near]]:
        """Receivers that hear equally many, a bounded number at a time, and what they hear.

        Messages with entries that are not finite, or too large for differences to be, are dropped; `Near.lost` says how
        many. A receiver that hears nobody else is in none of them.
        """
        links = self.senders != self.receivers[self.rows]
        lost = np.zeros(len(self.own), dtype=np.int64)
        sound = subtractable(self.values).cpu().numpy()
        if not sound.all():
            dropped = links & ~sound[self.matrix.indices]
            lost = np.bincount(self.rows[dropped], minlength=len(self.own))
            links &= ~dropped
        columns, weights = self.matrix.indices[links].astype(np.int64), self.matrix.data[links]
        degrees = np.bincount(self.rows[links], minlength=len(self.own))
        before = np.bincount(self.rows[links & (self.senders < self.receivers[self.rows])], minlength=len(self.own))
        starts = np.concatenate([[0], np.cumsum(degrees)])
        size = self.values.shape[-1] * self.values.element_size()
        kinds, kind = np.unique(np.stack([degrees, lost], 1), axis=0, return_inverse=True)
        for number, (degree, gone) in enumerate(kinds.tolist()):
            if degree == 0:
                continue
            alike = np.flatnonzero(kind.reshape(-1) == number)
            step = max(1, PART_BYTES // (degree * size))
            for first in range(0, len(alike), step):
                rows = alike[first : first + step]
                entries = starts[rows][:, None] + np.arange(degree)
                yield rows, Near(self, self.own[rows], columns[entries], weights[entries], before[rows], gone)


@dataclass(frozen=True)
class Near:
    """The neighbourhoods of `r` receivers with `n` neighbours each, in the order of the neighbours' numbers.

    Attributes
    ----------
    rows, columns : rows of the values that are the receivers' own ``[r]``, and their neighbours' ``[r, n]``.
    links : weights of the links, ``[r, n]``; what is missing to 1 is the receiver's own.
    before : how many of the neighbours have a number below the receiver's, ``[r]``.
    lost : neighbours of each whose messages were dropped, since they are not finite.
    """

    heard: Heard
    rows: Ints
    columns: Ints
    links: np.ndarray[tuple[int, int], np.dtype[np.float64]]
    before: Ints
    lost: int

    @property
    def degree(self) -> int:
        """n, the neighbours of each."""
        return int(self.columns.shape[1])

    @cached_property
    def own(self) -> Tensor:
        """The receivers' own messages, ``[r, d]``."""
        return self._taken(self.rows)

    @cached_property
    def values(self) -> Tensor:
        """What the neighbours sent, ``[r, n, d]``."""
        return self._taken(self.columns)

    @cached_property
    def differences(self) -> Tensor:
        """``x_j - x_i``, ``[r, n, d]``."""
        return self._taken(self.columns).sub_(self.own.unsqueeze(1))

    @cached_property
    def distances(self) -> Tensor:
        """``|x_j - x_i|``, ``[r, n]`` in float64."""
        return lengths(self.differences)

    @cached_property
    def order(self) -> Tensor:
        """The neighbours of each, the nearest first and of equally near ones that with the lower number, ``[r, n]``."""
        return ranks(self.distances).argsort(dim=1, stable=True)

    @cached_property
    def weights(self) -> Tensor:
        """`links` as a tensor in float64, ``[r, n]``."""
        return torch.as_tensor(self.links, dtype=torch.float64, device=self.heard.values.device)

    def all(self) -> Tensor:
        """Everything that a receiver has, its own among the others' in the order of numbers, ``[r, n + 1, d]``."""
        return self._taken(self._all)

    @property
    def numbers(self) -> Ints:
        """Whose messages `all` gives, ``[r, n + 1]``."""
        found: Ints = self.heard.nodes[self._all]
        return found

    @cached_property
    def _all(self) -> Ints:
        places = np.arange(self.degree + 1)[None]
        at = self.before[:, None]
        others = np.take_along_axis(self.columns, np.clip(places - (places > at), 0, self.degree - 1), axis=1)
        return np.where(places == at, self.rows[:, None], others)

    def _taken(self, rows: Ints) -> Tensor:
        values = self.heard.values
        taken = values.index_select(0, torch.as_tensor(rows.reshape(-1), device=values.device))
        return taken.reshape(*rows.shape, values.shape[-1])
