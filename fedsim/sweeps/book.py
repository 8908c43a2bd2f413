"""What became of a sweep's runs: kept up to date in tables while they run, and read back when they are resumed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fedsim.core.disk import cannot_write, replacing, write_whole
from fedsim.core.errors import FedsimError, InputError, RunError
from fedsim.core.metrics import TABLE
from fedsim.engine.run_directory import Run, bests, read_jsonl
from fedsim.scenario.sections import Scenario
from fedsim.sweeps.files import Plan, Point

_SHARE = 0.05
"""Of the time, at most, goes into writing tables while runs are under way."""


@dataclass(frozen=True)
class Outcome:
    """What became of a point: its run, the error that ended it, or neither where it was stopped early."""

    point: Point
    dir: Path
    run: Run | None
    error: FedsimError | None = None

    @property
    def status(self) -> str:
        """``finished``, ``failed`` or ``stopped``."""
        return "failed" if self.error is not None else "finished" if self.run is not None else "stopped"


@dataclass
class Book:
    """The outcomes of a sweep in `folder`, by label, and their tables."""

    plan: Plan
    folder: Path
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    _rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    _next: float = 0.0

    def place(self, point: Point) -> Path:
        """A run's directory."""
        return self.folder / point.label

    def read(self, retry: bool) -> None:
        """Know again what an earlier sweep finished, stopped, and, unless they are to be tried again, what failed."""
        before = _recorded(self.folder)
        for point in self.plan.points:
            place = self.place(point)
            status, error = before.get((point.label, point.scenario.hash()), (None, None))
            if status == "failed":
                if not retry:
                    self._know(Outcome(point, place, None, RunError(str(error))))
            elif _same_scenario(place, point.scenario):
                if (place / "params.safetensors").exists():
                    self._know(Outcome(point, place, Run(place)))
                elif status == "stopped" and self.plan.stop is not None:
                    self._know(Outcome(point, place, None))

    def note(self, point: Point, error: FedsimError | None) -> Outcome:
        """A run has ended. Without parameters at its end it was stopped early, where the sweep does so."""
        place = self.place(point)
        finished = error is None and (place / "params.safetensors").exists()
        if error is None and not finished and self.plan.stop is None:
            error = RunError(f"it ended, but its results are not in {place}")
        outcome = Outcome(point, place, Run(place) if finished else None, error)
        self._know(outcome)
        if time.monotonic() >= self._next:
            begun = time.monotonic()
            self._write_runs()
            now = time.monotonic()
            self._next = now + (now - begun) / _SHARE
        return outcome

    def write(self) -> None:
        """``summary.csv`` and ``sweep.json``, one row per run, and ``metrics.parquet``, one per evaluation of each."""
        try:
            self._write_runs()
            every = [
                {**outcome.point.changes, "run": outcome.point.label, **row}
                for outcome in self._known()
                for row in _metrics(outcome)
            ]
            with replacing(self.folder / "metrics.parquet") as fresh:
                _table(every).to_parquet(fresh, index=False)
        except OSError as error:
            raise cannot_write(self.folder / "metrics.parquet", error) from error

    def _know(self, outcome: Outcome) -> None:
        self.outcomes[outcome.point.label] = outcome
        self._rows[outcome.point.label] = _row(outcome)

    def _known(self) -> list[Outcome]:
        return [self.outcomes[p.label] for p in self.plan.points if p.label in self.outcomes]

    def _write_runs(self) -> None:
        known = self._known()
        rows = [self._rows[o.point.label] for o in known]
        hashes = {o.point.label: o.point.scenario.hash() for o in known}
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"name": self.plan.name, "runs": rows, "hashes": hashes}, indent=2) + "\n"
        write_whole(self.folder / "sweep.json", text)
        write_whole(self.folder / "summary.csv", _table(rows).to_csv(index=False))


def summary(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One row per run: what was varied, its last metrics, and of those with a direction the best and the mean of the
    last evaluations."""
    return [_row(outcome) for outcome in outcomes]


def _row(outcome: Outcome) -> dict[str, Any]:
    metrics = _metrics(outcome)
    last = metrics[-1] if metrics else {}
    columns = {**TABLE, **outcome.point.scenario.columns}
    error = str(outcome.error) if outcome.error else None
    ending = {"status": outcome.status, "error": error, **_stopped(outcome)}
    return {"run": outcome.point.label, **outcome.point.changes, **last, **bests(metrics, columns), **ending}


def _stopped(outcome: Outcome) -> dict[str, str]:
    """Why a run that finished did so before its last round, where it did."""
    said = outcome.run.stopped if outcome.run is not None else None
    return {} if said is None else {"stopped": said}


def _metrics(outcome: Outcome) -> list[dict[str, Any]]:
    """What a run recorded; nothing where its file is damaged: of a run that failed for this its error says so."""
    try:
        return read_jsonl(outcome.dir / "metrics.jsonl")
    except InputError:
        return []


def _table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """A data frame; columns whose values are of several kinds (16 and full, say), lists or mappings become text."""
    import pandas as pd

    frame = pd.DataFrame(rows)
    if "run" in frame:
        frame.insert(0, "run", frame.pop("run"))
    for column in frame:
        kinds = {_kind(value) for value in frame[column]} - {None}
        if len(kinds) > 1 or dict in kinds:
            frame[column] = [_as_text(value) for value in frame[column]]
    return frame


def _as_text(value: Any) -> str | None:
    if _kind(value) is None:
        return None
    return value if isinstance(value, str) else json.dumps(value)


def _kind(value: Any) -> type | None:
    """Of a cell: None (nothing), ``float`` (any number), ``dict`` (lists too), or its own type."""
    if value is None or value != value:
        return None
    if isinstance(value, (dict, list)):
        return dict
    return float if hasattr(value, "__float__") and not isinstance(value, bool) else type(value)


def _same_scenario(place: Path, scenario: Scenario) -> bool:
    """Whether the run in `place` has this scenario; what its algorithm and mode have as ``auto`` has a value there."""
    recorded = place / "scenario.yaml"
    if not recorded.exists():
        return False
    text = recorded.read_text(encoding="utf-8")
    if text == scenario.to_yaml():
        return True
    try:
        found = yaml.safe_load(text)
        asked = yaml.safe_load(scenario.to_yaml())
        for section in ("algorithm", "participation"):
            asked[section] = {k: found[section][k] if v == "auto" else v for k, v in asked[section].items()}
    except (yaml.YAMLError, LookupError, TypeError):
        return False
    return bool(found == asked)


def _recorded(folder: Path) -> dict[tuple[str, str], tuple[str | None, str | None]]:
    """Status and error of earlier runs by their labels and their scenarios' hashes."""
    try:
        told = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
        return {
            (str(row["run"]), str(told["hashes"][row["run"]])): (row.get("status"), row.get("error"))
            for row in told["runs"]
        }
    except (OSError, ValueError, LookupError, TypeError):
        return {}
