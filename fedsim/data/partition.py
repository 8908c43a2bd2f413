"""Who holds which rows: the schemes that divide a data set among clients.

Every scheme is a strict partition: no row has two holders. Schemes that flwr-datasets has are flwr-datasets' own
partitioners under its names and arguments; rows are shuffled first, so that those that cut contiguous blocks cut random
ones.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from fedsim.core.arrays import Array
from fedsim.core.errors import InputError
from fedsim.core.registry import Part, register
from fedsim.core.rng import generator
from fedsim.core.types import Count, Positive, Probability
from fedsim.data.flwr_partitioners import deal_labels, divide_rows, drawn, none_empty
from fedsim.data.proportions import equal_shares, in_proportions
from fedsim.data.sets import Dataset

_LABEL_FREE = "iid, size, linear, square, exponential, continuous"


class Partition(Part):
    """Base class of registered partition schemes."""

    @abstractmethod
    def assign(self, labels: Array, clients: int, seed: int) -> list[Array]:
        """Rows of each client.

        Parameters
        ----------
        labels
            ``[N]`` integers, or floats (``[N]`` or ``[N, k]``) for regression.

        Returns
        -------
        One int64 array of row indices per client, disjoint and not empty.

        Raises
        ------
        InputError
            The scheme cannot divide these labels among that many clients.
        """


def assign_partition(scheme: Partition | None, dataset: Dataset, clients: int, seed: int) -> list[Array]:
    """Rows of train per client, as the scenario's ``data.partition`` says (None: iid).

    Raises
    ------
    InputError
        With keys relative to the scenario's ``data``: ``clients``, ``partition``, ``partition.scheme``,
        ``partition.alpha``, ...
    """
    rows = len(dataset.train_y)
    if dataset.clients is not None:
        if scheme is not None:
            raise InputError(
                f"data set '{dataset.name}' comes divided among its clients; leave partition out", key="partition"
            )
        if clients != len(dataset.clients):
            raise InputError(
                f"found {clients}; allowed: {len(dataset.clients)}, as the data come divided", key="clients"
            )
        return dataset.clients
    if not 1 <= clients <= rows:
        raise InputError(f"found {clients} clients for {rows} training rows; allowed: 1 to {rows}", key="clients")
    try:
        return verified((scheme or Iid()).assign(dataset.train_y.numpy(), clients, seed), rows, clients)
    except InputError as error:
        raise error.under("partition") from error


def label_counts(labels: Array, rows: Sequence[Array], num_classes: int) -> Array:
    """How many rows of each label each client holds: int64 ``[clients, num_classes]``."""
    client = np.repeat(np.arange(len(rows)), np.fromiter(map(len, rows), dtype=np.int64, count=len(rows)))
    flat = client * num_classes + np.asarray(labels)[np.concatenate(rows)]
    return np.bincount(flat, minlength=len(rows) * num_classes).reshape(len(rows), num_classes)


@register.partition("iid")
@dataclass(frozen=True)
class Iid(Partition):
    """Equal shares of the shuffled rows, sizes differing by at most 1.

    flwr-datasets' IidPartitioner cuts contiguous blocks one by one as tables; cutting an index array is the same
    division and takes a fraction of a second for 100,000 clients.
    """

    def assign(self, labels: Array, clients: int, seed: int) -> list[Array]:
        return equal_shares(_shuffled(labels, clients, seed), clients)


@register.partition("dirichlet")
@dataclass(frozen=True)
class Dirichlet(Partition):
    """Each label's rows are divided in proportions drawn from Dirichlet(alpha).

    Drawn again (up to 10 times) until every client has `min_partition_size` rows; the divisions are those of
    flwr-datasets' DirichletPartitioner.
    `alpha`: a number, or one per client. Source: Yurochkin et al., arXiv 1905.12022.
    """

    alpha: Positive | list[Positive]
    min_partition_size: Annotated[int, Field(ge=0)] = 10
    self_balancing: bool = False

    def assign(self, labels: Array, clients: int, seed: int) -> list[Array]:
        order = _shuffled(_integers(labels, "dirichlet"), clients, seed)
        if isinstance(self.alpha, list):
            _one_per_client(self.alpha, clients, "alpha")
        if clients * self.min_partition_size > len(order):
            found = f"found {self.min_partition_size}, but {clients} clients share {len(order)} rows"
            raise InputError(f"{found}; allowed: 0 to {len(order) // clients}", key="min_partition_size")

        smaller = ", a smaller size" if self.min_partition_size > 1 else ""
        least, balanced = self.min_partition_size, self.self_balancing
        shares = in_proportions(np.asarray(labels)[order], self.alpha, clients, least, balanced, drawn(seed))
        if shares is None:
            raise InputError(
                f"in 11 draws with alpha {self.alpha} some of the {clients} clients always had fewer rows than "
                f"min_partition_size ({least}); allowed: a larger alpha, fewer clients{smaller}",
                key="alpha",
            )
        why = "allowed: at least 1, so that every client has rows to train on"
        return none_empty([order[share] for share in shares], why, "min_partition_size")


@register.partition("inner_dirichlet")
@dataclass(frozen=True)
class InnerDirichlet(Partition):
    """Each client draws its label proportions from Dirichlet(alpha) and fills its size with them, row by row.

    `alpha`: a number, or one per label. `partition_sizes`: rows per client (default: equal shares of all rows). A label
    that runs out is drawn no more. Source: Acar et al. (FedDyn), arXiv 2111.04263.
    """

    alpha: Positive | list[Positive]
    partition_sizes: list[Count] | None = None

    def assign(self, labels: Array, clients: int, seed: int) -> list[Array]:
        order = _shuffled(_integers(labels, "inner_dirichlet"), clients, seed)
        present, labels = np.unique(labels, return_inverse=True)  # flwr-datasets needs labels 0, 1, ... without gaps
        if isinstance(self.alpha, list) and len(self.alpha) != len(present):
            raise InputError(
                f"found {len(self.alpha)} values for {len(present)} labels; allowed: one per label", key="alpha"
            )
        if self.partition_sizes is None:
            sizes = [len(part) for part in equal_shares(order, clients)]
        else:
            sizes = _sizes(self.partition_sizes, clients, len(order))

        def make(fl: Any, flwr_seed: int) -> Any:
            return fl.InnerDirichletPartitioner(sizes, "label", self.alpha, shuffle=False, seed=flwr_seed)

        refusal = (
            f"with alpha {self.alpha} some client's labels ran out before it was full; allowed: a larger alpha",
            "alpha",
        )
        return divide_rows(make, labels, order, clients, seed, refusal)


@register.partition("pathological")
@dataclass(frozen=True)
class Pathological(Partition):
    """Each client holds exactly `num_classes_per_partition` labels; rows of labels that no client drew are unused.

    Source: Li et al., Federated Learning on Non-IID Data Silos, arXiv 2102.02079 (which uses ``first-deterministic``).
    """

    num_classes_per_partition: Count
    class_assignment_mode: Literal["random", "deterministic", "first-deterministic"] = "random"

    def assign(self, labels: Array, clients: int, seed: int) -> list[Array]:
        order = _shuffled(_integers(labels, "pathological"), clients, seed)
        _labels_allowed(self.num_classes_per_partition, labels, "num_classes_per_partition")

        def make(fl: Any, flwr_seed: int) -> Any:
            k, mode = self.num_classes_per_partition, self.class_assignment_mode
            return fl.PathologicalPartitioner(clients, "label", k, mode, shuffle=False, seed=flwr_seed)

        refusal = (
            f"with {self.num_classes_per_partition} labels for each of {clients} clients, some label has more holders "
            "than rows; allowed: fewer labels per client, fewer clients, or class_assignment_mode: deterministic",
            "num_classes_per_partition",
        )
        return divide_rows(make, labels, order, clients, seed, refusal)


@register.partition("shard")
@dataclass(frozen=True)
class Shard(Partition):
    """Rows sorted by label are cut into shards, which are dealt at random.

    `num_shards_per_partition` alone: that many shards each, as large as possible; with `shard_size`: of that size;
    `shard_size` alone: all whole shards (with `keep_incomplete_shard` also the last one). Source: McMahan et al., arXiv
    1602.05629.
    """

    num_shards_per_partition: Count | None = None
    shard_size: Count | None = None
    keep_incomplete_shard: bool = False

    def assign(self, labels: Array, clients: int, seed: int) -> list[Array]:
        order = _shuffled(_integers(labels, "shard"), clients, seed)
        if self.num_shards_per_partition is None and self.shard_size is None:
            raise InputError(
                "missing; allowed: num_shards_per_partition, shard_size or both", key="num_shards_per_partition"
            )
        key = "num_shards_per_partition" if self.shard_size is None else "shard_size"
        needed = clients * (self.num_shards_per_partition or 1) * (self.shard_size or 1)
        if needed > len(order):
            raise InputError(
                f"{clients} clients need at least {needed} rows for their shards, there are {len(order)}", key=key
            )

        def make(fl: Any, flwr_seed: int) -> Any:
            return fl.ShardPartitioner(
                clients,
                "label",
                self.num_shards_per_partition,
                self.shard_size,
                self.keep_incomplete_shard,
                shuffle=False,
                seed=flwr_seed,
            )

        refusal = (f"too few shards for {clients} clients; allowed: a smaller shard_size or fewer clients", key)
        return divide_rows(make, labels, order, clients, seed, refusal)


@register.partition("size")
@dataclass(frozen=True)
class Size(Partition):
    """`partition_sizes[i]` random rows for client i; rows beyond their sum are unused."""

    partition_sizes: list[Count]

    def assign(self, labels: Array, clients: int, seed: int) -> list[Array]:
        order = _shuffled(labels, clients, seed)
        sizes = _sizes(self.partition_sizes, clients, len(order))
        return divide_rows(
            lambda fl, _: fl.SizePartitioner(sizes), labels, order, clients, seed, ("cannot be cut", "partition_sizes")
        )


class _Growing(Partition):
    partitioner = ""

    def assign(self, labels: Array, clients: int, seed: int) -> list[Array]:
        order = _shuffled(labels, clients, seed)
        refusal = (
            f"{len(order)} rows leave the smallest of {clients} clients without any; allowed: fewer clients",
            None,
        )
        return divide_rows(lambda fl, _: getattr(fl, self.partitioner)(clients), labels, order, clients, seed, refusal)


@register.partition("linear")
@dataclass(frozen=True)
class Linear(_Growing):
    """Client i (from 1) holds a share of the rows proportional to i."""

    partitioner = "LinearPartitioner"


@register.partition("square")
@dataclass(frozen=True)
class Square(_Growing):
    """Client i (from 1) holds a share of the rows proportional to i squared."""

    partitioner = "SquarePartitioner"


@register.partition("exponential")
@dataclass(frozen=True)
class Exponential(_Growing):
    """Client i (from 1) holds a share of the rows proportional to exp(i)."""

    partitioner = "ExponentialPartitioner"


@register.partition("continuous")
@dataclass(frozen=True)
class Continuous(Partition):
    """For regression: rows sorted by a blend of target and noise, then cut; `strictness` 0 is iid, 1 sorted."""

    strictness: Probability

    def assign(self, labels: Array, clients: int, seed: int) -> list[Array]:
        order = _shuffled(labels, clients, seed)
        labels = np.asarray(labels)
        if labels.dtype.kind != "f" or labels.size != len(labels):
            found = "labels" if labels.dtype.kind != "f" else f"targets of shape {list(labels.shape)}"
            raise InputError(f"continuous needs one regression target per row, found {found}", key="scheme")
        if self.strictness == 0:
            return Iid().assign(labels, clients, seed)
        labels = labels.reshape(-1)

        def make(fl: Any, flwr_seed: int) -> Any:
            return fl.ContinuousPartitioner(clients, "label", self.strictness, shuffle=False, seed=flwr_seed)

        refusal = ("the targets are all nearly equal, there is nothing to sort by; allowed: strictness 0", "strictness")
        return divide_rows(make, labels, order, clients, seed, refusal)


@register.partition("labels_per_node")
@dataclass(frozen=True)
class LabelsPerNode(Partition):
    """Each node holds exactly `labels` labels, dealt so that the labels' numbers of holders differ by at most 1.

    A label's rows are divided evenly among its holders, so that every row is used where every label is (clients *
    labels at least the number of labels). Source: the data division of DSpodFL (Zehtabi et al., arXiv 2402.03448,
    section V).
    """

    labels: Count

    def assign(self, labels: Array, clients: int, seed: int) -> list[Array]:
        order = _shuffled(_integers(labels, "labels_per_node"), clients, seed)
        _labels_allowed(self.labels, labels, "labels")
        present, position = np.unique(np.asarray(labels)[order], return_inverse=True)
        held = deal_labels(len(present), self.labels, clients, generator(seed, "partition", 1))
        parts: list[list[Array]] = [[] for _ in range(clients)]
        by_label = np.split(order[np.argsort(position, kind="stable")], np.cumsum(np.bincount(position))[:-1])
        holders = np.split(
            np.argsort(held.ravel(), kind="stable") // self.labels,
            np.cumsum(np.bincount(held.ravel(), minlength=len(present)))[:-1],
        )
        for label, rows, nodes in zip(present, by_label, holders, strict=True):
            if len(nodes) > len(rows):
                found = f"label {label} has {len(rows)} rows for {len(nodes)} of the {clients} clients"
                raise InputError(f"{found}; allowed: fewer labels per node or fewer clients", key="labels")
            for node, share in zip(nodes, equal_shares(rows, max(len(nodes), 1)), strict=False):
                parts[node].append(share)
        return [np.concatenate(part) for part in parts]


def verified(rows: list[Array], total: int, clients: int) -> list[Array]:
    """The law of partitions, also for users' own schemes."""
    if not isinstance(rows, (list, tuple)) or not all(
        issubclass(kind, (list, np.ndarray)) for kind in {*map(type, rows)}
    ):
        raise InputError(f"the scheme gave {type(rows).__name__}, allowed: a list of rows per client", key="scheme")
    if len(rows) != clients:
        raise InputError(f"the scheme gave {len(rows)} clients rows instead of {clients}", key="scheme")
    sizes = np.fromiter(map(len, rows), dtype=np.int64, count=clients)
    if not sizes.all():
        raise InputError(
            f"client {int(sizes.argmin())} holds no rows ({int((sizes == 0).sum())} such clients)", key="scheme"
        )
    every = np.concatenate(rows)
    if every.dtype.kind not in "iu" or every.min() < 0 or every.max() >= total:
        raise InputError(f"the scheme gave rows that are not integers from 0 to {total - 1}", key="scheme")
    if np.bincount(every, minlength=total).max() > 1:
        raise InputError("the scheme gave a row to more than one client", key="scheme")
    return [r if type(r) is np.ndarray and r.dtype == np.int64 else np.asarray(r, dtype=np.int64) for r in rows]


