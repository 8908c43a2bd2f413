"""Natural partitions: a column says whose row it is.

flwr-datasets' NaturalIdPartitioner and GroupedNaturalIdPartitioner under its argument names and with its divisions;
numpy's, because theirs make one table per client.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from fedsim.core.arrays import Array
from fedsim.core.errors import InputError
from fedsim.core.registry import register
from fedsim.data.partition import Partition

_NAMED = 3  # ids of a group that its name spells out


@dataclass(frozen=True)
class ByColumn(Partition):
    """Base class of schemes that divide by the column `partition_by`, which is no feature."""

    partition_by: str

    @abstractmethod
    def groups(self, ids: Array) -> list[Array]:
        """The ids of each client, from the rows' ids ``[N]``."""

    def assign(self, labels: Array, clients: int, seed: int) -> list[Array]:
        raise InputError("this scheme divides by a column, and these data have none", key="partition_by")

    def divide(self, ids: Array) -> tuple[list[Array], list[str], list[list[Any]]]:
        """Rows of each client in the data's order, its name, and its ids."""
        found, place = np.unique(ids, return_inverse=True)
        by_id = np.split(np.argsort(place, kind="stable"), np.cumsum(np.bincount(place, minlength=len(found)))[:-1])
        groups = self.groups(ids)
        rows = [np.concatenate([by_id[i] for i in np.searchsorted(found, group)]) for group in groups]
        return rows, [_name(group) for group in groups], [group.tolist() for group in groups]


@register.partition("natural_id")
@dataclass(frozen=True)
class NaturalId(ByColumn):
    """One client per value of the column `partition_by`, in sorted order: hospitals, writers, users.

    flwr-datasets' NaturalIdPartitioner.
    """

    def groups(self, ids: Array) -> list[Array]:
        return list(sorted_ids(ids)[:, None])


@register.partition("grouped_natural_id")
@dataclass(frozen=True)
class GroupedNaturalId(ByColumn):
    """Clients of `group_size` values each of the column `partition_by`.

    `mode`: what becomes of the rest: ``allow-smaller`` (one smaller client more), ``allow-bigger`` (the first clients
    get one more each), ``drop-reminder`` (its rows are unused), ``strict`` (refused). `sort_unique_ids`: group sorted
    values, not in the order in which rows name them. flwr-datasets' GroupedNaturalIdPartitioner.
    """

    group_size: Annotated[int, Field(gt=0)]
    mode: Literal["allow-smaller", "allow-bigger", "drop-reminder", "strict"] = "allow-smaller"
    sort_unique_ids: bool = False

    def groups(self, ids: Array) -> list[Array]:
        unique = sorted_ids(ids) if self.sort_unique_ids else ids[np.sort(np.unique(ids, return_index=True)[1])]
        whole, rest = divmod(len(unique), self.group_size)
        if self.mode != "allow-smaller" and whole == 0:
            raise InputError(
                f"found {self.group_size}, the column has {len(unique)} values; allowed: at most that, or mode "
                "allow-smaller",
                key="group_size",
            )
        if self.mode == "strict" and rest:
            raise InputError(
                f"found {self.group_size}, which does not divide the column's {len(unique)} values; allowed with "
                "mode strict: a divisor",
                key="group_size",
            )
        if self.mode == "allow-bigger":
            return np.array_split(unique, whole)
        ends = np.arange(self.group_size, len(unique), self.group_size)
        parts = np.split(unique, ends)
        return parts[:whole] if self.mode == "drop-reminder" else parts


def sorted_ids(ids: Array) -> Array:
    """The distinct ids, sorted: text that is whole numbers by number, as the numbers themselves would be."""
    found = np.unique(ids)
    if found.dtype.kind == "U" and all(v == "0" or (v.isdecimal() and v.isascii() and v[0] != "0") for v in found):
        return found[np.argsort([int(v) for v in found.tolist()], kind="stable")]
    return found


def _name(group: Array) -> str:
    names = [str(v) for v in group.tolist()]
    return "+".join(names) if len(names) <= _NAMED else f"{names[0]} and {len(names) - 1} more"
