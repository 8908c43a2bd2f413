"""Run directories as a report reads them, and runs that differ only in their seed as one group."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.core.arrays import Floats
from fedsim.core.documents import read_yaml
from fedsim.core.errors import InputError
from fedsim.core.metrics import TABLE, Metric, merged, metric, read_columns
from fedsim.engine.replies import is_deployment
from fedsim.engine.run_directory import LAST
from fedsim.engine.stopping import read_stop
from fedsim.figures.curves import banded
from fedsim.reports.labels import flatten, labels_of, told_apart, without_seed

Row = Mapping[str, Any]

_DEPTH = 3  # folders of folders of runs, e.g. a folder of sweeps


@dataclass(frozen=True)
class Record:
    """One run directory.

    Attributes
    ----------
    dir : where it is.
    scenario, text : ``scenario.yaml``, read and as it is.
    rows : ``metrics.jsonl``, one mapping per evaluation.
    finished : False where the run was interrupted, failed, or still runs.
    notes : what was wrong with the files, in words.
    error : what ended the run, where the sweep it belongs to says so.
    part : its number in that sweep, and what it is called there, its seed left out.
    columns : what the columns of its rows mean.
    """

    dir: Path
    scenario: Mapping[str, Any]
    text: str
    rows: Sequence[Row]
    finished: bool
    notes: tuple[str, ...] = ()
    error: str | None = None
    part: tuple[int, str] | None = None
    columns: Mapping[str, Metric] = field(default_factory=lambda: TABLE)

    @property
    def seed(self) -> Any:
        return self.scenario.get("seed", 0)

    @property
    def round(self) -> int:
        """The last round that was recorded."""
        return int(self.rows[-1]["round"]) if self.rows else 0

    @property
    def status(self) -> str:
        """``finished``, also where it stopped early, or how far it came and why it ended."""
        if self.finished:
            return read_stop(self.dir) or "finished"
        planned = self.value("run.rounds")
        reached = f"unfinished: round {self.round}" + (f" of {planned}" if planned is not None else "")
        if self.error:
            return f"{reached}; {self.error}"
        return reached + ("; its loss is no longer finite" if self._diverged() else "")

    def value(self, key: str) -> Any:
        """What the scenario says under a dotted `key`; None where it says nothing."""
        node: Any = self.scenario
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        return node

    def column(self, key: str) -> Floats:
        """A metric ``[evaluations]``; nan where it was not recorded or not finite."""
        return np.array([_number(row.get(key)) for row in self.rows], dtype=np.float64)

    def series(self, x: str, y: str) -> tuple[Floats, Floats]:
        """Two metrics where both are recorded, in the order of `x`; of evaluations at the same `x` the last one.

        A metric starts where its declaration says so: the consensus distance after round 0, where all nodes are equal.
        """
        rounds, a, b = self.column("round"), self.column(x), self.column(y)
        keep = np.isfinite(a) & np.isfinite(b) & (rounds >= metric(y, self.columns).starts)
        a, b = a[keep], b[keep]
        order = np.argsort(a, kind="stable")
        a, b = a[order], b[order]
        last = np.append(np.diff(a) > 0, True)[: len(a)]
        return a[last], b[last]

    def final(self, key: str) -> float:
        """The metric in the last evaluation (nan: not recorded or not finite)."""
        return float(self.column(key)[-1]) if self.rows else math.nan

    def best(self, key: str) -> tuple[float, int]:
        """The best evaluation's metric and round; nan without any, or where the metric has no direction."""
        values, larger = self.column(key), metric(key, self.columns).larger_is_better
        if larger is None or not np.isfinite(values).any():
            return math.nan, 0
        where = int(np.nanargmax(values) if larger else np.nanargmin(values))
        return float(values[where]), int(self.rows[where]["round"])

    def tail(self, key: str) -> float:
        """Mean of the metric's last `LAST` evaluations (of all, if there are fewer); nan where one is not finite."""
        return float(self.column(key)[-LAST:].mean()) if self.rows else math.nan

    def _diverged(self) -> bool:
        last = self.rows[-1] if self.rows else {}
        return any(
            value is None and key in TABLE and TABLE[key].larger_is_better is False for key, value in last.items()
        )


