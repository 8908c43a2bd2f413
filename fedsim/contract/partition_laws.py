"""What a partition scheme promises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from fedsim.contract.tools import LawBrokenError, global_seed, same_from_yaml
from fedsim.core.arrays import Array
from fedsim.core.errors import InputError
from fedsim.data.partition import Partition, verified

_CLIENTS, _ROWS, _LABELS = 4, 240, 6


def partition_laws(scheme: Partition) -> Mapping[str, Callable[[], str]]:
    """Laws of one scheme, on 240 rows of 6 labels among 4 clients."""
    return {
        "every client has rows of its own": partial(_rows, scheme),
        "inputs are not mutated": partial(_inputs, scheme),
        "same seed, same numbers": partial(_seed, scheme),
        "YAML round trip": partial(same_from_yaml, scheme),
    }


def _labels() -> Array:
    return np.arange(_ROWS, dtype=np.int64) * 7 % _LABELS


def _rows(scheme: Partition) -> str:
    """No row belongs to two clients, and none of the clients is without."""
    try:
        rows = verified(scheme.assign(_labels(), _CLIENTS, 0), _ROWS, _CLIENTS)
    except InputError as error:
        if any(p.key == "scheme" for p in error.problems):
            raise LawBrokenError("; ".join(p.message for p in error.problems)) from None
        raise
    return f"{min(map(len, rows))} to {max(map(len, rows))} rows per client"


def _inputs(scheme: Partition) -> str:
    labels = _labels()
    scheme.assign(labels, _CLIENTS, 0)
    if not np.array_equal(labels, _labels()):
        raise LawBrokenError("assign changed the labels it was given; work on a copy")
    return "labels are as they were"


def _seed(scheme: Partition) -> str:
    found = []
    for state in (1, 2):
        with global_seed(state):
            found.append(scheme.assign(_labels(), _CLIENTS, 0))
    for client, (one, other) in enumerate(zip(*found, strict=True)):
        if not np.array_equal(one, other):
            raise LawBrokenError(f"client {client} gets other rows the second time; draw from rng.generator(seed, ...)")
    return "bit for bit"
