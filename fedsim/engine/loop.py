"""The one loop: for each event of the participation, dispatch jobs or collect messages, combine, record."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fedsim.algorithms.base import Algorithm, Round, one_message
from fedsim.backends.base import Backend, NodeBackend
from fedsim.clients.malloc import keep_freed_memory
from fedsim.core.arrays import Ints
from fedsim.core.errors import InputError, RunError
from fedsim.core.job import Job
from fedsim.core.oracle import Task
from fedsim.core.types import Aggregate, Message, State, message_bytes
from fedsim.data.partition_csv import write_partition
from fedsim.engine.assembly import Assembly, assemble
from fedsim.engine.checkpoint import save_checkpoint
from fedsim.engine.place import make_backend
from fedsim.engine.recorder import Recorder
from fedsim.engine.run_directory import Run, open_directory, save_params, save_report
from fedsim.engine.signals import stop_requested
from fedsim.engine.totals import Totals
from fedsim.graphs.mixing_matrix import MixingMatrix, repeated
from fedsim.participation.base import Arrival, Dispatch, Ended, Event
from fedsim.participation.record import trace_row
from fedsim.scenario.load import load, parse
from fedsim.scenario.sections import Scenario

Progress = Callable[[int, Mapping[str, Any] | None], None]
"""Called after every round with its number and, where it was evaluated, its metrics."""


def run(
    scenario: Scenario | str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Run a scenario and return its run directory.

    Parameters
    ----------
    scenario : a `Scenario`, a path to a file, or the nested mappings of one.
    out : the run directory; default ``runs/<name>-<hash of the resolved scenario>``.
    resume : continue from the directory's checkpoint; the numbers are those of an unbroken run.
    progress : called after every round.

    Raises
    ------
    InputError
        The scenario is wrong.
    RunError
        The run failed, e.g. diverged; what was recorded stays readable.
    KeyboardInterrupt
        Interrupted (Ctrl-C or SIGTERM); a checkpoint was written.
    """
    if isinstance(scenario, (str, Path)):
        scenario = load(scenario)
    elif not isinstance(scenario, Scenario):
        scenario = parse(scenario)
    if scenario.run.threads is not None:
        torch.set_num_threads(scenario.run.threads)
    assembly = assemble(scenario)
    folder = Path(out) if out is not None else Path("runs") / f"{scenario.name}-{scenario.hash()}"
    simulation = Simulation(scenario, assembly, folder, resume)
    try:
        return simulation.run(progress)
    except InputError as error:  # what only a schedule shows
        raise scenario.document.locate(error) from None
    finally:
        simulation.backend.close()


