"""Who works, when and how much: participation modes turn a scenario into events of the simulation loop.

An event is a `Dispatch` (clients start local work from the current model), an `Arrival` (these clients' results are
combined: one round) or, where nothing more can come, an `Ended`. Modes draw from keys alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from fedsim.algorithms.base import Algorithm, GossipAlgorithm, ServerAlgorithm
from fedsim.core.arrays import Floats, Ints
from fedsim.core.errors import InputError
from fedsim.core.oracle import Task
from fedsim.core.registry import Part
from fedsim.devices.system import Durations, SystemSection
from fedsim.graphs.network import Network
from fedsim.graphs.presence import There
from fedsim.messages.aggregators import Aggregator
from fedsim.participation.selection import Inquiry

_FIRST_EVENTS = 1000
"""Events in which a mode is to have closed a round when it is checked."""


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

    They start at tick `start` and are done at ``ends[i]`` (on a wall clock, where nobody knows that beforehand: at
    `start`). Those `in_vain` pulled the model too, but nothing they do is ever combined, so nothing is computed for
    them.

    Raises
    ------
    InputError
        There is not one number of each kind per client: the mode that made it is wrong.
    """

    clients: Ints
    rounds: Ints
    steps: Ints
    ends: Sequence[int]
    jobs: Ints | None = None
    """Serial numbers of the jobs where a client may have several not combined yet (None: the clients' own numbers)."""
    start: int = 0
    in_vain: Sequence[InVain] = ()
    elapsed: Floats | None = None
    """In continuous time: virtual seconds since each node's last event."""

    def __post_init__(self) -> None:
        _one_each(self, "rounds", "steps", "ends", "jobs", "elapsed")


class Tick(NamedTuple):
    """In continuous time: at tick `time` the `number`-th ring of clock `clock`, in the order in which they are done.

    One node did `steps` local steps, or two `nodes` mixed over their link.
    """

    time: int
    clock: int
    number: int
    nodes: tuple[int, ...]
    steps: int = 0


@dataclass(frozen=True)
class Arrival:
    """The results of `clients` are combined: round `number` ends at virtual second `time`.

    `weights` ``[m]`` aggregate at a server; `mixing` is the realised matrix of a gossip round. `delays` are DSpodFL's
    (processing, transmission) of this round, `sends` the number of messages that cross a link.

    Raises
    ------
    InputError
        There is not one number of each kind per client: the mode that made it is wrong.
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
    jobs: Ints | None = None
    closes: bool = True
    """Whether the round ends with it; on a graph a round may have several, each of the nodes it names only."""
    compute: Ints | None = None
    """On a graph: the nodes that did local work."""
    edges: Ints | None = None
    """On a graph: the links that carried messages ``[k, 2]``."""
    ticks: Sequence[Tick] | None = None
    """In continuous time: what happened one after the other."""
    elapsed: Floats | None = None
    """In continuous time, where the round ends: virtual seconds since the last event of every node of the graph."""
    roles: Ints | None = None
    """What each client computed, where an algorithm gives its clients different work."""
    seconds: Sequence[float] | None = None
    """On a wall clock: how long each client's job took."""
    merge: bool = False
    """On a graph: afterwards all nodes take the mean of all models; `sends` has none of its messages."""
    there: There | None = None
    """On a graph whose links and nodes come and go, where the round ends: who is there in it."""
    missing: Ints | None = None
    """On a wall clock: who should have been in this round and did not answer."""
    superseded: Ints | None = None
    """Positions of contributions that are left out for a later one of the same client; their weights are 0."""
    skipped: str | None = None
    """Why nothing was combined, where the server's rule had too few messages."""

    def __post_init__(self) -> None:
        _one_each(self, "rounds", "steps", "staleness", "weights", "jobs", "roles", "seconds")

    def of(self, places: Ints) -> Arrival:
        """This arrival of some of its clients (positions), with their weights as they are."""
        chosen: dict[str, Any] = {
            name: value[places]
            for name in ("clients", "rounds", "steps", "staleness", "weights", "jobs", "roles")
            if (value := getattr(self, name)) is not None
        }
        if self.seconds is not None:
            chosen["seconds"] = [self.seconds[i] for i in places.tolist()]
        if self.superseded is not None:
            chosen["superseded"] = np.flatnonzero(np.isin(places, self.superseded))
        return replace(self, **chosen, sends=len(places))

    def places(self) -> Ints:
        """Positions of the contributions that are combined."""
        return np.setdiff1d(np.arange(len(self.clients)), [] if self.superseded is None else self.superseded)

    def current(self) -> Arrival:
        """This arrival without what is superseded."""
        return self if self.superseded is None else self.of(self.places())

    def last_of_each(self) -> Arrival:
        """This arrival where only the last contribution of each client counts."""
        order = np.lexsort((self.rounds, self.clients))
        earlier = order[:-1][self.clients[order][:-1] == self.clients[order][1:]]
        if self.weights is None or not len(earlier):
            return self
        weights = self.weights.copy()
        weights[earlier] = 0.0
        return replace(self, weights=weights, superseded=np.sort(earlier))

    def without(self, lost: Ints, renormalise: bool) -> Arrival:
        """This arrival without some of its clients (positions); the others' weights may keep their sum."""
        kept = self.of(np.setdiff1d(np.arange(len(self.clients)), lost))
        if renormalise and self.weights is not None and kept.weights is not None and len(kept.clients):
            kept = replace(kept, weights=kept.weights * (self.weights.sum() / kept.weights.sum()))
        return kept


