"""Rows divided in equal shares, and label by label in random proportions (flwr-datasets' DirichletPartitioner).

The latter, row for row the same, is written here, because importing flwr-datasets (and with it datasets, matplotlib and
more) would take most of the time in which a small run starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from fedsim.core.arrays import Array, Ints

_DRAWS = 11


def equal_shares(rows: Array, clients: int) -> list[Array]:
    """`rows` ``[N]`` cut into one piece per client, the first N mod `clients` of them longer by one: views.

    The pieces of ``numpy.array_split``, which takes several microseconds for each.
    """
    size, longer = divmod(len(rows), clients)
    shares = np.arange(1, clients + 1)
    ends = size * shares + np.minimum(shares, longer)
    return [rows[start:end] for start, end in pairwise([0, *ends.tolist()])]


def in_proportions(
    labels: Array, alpha: float | Sequence[float], clients: int, least: int, balanced: bool, seed: int
) -> list[Ints] | None:
    """Positions in `labels` of each client, by label and then ascending; None where no draw gave all enough.

    Parameters
    ----------
    labels
        ``[N]``.
    alpha
        Of the Dirichlet distribution of each label's proportions: one for all clients, or one for each.
    least
        Rows that every client must have; all is drawn again, up to 10 times, until it has.
    balanced
        A client that has more rows than the mean gets no more.
    """
    try:
        with np.errstate(all="ignore"):
            return _first_enough(labels, alpha, clients, least, balanced, np.random.default_rng(seed))
    except (ValueError, ArithmeticError):  # numpy cannot draw with such an alpha
        return None


def _first_enough(
    labels: Array,
    alpha: float | Sequence[float],
    clients: int,
    least: int,
    balanced: bool,
    rng: np.random.Generator,
) -> list[Ints] | None:
    concentration = np.broadcast_to(np.asarray(alpha, dtype=float), (clients,))
    by_label = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for _ in range(_DRAWS):
        shares: list[list[Ints]] = [[] for _ in range(clients)]
        held = np.zeros(clients, dtype=np.int64)
        for rows in by_label:
            proportions = rng.dirichlet(concentration)
            if balanced:
                proportions = np.where(held > len(labels) / clients, 0.0, proportions)
                proportions = proportions / np.cumsum(proportions)[-1]  # a sum in order, as theirs is
            cuts = (np.cumsum(proportions) * len(rows)).astype(int)[:-1]
            for client, share in enumerate(np.split(rows, cuts)):
                shares[client].append(share)
                held[client] += len(share)
        if held.min() >= least:
            return [np.concatenate(share) for share in shares]
    return None