@dataclass(frozen=True)
class Group:
    """Runs of one scenario that differ only in their seed (and name).

    Attributes
    ----------
    label : what sets it apart from the other groups.
    runs : its runs, in the order they were given.
    settings : the scenario's dotted keys and values, as text.
    """

    label: str
    runs: Sequence[Record]
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def counted(self) -> Sequence[Record]:
        """The runs behind its numbers: the finished ones; where none is, the one that came farthest."""
        done = [run for run in self.runs if run.finished]
        return done or [max(self.runs, key=lambda run: run.round)]

    @property
    def status(self) -> str:
        done = sum(run.finished for run in self.runs)
        if done == len(self.runs):
            return "finished"
        if done:
            return f"{len(self.runs) - done} of {len(self.runs)} unfinished, left out"
        return self.counted[0].status + ("" if len(self.runs) == 1 else f"; none of {len(self.runs)} finished")

    def has(self, key: str) -> bool:
        return any(np.isfinite(run.column(key)).any() for run in self.runs)

    def final(self, key: str) -> tuple[float, float]:
        """Mean and sample standard deviation (k - 1; nan for one run) of the runs' last values."""
        return mean_std([run.final(key) for run in self.counted])

    def best(self, key: str) -> tuple[float, float]:
        """Mean and sample standard deviation of the runs' best values, each over its own rounds."""
        return mean_std([run.best(key)[0] for run in self.counted])

    def tail(self, key: str) -> tuple[float, float]:
        """Mean and sample standard deviation of the runs' means over their last evaluations."""
        return mean_std([run.tail(key) for run in self.counted])

    def band(self, x: str, y: str) -> tuple[Floats, Floats, Floats, Floats] | None:
        """`x`, and mean, lowest and highest `y` of the finished runs there; None for fewer than two."""
        return banded([run.series(x, y) for run in self.runs if run.finished])


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (nan for fewer than two values; nan if any value is)."""
    numbers = np.asarray(values, dtype=np.float64)
    return float(numbers.mean()), float(numbers.std(ddof=1)) if len(numbers) > 1 else math.nan


def metrics_of(runs: Sequence[Record]) -> tuple[dict[str, Metric], list[str]]:
    """What the runs' columns mean, those that nobody declared last; and what there is to say about them."""
    table, disputed = merged(run.columns for run in runs)
    own = dict.fromkeys(key for run in runs for row in run.rows for key in row if key not in table)
    found = {key: metric(key) for key in own if any(np.isfinite(run.column(key)).any() for run in runs)}
    opposed = "these runs declare opposite directions of it, so none of its values is called the best"
    said = [f"{name}: {opposed}" for name in disputed]
    if found:
        named = ", ".join(found)
        said.append(f"{named}: no measure declares what this is, so it is shown as it is and has no best value")
    real = [is_deployment(run.dir) for run in runs]
    if any(real):  # these have seconds of the wall clock in it
        words = "time" if all(real) else "time (virtual, of deployments real)"
        table["time"] = replace(table["time"], words=words, axis=words)
    return {**table, **found}, said


def find_runs(directories: Sequence[Path]) -> list[Record]:
    """The runs in `directories`: run directories, or folders (sweeps, say) with run directories in them.

    Raises
    ------
    InputError
        A directory does not exist or holds no run; ``scenario.yaml`` is missing or not YAML; ``metrics.jsonl`` is not
        text.
    """
    if not directories:
        raise InputError("found no directory, allowed: run directories or folders of them")
    found: dict[Path, Record] = {}
    for directory in directories:
        if not directory.is_dir():
            what = "is a file" if directory.exists() else "no such folder"
            raise InputError(f"{what}; allowed: a run directory, or a folder of them", file=str(directory))
        try:
            places = list(walk(directory))
        except OSError as error:
            raise InputError(f"cannot be read: {error}", file=str(directory)) from None
        if not places:
            raise InputError(
                "holds no run; allowed: a run directory (with scenario.yaml and metrics.jsonl), or a folder of them",
                file=str(directory),
            )
        for place in places:
            if place.resolve() not in found:
                found[place.resolve()] = read_run(place)
    return list(found.values())


def read_run(folder: Path) -> Record:
    """One run directory; what is damaged or missing beside ``scenario.yaml`` becomes a note.

    Raises
    ------
    InputError
        ``scenario.yaml`` is missing or not YAML, or a file is not text.
    """
    document = read_yaml(folder / "scenario.yaml")
    text = (folder / "scenario.yaml").read_text(encoding="utf-8")
    rows, notes = _read_metrics(folder / "metrics.jsonl")
    planned = document.values.get("run")
    planned = planned.get("rounds") if isinstance(planned, dict) else None
    reached = isinstance(planned, int) and bool(rows) and rows[-1]["round"] >= planned
    finished = bool(rows) and (reached or (folder / "params.safetensors").exists())
    columns, damage = read_columns(folder)
    notes += [damage] if damage else []
    scenario = document.values
    if is_deployment(folder):  # the same scenario on real clients is another group
        scenario = {**scenario, "backend": {"name": "flower"}}
    told, number = _told(folder.resolve())
    part = (number, without_seed(folder.resolve().name)) if told is not None else None
    error = str(told["error"]) if told and told.get("error") else None
    return Record(folder, scenario, text, rows, finished, tuple(notes), error, part, columns)


def sweep_errors(folder: Path) -> dict[str, str]:
    """What ended the runs of a sweep that failed, by the names of their folders; nothing where no sweep is."""
    return {name: str(run["error"]) for name, (_, run) in _sweep(folder).items() if run.get("error")}


