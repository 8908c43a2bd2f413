"""Which rows of the data are whose, and which of them evaluations take."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsim.core import rng
from fedsim.core.arrays import Ints


def evaluated(rows: Ints, limit: int | None, seed: int, purpose: str) -> Ints:
    """All rows, or a seeded sample of `limit` of them, in a fixed order."""
    if limit is None or limit >= len(rows):
        return np.sort(rows)
    chosen = rng.generator(seed, "eval_" + purpose).choice(len(rows), size=limit, replace=False)
    return np.sort(rows[chosen])


def index_lists(rows: Sequence[Ints]) -> tuple[Ints, Ints]:
    """Clients' row lists as one array and its offsets ``[n + 1]``: client i has ``flat[offsets[i]:offsets[i + 1]]``."""
    lengths = np.fromiter((len(r) for r in rows), dtype=np.int64, count=len(rows))
    return np.concatenate(rows).astype(np.int64), np.concatenate([[0], np.cumsum(lengths)])
