"""Sweeps: one scenario, many variations, run one after another, each in its own run directory."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from fedsim.config import NAME, Scenario, parse
from fedsim.errors import FedsimError, InputError, Problem
from fedsim.parts import make_part
from fedsim.results import Run, accuracies, read_jsonl
from fedsim.simulation import Progress, run
from fedsim.yaml_files import Document, Source, change, override, read_yaml


class SweepFile(BaseModel):
    """A sweep: every case times every point of the grid.

    `set` changes the scenario for all of them; `cases` maps a label to changes; `grid` maps a dotted key to a list of
    values.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    name: Annotated[str, Field(pattern=NAME, max_length=100)] = "sweep"
    scenario: Annotated[str, Field(description="scenario file, relative to the sweep file")]
    set: dict[str, Any] = Field(default_factory=dict)
    cases: dict[str, dict[str, Any] | None] = Field(default_factory=dict)
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """One run of a sweep: its folder name, the changes that make it, and the checked scenario."""

    label: str
    changes: dict[str, Any]
    scenario: Scenario


@dataclass(frozen=True)
class Outcome:
    """What became of a point: its run, or the error that ended it."""

    point: Point
    dir: Path
    run: Run | None
    error: FedsimError | None = None


def points(path: str | Path, settings: list[str] | None = None) -> tuple[str, list[Point]]:
    """The sweep's name and its runs, all scenarios checked before the first one runs.

    Raises
    ------
    InputError
        The sweep file, its scenario or one of the variations is wrong.
    """
    document = read_yaml(path)
    try:
        sweep_file = make_part(SweepFile, document.values)
    except InputError as error:
        raise document.locate(error) from None
    base = _base(document, sweep_file.scenario, settings or [])
    found: list[Point] = []
    wrong: dict[Problem, list[str]] = {}
    for case, changes in (sweep_file.cases or {"": None}).items():
        for values in itertools.product(*sweep_file.grid.values()):
            chosen = dict(zip(sweep_file.grid, values, strict=True))
            label = _label(case, chosen)
            every = (("set", sweep_file.set), (f"cases.{case}", changes or {}), ("grid", chosen))
            try:
                scenario = _variant(base, document, {"name": f"{sweep_file.name}-{label}"}, every)
            except InputError as error:
                for problem in error.problems:
                    wrong.setdefault(problem, []).append(label)
                continue
            found.append(Point(label, {**({"case": case} if case else {}), **chosen}, scenario))
    labels = [p.label for p in found]
    for label in sorted({label for label in labels if labels.count(label) > 1}):
        message = f"two runs are called '{label}': make the cases' or values' names differ"
        key = "grid" if sweep_file.grid else "cases"
        wrong[Problem(message, key, str(path), document.lines.get(key))] = []
    if wrong:
        raise InputError(replace(p, message=p.message + _where(labels)) for p, labels in wrong.items())
    return sweep_file.name, found


def sweep(
    path: str | Path,
    out: str | Path | None = None,
    resume: bool = False,
    settings: list[str] | None = None,
    started: Callable[[Point, int, int], Progress | None] | None = None,
) -> list[Outcome]:
    """Run a sweep file; with `resume`, finished runs are kept and unfinished ones continued.

    A run that fails (diverges, say, or has data too few for its clients) is noted and the others go on. `started` is
    called before each run and may return its progress callback.
    """
    name, todo = points(path, settings)
    folder = Path(out) if out is not None else Path("sweeps") / name
    outcomes = []
    for i, point in enumerate(todo):
        progress = started(point, i, len(todo)) if started else None
        place = folder / point.label
        finished = resume and (place / "params.safetensors").exists() and _same_scenario(place, point.scenario)
        try:
            done = Run(place) if finished else run(point.scenario, place, resume=resume, progress=progress)
            outcomes.append(Outcome(point, place, done))
        except FedsimError as error:
            outcomes.append(Outcome(point, place, None, error))
        _write_summary(folder, name, outcomes)
    return outcomes


def summary(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """One row per run: what was varied, its last metrics, best accuracy and mean accuracy of the last evaluations."""
    rows = []
    for o in outcomes:
        metrics = read_jsonl(o.dir / "metrics.jsonl") if (o.dir / "metrics.jsonl").exists() else []
        last = metrics[-1] if metrics else {}
        brief = {**last, **accuracies(metrics)}
        rows.append({"run": o.point.label, **o.point.changes, **brief, "error": str(o.error) if o.error else None})
    return rows


def _base(sweep_file: Document, scenario: str, settings: list[str]) -> Document:
    """The scenario that a sweep varies."""
    file = sweep_file.base / scenario
    if not file.is_file():
        raise sweep_file.locate(InputError(f"found no file {file}; allowed: a scenario file", key="scenario"))
    return override(read_yaml(file), settings)


def _variant(
    base: Document, sweep_file: Document, heading: dict[str, Any], every: Iterable[tuple[str, dict[str, Any]]]
) -> Scenario:
    """The scenario with a point's changes; what is wrong with a change is located in the sweep file."""
    document = base
    for key, value in heading.items():
        document = change(document, key, value, (str(sweep_file.file), None))
    for where, changes in every:
        for key, value in changes.items():
            source: Source = (str(sweep_file.file), sweep_file.lines.get(f"{where}.{key}"))
            document = change(document, key, value, source)
    return parse(document)


def _where(labels: list[str]) -> str:
    """In which runs a problem is, for the end of its message."""
    shown = ", ".join(f"'{label}'" for label in labels[:3])
    more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
    return f" (in {shown}{more})" if shown else ""


def _label(case: str, chosen: dict[str, Any]) -> str:
    parts = ([case] if case else []) + [f"{k.split('.')[-1]}={_text(v)}" for k, v in chosen.items()]
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", "_".join(parts)).strip("-.") or "run"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _same_scenario(place: Path, scenario: Scenario) -> bool:
    recorded = place / "scenario.yaml"
    return recorded.exists() and recorded.read_text(encoding="utf-8") == scenario.to_yaml()


def _write_summary(folder: Path, name: str, outcomes: list[Outcome]) -> None:
    import pandas as pd

    rows = summary(outcomes)
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(folder / "summary.csv", index=False)
    (folder / "sweep.json").write_text(json.dumps({"name": name, "runs": rows}, indent=2) + "\n", encoding="utf-8")