def _one_each(event: Dispatch | Arrival, *names: str) -> None:
    wanted = len(event.clients)
    for name in names:
        values = getattr(event, name)
        if values is not None and len(values) != wanted:
            kind = type(event).__name__
            message = f"the mode made a {kind} with {len(values)} {name} for {wanted} clients, allowed: one for each"
            raise InputError(message, key="participation.mode")


@dataclass(frozen=True)
class Ended:
    """Nobody will deliver any more: after round `number`, from virtual second `time` on."""

    number: int
    time: float
    reason: str


Event = Dispatch | Arrival | Ended


@dataclass(frozen=True)
class Setting:
    """The run that a mode makes events for and that a privacy mechanism is bound to.

    `rounds` is how many it has, `network` the graph of a gossip run. `durations` say how long jobs take; on a graph
    they are None where a round simply takes a second. `inquiry` answers what a mode asks about clients while the run
    goes on; None: it does not go on yet, and nobody can be asked. `connected` gives the real clients that can take part
    now, ascending (None, or None from it: everybody can).
    """

    seed: int
    rounds: int
    task: Task
    algorithm: Algorithm
    participation: Participation
    aggregator: Aggregator
    network: Network | None
    durations: Durations | None = None
    inquiry: Inquiry | None = None
    connected: Callable[[], Ints | None] | None = None

    @property
    def server(self) -> ServerAlgorithm:
        """The algorithm, which has a server.

        Raises
        ------
        InputError
            It has none.
        """
        if isinstance(self.algorithm, ServerAlgorithm):
            return self.algorithm
        raise self._wrong("a ServerAlgorithm")

    @property
    def gossip(self) -> tuple[GossipAlgorithm, Network]:
        """The algorithm, which runs on a graph, and that graph.

        Raises
        ------
        InputError
            It does not, or there is no graph.
        """
        if not isinstance(self.algorithm, GossipAlgorithm):
            raise self._wrong("a GossipAlgorithm")
        if self.network is None:
            raise InputError("missing; the participation mode runs on a graph", key="topology")
        return self.algorithm, self.network

    @property
    def clocks(self) -> Durations:
        """How long jobs take; without a system model every local step takes a second."""
        return self.durations or Durations(SystemSection(), self.task.num_clients, self.seed)

    def _wrong(self, allowed: str) -> InputError:
        mode, name = type(self.participation).__name__, type(self.algorithm).__name__
        return InputError(f"found {name}, which is not what {mode} runs; allowed: {allowed}", key="algorithm.name")


