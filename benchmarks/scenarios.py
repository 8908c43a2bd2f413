"""How long each scenario of scenarios/ takes, and what its main metric does meanwhile: docs/scenarios.json.

    python benchmarks/scenarios.py [--at-most 60] [--missing] [NAME ...]

Each is run by its own command in a process of its own, from its start to its end, in a temporary folder. One that takes
longer than `--at-most` seconds is interrupted, and the beginning of its curve is kept. Data sets of a hub are taken
from the folder that FEDSIM_DATA names; scenarios whose data are not there are left out, as are those that need what is
not installed. `--missing` measures those alone that have no time yet. Afterwards `python docs/scenarios.py` writes the
page and the figures. Where the machine has other work (its load is more than half of its cores) that is noted, and the
page has processors' time alone.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fedsim.audit.base import Finding
from fedsim.audit.verdict import verdict
from fedsim.core.metrics import metric
from fedsim.engine.run_directory import Run, read_jsonl

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "scenarios"
FILE = ROOT / "docs" / "scenarios.json"
POINTS = 40
_MAIN = ("robust_accuracy", "node_accuracy", "test_accuracy", "optimum_distance", "test_loss", "train_loss")
_ENDS = 90
"""Seconds within which an interrupted run has to end by itself."""


def command_of(file: Path) -> list[str] | str:
    """What runs it, but for where to; or why it cannot be run here."""
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    kind = "sweep" if "scenario" in values else "audit" if "audit" in values else "run"
    base = yaml.safe_load((FOLDER / values["scenario"]).read_text(encoding="utf-8")) if kind == "sweep" else values
    words = [sys.executable, "-m", "fedsim", kind, str(file)]
    data = base["data"]
    if data["dataset"] in ("mnist", "cifar10", "california_housing") and "path" not in data:
        folder = Path(os.environ.get("FEDSIM_DATA", ""), data["dataset"])
        if not os.environ.get("FEDSIM_DATA") or not folder.is_dir():
            return f"FEDSIM_DATA has no folder {data['dataset']}"
        words += ["--set", f"data.path={folder}"]
    return words


def timed(words: list[str], at_most: float) -> tuple[float, float, bool, str]:
    """Seconds on the clock and of processors, whether it was interrupted, and why it failed (empty: it did not)."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        late = False
        try:
            _, said = process.communicate(timeout=at_most)
        except subprocess.TimeoutExpired:
            late = True
            process.terminate()  # as Ctrl-C: it writes what it has, and ends
            try:
                _, said = process.communicate(timeout=_ENDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                _, said = process.communicate()
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    failed = "" if late or process.returncode == 0 else (said.strip().splitlines() or ["no reason"])[-1]
    return wall, used, late, failed


def curves(folder: Path) -> dict[str, Any]:
    """The main metric of what is there: a line for each group of runs that differ in their seed alone."""
    runs = sorted(file.parent for file in folder.rglob("metrics.jsonl"))
    rows = {run: read_jsonl(run / "metrics.jsonl") for run in runs}
    rows = {run: found for run, found in rows.items() if len(found) > 1}
    if not rows:
        return {}
    has = {column for found in rows.values() for row in found for column, value in row.items() if _is_number(value)}
    column = next((name for name in _MAIN if name in has), None)
    if column is None:
        return {}
    declared = metric(column, {**Run(next(iter(rows))).columns})
    groups: dict[str, list[list[tuple[float, float]]]] = {}
    for run, found in rows.items():
        label = re.sub(r"_?seed=\d+", "", run.name) if run != folder else ""
        points = [(row["round"], row[column]) for row in found if _is_number(row.get(column))]
        groups.setdefault(label, []).append(points)
    lines = {label: _thinned(_mean(of)) for label, of in groups.items()}
    return {"metric": declared.words, "log": declared.log, "lines": {k: v for k, v in lines.items() if len(v) > 1}}


def verdicts(folder: Path) -> dict[str, Any]:
    """What an audit found, in its sentence."""
    file = folder / "audit.json"
    if not file.exists():
        return {}
    told = json.loads(file.read_text(encoding="utf-8"))
    findings = {
        one["audit"]: Finding(one["threat_model"], one["results"], alarm=one["alarm"]) for one in told["audits"]
    }
    return {"found": verdict(findings, told["claim"])}


def _mean(of: list[list[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Over seeds, at the rounds that all of them have."""
    values = [dict(points) for points in of]
    rounds = sorted(set.intersection(*map(set, values)))
    return [(at, sum(v[at] for v in values) / len(values)) for at in rounds]


def _thinned(points: list[tuple[float, float]]) -> list[list[float]]:
    step = max(1, -(-len(points) // POINTS))
    kept = points[::step] + ([points[-1]] if (len(points) - 1) % step else [])
    return [[at, float(f"{value:.4g}")] for at, value in kept]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def measured(file: Path, at_most: float) -> dict[str, Any] | str:
    """What the page says of it, or why there is nothing to say."""
    words = command_of(file)
    if isinstance(words, str):
        return words
    busy = os.getloadavg()[0] > (os.cpu_count() or 1) / 2
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / file.stem
        wall, used, late, failed = timed([*words, "--out", str(out)], at_most)
        if failed:
            return failed
        return {
            "seconds": round(wall, 1), "processor_seconds": round(used, 1), "interrupted": late, "busy": busy,
            "date": str(datetime.date.today()), "cores": os.cpu_count(), "python": platform.python_version(),
            **curves(out), **verdicts(out),
        }  # fmt: skip


def kept(text: str | None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text) if text else {}
    return found


def written(found: Mapping[str, Any]) -> str:
    """A line for each scenario, so that measuring one changes one."""
    lines = [f"{json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found)]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="scenarios, as quickstart or quickstart.yaml; default all")
    parser.add_argument("--at-most", type=float, default=60, help="seconds after which one is interrupted")
    parser.add_argument("--missing", action="store_true", help="those alone that have no time yet")
    given = parser.parse_args()
    chosen = [FOLDER / f"{Path(name).stem}.yaml" for name in given.names] or sorted(FOLDER.glob("*.yaml"))
    found = kept(FILE.read_text(encoding="utf-8") if FILE.exists() else None)
    for file in chosen:
        if given.missing and file.name in found:
            continue
        outcome = measured(file, given.at_most)
        if isinstance(outcome, str):
            print(f"{file.name}: not measured: {outcome}", flush=True)
            continue
        found[file.name] = outcome
        FILE.write_text(written(found), encoding="utf-8")
        more = ", interrupted" if outcome["interrupted"] else ""
        print(f"{file.name}: {outcome['seconds']} s, {outcome['processor_seconds']} s of processors{more}", flush=True)


if __name__ == "__main__":
    main()
