"""The bridge to flwr-datasets' partitioners, and the deck that labels are dealt from."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from fedsim.core.arrays import Array
from fedsim.core.errors import InputError
from fedsim.core.rng import generator


def divide_rows(
    make: Callable[[Any, int], Any],
    labels: Array,
    order: Array,
    clients: int,
    seed: int,
    refusal: tuple[str, str | None],
) -> list[Array]:
    """Rows as flwr-datasets' ``make(flwr_datasets.partitioner, seed)`` divides them; its refusal in our words."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    import datasets
    import flwr_datasets.partitioner as fl

    table = datasets.Dataset.from_dict({"label": np.asarray(labels)[order].reshape(len(order)), "row": order})
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            partitioner = make(fl, drawn(seed))
            partitioner.dataset = table
            parts = [_rows(partitioner.load_partition(i)) for i in range(clients)]
    except (ValueError, ArithmeticError) as error:
        raise InputError(refusal[0], key=refusal[1]) from error
    return none_empty(parts, refusal[0], None)


def drawn(seed: int) -> int:
    """The seed of what flwr-datasets draws by itself."""
    return int(generator(seed, "partition", 0).integers(2**31))


def none_empty(parts: list[Array], why: str, key: str | None) -> list[Array]:
    """The same; InputError with `why` and `key` where a client holds no rows."""
    sizes = [len(p) for p in parts]
    if 0 in sizes:
        raise InputError(f"client {sizes.index(0)} holds no rows ({sizes.count(0)} such clients); {why}", key=key)
    return parts


def _rows(part: Any) -> Array:
    return np.asarray(part.with_format("numpy")[:]["row"], dtype=np.int64)


def deal_labels(labels: int, each: int, nodes: int, rng: np.random.Generator) -> Array:
    """``[nodes, each]`` distinct labels per node, from one shuffled deck of all labels after another.

    A deck that begins in the middle of a hand is shuffled so that its first cards differ from those the node already
    has.
    """
    cards: list[int] = []
    while len(cards) < nodes * each:
        hand = cards[len(cards) - len(cards) % each :]
        free = rng.permutation([c for c in range(labels) if c not in hand])
        first = free[: each - len(hand)]
        rest = rng.permutation([c for c in range(labels) if c not in first])
        cards += [*first.tolist(), *rest.tolist()]
    return np.array(cards[: nodes * each]).reshape(nodes, each)