def _told(place: Path) -> tuple[Row | None, int]:
    """What the sweep around a run's directory says of it, and its number there."""
    number, told = _sweep(place.parent).get(place.name, (0, None))
    return told, number


def _sweep(folder: Path) -> dict[str, tuple[int, Row]]:
    try:
        file = folder / "sweep.json"
        return _read_sweep(file, file.stat().st_mtime_ns)
    except OSError:
        return {}


@lru_cache(maxsize=16)
def _read_sweep(file: Path, changed: int) -> dict[str, tuple[int, Row]]:  # noqa: ARG001 (read again once it changed)
    try:
        runs = json.loads(file.read_text(encoding="utf-8"))["runs"]
        return {str(run["run"]): (number, dict(run)) for number, run in enumerate(runs)}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def group_runs(runs: Sequence[Record]) -> tuple[list[Group], list[str]]:
    """Groups in order of appearance, and the dotted keys whose values differ between them."""
    members: dict[str, list[Record]] = {}
    if all(run.part is not None for run in runs) and len({run.dir.resolve().parent for run in runs}) == 1:
        runs = sorted(runs, key=lambda run: run.part or (0, ""))  # a sweep's own order
    for run in runs:
        same = {key: value for key, value in run.scenario.items() if key not in ("name", "seed")}
        members.setdefault(json.dumps(same, sort_keys=True, default=str), []).append(run)
    kept = [{k: v for k, v in group[0].scenario.items() if k not in ("name", "seed")} for group in members.values()]
    settings = [dict(flatten(scenario)) for scenario in kept]
    keys = list(dict.fromkeys(key for one in settings for key in one))
    differing = [key for key in keys if len({one.get(key) for one in settings}) > 1]
    if len(settings) == 1:
        names = {str(run.scenario.get("name", run.dir.name)) for run in runs}
        labels = [names.pop() if len(names) == 1 else settings[0].get("algorithm.name", runs[0].dir.name)]
    else:
        found = list(members.values())
        given = _names_in_sweep(found) or _names_of_scenarios(found) or _names_of_folders(found)
        labels = given or told_apart(labels_of(settings, differing), [group[0].dir for group in found])
    groups = [Group(label, group, one) for label, group, one in zip(labels, members.values(), settings, strict=True)]
    return groups, differing


def _names_in_sweep(groups: Sequence[Sequence[Record]]) -> list[str] | None:
    """What a sweep calls its groups; None where they are not of one sweep, or its names do not tell them apart."""
    names = [{run.part[1] if run.part is not None else "" for run in group} for group in groups]
    labels = [name for found in names for name in found]
    parents = {run.dir.resolve().parent for group in groups for run in group}
    unclear = "" in labels or len(labels) != len(groups) or len(set(labels)) != len(groups) or len(parents) != 1
    return None if unclear else labels


def _names_of_scenarios(groups: Sequence[Sequence[Record]]) -> list[str] | None:
    """What their scenarios are called, seeds left out; None where these names do not tell the groups apart."""
    names = [{without_seed(str(run.scenario.get("name") or "")) for run in group} for group in groups]
    labels = [name for found in names for name in found]
    unclear = "" in labels or len(labels) != len(groups) or len(set(labels)) != len(groups)
    return None if unclear else labels


def _names_of_folders(groups: Sequence[Sequence[Record]]) -> list[str] | None:
    """Where a deployment is among them, the folders of groups of one run each, if these tell them apart."""
    names = [group[0].dir.resolve().name for group in groups]
    deployed = any(run.value("backend.name") == "flower" for group in groups for run in group)
    alone = all(len(group) == 1 for group in groups)
    return names if deployed and alone and len(set(names)) == len(names) else None


def walk(folder: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """The run directories in a folder, which may be one itself."""
    names = ("scenario.yaml", "metrics.jsonl", "environment.json")
    has = [(folder / name).is_file() for name in names]
    if has[1] or (has[0] and has[2]):
        yield folder
    elif depth > 0:
        for child in sorted(folder.iterdir()):
            if child.is_dir() and not child.name.startswith("."):
                yield from walk(child, depth - 1)


def _read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return [], ["metrics.jsonl is missing"]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read as UTF-8 text: {error}", file=str(path)) from None
    rows, broken = [], []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and math.isfinite(_number(row.get("round"))):
            rows.append(row)
        else:
            broken.append(number)
    notes = [] if rows or broken else ["metrics.jsonl is empty: nothing was evaluated yet"]
    if broken == [len(lines)]:
        notes.append(f"metrics.jsonl:{broken[0]} was cut short and is left out")
    elif broken:
        listed = ", ".join(map(str, broken[:5])) + (", ..." if len(broken) > 5 else "")
        notes.append(f"metrics.jsonl is damaged: {len(broken)} of {len(lines)} lines are left out (line {listed})")
    return rows, notes


def _number(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # JSON's whole numbers have any length
        return math.nan
