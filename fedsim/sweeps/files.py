"""Sweep files: one scenario, many variations of it, all checked before the first one runs."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from fedsim.core.documents import Document, Source, change, override, read_yaml
from fedsim.core.errors import InputError, Problem
from fedsim.core.fields import make_part
from fedsim.core.metrics import TABLE, merged
from fedsim.core.modules import beside
from fedsim.core.one_of import older_spellings
from fedsim.data.division import column_of
from fedsim.graphs.files import GraphFile
from fedsim.graphs.generators import Fixed
from fedsim.graphs.topology import topology_of
from fedsim.scenario.load import note, noting, parse
from fedsim.scenario.sections import NAME, Scenario
from fedsim.sweeps.axes import Axis, Stop

_MOST_NODES = 1000
"""Nodes of graphs that are built before the first run to see whether they fit its clients."""
_LONGEST = 90
"""Characters of a label: with the sweep's name before it, it is the run's name and fits a file name."""


class SweepFile(BaseModel):
    """A sweep: every case times every sample of the random axes times every point of the grid.

    `set` changes the scenario for all of them, and the command line's ``--set`` after it; `cases` maps a label to
    changes; `grid` maps a dotted key to a list of values; `random` maps a dotted key to a law, of which `samples`
    values are drawn, decided by `seed`. `stop` ends bad runs early where runs are side by side.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    name: Annotated[str, Field(pattern=NAME, max_length=100)] = "sweep"
    scenario: Annotated[str, Field(description="scenario file, relative to the sweep file")]
    set: dict[str, Any] = Field(default_factory=dict)
    cases: dict[str, dict[str, Any] | None] = Field(default_factory=dict)
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    random: dict[str, Axis] = Field(default_factory=dict)
    samples: Annotated[int, Field(gt=0, le=100_000)] = 1
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    stop: Stop | None = None


@dataclass(frozen=True)
class Point:
    """One run of a sweep: its folder name, the changes that make it, and the checked scenario."""

    label: str
    changes: dict[str, Any]
    scenario: Scenario


@dataclass(frozen=True)
class Plan:
    """A sweep file, checked: its name, its runs, and when bad ones are stopped."""

    name: str
    points: list[Point]
    stop: Stop | None = None


def points(path: str | Path, settings: list[str] | None = None) -> tuple[str, list[Point]]:
    """The sweep's name and its runs; see `read_sweep`."""
    plan = read_sweep(path, settings)
    return plan.name, plan.points


def read_sweep(path: str | Path | Document, settings: list[str] | None = None) -> Plan:
    """The runs of a sweep file, or of one that is read already; all scenarios checked before the first one runs.

    Raises
    ------
    InputError
        The sweep file, its scenario or one of the variations is wrong.
    """
    with noting():
        return _read(path, settings)


def read_sweep_file(document: Document) -> SweepFile:
    """What a sweep file says, its keys and their types checked; not yet its runs.

    Raises
    ------
    InputError
        A key is wrong, or it is no sweep.
    """
    if "scenario" not in document.values and {"data", "algorithm"} <= document.values.keys():
        message = "found a scenario; allowed: a sweep, which names one (scenario: FILE). To run this one: "
        message += f"fedsim run {document.file}"
        raise InputError(message, file=str(document.file))
    try:
        with older_spellings(document.values) as older:
            made = make_part(SweepFile, document.values)
    except InputError as error:
        raise document.locate(error) from None
    note(document, older)
    return made


def _read(path: str | Path | Document, settings: list[str] | None) -> Plan:
    document = path if isinstance(path, Document) else read_yaml(path)
    sweep_file = read_sweep_file(document)
    _check_settings(sweep_file, settings or [])
    base = override(_with(_base(document, sweep_file.scenario), document, "set", sweep_file.set), settings or [])
    found: list[Point] = []
    wrong: dict[Problem, list[str]] = {}
    graphs = _Graphs()
    axes = sweep_file.random
    if sweep_file.samples > 1 and not axes:
        raise document.locate(InputError("found without random axes, whose samples they are", key="samples"))
    drawn = [{key: axis.draw(sweep_file.seed, key, i) for key, axis in axes.items()} for i in range(sweep_file.samples)]
    for (case, changes), sample in itertools.product((sweep_file.cases or {"": None}).items(), drawn):
        for values in itertools.product(*sweep_file.grid.values()):
            chosen = {**sample, **dict(zip(sweep_file.grid, values, strict=True))}
            label = _label(case, chosen)
            of_grid = {k: v for k, v in chosen.items() if k in sweep_file.grid}
            of_random = {k: v for k, v in chosen.items() if k not in sweep_file.grid}
            every = (
                (f"cases.{case}", changes or {}), ("random", of_random), ("grid", of_grid),
            )  # fmt: skip
            try:
                scenario = _variant(base, document, {"name": f"{sweep_file.name}-{label}"}, every)
            except InputError as error:
                for problem in error.problems:
                    wrong.setdefault(problem, []).append(label)
                continue
            for problem in graphs.problems(scenario):
                wrong.setdefault(problem, []).append(label)
            found.append(Point(label, {**({"case": case} if case else {}), **chosen}, scenario))
    for label in sorted(label for label, times in Counter(p.label for p in found).items() if times > 1):
        message = f"two runs are called '{label}': make the cases' or values' names differ"
        key = "grid" if sweep_file.grid else "random" if axes else "cases"
        wrong[Problem(message, key, str(document.file), document.lines.get(key))] = []
    if wrong:
        raise InputError(replace(p, message=p.message + _where(labels)) for p, labels in wrong.items())
    return Plan(sweep_file.name, found, _directed(document, sweep_file.stop, found))