class Participation(Part, ABC):
    """A participation mode; its fields are its YAML keys."""

    setting: ClassVar[Literal["server", "gossip"]]
    one_at_a_time: ClassVar[bool] = False
    """Whether a round combines one message, which a robust rule has nothing to compare with."""
    clocked: ClassVar[bool] = False
    """Whether what arrives may be older than the round before: then staleness is recorded, and real clients that are
    late are waited for while the others go on."""
    renormalises: ClassVar[bool] = True
    """Whether the weights of a round whose clients were lost on the way are scaled to their sum before."""
    continuous: ClassVar[bool] = False
    """Whether nodes act one at a time, in continuous time: then what happened on links is counted."""
    asks_connected: ClassVar[bool] = False
    """Whether, in a deployment, it can do with those clients that are connected (`Setting.connected`)."""
    comes_and_goes: ClassVar[bool] = False
    """Whether it runs on a graph whose links and nodes come and go: it then leaves out who is not there."""

    @property
    def asks_losses(self) -> bool:
        """Whether clients are asked what they lose, to choose who takes part: no mechanism makes noise for that."""
        return False

    @property
    def merging(self) -> str | None:
        """The key that has nodes of a graph take the mean of all models, at the end or before; None: none does."""
        return None

    def merges_in(self, rounds: int) -> int:
        """How often nodes of a graph take the mean of all models in a run of `rounds` rounds, its end included."""
        return 0

    @property
    def merges_at_end(self) -> bool:
        """Whether what is reported and saved at the end of a run on a graph is the mean of its nodes' models."""
        return False

    @property
    def fixed_rounds(self) -> str | None:
        """Why a run cannot be resumed with another number of rounds, where it cannot."""
        return None

    @abstractmethod
    def events(self, setting: Setting, after: int = 0) -> Iterator[Event]:
        """Events of the rounds after round `after`, without end, or until an `Ended`.

        They are the same as those that follow round `after` where it is 0, so that a run can be resumed.
        """

    def in_place(self, setting: Setting, event: Arrival, lost: Ints, free: Ints) -> Arrival | None:
        """In a deployment: clients, of the `free` ones, that do this round's work for `lost` ones; None: none may.

        Their weights are on the scale of the event's.
        """
        return None

    def picked(self, task: Task) -> Floats:
        """How likely each client is in a cohort of one, ``[n]``."""
        return np.full(task.num_clients, 1 / task.num_clients)

    def most_messages(self, clients: int) -> int:
        """The most messages that a round may combine, of that many clients."""
        return clients

    def settled(self, setting: Setting) -> tuple[Participation, Algorithm]:
        """The mode and the run's algorithm with what both find out about the run in the place of keys that are
        ``auto``.

        Raises
        ------
        InputError
            They cannot find that out, or the run is none for them; keys are whole (``participation.links``).
        """
        return self, setting.algorithm

    def idle(self, setting: Setting, number: int) -> Floats | None:
        """In continuous time: virtual seconds since every node's last event at the end of round `number`, ``[n]``."""
        return None

    def there(self, setting: Setting, number: int) -> There | None:
        """Who is there in round `number` (0: at the beginning) of a graph whose links and nodes come and go."""
        return None

    def check(self, task_clients: int) -> None:
        """Raise InputError where keys do not fit the number of clients; keys are the mode's own (``fraction``)."""

    def check_run(self, setting: Setting) -> None:
        """Raise InputError where the run is not one for this mode; keys are whole (``participation.fraction``).

        It is called before anything is written. Here the first round is made, so that a mode that cannot says so then.
        """
        for event in islice(self.events(setting), _FIRST_EVENTS):
            if not isinstance(event, Dispatch):
                return
