"""Who of those that could takes part: the seam at which clients' losses and speed decide it.

A `Selection` chooses the cohort of every synchronous round. What it knows of clients it learns from them: it asks what
they lose with the present model, and is told who reported and how long that took. What it remembers is an array of one
number per client, part of every checkpoint.

Such cohorts are no fair sample: the run then minimises another mean of the clients' losses than without a selection,
which its papers say, too. Weights of aggregation are those of any cohort.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np

from fedsim.core.arrays import Array, Floats, Ints
from fedsim.core.clock import seconds
from fedsim.core.errors import RunError
from fedsim.core.fields import PartOf
from fedsim.core.oracle import Task
from fedsim.core.registry import Part
from fedsim.core.types import BatchSize

Known = Mapping[str, Floats]
"""What is remembered of clients, arrays ``[n]`` by name."""

_TICK = ":tick"  # where the clock stands, beside what a selection remembers
_LOW = 2**31


@dataclass(frozen=True)
class ClientLosses:
    """What the present model loses on clients' own samples, ``[m]`` each: the mean, and the mean square.

    A selection is told infinity for what is no number, and for what is too large for one.
    """

    mean: Floats
    square: Floats


class Inquiry(Protocol):
    """What a mode may ask its run about its clients, and what is kept of it in checkpoints."""

    @property
    def kept(self) -> Mapping[str, Array]:
        """What `note` was given for the last round that was combined; empty before the first."""

    def losses(self, clients: Ints, number: int, samples: BatchSize, working: bool) -> ClientLosses:
        """What the server's model loses on the training samples of `clients` (see `Task.losses`) in round `number`.

        They are sent it for that, unless they are `working`: then they have it anyway.
        """

    def note(self, number: int, kept: Mapping[str, Array], cohort: Ints) -> None:
        """Keep this when round `number`, in which `cohort` was sent the model for its work, is combined."""


@dataclass(frozen=True)
class Pool:
    """A round as a selection sees it: `size` of `clients` ``[k]``, ascending, are to take part.

    `importance` and `samples` ``[n]`` are of all clients. `draw` gives that many as they would be drawn without a
    selection, `losses` what clients lose with the present model on so many samples.
    """

    number: int
    seed: int
    size: int
    clients: Ints
    importance: Floats
    samples: Ints
    draw: Callable[[int], Ints]
    losses: Callable[[Ints, BatchSize], ClientLosses]


@dataclass(frozen=True)
class Reported:
    """Who reported in round `number`, how many `samples` each has, and after how many virtual `seconds`, ``[m]`` each.

    `losses` says what they lost with the model that they received on so many samples.
    """

    number: int
    clients: Ints
    samples: Ints
    seconds: Floats
    losses: Callable[[BatchSize], ClientLosses]


class Selection(Part, ABC):
    """Base class of what ``participation.selection`` names: a frozen dataclass whose fields are its keys."""

    def check(self, size: int, clients: int) -> None:
        """Raise InputError where keys do not fit cohorts of `size` of that many clients."""

    def fresh(self, clients: int) -> Known:
        """What it remembers before the first round."""
        return {}

    @abstractmethod
    def choose(self, pool: Pool, known: Known) -> Ints:
        """The clients that are asked to take part: `pool.size` of `pool.clients`, or all where they are fewer."""

    def learn(self, known: Known, reported: Reported) -> Known:
        """What it remembers after a round: new arrays, not those of `known` changed in place."""
        return known


SelectionKey = Annotated[Selection, PartOf("selection", "selection")]
"""The key of a mode."""


class Unasked:
    """In place of a run that does not go on yet, such as that of a plan: nobody is asked, and all lose alike."""

    kept: Mapping[str, Array] = {}

    def losses(self, clients: Ints, number: int, samples: BatchSize, working: bool) -> ClientLosses:
        return ClientLosses(np.ones(len(clients)), np.ones(len(clients)))

    def note(self, number: int, kept: Mapping[str, Array], cohort: Ints) -> None:
        return


class Choosing:
    """A selection at work in one run: from the beginning, or from where a checkpoint left it."""

    def __init__(self, selection: Selection, task: Task, seed: int, inquiry: Inquiry | None, after: int) -> None:
        self.selection, self.task, self.seed = selection, task, seed
        self.inquiry: Inquiry = Unasked() if inquiry is None else inquiry
        kept = dict(self.inquiry.kept)
        high, low = kept.pop(_TICK, np.zeros(2, dtype=np.int64)).tolist()
        self.tick: int = high * _LOW + low
        self.number = 0 if inquiry is None else after
        if self.number > 0 and not self.inquiry.kept:
            raise RunError("the checkpoint does not have what the selection of clients knew: start the run anew")
        self.known: Known = kept or selection.fresh(task.num_clients)

    def cohort(self, number: int, size: int, clients: Ints | None, draw: Callable[[int], Ints]) -> Ints:
        """The clients of a round, ascending; `clients` are those that could be (None: all)."""

        def losses(asked: Ints, samples: BatchSize) -> ClientLosses:
            return _ordered(self.inquiry.losses(asked, number, samples, False))

        everybody = np.arange(self.task.num_clients, dtype=np.int64) if clients is None else clients
        pool = Pool(number, self.seed, size, everybody, self.task.importance, self.task.sizes, draw, losses)
        return np.unique(np.asarray(self.selection.choose(pool, self.known), dtype=np.int64))

    def close(self, number: int, asked: Ints, clients: Ints, start: int, ends: list[int], now: int) -> None:
        """Of those `asked` in a round that starts at tick `start`, `clients` report at `ends`; it ends at `now`."""

        def losses(samples: BatchSize) -> ClientLosses:
            return _ordered(self.inquiry.losses(clients, number, samples, True))

        took = np.array([seconds(end - start) for end in ends], dtype=np.float64)
        self.known = self.selection.learn(self.known, Reported(number, clients, self.task.sizes[clients], took, losses))
        tick = np.array([now // _LOW, now % _LOW], dtype=np.int64)
        self.inquiry.note(number, {**self.known, _TICK: tick}, asked)


def _ordered(found: ClientLosses) -> ClientLosses:
    """The same losses, of which one that is no number is larger than all others: it compares with none."""
    mean, square = (np.nan_to_num(v, nan=np.inf, posinf=np.inf, neginf=-np.inf) for v in (found.mean, found.square))
    return ClientLosses(mean, square)