class _Graphs:
    """The graphs of a sweep's runs, each built once, to see whether they fit their numbers of clients.

    Left to the runs: where the data say how many clients there are, and large graphs.
    """

    def __init__(self) -> None:
        self.known: dict[str, list[Problem]] = {}

    def problems(self, scenario: Scenario) -> list[Problem]:
        """What is wrong with the scenario's graph for its number of clients, where it is said."""
        kind, n = scenario.topology, scenario.clients
        if kind is None or n is None or n > _MOST_NODES or column_of(scenario.partition) is not None:
            return []
        seed = None if isinstance(kind, (Fixed, GraphFile)) else scenario.seed
        key = repr((scenario.document.values.get("topology"), n, seed, scenario.base))
        if key not in self.known:
            self.known[key] = []
            try:
                with beside(scenario.base):
                    topology_of(kind, scenario.mixing, n, scenario.seed, scenario.base, scenario.names["topology"])
            except InputError as error:
                self.known[key] = scenario.document.locate(error.under("topology")).problems
        return self.known[key]


def _directed(document: Document, stop: Stop | None, points: Sequence[Point]) -> Stop | None:
    """When bad runs are stopped, in the direction that all runs' metrics have; InputError where that is never."""
    if stop is None:
        return None
    table, _ = merged({**TABLE, **point.scenario.columns} for point in points)
    longest = max(point.scenario.run.rounds for point in points)
    if stop.grace > longest and "grace" in stop.model_fields_set:
        message = f"found {stop.grace}, but runs have {longest} rounds at most, so that none would be stopped"
        raise document.locate(InputError(f"{message}; allowed: 1 to {longest}", key="stop.grace"))
    try:
        return stop.directed(table)
    except InputError as error:
        raise document.locate(error) from None


def _check_settings(sweep_file: SweepFile, settings: list[str]) -> None:
    """Raise InputError where ``--set`` is about a key that runs of the sweep differ in: it would be lost in them."""
    cases = {key: f"cases.{case}" for case, changes in sweep_file.cases.items() for key in changes or {}}
    varied = {**cases, **dict.fromkeys(sweep_file.random, "random"), **dict.fromkeys(sweep_file.grid, "grid")}
    varied["name"] = "name"  # a run's name is made of the sweep's and of what is varied
    for setting in settings:
        given = setting.partition("=")[0].strip()
        for key, where in varied.items():
            if f"{given}.".startswith(f"{key}.") or f"{key}.".startswith(f"{given}."):
                message = (
                    f"found {setting!r}, but the sweep's '{where}' changes {key}; allowed: keys that it leaves alone"
                )
                raise InputError(message, given, "--set")


def _base(sweep_file: Document, scenario: str) -> Document:
    """The scenario that a sweep varies."""
    file = sweep_file.base / scenario
    if not file.is_file():
        raise sweep_file.locate(InputError(f"found no file {file}; allowed: a scenario file", key="scenario"))
    return read_yaml(file)


def _with(document: Document, sweep_file: Document, where: str, changes: dict[str, Any]) -> Document:
    """The scenario with the changes that stand under `where` in the sweep file."""
    for key, value in changes.items():
        source: Source = (str(sweep_file.file), sweep_file.lines.get(f"{where}.{key}"))
        document = change(document, key, value, source)
    return document


def _variant(
    base: Document, sweep_file: Document, heading: dict[str, Any], every: Iterable[tuple[str, dict[str, Any]]]
) -> Scenario:
    """The scenario with a point's changes; what is wrong with a change is located in the sweep file."""
    document = base
    for key, value in heading.items():
        document = change(document, key, value, (str(sweep_file.file), None))
    for where, changes in every:
        document = _with(document, sweep_file, where, changes)
    return parse(document)


def _where(labels: list[str]) -> str:
    """In which runs a problem is, for the end of its message."""
    shown = ", ".join(f"'{label}'" for label in labels[:3])
    more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
    return f" (in {shown}{more})" if shown else ""


def _label(case: str, chosen: dict[str, Any]) -> str:
    parts = ([case] if case else []) + [f"{_axis(k, chosen)}={_text(v)}" for k, v in chosen.items()]
    whole = "_".join(parts)
    label = re.sub(r"[^A-Za-z0-9._=-]+", "-", whole).strip("-.") or "run"
    if len(label) <= _LONGEST:
        return label
    digits = hashlib.sha256(whole.encode()).hexdigest()[:8]
    return f"{label[: _LONGEST - 9]}-{digits}"


def _axis(key: str, keys: Iterable[str]) -> str:
    """What a label calls a key: its last word, of `algorithm.name` the one before; where two are alike, all of it."""
    short = _last(key)
    return key if sum(_last(other) == short for other in keys) > 1 else short


def _last(key: str) -> str:
    *before, last = key.split(".")
    return before[-1] if before and last == "name" else last


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
