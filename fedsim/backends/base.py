"""What the simulation loop needs of a backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from fedsim.backends.guard import Failed
from fedsim.core.arrays import Bools, Floats, Ints
from fedsim.core.errors import RunError
from fedsim.core.job import Job
from fedsim.core.own_tests import Asked, OwnAnswers
from fedsim.core.row_files import RowStream, TensorFile
from fedsim.core.types import Message
from fedsim.graphs.mixing_matrix import MixingMatrix


class Saved(Protocol):
    """A checkpoint on disk."""

    @property
    def clients(self) -> TensorFile:
        """What the backend's `save` gave."""

    @property
    def state(self) -> TensorFile:
        """The states of a graph's nodes."""


class Backend(Protocol):
    """Runs local work somewhere."""

    @property
    def nodes_here(self) -> NodeBackend | None:
        """Itself, where the states of a graph's nodes are there too and never in the calling process; else None."""

    shows_kept: bool
    """Whether `kept` can be asked: clients are computed here, or by actors, and not by machines of their own."""

    lost: Ints
    """Which of the jobs collected last were left out (positions in `jobs`): their clients' work raised."""

    def failures(self) -> Sequence[Failed]:
        """Clients that were left out since this was last asked, and why: their work raised."""

    def placed(self) -> str:
        """Called before what clients receive is made: who is computed with whom from here on, as far as the last bits
        of numbers depend on it ("": as always with this scenario)."""

    def dispatch(self, job: Job) -> None:
        """Note that these clients started; nothing needs to be computed yet."""

    def collect(self, jobs: Ints) -> Message:
        """The messages of jobs that have been dispatched, row i belonging to job number ``jobs[i]``."""

    def save(self) -> Mapping[str, Tensor | RowStream]:
        """What has to survive for an exact resume: the clients' state and the jobs in flight."""

    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Continue from what `save` gave."""

    def draw_from(self, word: int) -> None:
        """From now on clients draw their noise from `word` (see `privacy.base.Bound.draw_from`)."""

    def kept(self, name: str, clients: Ints) -> Tensor:
        """What clients keep between rounds under a name that the algorithm gives it, ``[m, width]``.

        Raises
        ------
        RunError
            They keep it to themselves.
        """

    @property
    def asks_clients(self) -> bool:
        """Whether clients alone say what models are worth on their rows, which are not looked at here."""

    def own_answers(self, clients: Ints, received: Message, asked: Asked) -> OwnAnswers:
        """What the models of `clients` say of the clients' own test rows; see `fedsim.clients.evaluating.evaluate`.

        All work that was dispatched before is done first.

        Raises
        ------
        RunError
            They keep their rows to themselves.
        """

    @property
    def wants_checkpoint(self) -> bool:
        """Whether a checkpoint is due, since too much would have to be done again after a loss."""

    def checkpointed(self, saved: Saved) -> None:
        """What `save` gave, and the states, are on disk now."""

    def close(self) -> None:
        """End whatever was started."""


class BackendDefaults:
    """What backends answer that lose nothing and keep no nodes."""

    nodes_here: NodeBackend | None = None
    lost: Ints = np.empty(0, dtype=np.int64)
    shows_kept = False
    wants_checkpoint = False
    asks_clients = False

    def failures(self) -> Sequence[Failed]:
        """Nobody: who raises ends the run."""
        return ()

    def placed(self) -> str:
        """Clients stay where they are."""
        return ""

    def kept(self, name: str, clients: Ints) -> Tensor:
        """Not to be had."""
        raise RunError("clients keep what is theirs to themselves here: no measure can read it")

    def own_answers(self, clients: Ints, received: Message, asked: Asked) -> OwnAnswers:
        """Not to be had."""
        raise RunError("clients keep what is theirs to themselves here: they cannot be evaluated one by one")

    def checkpointed(self, saved: Saved) -> None:
        """Nothing depends on it."""

    def draw_from(self, word: int) -> None:
        """Clients share the mechanism with this process, or have noise of their own."""

    def close(self) -> None:
        """Nothing was started."""


class NodeBackend(Backend, Protocol):
    """A backend that keeps and mixes the states of a graph's nodes.

    `idle` ``[n]``, where it is given, says for how many virtual seconds the nodes' states have flowed since their last
    events: what is told is of that moment, and what is kept stays as it is.
    """

    def mix(self, number: int, mixing: MixingMatrix) -> None:
        """The local work that was dispatched last, of all nodes or some, and what `combine` makes of it in round
        `number`; the matrix is of those nodes."""

    def merge(self, idle: Floats | None = None) -> None:
        """Give every node the mean of all nodes, of everything that they mix."""

    def mean(self, name: str = "x", idle: Floats | None = None, among: Bools | None = None) -> Tensor:
        """The mean model of the honest nodes (of those in `among` ``[n]``), ``[d]``."""

    def facts(
        self, centre: Tensor, idle: Floats | None = None, among: Bools | None = None
    ) -> tuple[float, float | None, float | None]:
        """Of the honest nodes (of those in `among`) the mean squared distance to `centre`, and their own models' mean
        and lowest accuracy."""

    def rows(self, name: str, nodes: Ints, idle: Floats | None = None) -> Tensor:
        """A state of some nodes, ``[m, width]``; under ``x`` their own models."""

    def nodes_answers(self, clients: Ints, asked: Asked, idle: Floats | None = None) -> OwnAnswers:
        """What the models of these nodes say of their own test rows."""

    def nodes(self, idle: Floats | None = None) -> dict[str, RowStream]:
        """The nodes' states, ``[n, d]`` each, in parts."""

    def models(self, idle: Floats | None = None) -> dict[str, RowStream]:
        """The nodes' own models with what stays with them, ``x`` ``[n, d]``, and what these carry, in parts."""

    def load_nodes(self, saved: Saved) -> None:
        """Continue from a checkpoint."""
