"""Run a reproduction, and write what was found: ``results.json``, the page, the figure, the runs themselves."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedsim.core.disk import cannot_write, replacing, write_whole
from fedsim.core.errors import InputError
from fedsim.core.lock import owned
from fedsim.engine.run_directory import environment, read_jsonl
from fedsim.engine.watch import Progress
from fedsim.sweeps.book import Outcome
from fedsim.sweeps.files import Point
from fedsim.sweeps.reproduced.files import Task, known, row
from fedsim.sweeps.reproduced.measured import take
from fedsim.sweeps.reproduced.page import figure, page
from fedsim.sweeps.run import sweep_plan

RESULTS = "results.json"
_POINTS = 120
"""Of a curve that results keep, at most."""
_DIGITS = 6


@dataclass(frozen=True)
class Reproduced:
    """What came out: the results as `RESULTS` has them, and where they are."""

    folder: Path
    results: dict[str, Any]
    outcomes: list[Outcome]


def reproduce(
    task: Task,
    out: str | Path | None = None,
    resume: bool = False,
    settings: list[str] | None = None,
    started: Callable[[Point, int, int], Progress | None] | None = None,
) -> Reproduced:
    """Run `task` and write what was found to `out` (default: ``reproduced/NAME-DATA``).

    Parameters
    ----------
    resume : keep finished runs of an earlier call, and continue the others.
    settings : what the task's runs were changed by on the command line, for the record.
    started : called before each run with its number and their count; may return its progress callback.

    Raises
    ------
    InputError
        Another process writes into the folder, or it cannot be used; a run's data are not there, or do not fit it.
    RunError
        What was found cannot be written; the runs are kept.
    """
    made = task.reproduction
    folder = Path(out) if out is not None else Path("reproduced") / f"{made.name}-{task.on}{'-quick' * task.quick}"
    runs = folder / "runs"
    begun, kept = time.process_time(), resume and any(runs.glob("*/metrics.jsonl"))
    with owned(runs):
        outcomes = sweep_plan(task.plan, runs, resume, started)
    for outcome in outcomes:
        if isinstance(outcome.error, InputError):  # it says nothing of a method that its run never began
            raise outcome.error
    results = _results(task, outcomes, settings or [], None if kept else round(time.process_time() - begun, 1))
    picture = f"{made.name}-{task.on}.png"
    try:
        write(folder / RESULTS, results)
        with replacing(folder / picture) as fresh:
            figure(made, results).savefig(fresh, dpi=110, format="png")
        write_whole(folder / "page.md", page(made, {task.on: results}, lambda _: picture))
    except OSError as error:
        raise cannot_write(folder / RESULTS, error) from error
    return Reproduced(folder, results, outcomes)


def write(file: Path, results: Mapping[str, Any]) -> None:
    """Results as JSON, a line for each run, so that changes of one are seen as such."""
    head = json.dumps({**results, "runs": []}, indent=1).removesuffix("[]\n}")
    rows = ",\n".join("  " + json.dumps(run) for run in results["runs"])
    write_whole(file, f"{head}[\n{rows}\n ]\n}}\n")


def _results(task: Task, outcomes: list[Outcome], settings: list[str], processor: float | None) -> dict[str, Any]:
    runs = [_run(task, outcome) for outcome in outcomes]
    return {
        "name": task.reproduction.name,
        "file": None if task.file in known().values() else task.file.name,
        "data": task.on,
        "quick": task.quick,
        "settings": settings,
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(sum(run["seconds"] for run in runs), 1),
        "processor_seconds": processor,
        "environment": {"processor": _processor(), **environment()},
        "runs": runs,
    }


def _run(task: Task, outcome: Outcome) -> dict[str, Any]:
    """A run: its row and seed, the hash of its scenario, its quantities, its seconds, and its curve."""
    made, file = task.reproduction, outcome.dir / "metrics.jsonl"
    rows = read_jsonl(file) if outcome.error is None and file.exists() else []
    values = {name: _rounded(take(rows, quantity, task.columns)) for name, quantity in made.quantities.items()}
    curve = [r for r in rows if all(isinstance(r.get(k), (int, float)) for k in (made.figure.x, made.figure.y))]
    kept = sorted({round(i * (len(curve) - 1) / (_POINTS - 1)) for i in range(_POINTS)}) if curve else []
    columns = {column for quantity in made.quantities.values() for column in quantity.columns}
    absent = sorted(column for column in columns if not any(column in r for r in rows)) if rows else []
    return {
        "row": row(outcome.point.changes),
        "seed": outcome.point.scenario.seed,
        "scenario": outcome.point.scenario.hash(),
        "seconds": round(float(rows[-1].get("wall", 0.0)), 2) if rows else 0.0,
        "values": values,
        **({"absent": absent} if absent else {}),
        "error": None if outcome.error is None else str(outcome.error),
        "x": [_rounded(float(curve[i][made.figure.x])) for i in kept],
        "y": [_rounded(float(curve[i][made.figure.y])) for i in kept],
    }


def _processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in told.splitlines() if line.startswith("model name")), "")


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")
