"""An honest node of a graph as attackers see it before they write to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsim.core.arrays import Floats, Ints
from fedsim.messages.heard import Heard


@dataclass(frozen=True)
class Target:
    """An honest node, and what it hears in an exchange.

    Attributes
    ----------
    known
        What attackers know, its own message and those of its honest neighbours by number, ``[h, d]``.
    weights
        The mixing weights of these ``[h]``.
    own
        Which of them is its own.
    evil
        What attackers would send if they were honest, ``[b, d]``.
    evil_weights
        The mixing weights of attackers ``[b]``.
    """

    known: Tensor
    weights: Floats
    own: int
    evil: Tensor
    evil_weights: Floats

    @classmethod
    def of(cls, heard: Heard, row: int, entries: Ints, attackers: Ints) -> Target:
        """The receiver that is a `row` of the matrix; `entries` are of its links from attackers."""
        place = slice(heard.matrix.indptr[row], heard.matrix.indptr[row + 1])
        honest = ~np.isin(heard.senders[place], attackers)
        columns, weights = heard.matrix.indices[place][honest], heard.matrix.data[place][honest]
        own = int(np.searchsorted(heard.nodes[columns], heard.receivers[row]))
        if own == len(columns) or columns[own] != heard.own[row]:  # its weight is 0
            columns, weights = np.insert(columns, own, heard.own[row]), np.insert(weights, own, 0.0)
        return cls(
            taken(heard, columns),
            weights,
            own,
            taken(heard, heard.matrix.indices[entries]),
            heard.matrix.data[entries],
        )


def present(heard: Heard, attackers: Ints) -> tuple[Ints, Ints]:
    """Rows of the values that are honest nodes' and attackers' own, by number."""
    numbers, first = np.unique(heard.nodes, return_index=True)
    evil = np.isin(numbers, attackers)
    return first[~evil], first[evil]


def taken(heard: Heard, rows: Ints) -> Tensor:
    """Rows of the values."""
    return heard.values.index_select(0, torch.as_tensor(rows, dtype=torch.int64, device=heard.values.device))
