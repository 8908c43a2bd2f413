"""A table of run directories: what each of them is of, how far it came, and whether it still goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedsim.core.errors import InputError
from fedsim.core.lock import owner
from fedsim.core.metrics import Metric
from fedsim.engine.stopping import read_stop
from fedsim.reports.groups import Record, read_run, walk

State = Literal["finished", "stopped", "running", "failed", "interrupted", "unreadable"]
"""``stopped`` is finished, too, before its last round, as ``run.stop`` says."""


@dataclass(frozen=True)
class Listed:
    """One run directory.

    Attributes
    ----------
    dir : where it is.
    state : whether it goes on.
    why : what there is to say of the state: who writes there, what ended the run.
    name, algorithm, data : of its scenario; empty where that says nothing.
    round, rounds : the last round that was evaluated, and how many there are; None where that cannot be told.
    when : when its metrics were last written, seconds since the epoch; None where there are none.
    last : the latest row of its metrics.
    metric : the first of its telling columns, and what it is called; None where there is none.
    """

    dir: Path
    state: State
    why: str = ""
    name: str = ""
    algorithm: str = ""
    data: str = ""
    round: int | None = None
    rounds: int | None = None
    when: float | None = None
    last: Mapping[str, Any] = field(default_factory=dict)
    metric: tuple[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """In JSON's types, the whole latest row of metrics with it."""
        return {
            "dir": str(self.dir), "name": self.name, "algorithm": self.algorithm, "data": self.data,
            "round": self.round, "rounds": self.rounds, "metrics": dict(self.last), "state": self.state,
            "why": self.why, "written": None if self.when is None else _clock(self.when, "%Y-%m-%dT%H:%M:%S%z"),
        }  # fmt: skip

    @property
    def written(self) -> str:
        """`when` in local time, to the minute."""
        return "" if self.when is None else _clock(self.when, "%Y-%m-%d %H:%M")


def list_runs(folders: Sequence[Path]) -> list[Listed]:
    """The runs in `folders`, those that were written last at the end; what cannot be read is in the list, too.

    Raises
    ------
    InputError
        A folder does not exist, or cannot be read, or none of them holds a run.
    """
    found = {place.resolve(): _listed(place) for folder in folders for place in _places(folder)}
    if not found:
        raise InputError("holds no run; allowed: folders of run directories", file=", ".join(map(str, folders)))
    return sorted(found.values(), key=lambda run: (run.when or 0.0, str(run.dir)))


def _places(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise InputError(f"{what}; allowed: a folder of run directories, or one of them", file=str(folder))
    try:
        yield from walk(folder)
    except OSError as error:
        raise InputError(f"cannot be read: {error}", file=str(folder)) from None


def _listed(place: Path) -> Listed:
    who = owner(place)
    metrics = place / "metrics.jsonl"
    try:
        when = metrics.stat().st_mtime if metrics.exists() else None
        run = read_run(place)
    except (InputError, OSError) as error:
        return Listed(place, "unreadable", " ".join(str(error).split()))
    state, why = _state(run, who)
    rounds = run.value("run.rounds")
    last = run.rows[-1] if run.rows else {}
    return Listed(
        place, state, why, _text(run, "name"), _text(run, "algorithm.name"), _text(run, "data.dataset"),
        run.round if run.rows else None, rounds if isinstance(rounds, int) else None, when, last, _metric(run, last),
    )  # fmt: skip


def _state(run: Record, who: str | None) -> tuple[State, str]:
    if who is not None:
        return "running", who
    if run.finished:
        stopped = read_stop(run.dir)
        return ("finished", "") if stopped is None else ("stopped", stopped)
    if run.error:
        return "failed", run.error
    return "interrupted", ""


def _metric(run: Record, last: Mapping[str, Any]) -> tuple[str, float] | None:
    """The first column of the table, as a run's line in a terminal has them, that says how good it is."""
    telling = (m for m in run.columns.values() if _tells(m) and isinstance(last.get(m.name), (int, float)))
    return next(((m.name, float(last[m.name])) for m in telling), None)


def _tells(metric: Metric) -> bool:
    return metric.brief == "line" and metric.kind == "quality" and metric.larger_is_better is not None


def _text(run: Record, key: str) -> str:
    value = run.value(key)
    return "" if value is None else str(value)


def _clock(when: float, form: str) -> str:
    return time.strftime(form, time.localtime(when))