@dataclass
class Simulation:
    """One run: state, totals, and where they are recorded.

    Parameters
    ----------
    remote : where clients are computed, if not here.
    source : where events come from, if not from the participation's schedule; its dispatches are sent at once.
    """

    scenario: Scenario
    assembly: Assembly
    folder: Path
    resume: bool = False
    remote: Backend | None = None
    source: Callable[..., Iterator[Event]] | None = None
    state: State = field(init=False)
    totals: Totals = field(init=False, default_factory=Totals)
    round: int = field(init=False, default=0)
    fresh: bool = field(init=False, default=True)
    parts: list[Arrival] = field(init=False, default_factory=list)
    """The arrivals of the round that is going on."""

    def __post_init__(self) -> None:
        task, algorithm = self.assembly.task, self.scenario.algorithm
        if task.device.type == "cpu":
            keep_freed_memory()
        self.backend: Backend = self.remote or make_backend(self.scenario, self.assembly, self.folder)
        try:
            self._begin(task, algorithm)
        except BaseException:
            self.backend.close()
            raise

    def _begin(self, task: Task, algorithm: Algorithm) -> None:
        """The initial state, or the recorded one of a resumed run."""
        self.nodes = cast(NodeBackend, self.backend) if self.backend.keeps_nodes else None
        initial = task.initial()
        if self.assembly.network is not None:
            rows = 1 if self.nodes else task.num_clients
            initial = initial.expand(rows, -1).clone()
        self.state = algorithm.init(initial)
        saved = open_directory(self.folder, self.scenario, self.resume)
        self.fresh = saved is None
        if saved is not None:
            self.round, self.totals = saved.progress["round"], Totals(**saved.progress["totals"])
            self.backend.load(saved.clients)
            if self.assembly.privacy is not None:
                self.assembly.privacy.load(saved.progress["privacy"])
            if self.nodes is not None:
                self.nodes.load_nodes(saved)
            else:
                self.state = {k: v.to(task.device) for k, v in saved.state.items()}
        self._write_inputs()

    def run(self, progress: Progress | None = None) -> Run:
        """Run to the last round."""
        s = self.scenario
        recorder = Recorder(self.folder, s.run.trace)
        started = last_checkpoint = time.monotonic()
        before, resumed_at = self.totals.wall, self.round
        try:
            with stop_requested() as stop:
                if self.fresh:
                    self._evaluate(recorder, progress)
                events = (self.source or s.participation.events)(self.assembly.setting(s), self.round)
                begun: list[Dispatch] = []  # of a round that `run.seconds` may still cut off
                ended: Ended | None = None
                for event in events:
                    if self.round >= s.run.rounds or _past(event, s.run.seconds):
                        break
                    if isinstance(event, Ended):
                        ended = event
                        break
                    if isinstance(event, Dispatch):
                        if self.source is None:
                            begun.append(event)
                        else:
                            self._dispatch(event)
                        continue
                    for dispatch in begun:
                        self._dispatch(dispatch)
                    begun.clear()
                    self._combine(event, recorder)
                    if not event.closes:
                        continue
                    now = time.monotonic()
                    self.totals.wall = before + now - started
                    if s.run.evaluates(self.round):
                        self._evaluate(recorder, progress)
                    elif progress is not None:
                        progress(self.round, None)
                    stopping = stop() and self.round < s.run.rounds
                    due = now - last_checkpoint > s.run.checkpoint_seconds or self.backend.wants_checkpoint
                    if stopping or due:
                        recorder.flush()
                        self._checkpoint()
                        last_checkpoint = now
                    if stopping:
                        raise KeyboardInterrupt(f"a checkpoint of round {self.round} is in {self.folder}")
                if not s.run.evaluates(self.round):  # `run.seconds` or the last client ended the run
                    self._evaluate(recorder, progress)
        finally:
            recorder.close()
        self._checkpoint()
        params = self.state["x"] if self.nodes is None else self.nodes.nodes()["x"]
        save_params(self.folder, params, self.assembly.layout)
        if ended is not None:
            raise RunError(
                f"the run ended after round {ended.number} of {s.run.rounds}, at virtual second {ended.time:.6g}: "
                f"{ended.reason}. What was recorded up to there is in {self.folder}"
            )
        return Run(self.folder, resumed_at)

    # --- one event ----------------------------------------------------------------------------------------------------

    def _dispatch(self, event: Dispatch) -> None:
        received, privacy = {} if self.nodes else self.scenario.algorithm.broadcast(self.state), self.assembly.privacy
        if (rows := self._some_nodes(event.clients)) is not None:
            received = {k: v[rows] for k, v in received.items()}
        if len(event.clients):
            if privacy is not None:
                privacy.charge(event.clients, event.rounds, event.steps)
                received = privacy.broadcast(received)
            self.backend.dispatch(Job(event.clients, event.rounds, event.steps, received, event.jobs))
        if self.assembly.network is None:
            asked = len(event.clients) + len(event.in_vain)
            self.totals.bytes_sent += asked * message_bytes(received)
        if event.in_vain and self.assembly.durations is not None:
            self.totals.bytes_sent += sum(lost.sent for lost in event.in_vain) * self.assembly.durations.up

    def _combine(self, event: Arrival, recorder: Recorder) -> None:
        task, algorithm = self.assembly.task, self.scenario.algorithm
        if self.nodes is not None:
            if len(event.clients):
                assert isinstance(event.mixing, MixingMatrix)
                self.nodes.mix(event.number, event.mixing)
                self._count(event, {})
            self._end_round(event, recorder)
            return
        event, messages = self._delivered(event)
        if messages is None:  # a round in which nobody delivered
            self._end_round(event, recorder)
            return
        weights = None if event.weights is None else self._column(event.weights)
        roles = algorithm.role_of(event.clients, event.rounds, task.seed)
        info = Round(
            number=event.number,
            num_clients=task.num_clients,
            importance=self._column(task.importance[event.clients]),
            steps=self._column(event.steps),
            lr=self._column(algorithm.lr_at(event.rounds)),
            weights=weights,
            staleness=self._column(event.staleness),
            roles=None if roles is None else self._column(roles),
        )
        aggregate = self._aggregate(event.mixing, weights)
        if self.assembly.privacy is not None:
            aggregate = self.assembly.privacy.aggregate(info, self.state, messages, aggregate)
        rows = self._some_nodes(event.clients)
        if rows is None:
            self.state = algorithm.combine(self.state, messages, info, aggregate)
        else:
            part = algorithm.combine({k: v[rows] for k, v in self.state.items()}, messages, info, aggregate)
            for k, v in part.items():
                self.state[k].index_copy_(0, rows, v)
        self._count(event, messages)
        self._end_round(event, recorder)

    def _delivered(self, event: Arrival) -> tuple[Arrival, Message | None]:
        """The messages of an arrival, which loses the clients that the backend left out."""
        if len(event.clients):
            messages = self.backend.collect(event.clients if event.jobs is None else event.jobs)
            if len(self.backend.lost):
                renormalise = self.scenario.participation.renormalises and self.assembly.privacy is None
                event = event.without(self.backend.lost, renormalise)
            if len(event.clients):
                return event, messages
        return event, self._empty_round(event)

    def _empty_round(self, event: Arrival) -> Message | None:
        """Messages of nobody, rows ``[0, d]``, where a private sum is released all the same: its absence would tell."""
        privacy = self.assembly.privacy
        if privacy is None or not privacy.answers_empty:
            return None
        privacy.charge(event.clients, event.rounds, event.steps)
        sent = one_message(self.scenario.algorithm, self.assembly.task, gossip=False)[1]
        job = Job(
            event.clients, event.rounds, event.steps, privacy.broadcast(self.scenario.algorithm.broadcast(self.state))
        )
        return privacy.outgoing({k: v[:0] for k, v in sent.items()}, job)

    def _some_nodes(self, clients: Ints) -> Tensor | None:
        """The rows of an event that is not of all nodes of a graph (None: it is, or there is a server)."""
        if self.assembly.network is None or len(clients) == self.assembly.task.num_clients:
            return None
        return torch.as_tensor(clients, device=self.assembly.device)

    def _end_round(self, event: Arrival, recorder: Recorder) -> None:
        self.parts.append(event)
        if not event.closes:
            return
        self.totals.time, self.round = event.time, event.number
        if self.scenario.run.trace:
            recorder.trace(trace_row(self.parts))
        self.parts.clear()

    def _aggregate(self, mixing: Any, weights: Tensor | None) -> Aggregate:
        """A server's aggregator with this round's weights, or a graph's mixing matrix."""
        if isinstance(mixing, MixingMatrix):
            return mixing if self.assembly.privacy is None else repeated(mixing, self.assembly.privacy.exchanges)
        aggregator = self.scenario.aggregator
        assert weights is not None
        default = weights.squeeze(-1)
        return lambda values, given=None: aggregator(values, default if given is None else given)

    def _count(self, event: Arrival, messages: Message) -> None:
        task, algorithm, totals = self.assembly.task, self.scenario.algorithm, self.totals
        sends = event.sends if self.assembly.privacy is None else event.sends * self.assembly.privacy.exchanges
        sent = messages if self.assembly.network is None else one_message(algorithm, task, gossip=True)[1]
        totals.bytes_sent += sends * message_bytes(sent)
        totals.gradients += algorithm.gradients(task, event.clients, event.rounds, event.steps)
        totals.contributions += len(event.clients)
        totals.staleness += int(event.staleness.sum())
        if event.delays is not None:
            totals.delay_processing += event.delays[0]
            totals.delay_transmission += event.delays[1]

    # --- recording ----------------------------------------------------------------------------------------------------

    def _evaluate(self, recorder: Recorder, progress: Progress | None) -> None:
        totals, x = self.totals, self.state["x"]
        gossip = self.assembly.network is not None
        centre = self.nodes.mean() if self.nodes else x.mean(0) if gossip else x
        row: dict[str, Any] = {"round": self.round, "time": totals.time, "wall": round(totals.wall, 6)}
        row |= self.assembly.task.evaluate(centre)
        if gossip:
            if self.nodes is not None:
                distance, accuracy = self.nodes.facts(centre)
            else:
                accuracy = self.assembly.task.node_accuracy(x)
                distance = float((x - centre).pow_(2).sum(-1).mean())
            if accuracy is not None:
                row["node_accuracy"] = accuracy
            row["consensus_distance"] = distance
            row["delay_processing"], row["delay_transmission"] = totals.delay_processing, totals.delay_transmission
            row["delay_total"] = totals.delay_processing + totals.delay_transmission
        if self.scenario.participation.clocked:
            row["staleness_mean"] = totals.staleness / max(totals.contributions, 1)
        row["bytes_sent"], row["gradients"] = totals.bytes_sent, totals.gradients
        if self.assembly.privacy is not None:
            row |= self.assembly.privacy.columns()
        recorder.metrics(row)
        if progress is not None:
            progress(self.round, row)
        if not bool(torch.isfinite(centre).all()):
            raise RunError(
                f"the run diverged: parameters are not finite at round {self.round}; lower algorithm.lr or set "
                f"algorithm.clip. What was recorded up to here is in {self.folder}"
            )

    def _checkpoint(self) -> None:
        progress: dict[str, Any] = {"round": self.round, "totals": asdict(self.totals)}
        if self.assembly.privacy is not None:
            progress["privacy"] = self.assembly.privacy.save()
            save_report(self.folder, self.assembly.privacy.report())
        state = self.state if self.nodes is None else self.nodes.nodes()
        self.backend.checkpointed(save_checkpoint(self.folder, progress, state, self.backend.save()))

    def _write_inputs(self) -> None:
        write_partition(self.folder, self.assembly.counts, self.assembly.task.sizes)
        if self.assembly.network is not None:
            import networkx as nx

            nx.write_graphml(self.assembly.network.topology.graphs[0], self.folder / "topology.graphml")

    def _column(self, values: Any) -> Tensor:
        return torch.as_tensor(values, dtype=self.assembly.dtype, device=self.assembly.device).unsqueeze(1)


def _past(event: Event, limit: float | None) -> bool:
    return limit is not None and not isinstance(event, Dispatch) and event.time > limit
