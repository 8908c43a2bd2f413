"""Test rows of clients' own: a share of each client's rows that it never trains on, or what the data have for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fedsim.core import rng
from fedsim.core.arrays import Array, Ints
from fedsim.core.errors import InputError

LocalTest = Annotated[float, Field(gt=0, lt=1)] | Literal["natural"]
"""The share of each client's rows that is held out, or ``natural``: the test rows of the client's own ids."""


def hold_out(
    rows: Sequence[Array], share: float, seed: int, numbers: Ints | None = None
) -> tuple[list[Ints], list[Ints]]:
    """Each client's rows to train on, and those that are held out, both in their order.

    `numbers` are the clients' (default: from 0). Which are held out depends on the seed, the client's number and how
    many rows it has, and on nothing else. At least one row is on each side.

    Raises
    ------
    InputError
        A client has a single row.
    """
    numbers = np.arange(len(rows)) if numbers is None else numbers
    sizes = np.array([len(r) for r in rows], dtype=np.int64)
    if (sizes < 2).any():
        client = int((sizes < 2).argmax())
        alone = int((sizes < 2).sum())
        raise InputError(
            f"found {share}, but client {numbers[client]} has {sizes[client]} row, which cannot be trained on and held "
            f"out ({alone} such clients); allowed: a partition with at least 2 rows per client",
            key="local_test",
        )
    held = np.clip(np.rint(sizes * share).astype(np.int64), 1, sizes - 1)
    ends, owner = np.cumsum(sizes), np.repeat(np.arange(len(sizes)), held)
    slot = np.arange(held.sum()) - np.repeat(np.cumsum(held) - held, held)
    places = rng.permute(rng.key(seed, "local_test", numbers[owner]), slot, sizes[owner])
    out = np.zeros(int(sizes.sum()), dtype=bool)
    out[(ends - sizes)[owner] + places] = True
    parts = np.split(out, ends[:-1])
    own = [np.asarray(r, dtype=np.int64) for r in rows]
    return [r[~p] for r, p in zip(own, parts, strict=True)], [r[p] for r, p in zip(own, parts, strict=True)]
