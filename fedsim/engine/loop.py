"""The one loop: for each event of the participation, dispatch jobs or combine messages, and record."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedsim.backends.base import Backend
from fedsim.backends.under_way import jobs_of
from fedsim.clients.malloc import keep_freed_memory
from fedsim.core.errors import RunError
from fedsim.core.global_draws import GlobalDraws
from fedsim.core.types import State
from fedsim.engine.assembly import Assembly
from fedsim.engine.checkpoint import Checkpoint
from fedsim.engine.client_rows import ClientRows, names_of
from fedsim.engine.evaluate import Evaluation, Moment, check_finite
from fedsim.engine.failures import Failures
from fedsim.engine.outcomes import merge_bytes
from fedsim.engine.place import make_backend
from fedsim.engine.recorder import Recorder
from fedsim.engine.records import Records, note_empty
from fedsim.engine.run_directory import Run, find_checkpoint, open_directory, save_params
from fedsim.engine.samples import samples_of
from fedsim.engine.signals import stop_requested
from fedsim.engine.states import run_state
from fedsim.engine.stopping import early_stop, seen, write_stop
from fedsim.engine.totals import Totals
from fedsim.engine.wall import WallClock
from fedsim.engine.watch import All, Progress, Watched, Watcher, listening, loggers_of
from fedsim.participation.base import Arrival, Dispatch, Ended, Event
from fedsim.scenario.sections import Scenario

LOG = logging.getLogger("fedsim")


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
    totals: Totals = field(init=False, default_factory=Totals)
    round: int = field(init=False, default=0)
    fresh: bool = field(init=False, default=True)
    parts: list[Arrival] = field(init=False, default_factory=list)
    """The arrivals of the round that is going on: on a graph it may have several."""

    def __post_init__(self) -> None:
        self.scenario = self.assembly.settled(self.scenario)
        self.draws = GlobalDraws([*self.scenario.names.values(), *(m.name for m in self.scenario.metrics)])
        self.evaluation, self.loggers = Evaluation(self.scenario, self.assembly), loggers_of(self.scenario)
        self.early = early_stop(self.scenario, self.assembly.task, self.assembly.network is not None)
        self.records = Records(self.folder, self.scenario, self.assembly)
        if self.assembly.device.type == "cpu":
            keep_freed_memory()
        saved = find_checkpoint(self.folder, self.scenario) if self.resume else None
        self.samples = samples_of(self.scenario, self.assembly, self.folder)
        if saved is not None and self.samples is not None:
            self.samples.check(saved.progress["round"])
        if saved is not None:
            self.assembly.privacy.accepts(saved.progress.get("privacy", {}))
        self.assembly.task.prepare()
        self.exchanges = self.assembly.mixing(self.scenario).exchanges
        self.backend: Backend = self.remote or make_backend(self.scenario, self.assembly, self.folder)
        self.failures = Failures(self.folder, self.backend, self.assembly.network is not None)
        try:
            self._begin(saved)
        except BaseException:
            self.backend.close()
            raise

    @property
    def state(self) -> State:
        """The state's tensors, as far as they are in this process."""
        return self.home.values

    @property
    def stopped(self) -> bool:
        """Whether ``run.stop`` ends it before its last round."""
        return self.early is not None and self.early.why is not None and self.round < self.scenario.run.rounds

    def _begin(self, saved: Checkpoint | None) -> None:
        """The initial state, or the recorded one of a resumed run; from here on the directory is written."""
        self.home = run_state(self.scenario, self.assembly, self.backend)
        open_directory(self.folder, self.scenario, saved, self.resume)
        self.fresh, privacy = saved is None, self.assembly.privacy
        left, far = {} if saved is None else jobs_of(saved.clients), self.remote is not None
        privacy.record(self.folder, self.records.place, self.backend.draw_from, durable=far, left=left)
        if saved is None:
            privacy.catch_up(0)
            before = self.home.algorithm.before(self.assembly.task)
            self.totals.gradients, self.totals.bytes_sent = before.gradients, before.bytes
        else:
            self.round, self.totals = saved.progress["round"], Totals(**saved.progress["totals"])
            self.backend.load(saved.clients)
            privacy.load(saved.progress.get("privacy", {}))
            self.home.load(saved)
            if self.early is not None:
                for row in seen(self.folder):
                    self.early.see(row)
            setting = self.assembly.setting(self.scenario)
            self.home.rest(self.scenario.participation.idle(setting, self.round))
        if self.assembly.network is not None:
            self.home.there = self.scenario.participation.there(self.assembly.setting(self.scenario), self.round)
        self.records.inputs()

    def run(self, *told: Watcher | Progress | None) -> Run:
        """Run to the last round; what is recorded is told to the scenario's loggers and to `told`."""
        kept: list[Watcher] = [self.failures, *([] if self.samples is None else [self.samples])]
        if self.evaluation.clients is not None:
            kept.append(ClientRows(names_of(self.assembly.about)))
        self.watch = All([Recorder(self.scenario.run.trace), *kept, *self.loggers, *listening(told)])
        with stop_requested(f"the run in {self.folder} is finished") as stop, self.watch:
            columns, layout = self.evaluation.columns, self.assembly.layout
            watched = Watched(self.folder, self.scenario, columns, self._moment, self.round, layout)
            self.watch.began(watched)
            ended = self._to_the_end(stop)
            if self.scenario.participation.merges_at_end:
                self._merge_at_end()
            save_params(self.folder, self.home.params, self.assembly.layout, self.home.carried)
            if ended is not None:
                raise RunError(
                    f"the run ended after round {ended.number} of {self.scenario.run.rounds}, at virtual second "
                    f"{ended.time:.6g}: {ended.reason}. What was recorded up to there is in {self.folder}"
                )
            if self.stopped:
                assert self.early is not None
                LOG.info("%s", write_stop(self.folder, self.early, self.round, self.scenario.run.rounds))
            remark, failed = self.totals.remark(self.round, self.failures.any), self.failures.summary()
            for said in (remark, failed):
                if said is not None:
                    LOG.warning("%s", said)
            remarks = [said for said in (remark, failed, self.draws.look()) if said is not None]
            self.watch.ended(watched)
        return Run(self.folder, watched.resumed_at, remarks)

    def _to_the_end(self, stop: Callable[[], bool]) -> Ended | None:
        """All rounds that are left, their evaluations, and the last checkpoint."""
        clock = WallClock(self.totals.wall)
        if self.fresh:
            self._evaluate()
        ended = self._rounds(clock, stop)
        if not self.scenario.run.evaluates(self.round):  # `run.seconds` or the last client ended the run
            self._evaluate()
        self._checkpoint()
        return ended

    def _rounds(self, clock: WallClock, stop: Callable[[], bool]) -> Ended | None:
        """Every event up to the last round: see `fedsim.participation.base` for what they are."""
        s = self.scenario
        if self.stopped or self.round >= s.run.rounds:
            return None
        setting = replace(self.assembly.setting(s), inquiry=self.home.inquiry)
        events = (self.source or s.participation.events)(setting, self.round)
        begun: list[Dispatch] = []  # of a round that `run.seconds` may still cut off
        for event in events:
            match event:
                case Dispatch():
                    begun.append(event)
                    if self.source is not None:
                        self._dispatch(begun)
                case Ended() | Arrival() if s.run.passed(event.time):
                    return None
                case Ended():
                    return event
                case Arrival():
                    self._dispatch(begun)
                    event = self._combine(event)
                    if event.closes:
                        self._close_round(event, clock, stop)
                    if self.stopped or self.round >= s.run.rounds:  # the next event may take long, or ask clients
                        return None
        if self.round < s.run.rounds:
            raise RunError(
                f"the participation mode had no more events after round {self.round} of {s.run.rounds}; a mode that "
                f"cannot go on yields Ended, with its reason. What was recorded up to there is in {self.folder}"
            )
        return None

    # --- one event ----------------------------------------------------------------------------------------------------

    def _dispatch(self, begun: list[Dispatch]) -> None:
        if begun:
            self._place()
        for dispatch in begun:
            self.totals.bytes_sent += self.home.dispatch(dispatch)
        begun.clear()

    def _place(self) -> None:
        """Have clients move before work begins, if any are to; noise that was drawn for other last bits is not drawn
        again."""
        if where := self.backend.placed():
            self.assembly.privacy.moved(f"{self.records.place} {where}")

    def _combine(self, event: Arrival) -> Arrival:
        """What became of the event: without the clients that were left out."""
        self._place()
        combined, a = self.home.combine(event), self.assembly
        if self.home.inquiry is not None:
            self.totals.ask(self.home.inquiry.close(event.number))
        if combined.message_bytes is not None:
            size = combined.message_bytes * self.exchanges
            self.totals.count(combined.event, size, a.algorithm_of(self.scenario), a.task)
        if event.merge:
            self._merge()
        self.parts.append(combined.event)
        return combined.event

    def _close_round(self, event: Arrival, clock: WallClock, stop: Callable[[], bool]) -> None:
        """Record a round, and write a checkpoint where one is due."""
        run = self.scenario.run
        self.totals.time, self.round, self.totals.wall = event.time, event.number, clock.wall()
        self.watch.combined(self.round)
        if run.trace:
            self.watch.scheduled(self.records.schedule(self.parts, self.round))
        note_empty(self.totals, self.parts, self.round, self.failures.any)
        self.parts.clear()
        if run.evaluates(self.round):
            self._evaluate()
        else:
            self.watch.round(self.round, None)
        stopping = stop() and self.round < run.rounds
        if stopping or self.backend.wants_checkpoint or clock.since_checkpoint() > run.checkpoint_seconds:
            self._checkpoint()
            clock.checkpointed()
        if stopping:
            raise KeyboardInterrupt(f"a checkpoint of round {self.round} is in {self.folder}")

    def _merge(self) -> None:
        """Every node of a graph sends every other one all that it mixes, and takes the mean."""
        self.home.merge()
        self.totals.bytes_sent += merge_bytes(self.assembly.algorithm_of(self.scenario), self.assembly.task)

    def _merge_at_end(self) -> None:
        """What is reported and saved is the nodes' mean; the last checkpoint, of which a run goes on, is not."""
        self._merge()
        moment = self._moment()
        row = self.evaluation.row(moment, self.evaluation.table(moment))
        self.watch.round(self.round, {**row, "merged": True})

    # --- recording ----------------------------------------------------------------------------------------------------

    def _moment(self) -> Moment:
        """The run as it is now, for whoever measures it."""
        return Moment(self.scenario, self.assembly, self.home, self.totals, self.round, self.samples)

    def _evaluate(self) -> None:
        moment = self._moment()
        self.draws.look()
        table = self.evaluation.table(moment)
        row = self.evaluation.row(moment, table)
        if table is not None:
            self.watch.clients(table)
        self.watch.round(self.round, row)
        if self.early is not None:
            self.early.see(row)
        self.records.report(always=self.round == 0)
        check_finite(moment, row, self.folder)
        if table is not None:
            self.evaluation.warn(table)

    def _checkpoint(self) -> None:
        self.watch.saving()
        self.records.checkpoint(self.round, self.totals, self.home, self.backend, self.failures)
