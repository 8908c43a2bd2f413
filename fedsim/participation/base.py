"""Who works, when and how much: participation modes turn a scenario into events of the simulation loop.

An event is a `Dispatch` (clients start local work from the current model), an `Arrival` (these clients' results are
combined: one round) or, where nothing more can come, an `Ended`. Modes draw from keys alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np

from fedsim.algorithms.base import Algorithm
from fedsim.core.arrays import Floats, Ints
from fedsim.core.oracle import Task
from fedsim.core.registry import Part
from fedsim.devices.system import Durations
from fedsim.graphs.network import Network
from fedsim.messages.aggregators import Aggregator


@dataclass(frozen=True)
class InVain:
    """Work of `client` from tick `start` to `end` that is never combined; `sent`: a result was sent and lost."""

    client: int
    start: int
    end: int
    sent: bool = False


@dataclass(frozen=True)
class Dispatch:
    """`clients` start ``steps[i]`` local steps of their round ``rounds[i]`` from the current model.

    They start at tick `start` and are done at ``ends[i]``. Those `in_vain` pulled the model too, but nothing they do is
    ever combined, so nothing is computed for them.
    """

    clients: Ints
    rounds: Ints
    steps: Ints
    jobs: Ints | None = None
    """Serial numbers of the jobs where a client may have several not combined yet (None: the clients' own numbers)."""
    start: int = 0
    ends: Sequence[int] = ()
    in_vain: Sequence[InVain] = ()


@dataclass(frozen=True)
class Arrival:
    """The results of `clients` are combined: round `number` ends at virtual second `time`.

    `weights` ``[m]`` aggregate at a server; `mixing` is the realised matrix of a gossip round. `delays` are DSpodFL's
    (processing, transmission) of this round, `sends` the number of messages that cross a link, `trace` what is recorded
    of the realised schedule.
    """

    number: int
    time: float
    clients: Ints
    rounds: Ints
    steps: Ints
    staleness: Ints
    sends: int
    weights: Floats | None = None
    mixing: Any = None
    delays: tuple[float, float] | None = None
    trace: dict[str, Any] = field(default_factory=dict)
    jobs: Ints | None = None
    closes: bool = True
    """Whether the round ends with it; on a graph a round may have several, each of the nodes it names only."""

    def without(self, lost: Ints, renormalise: bool) -> Arrival:
        """This arrival without some of its clients (positions); the others' weights may keep their sum."""
        keep = np.setdiff1d(np.arange(len(self.clients)), lost)
        weights = None if self.weights is None else self.weights[keep]
        if weights is not None and self.weights is not None and renormalise and len(keep):
            weights = weights * (self.weights.sum() / weights.sum())
        shown = ("clients", "rounds", "steps", "staleness", "weights")
        trace = {k: v[keep] if k in shown and len(v) == len(self.clients) else v for k, v in self.trace.items()}
        if weights is not None:
            trace["weights"] = weights
        return replace(
            self,
            clients=self.clients[keep],
            rounds=self.rounds[keep],
            steps=self.steps[keep],
            staleness=self.staleness[keep],
            weights=weights,
            jobs=None if self.jobs is None else self.jobs[keep],
            sends=len(keep),
            trace=trace,
        )


@dataclass(frozen=True)
class Ended:
    """Nobody will deliver any more: after round `number`, from virtual second `time` on."""

    number: int
    time: float
    reason: str


Event = Dispatch | Arrival | Ended


class Participation(Part, ABC):
    """A participation mode; its fields are its YAML keys."""

    setting: ClassVar[Literal["server", "gossip"]]

    @abstractmethod
    def events(
        self, task: Task, algorithm: Algorithm, seed: int, start: int, network: Any, durations: Durations | None = None
    ) -> Iterator[Event]:
        """Events from the first one after round `start` on, without end. `network` is the gossip network or None."""

    def check(self, task_clients: int) -> None:
        """Raise InputError where keys do not fit the number of clients."""


@dataclass(frozen=True)
class Setting:
    """The run that a mechanism is bound to. `rounds` is how many it has; `network` the graph of a gossip run."""

    seed: int
    rounds: int
    task: Task
    algorithm: Algorithm
    participation: Participation
    aggregator: Aggregator
    network: Network | None
    durations: Durations | None = None
