"""Where the state of a run lives, and what a round does to it: at a server, at a graph's nodes, or in a cluster.

All three have the same methods, so that the loop never asks which one it has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedsim.backends.base import Backend, NodeBackend, Saved
from fedsim.clients.evaluating import asked_about
from fedsim.clients.round import begin, column, describe, finish, flowed, initial, model
from fedsim.core.arrays import Floats, Ints
from fedsim.core.job import Job
from fedsim.core.own_tests import Asked, OwnAnswers
from fedsim.core.returned import aggregating
from fedsim.core.row_files import RowStream
from fedsim.core.types import Aggregate, Message, State, agree
from fedsim.engine.assembly import Assembly
from fedsim.engine.inquiry import ServerInquiry
from fedsim.engine.outcomes import Combined, NodeFacts
from fedsim.engine.run_state import RunState
from fedsim.messages.aggregators import COMBINES
from fedsim.messages.base import SEPARATOR
from fedsim.participation.base import Arrival, Dispatch
from fedsim.scenario.sections import Scenario

_RULE = f"aggregator{SEPARATOR}"  # before the names of what an aggregator keeps, among the tensors of a checkpoint


class ServerState(RunState):
    """A server's state; `rule` is what its aggregator keeps between rounds."""

    def __init__(self, scenario: Scenario, assembly: Assembly, backend: Backend) -> None:
        super().__init__(scenario, assembly, backend)
        self.aggregator = scenario.aggregator
        self.values = initial(self.algorithm, self.task)
        self.rule = self.aggregator.fresh(self.form)
        self.inquiry = self.asked = ServerInquiry(self.task, self.centre)

    def load(self, saved: Saved) -> None:
        super().load(saved)
        rule = {k: v for k, v in self.values.items() if k.startswith(_RULE)}
        self.values = self.asked.load({k: v for k, v in self.values.items() if k not in rule})
        self.rule |= {k.removeprefix(_RULE): v for k, v in rule.items()}

    def kept(self) -> Mapping[str, Tensor | RowStream]:
        return {**self.values, **{_RULE + k: v for k, v in self.rule.items()}, **self.asked.save()}

    def models(self) -> Mapping[str, Tensor | RowStream]:
        return self._apart(self._model(self.values["x"]))

    def _model(self, x: Tensor) -> Tensor:
        return self.task.model(model(self.values, x))

    def state(self, name: str, nodes: Ints | None = None) -> Tensor:
        return self._model(self.values["x"])[..., : self.task.dim] if name == "x" else super().state(name, nodes)

    def dispatch(self, event: Dispatch) -> int:
        received = self._start(event, begin(self.algorithm, self.values))
        sent = (len(event.clients) + len(event.in_vain)) * self.algorithm.received_size(received)
        if self.assembly.durations is not None:
            sent += sum(lost.sent for lost in event.in_vain) * self.assembly.durations.up
        return sent

    def combine(self, event: Arrival) -> Combined:
        if len(event.clients):
            event, messages = self._collect(event)
        if not len(event.clients):
            empty = self._nobody(event)
            if empty is None:
                return Combined(event, None)
            messages = empty
        size = self._bytes(messages, event.number == 1)
        everything, event = event, event.current()
        if len(event.clients) < len(everything.clients):
            places = torch.as_tensor(everything.places(), device=self.task.device)
            messages = {k: v[places] for k, v in messages.items()}
        too_few = self.aggregator.lacks(event.clients)
        if too_few is not None:
            return Combined(replace(everything, skipped=too_few), size)
        info = describe(self.algorithm, self.task, event)
        pipeline = self.assembly.pipeline
        messages = pipeline.receive(messages, event)
        assert info.weights is not None
        weights = info.weights.squeeze(-1)
        aggregate, self.rule = self.aggregator.bind_in(messages, weights, self.rule, event, pipeline.run)
        aggregate = aggregating(aggregate, None, self.aggregator, *COMBINES)
        private = self.assembly.privacy
        if private.claims:
            aggregate = private.aggregate(info, self.values, messages, aggregate)
            aggregate = aggregating(aggregate, None, private, "aggregate")
        self.values = finish(self.algorithm, self.values, messages, info, aggregate)
        return Combined(everything, size)

    def centre(self) -> Tensor:
        return self._model(self.algorithm.centre(self.values))

    def own_answers(self, clients: Ints, asked: Asked) -> OwnAnswers:
        tests = self.task.own
        if asked.personal:
            return self.backend.own_answers(clients, begin(self.algorithm, self.values), asked)
        centre, d = self.centre(), self.task.dim
        if asked.tuning is None and tests is not None and not self.backend.asks_clients:  # the data are here
            return tests.answers(centre, clients, asked.whole)
        carried = dict.fromkeys(self.task.carried, centre[d:])
        return self.backend.own_answers(clients, {"x": centre[:d], **carried}, asked)

    def _nobody(self, event: Arrival) -> Message | None:
        """Messages of nobody, rows ``[0, d]``, where a private sum is released all the same: its absence would tell."""
        privacy = self.assembly.privacy
        if not privacy.answers_empty:
            return None
        received = privacy.enter(event.clients, event.rounds, event.steps, begin(self.algorithm, self.values))
        job = Job(event.clients, event.rounds, event.steps, received)
        return self.assembly.pipeline.send({k: v[:0] for k, v in self.form.items()}, {}, job)[0]


