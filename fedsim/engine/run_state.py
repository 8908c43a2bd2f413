"""What every state of a run is: the loop, evaluations and records know no more of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from fedsim.algorithms.base import one_message
from fedsim.backends.base import Backend, Saved
from fedsim.clients.personal import fresh_personal
from fedsim.core.arrays import Bools, Floats, Ints
from fedsim.core.errors import RunError
from fedsim.core.job import Job
from fedsim.core.oracle import CARRIED
from fedsim.core.own_tests import Asked, OwnAnswers
from fedsim.core.returned import same_form
from fedsim.core.row_files import RowStream
from fedsim.core.types import Message, State
from fedsim.engine.assembly import Assembly
from fedsim.engine.inquiry import ServerInquiry
from fedsim.engine.outcomes import Combined, NodeFacts
from fedsim.graphs.presence import There
from fedsim.messages.base import SEPARATOR
from fedsim.participation.base import Arrival, Dispatch
from fedsim.scenario.sections import Scenario


class RunState(ABC):
    """The state of a run."""

    def __init__(self, scenario: Scenario, assembly: Assembly, backend: Backend) -> None:
        self.task, self.assembly, self.backend = assembly.task, assembly, backend
        self.algorithm = assembly.algorithm_of(scenario)
        self.renormalises = scenario.participation.renormalises and assembly.privacy.renormalises
        self.form = one_message(self.algorithm, self.task, gossip=assembly.network is not None)[1]
        self.honest = assembly.pipeline.run.honest
        self.values: State = {}
        """The tensors, where they are in this process; in continuous time each node's as after its last event."""
        self.idle: Floats | None = None
        """Virtual seconds that nodes' states have flowed for since their last events, ``[n]`` (None: none flows)."""
        self.there: There | None = None  # in the last round, on a graph whose links and nodes come and go
        self.inquiry: ServerInquiry | None = None  # what a mode may ask about clients, where there is a server

    def load(self, saved: Saved) -> None:
        """Continue from a checkpoint."""
        self.values = {k: v.to(self.task.device) for k, v in saved.state.items()}

    def kept(self) -> Mapping[str, Tensor | RowStream]:
        """What a checkpoint keeps of it."""
        return self.values

    def rest(self, idle: Floats | None) -> None:
        """In continuous time: nothing has happened to nodes for `idle` ``[n]`` virtual seconds, up to now."""
        self.idle = idle if self.algorithm.needs.flows else None

    @property
    def measured(self) -> Bools | None:
        """The nodes that are measured, ``[n]``: honest ones that are there; None: all honest, also if nobody is."""
        if self.there is None or self.there.everybody or not self.there.nodes.any():
            return None
        return self.there.nodes

    @property
    def params(self) -> Tensor | RowStream:
        """Parameters of the server ``[d]``, or of all nodes ``[n, d]``, as they are now.

        What stays with clients is as it was at first at a server; of nodes it is their own, where it can be known.
        """
        return self.models()["x"]

    @property
    def carried(self) -> Tensor | RowStream | None:
        """What models carry besides their parameters, rows like those of `params`; None: nothing."""
        return self.models()[CARRIED] if self.task.carried else None

    @abstractmethod
    def models(self) -> Mapping[str, Tensor | RowStream]:
        """`params` as ``x``, and `carried`."""

    def _apart(self, models: Tensor) -> State:
        d = self.task.dim
        return {"x": models[..., :d].contiguous(), CARRIED: models[..., d:].contiguous()}

    def personal(self, clients: Ints) -> State:
        """What stays with these clients of their own models, by name, where it can be known here: rows ``[m, p]``."""
        names = fresh_personal(self.task) if self.backend.shows_kept else ()
        return {name: self.backend.kept(name, clients) for name in names}

    @abstractmethod
    def dispatch(self, event: Dispatch) -> int:
        """Start local work; the bytes that the server sends for it."""

    @abstractmethod
    def combine(self, event: Arrival) -> Combined:
        """Change the state when the results of these clients are in."""

    def merge(self) -> None:
        """Give every node of a graph the mean of all nodes, of everything that they mix."""
        raise RunError("there are no nodes to merge: this run has a server")

    @abstractmethod
    def centre(self) -> Tensor:
        """The model that is evaluated, ``[d]``: the server's, or the mean of the honest nodes'."""

    @abstractmethod
    def own_answers(self, clients: Ints, asked: Asked) -> OwnAnswers:
        """What the models of `clients` say of the clients' own test rows."""

    def nodes(self, centre: Tensor) -> NodeFacts | None:
        """About a graph's nodes; None where there is a server."""
        return None

    def state(self, name: str, nodes: Ints | None = None) -> Tensor:
        """A tensor of the state: ``[width]`` of a server, ``[m, width]`` of `nodes` (None: all) of a graph."""
        return self.values[name]

    def _start(self, event: Dispatch, received: Message) -> Message:
        """Write down what will be released, and have the clients start."""
        if len(event.clients):
            private = self.assembly.privacy
            sent = private.enter(event.clients, event.rounds, event.steps, received)
            same_form(sent, received, private, "broadcast")
            received = sent
            ends = np.asarray(event.ends, dtype=np.float64)  # as whole numbers they may be too large
            job = Job(event.clients, event.rounds, event.steps, received, event.jobs, event.elapsed, ends)
            self.backend.dispatch(job)
        return received

    def _collect(self, event: Arrival) -> tuple[Arrival, Message]:
        """The messages of an arrival, which loses the clients that the backend left out."""
        self.assembly.privacy.collecting(event.clients, event.rounds)
        messages = self.backend.collect(event.clients if event.jobs is None else event.jobs)
        if len(self.backend.lost):
            event = event.without(self.backend.lost, renormalise=self.renormalises)
        return event, messages

    def _bytes(self, messages: Message, first: bool) -> int:
        """Of one message as it travels, in the `first` round or in another."""
        sent = {k: v for k, v in messages.items() if k in self.form or SEPARATOR in k}
        return self.assembly.pipeline.row_bytes(sent, first)