def _shuffled(labels: Array, clients: int, seed: int) -> Array:
    """All rows in a random order of this seed."""
    if not 1 <= clients <= len(labels):
        raise InputError(f"found {clients} clients for {len(labels)} rows; allowed: 1 to {len(labels)}")
    return generator(seed, "partition").permutation(len(labels)).astype(np.int64)


def _integers(labels: Array, scheme: str) -> Array:
    if (kind := np.asarray(labels).dtype.kind) not in "iu" or np.ndim(labels) > 1:
        found = f"{'token' if kind in 'iu' else 'regression'} targets"
        raise InputError(f"'{scheme}' divides by label, found {found}; allowed: {_LABEL_FREE}", key="scheme")
    return labels


def _labels_allowed(count: int, labels: Array, key: str) -> None:
    present = len(np.unique(labels))
    if count > present:
        raise InputError(f"found {count}, the data have {present} labels; allowed: 1 to {present}", key=key)


def _one_per_client(values: Sequence[float], clients: int, key: str) -> None:
    if len(values) != clients:
        raise InputError(f"found {len(values)} values for {clients} clients; allowed: one per client", key=key)


def _sizes(sizes: list[int], clients: int, rows: int) -> list[int]:
    _one_per_client(sizes, clients, "partition_sizes")
    if sum(sizes) > rows:
        raise InputError(f"found sizes that sum to {sum(sizes)}, there are {rows} rows", key="partition_sizes")
    return sizes