class GraphState(RunState):
    """The states of all nodes of a graph, ``[n, d]``, in this process."""

    def __init__(self, scenario: Scenario, assembly: Assembly, backend: Backend) -> None:
        super().__init__(scenario, assembly, backend)
        self.values = initial(self.algorithm, self.task, self.task.num_clients)
        self.mixing = assembly.mixing(scenario)
        self._now: State | None = None

    def models(self) -> Mapping[str, Tensor | RowStream]:
        return self._apart(self._models(None))

    @property
    def now(self) -> State:
        """The states as they are now: where they flow a copy, so that an event finds what the last one left."""
        if self.idle is None:
            return self.values
        if self._now is None:
            self._now = self.algorithm.flow(self.values, column(self.idle, self.task.device))
        return self._now

    def rest(self, idle: Floats | None) -> None:
        super().rest(idle)
        self._now = None

    def dispatch(self, event: Dispatch) -> int:
        rows = self._rows(event.clients)
        self.values = flowed(self.algorithm, self.values, event.elapsed, rows)
        self._start(event, begin(self.algorithm, self.values, rows))
        return 0

    def combine(self, event: Arrival) -> Combined:
        if event.closes:
            self.rest(event.elapsed)
            self.there = event.there
        ahead = self._ahead(event)
        if len(event.clients):
            event, messages = self._collect(event)
        if not len(event.clients):
            return Combined(event, 0)
        info = describe(self.algorithm, self.task, event)
        size = self._bytes(messages, event.number == 1)
        mixed = self.mixing.round(event.mixing, event.clients, self.assembly.pipeline, event)
        if ahead is not None:
            mixed = ahead(messages["x"])
        aggregate, private = mixed, self.assembly.privacy
        if private.claims:
            aggregate = private.aggregate(info, self.values, messages, mixed)
            if aggregate is not mixed:
                aggregate = aggregating(aggregate, len(event.clients), private, "aggregate")
        self.values = finish(self.algorithm, self.values, messages, info, aggregate, self._rows(event.clients))
        return Combined(event, size)

    def _ahead(self, event: Arrival) -> Callable[[Tensor], Aggregate] | None:
        """What this round mixes, begun before its clients compute; None where it is known only after that."""
        known = self.algorithm.mixes_received and self.mixing.exchanges == 1 and not self.backend.asks_clients
        pipeline = self.assembly.pipeline
        if not known or pipeline.links or self.assembly.privacy.claims or not self.mixing.plain(pipeline):
            return None
        if event.mixing is None or self._rows(event.clients) is not None:
            return None
        begun: Callable[[Tensor], Aggregate] = event.mixing.ahead(self.values["x"])
        return begun

    def merge(self) -> None:
        self.values = {k: v.mean(0, keepdim=True).expand_as(v).clone() for k, v in self.now.items()}
        self.rest(None if self.idle is None else np.zeros_like(self.idle))

    def centre(self) -> Tensor:
        return self.task.model(self._common(self._honest()).mean(0))  # of what they carry besides, too

    def nodes(self, centre: Tensor) -> NodeFacts | None:
        who, shared = self._honest(), self.task.sharing.params
        x = self._raw("x", who)
        distance = 0.0 if agree(x) else float((x - shared.common(centre[: self.task.dim])).pow_(2).sum(-1).mean())
        if not (self.task.sharing.everything or self.backend.shows_kept):
            return NodeFacts(distance, None, None, self.there)
        right, asked = self.task.correct(self._models(who)), self.task.test_samples
        if right is None:
            return NodeFacts(distance, None, None, self.there)
        accuracy, lowest = float(right.sum()) / (len(x) * asked), float(right.min()) / asked
        return NodeFacts(distance, accuracy, lowest, self.there)

    def own_answers(self, clients: Ints, asked: Asked) -> OwnAnswers:
        return self.backend.own_answers(clients, asked_about(self.algorithm, self.now, clients, asked), asked)

    def _honest(self) -> Ints | None:
        """The nodes that do not attack and are there (None: all): nothing that is measured looks at the others."""
        there = self.measured
        if there is None:
            return self.honest
        who = np.flatnonzero(there)
        return who if self.honest is None else np.intersect1d(who, self.honest)

    def _common(self, nodes: Ints | None) -> Tensor:
        """What is shared of the models of some nodes, rows ``[m, s + c]``."""
        return model({k: self._raw(k, nodes) for k in self.task.common_carried}, self._raw("x", nodes))

    def _models(self, nodes: Ints | None) -> Tensor:
        """Their models, ``[m, d + b]``."""
        who = np.arange(self.task.num_clients, dtype=np.int64) if nodes is None else nodes
        return self.task.model(self._common(nodes), self.personal(who))

    def _raw(self, name: str, nodes: Ints | None) -> Tensor:
        rows = self.now[name]
        return rows if nodes is None else rows[torch.as_tensor(nodes, device=rows.device)]

    def state(self, name: str, nodes: Ints | None = None) -> Tensor:
        if name == "x" and self.task.sharing.params.own:
            return self._models(nodes)[:, : self.task.dim]
        return self._raw(name, nodes)

    def _rows(self, clients: Ints) -> Tensor | None:
        """The rows of an event that is not of all nodes (None: it is)."""
        whole = len(clients) == self.task.num_clients
        return None if whole else torch.as_tensor(clients, device=self.task.device)


