"""Local work to be done, and what a round got from it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedsim.core.arrays import Floats, Ints
from fedsim.core.types import Message

VISIT = 2**32
"""Rounds of models that walk from client to client are numbered ``round + VISIT * model``: two that are at one client
in the same round draw differently, and what one draws does not depend on how many there are."""


@dataclass(frozen=True)
class Job:
    """Local work to be done: ``steps[i]`` steps of client ``clients[i]`` in its round ``rounds[i]``.

    `received` holds ``[d]`` tensors where all clients got the same, ``[m, d]`` where each got its own.
    """

    clients: Ints
    rounds: Ints
    steps: Ints
    received: Message
    jobs: Ints | None = None
    elapsed: Floats | None = None
    """In continuous time: virtual seconds since each client's last event, ``[m]``."""
    ends: Floats | None = None
    """About when they are done, ``[m]`` in ticks; None: nobody knows."""

    @property
    def numbers(self) -> Ints:
        """Serial numbers of the jobs; the clients' own where each has only one."""
        return self.clients if self.jobs is None else self.jobs

    def of(self, rows: Ints) -> Job:
        """The part of it that some of its rows are."""
        given = {name: getattr(self, name) for name in ("jobs", "elapsed", "ends")}
        some = {name: None if v is None or not len(v) else v[rows] for name, v in given.items()}
        received = {k: v if v.dim() == 1 else _rows(v, rows) for k, v in self.received.items()}
        return Job(self.clients[rows], self.rounds[rows], self.steps[rows], received, **some)


@dataclass(frozen=True)
class Contribution:
    """The clients whose results round `number` combines, and the work behind them, ``[m]`` each.

    `staleness` counts combines since each pulled its model (None: none); `weights` aggregate at a server (None: a
    graph's mixing matrix does). An `Arrival` of the participation has the same fields and serves as one.
    """

    number: int
    clients: Ints
    rounds: Ints
    steps: Ints
    staleness: Ints | None = None
    weights: Floats | None = None


@dataclass(frozen=True)
class RunFacts:
    """What a part that stands in the way of messages may know of its run; draws are keyed with `seed`."""

    seed: int
    num_clients: int
    attackers: tuple[int, ...] | None = None
    """Clients that attack, ascending; None: nobody has chosen them yet."""
    clocked: bool = False
    """Whether clients' rounds are counts of their own jobs, not those of the server."""
    links: Ints | None = field(default=None, compare=False)
    """Of a graph the links ``[E, 2]`` (of graphs that take turns those of the first); None: there is a server."""
    numbers: tuple[str, ...] = ()
    """Names in a message of what is one number per client, however many parameters the model has."""

    @property
    def honest(self) -> Ints | None:
        """The clients that do not attack, ascending; None: all."""
        if not self.attackers:
            return None
        return np.setdiff1d(np.arange(self.num_clients, dtype=np.int64), np.array(self.attackers, dtype=np.int64))


def _rows(v: Tensor, rows: Ints) -> Tensor:
    return v.index_select(0, torch.as_tensor(rows, device=v.device))
