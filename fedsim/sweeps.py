"""Sweeps: one scenario, many variations, each in its own run directory, one after another or side by side."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from fedsim.config import NAME, Scenario, parse
from fedsim.errors import FedsimError, InputError, Problem, RunError
from fedsim.parts import make_part
from fedsim.results import Run, accuracies, read_jsonl
from fedsim.simulation import Progress, run
from fedsim.sweep_axes import Axis, Stop
from fedsim.yaml_files import Document, Source, change, override, read_yaml


class SweepFile(BaseModel):
    """A sweep: every case times every sample of the random axes times every point of the grid.

    `set` changes the scenario for all of them; `cases` maps a label to changes; `grid` maps a dotted key to a list of
    values; `random` maps a dotted key to a law, of which `samples` values are drawn, decided by `seed`. `stop` ends bad
    runs early where runs are side by side.
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
class Outcome:
    """What became of a point: its run, or the error that ended it."""

    point: Point
    dir: Path
    run: Run | None
    error: FedsimError | None = None


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


def read_sweep(path: str | Path, settings: list[str] | None = None) -> Plan:
    """A sweep file's runs, all scenarios checked before the first one runs.

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
                ("set", sweep_file.set), (f"cases.{case}", changes or {}), ("random", of_random), ("grid", of_grid),
            )  # fmt: skip
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
    return Plan(sweep_file.name, found, sweep_file.stop)


@dataclass(frozen=True)
class Together:
    """Runs side by side on Ray: `address` of the cluster, how many at a time, and what each takes."""

    address: str = "local"
    parallel: int = 2
    cpus: float = 1.0
    gpus: float = 0.0


def sweep(
    path: str | Path,
    out: str | Path | None = None,
    resume: bool = False,
    settings: list[str] | None = None,
    started: Callable[[Point, int, int], Progress | None] | None = None,
    together: Together | None = None,
    retry: bool = True,
    told: Callable[[Point, Mapping[str, Any]], None] | None = None,
) -> list[Outcome]:
    """Run a sweep file, one run after another or `together`.

    With `resume`, finished runs are kept and unfinished ones continued; those that failed are run again unless `retry`
    is off. A run that fails (diverges, say, or has data too few for its clients) is noted and the others go on.
    `started` is called before each run and may return its progress callback; `told`, of runs side by side, with their
    latest metrics.
    """
    plan = read_sweep(path, settings)
    folder = Path(out) if out is not None else Path("sweeps") / plan.name
    before = _failures(folder) if resume and not retry else {}
    outcomes: dict[str, Outcome] = {}
    todo = []
    for point in plan.points:
        place = folder / point.label
        same = resume and _same_scenario(place, point.scenario)
        if same and (place / "params.safetensors").exists():
            outcomes[point.label] = Outcome(point, place, Run(place))
        elif (error := before.get((point.label, point.scenario.hash()))) is not None:
            outcomes[point.label] = Outcome(point, place, None, RunError(error))
        else:
            todo.append(point)

    def note(point: Point, error: FedsimError | None) -> None:
        place = folder / point.label
        finished = error is None and (place / "params.safetensors").exists()
        outcomes[point.label] = Outcome(point, place, Run(place) if finished else None, error)
        _write_summary(folder, plan, outcomes)

    if together is not None:
        _side_by_side(plan, todo, folder, resume, together, note, told)
    else:
        for point in todo:
            progress = started(point, plan.points.index(point), len(plan.points)) if started else None
            try:
                run(point.scenario, folder / point.label, resume=resume, progress=progress)
                note(point, None)
            except FedsimError as error:
                note(point, error)
    _write_summary(folder, plan, outcomes)
    return [outcomes[p.label] for p in plan.points]


def _side_by_side(
    plan: Plan,
    todo: list[Point],
    folder: Path,
    resume: bool,
    together: Together,
    note: Callable[[Point, FedsimError | None], None],
    told: Callable[[Point, Mapping[str, Any]], None] | None,
) -> None:
    from fedsim.sweep_tune import run_together

    def tell(number: int, row: Mapping[str, Any]) -> None:
        if row.get("done"):
            note(todo[number], None)
        if told is not None:
            told(todo[number], row)

    if not resume:
        for point in todo:  # runs continue what they find
            shutil.rmtree(folder / point.label, ignore_errors=True)
    if todo:
        folder.mkdir(parents=True, exist_ok=True)
        work = [(point.scenario, folder / point.label) for point in todo]
        errors = run_together(
            work, folder, together.address, together.parallel, together.cpus, together.gpus, plan.stop, tell
        )
        for number, point in enumerate(todo):
            note(point, errors.get(number))


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


def _failures(folder: Path) -> dict[tuple[str, str], str]:
    """What ended the runs that failed, by their labels and their scenarios' hashes, as the last summary has it."""
    try:
        told = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
        return {
            (str(row["run"]), str(told["hashes"][row["run"]])): str(row["error"])
            for row in told["runs"]
            if row.get("error")
        }
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _write_summary(folder: Path, plan: Plan, outcomes: Mapping[str, Outcome]) -> None:
    """``summary.csv``, ``sweep.json``, and ``metrics.parquet`` with all rows of all runs."""
    import pandas as pd

    known = [outcomes[p.label] for p in plan.points if p.label in outcomes]
    rows = summary(known)
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(folder / "summary.csv", index=False)
    hashes = {o.point.label: o.point.scenario.hash() for o in known}
    text = json.dumps({"name": plan.name, "runs": rows, "hashes": hashes}, indent=2) + "\n"
    (folder / "sweep.json").write_text(text, encoding="utf-8")
    if len(known) == len(plan.points):
        every = [
            {"run": o.point.label, **{k: _flat(v) for k, v in o.point.changes.items()}, **row}
            for o in known
            if (o.dir / "metrics.jsonl").exists()
            for row in read_jsonl(o.dir / "metrics.jsonl")
        ]
        pd.DataFrame(every).to_parquet(folder / "metrics.parquet", index=False)


def _flat(value: Any) -> Any:
    """A value that a column of a table can have beside others."""
    return json.dumps(value) if isinstance(value, (dict, list)) else value
