"""Which shard holds which clients, what shards send each other when they mix, and their parts of a checkpoint."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.csgraph import reverse_cuthill_mckee
from torch import Tensor

from fedsim.backends import under_way
from fedsim.core.arrays import Floats, Ints
from fedsim.graphs.mixing_matrix import is_dense

_SLACK = 1.05  # a shard of graph nodes may have that many times the mean load where it saves cut edges
_SWEEPS = 4
_FEW = 50  # neighbours that are counted sooner one by one than as an array


def place(load: Floats, shards: int) -> Ints:
    """The shard of every client, ``[n]``: largest load first, each to the shard with the least so far.

    The greedy rule's heaviest shard is at most 4/3 of the best possible (Graham 1969).
    """
    owner = np.empty(len(load), dtype=np.int64)
    heap = [(0.0, 0, k) for k in range(shards)]
    for i in np.argsort(-load, kind="stable").tolist():
        total, count, k = heapq.heappop(heap)
        owner[i] = k
        heapq.heappush(heap, (total + float(load[i]), count + 1, k))
    return owner


def place_graph(load: Floats, matrix: sparse.csr_array, shards: int, part: Floats | None = None) -> Ints:
    """The shard of every node, ``[n]``: balanced loads, few edges between shards.

    Blocks of the better of two orders, the nodes' own and one of small bandwidth (reverse Cuthill-McKee), then moves
    of single nodes that cut fewer edges without unbalancing the loads. `part` ``[shards]`` is what share of the load
    each shard is to have (None: the same).
    """
    part = np.full(shards, 1 / shards) if part is None else part / part.sum()
    pattern = sparse.csr_array((np.ones(matrix.nnz), matrix.indices, matrix.indptr), shape=matrix.shape)
    pattern = sparse.csr_array(pattern + pattern.T)
    orders = (np.arange(len(load)), np.asarray(reverse_cuthill_mckee(pattern, symmetric_mode=True)))
    candidates = [_refined(_blocks(load, order, part), load, pattern, part) for order in orders]
    return min(candidates, key=lambda owner: cut_edges(owner, matrix))


def cut_edges(owner: Ints, matrix: sparse.csr_array) -> int:
    """Entries of a mixing matrix whose two nodes are in different shards."""
    rows = np.repeat(np.arange(len(owner)), np.diff(matrix.indptr))
    return int((owner[rows] != owner[matrix.indices]).sum())


def _blocks(load: Floats, order: Ints, part: Floats) -> Ints:
    """Consecutive blocks of `order` with about those parts of the load, none of them empty."""
    shards = len(part)
    share = np.maximum(load, 1e-12)[order]
    middle = np.cumsum(share) - share / 2
    block = np.searchsorted(np.cumsum(part)[:-1], middle / share.sum(), side="right")
    n = len(load)
    block = np.maximum(block, np.arange(n) - (n - shards))  # leaves a node for each of the shards that follow
    block = np.minimum(np.maximum.accumulate(block), np.arange(n))
    owner = np.empty(n, dtype=np.int64)
    owner[order] = block
    return owner


def _refined(owner: Ints, load: Floats, pattern: sparse.csr_array, part: Floats) -> Ints:
    owner, loads, shards = owner.copy(), load.tolist(), len(part)
    totals = np.bincount(owner, load, minlength=shards).tolist()
    counts = np.bincount(owner, minlength=shards).tolist()
    most = (_SLACK * load.sum() * part).tolist()
    starts, neighbours, homes = pattern.indptr.tolist(), pattern.indices.tolist(), owner.tolist()
    for _ in range(_SWEEPS):
        moved = False
        rows = np.repeat(np.arange(len(owner)), np.diff(pattern.indptr))
        for i in np.unique(rows[owner[rows] != owner[pattern.indices]]).tolist():
            if starts[i + 1] - starts[i] <= _FEW:
                near = [0] * shards
                for j in neighbours[starts[i] : starts[i + 1]]:
                    near[homes[j]] += j != i
            else:
                row = pattern.indices[starts[i] : starts[i + 1]]
                near = np.bincount(owner[row[row != i]], minlength=shards).tolist()
            home, best = homes[i], near.index(max(near))
            if near[best] > near[home] and counts[home] > 1 and totals[best] + loads[i] <= most[best]:
                owner[i], homes[i], moved = best, best, True
                totals[home] -= loads[i]
                totals[best] += loads[i]
                counts[home] -= 1
                counts[best] += 1
        if not moved:
            break
    return owner


@dataclass(frozen=True)
class Exchange:
    """One shard's part of a mixing matrix.

    Columns count the shard's own rows first and then what comes in, peer after peer, each in ascending order of nodes.

    Attributes
    ----------
    starts, columns, weights : the rows of the shard's nodes in compressed form.
    nodes : the nodes that the columns stand for, by number.
    incoming : how many rows come from each shard, ``[shards]``.
    outgoing : positions of the own rows that go to each shard, one array per shard.
    dense : whether the whole matrix is applied as a dense product, and so this part of it.
    """

    starts: Ints
    columns: Ints
    weights: Floats
    nodes: Ints
    incoming: Ints
    outgoing: tuple[Ints, ...]
    dense: bool

    @property
    def alone(self) -> bool:
        """Whether no row comes in and none goes out."""
        return not self.incoming.any() and not any(len(rows) for rows in self.outgoing)

    def matrix(self) -> sparse.csr_array:
        """``[own, own + incoming]``; the entries of a row in the order of the whole matrix."""
        shape = (len(self.starts) - 1, len(self.starts) - 1 + int(self.incoming.sum()))
        return sparse.csr_array((self.weights, self.columns, self.starts), shape=shape)


def split(matrix: sparse.csr_array, owner: Ints, shards: int, numbers: Ints | None = None) -> list[Exchange]:
    """A mixing matrix ``[n, n]`` as the parts of its shards; only rows that a shard needs cross a boundary.

    `numbers` ``[n]`` are its nodes' (None: 0 to n - 1).
    """
    n = len(owner)
    called = np.arange(n) if numbers is None else numbers
    nodes = [np.flatnonzero(owner == k) for k in range(shards)]
    position = np.empty(n, dtype=np.int64)
    for mine in nodes:
        position[mine] = np.arange(len(mine))
    lengths = np.diff(matrix.indptr)
    parts, wanted = [], []
    for k, mine in enumerate(nodes):
        count = lengths[mine]
        starts = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
        entries = np.repeat(matrix.indptr[mine] - starts[:-1], count) + np.arange(starts[-1])
        columns, weights = matrix.indices[entries].astype(np.int64), matrix.data[entries]
        foreign = owner[columns] != k
        halo = np.unique(columns[foreign])
        halo = halo[np.argsort(owner[halo], kind="stable")]
        local = position[columns]
        where = np.empty(n, dtype=np.int64) if len(halo) else position
        where[halo] = len(mine) + np.arange(len(halo))
        local[foreign] = where[columns[foreign]]
        around = called[np.concatenate([mine, halo])]
        parts.append((starts, local, weights, around, np.bincount(owner[halo], minlength=shards)))
        wanted.append([position[halo[owner[halo] == j]] for j in range(shards)])
    dense = is_dense(matrix)
    return [Exchange(*part, tuple(wanted[j][k] for j in range(shards)), dense) for k, part in enumerate(parts)]


def split_saved(saved: Mapping[str, Tensor], owner: Ints) -> dict[int, dict[str, Tensor]]:
    """What a backend's `save` gave but for tables, by shard. Results that wait to be collected may be anywhere."""
    parts: dict[int, dict[str, Tensor]] = {}
    for by in ("clients", f"{under_way.PREFIX}clients"):
        of = owner[saved[by].numpy()] if by in saved else owner[:0]
        for k in np.unique(of).tolist():
            rows = np.flatnonzero(of == k)
            of_shard = {by: saved[by][torch.as_tensor(rows)]} if by == "clients" else under_way.some(saved, rows)
            parts.setdefault(k, {}).update(of_shard)
    done = {n: v for n, v in saved.items() if n.startswith("done.")}
    if done:
        parts.setdefault(int(owner.min()), {}).update(done)
    for part in parts.values():
        part.setdefault("clients", torch.empty(0, dtype=torch.int64))
    return parts


def merge_saved(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What the shards' `save` gave but for tables as one, in the order of client and job numbers."""
    merged = under_way.together(parts)
    for group, by in (("clients", "clients"), ("done.", "done.numbers")):
        having = [part for part in parts if by in part and len(part[by])]
        if not having:
            continue
        order = torch.cat([part[by] for part in having]).argsort()
        names = {by, *(n for part in having for n in part if n.startswith(group))}
        merged |= {n: torch.cat([part[n] for part in having])[order] for n in sorted(names)}
    merged.setdefault("clients", torch.empty(0, dtype=torch.int64))
    return merged
