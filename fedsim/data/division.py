"""From the scenario's ``data.partition`` to who holds which rows, under which name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedsim.core.arrays import Array, Ints
from fedsim.core.errors import InputError
from fedsim.data.labels import shown
from fedsim.data.local_test import LocalTest, hold_out
from fedsim.data.natural import ByColumn
from fedsim.data.partition import Partition, assign_partition
from fedsim.data.sets import Dataset


@dataclass(frozen=True)
class Division:
    """Who holds what.

    Attributes
    ----------
    rows
        Rows of train per client.
    names
        The clients' names, where a column names them.
    ids
        The column's values of each client.
    test_samples
        ``[clients]`` rows of test that are of the same ids.
    held
        Rows of train per client that it never trains on, and that are not among `rows`; None: nothing is held out.
    natural
        Rows of test per client that are of the same ids; None: the data do not say whose they are.
    column
        The column that was divided by.
    notes
        What people should know.
    """

    rows: list[Array]
    names: tuple[str, ...] = ()
    ids: tuple[list[Any], ...] = ()
    test_samples: Ints | None = None
    held: list[Ints] | None = None
    natural: list[Ints] | None = None
    column: str | None = None
    notes: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """JSON."""
        if self.column is None:
            return {"count": len(self.rows)}
        return {
            "count": len(self.rows), "partition_by": self.column, "names": list(self.names), "ids": list(self.ids),
            "test_samples": None if self.test_samples is None else self.test_samples.tolist(),
        }  # fmt: skip


def column_of(scheme: Partition | None) -> str | None:
    """The column that a partition scheme divides by; the data have to be loaded by it."""
    return scheme.partition_by if isinstance(scheme, ByColumn) else None


def divided(
    scheme: Partition | None, data: Dataset, clients: int | None, seed: int, local_test: LocalTest | None = None
) -> Division:
    """Divide the rows of train, and hold out what clients are tested on.

    Raises
    ------
    InputError
        With keys relative to the scenario's ``data``.
    """
    found = _divided(scheme, data, clients, seed)
    if isinstance(local_test, float):
        rows, held = hold_out(found.rows, local_test, seed)
        return replace(found, rows=rows, held=held)
    if local_test == "natural" and (found.natural is None or not any(len(rows) for rows in found.natural)):
        message = "found natural, but the data have no test rows of clients' own ids"
        raise InputError(f"{message}; allowed: a share, e.g. 0.2", key="local_test")
    return found


def _divided(scheme: Partition | None, data: Dataset, clients: int | None, seed: int) -> Division:
    if isinstance(scheme, ByColumn) and data.ids is not None:
        try:
            return _by_column(scheme, data, data.ids, clients)
        except InputError as error:
            raise error.under("partition") if error.problems[0].key != "clients" else error from None
    clients = clients or (len(data.clients) if data.clients is not None else None)
    if clients is None:
        raise InputError("missing; allowed: the number of clients to divide the data among", key="clients")
    return Division(assign_partition(scheme, data, clients, seed))


def _by_column(scheme: ByColumn, data: Dataset, ids: Array, clients: int | None) -> Division:
    rows, names, groups = scheme.divide(ids)
    if clients not in (None, len(rows)):
        raise InputError(
            f"found {clients}, but column '{scheme.partition_by}' makes {len(rows)}; allowed: {len(rows)}, or left out",
            key="clients",
        )
    owner = {value: i for i, group in enumerate(groups) for value in group}
    samples, natural, notes = None, None, list[str]()
    if data.test_ids is not None:
        found, place, counts = np.unique(data.test_ids, return_inverse=True, return_counts=True)
        samples = np.zeros(len(rows), dtype=np.int64)
        owners = np.array([owner.get(value, -1) for value in found.tolist()], dtype=np.int64)[place]
        by_owner = np.argsort(owners, kind="stable")
        natural = np.split(by_owner, np.searchsorted(owners[by_owner], np.arange(len(rows) + 1)))[1:-1]
        foreign = []
        for value, count in zip(found.tolist(), counts.tolist(), strict=True):
            if value in owner:
                samples[owner[value]] += count
            else:
                foreign.append(value)
        if foreign:
            notes.append(
                f"{len(foreign)} values of '{scheme.partition_by}' are of test rows alone and of no client: "
                f"{shown(foreign)}"
            )
    return Division(
        rows, tuple(names), tuple(groups), samples, natural=natural, column=scheme.partition_by, notes=tuple(notes)
    )