class RemoteState(RunState):
    """The states of all nodes of a graph where they are computed: shards keep and mix them."""

    backend: NodeBackend

    def __init__(self, scenario: Scenario, assembly: Assembly, backend: NodeBackend) -> None:
        super().__init__(scenario, assembly, backend)
        self.remote = backend
        self.size = assembly.pipeline.row_bytes(self.form)

    def load(self, saved: Saved) -> None:
        self.remote.load_nodes(saved)

    def kept(self) -> Mapping[str, Tensor | RowStream]:
        return self.remote.nodes()

    def models(self) -> Mapping[str, Tensor | RowStream]:
        return (self.remote.nodes if self.task.sharing.everything else self.remote.models)(self.idle)

    def dispatch(self, event: Dispatch) -> int:
        self._start(event, {})
        return 0

    def combine(self, event: Arrival) -> Combined:
        if event.closes:
            self.rest(event.elapsed)
            self.there = event.there
        if not len(event.clients):
            return Combined(event, 0)
        self.remote.mix(event.number, event.mixing)
        return Combined(event, self.size)

    def merge(self) -> None:
        self.remote.merge(self.idle)
        self.rest(None if self.idle is None else np.zeros_like(self.idle))

    def centre(self) -> Tensor:
        x, *carried = (self.remote.mean(k, self.idle, self.measured) for k in ("x", *self.task.common_carried))
        return self.task.model(torch.cat([x, *carried]) if carried else x)

    def nodes(self, centre: Tensor) -> NodeFacts | None:
        return NodeFacts(*self.remote.facts(centre, self.idle, self.measured), self.there)

    def own_answers(self, clients: Ints, asked: Asked) -> OwnAnswers:
        return self.remote.nodes_answers(clients, asked, self.idle)

    def state(self, name: str, nodes: Ints | None = None) -> Tensor:
        return self.remote.rows(name, np.arange(self.task.num_clients) if nodes is None else nodes, self.idle)


def run_state(scenario: Scenario, assembly: Assembly, backend: Backend) -> RunState:
    """The state of a run before its first round, where its backend has it."""
    if assembly.network is None:
        return ServerState(scenario, assembly, backend)
    nodes = backend.nodes_here
    return GraphState(scenario, assembly, backend) if nodes is None else RemoteState(scenario, assembly, nodes)
