"""Who is told how a run goes: what records it, what shows it, and loggers that a scenario names.

The loop tells every `Watcher` the same things in the same order, and knows nothing else of them.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from fedsim.core.client_metrics import ClientTable
from fedsim.core.errors import InputError
from fedsim.core.metrics import TABLE, Metric, View
from fedsim.core.registry import Part
from fedsim.scenario.sections import Scenario

Row = Mapping[str, Any]

Progress = Callable[[int, Row | None], None]
"""Called after every round with its number and, where it was evaluated, its metrics."""


@dataclass(frozen=True)
class Watched:
    """A run as watchers see it.

    Attributes
    ----------
    dir : the run directory.
    scenario : what is run.
    columns : what the columns of its metrics mean.
    now : gives the run as it is at the moment (see `View`): its model, its state, what clients keep.
    resumed_at : the round it goes on from; 0 where it begins at the beginning.
    layout : metadata of a file of parameters: names and shapes in the flat vector.
    """

    dir: Path
    scenario: Scenario
    columns: Mapping[str, Metric]
    now: Callable[[], View]
    resumed_at: int = 0
    layout: Mapping[str, str] = field(default_factory=dict)


class Watcher:
    """Is told how a run goes; every method does nothing unless it is overridden.

    A resumed run begins again, with `resumed_at`: rounds after that one, if any were told before, are told again.
    """

    def began(self, run: Watched) -> None:
        """The run begins, or goes on; nothing of it was told to this watcher yet."""

    def combined(self, number: int) -> None:
        """The state is that after round `number`; nothing of it was measured yet."""

    def round(self, number: int, row: Row | None) -> None:
        """Round `number` is over (0: none has begun yet); its metrics, where it was evaluated."""

    def scheduled(self, row: Row) -> None:
        """The realised schedule of a round, with ``run.trace``; told before the round is."""

    def clients(self, table: ClientTable) -> None:
        """What is measured of clients one by one, where it is; told before the round is."""

    def saving(self) -> None:
        """A checkpoint is about to be written: what was told before has to outlive this process."""

    def ended(self, run: Watched) -> None:
        """The run is over, and its final parameters are in its directory."""

    def closed(self, error: BaseException | None) -> None:
        """The last call, in any case; `error` is what ended the run before its end (an interrupt, too), or None."""


@dataclass(frozen=True, kw_only=True)
class Logger(Part, ABC):
    """Base class of what ``run.loggers`` names; its fields are its keys in the scenario."""

    def check(self, columns: Mapping[str, Metric]) -> None:
        """Raise InputError where it cannot be of a run with these columns; before anything is written."""

    @property
    def writes(self) -> Mapping[str, str]:
        """Files and folders that it has in the run directory, and the key that says so (``name``: none does)."""
        return {}

    @abstractmethod
    def watcher(self) -> Watcher:
        """What is told about one run.

        Raises
        ------
        InputError
            It cannot be had here (a library is missing, say); before anything is written.
        """


class Tells(Watcher):
    """A function that is told of every round."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def round(self, number: int, row: Row | None) -> None:
        self._progress(number, row)


_CAUGHT = (Exception, SystemExit)  # somebody's library may raise anything, or leave by sys.exit


class Guarded(Watcher):
    """A logger that cannot take the run with it: once it has raised, it says so and is told nothing more.

    What it is told is its own copy: what it does with a row is nothing to the others.
    """

    def __init__(self, name: str, watcher: Watcher) -> None:
        self._name, self._watcher, self._failed = name, watcher, False

    def began(self, run: Watched) -> None:
        self._try(self._watcher.began, run)

    def combined(self, number: int) -> None:
        self._try(self._watcher.combined, number)

    def round(self, number: int, row: Row | None) -> None:
        self._try(self._watcher.round, number, None if row is None else deepcopy(dict(row)))

    def scheduled(self, row: Row) -> None:
        self._try(self._watcher.scheduled, deepcopy(dict(row)))

    def clients(self, table: ClientTable) -> None:
        if type(self._watcher).clients is not Watcher.clients:
            self._try(self._watcher.clients, deepcopy(table))

    def saving(self) -> None:
        self._try(self._watcher.saving)

    def ended(self, run: Watched) -> None:
        self._try(self._watcher.ended, run)

    def closed(self, error: BaseException | None) -> None:
        try:  # of one that has failed, too: it may have something to give back
            self._watcher.closed(error)
        except _CAUGHT as raised:
            self._say(raised)

    def _try(self, method: Callable[..., None], *arguments: Any) -> None:
        if not self._failed:
            try:
                method(*arguments)
            except _CAUGHT as error:
                self._say(error)

    def _say(self, error: BaseException) -> None:
        if not self._failed:
            self._failed = True
            what = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"logger {self._name}: {what}; it is told nothing more, the run goes on", file=sys.stderr)


class All(Watcher):
    """Several watchers, told one after another; as a context it closes them with what ended it."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self.watchers = list(watchers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.closed(error)

    def began(self, run: Watched) -> None:
        for watcher in self.watchers:
            watcher.began(run)

    def combined(self, number: int) -> None:
        for watcher in self.watchers:
            watcher.combined(number)

    def round(self, number: int, row: Row | None) -> None:
        for watcher in self.watchers:
            watcher.round(number, row)

    def scheduled(self, row: Row) -> None:
        for watcher in self.watchers:
            watcher.scheduled(row)

    def clients(self, table: ClientTable) -> None:
        for watcher in self.watchers:
            watcher.clients(table)

    def saving(self) -> None:
        for watcher in self.watchers:
            watcher.saving()

    def ended(self, run: Watched) -> None:
        for watcher in self.watchers:
            watcher.ended(run)

    def closed(self, error: BaseException | None) -> None:
        """All of them are closed, also where one of them raises."""
        raised: BaseException | None = None
        for watcher in self.watchers:
            try:
                watcher.closed(error)
            except BaseException as failure:
                raised = raised or failure
        if raised is not None:
            raise raised


def listening(told: Sequence[Watcher | Progress | None]) -> list[Watcher]:
    """Watchers; a function is told of every round, and nobody hears nothing."""
    return [w if isinstance(w, Watcher) else Tells(w) for w in told if w is not None]


OF_THE_RUN = (
    "scenario.yaml", "metrics.jsonl", "trace.jsonl", "params.safetensors", "partition.csv", "data.json",
    "topology.graphml", "columns.json", "clients.parquet", "environment.json", "attack.json", "privacy.json",
    "releases.jsonl",
    "checkpoint", "checkpoint.new", "checkpoint.old", "clients.bin", "samples.safetensors", "samples.bin",
    "report.html", "figures", "error.txt", "stop.json", "failures.jsonl", "log.txt",
)  # fmt: skip


def loggers_of(scenario: Scenario) -> list[Watcher]:
    """The watchers that ``run.loggers`` names, each kept from taking the run with it.

    Raises
    ------
    InputError
        One of them cannot be had here, or writes what somebody else writes.
    """
    found: list[Watcher] = []
    taken = dict.fromkeys(OF_THE_RUN, "the run itself")
    for i, named in enumerate(scenario.loggers):
        try:
            named.part.check({**TABLE, **scenario.columns})
            for file, key in named.part.writes.items():
                name = file.casefold().removesuffix(".new")  # a file is written under that name first
                if owner := taken.get(name):
                    raise InputError(f"writes {file!r}, which {owner} writes, too; allowed: another name", key=key)
                taken[name] = f"run.loggers.{i}"
            found.append(Guarded(named.name, named.part.watcher()))
        except InputError as error:
            raise error.under(f"run.loggers.{i}") from None
    return found
