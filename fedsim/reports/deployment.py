"""The report's part about deployments: what clients answered, and how a deployment compares with its simulation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fedsim.core.errors import InputError
from fedsim.core.metrics import Metric
from fedsim.engine.replies import Account, accounts, is_deployment
from fedsim.engine.run_directory import read_jsonl
from fedsim.figures.html import heading, paragraph, table
from fedsim.reports.groups import Record
from fedsim.scenario.load import load

_MOST_TROUBLES = 40
LEAD = (
    "Local work and everything else (sending, starting a process, waiting for polls), medians in seconds over the "
    "answers that were used. fitted.yaml beside the run is its scenario with these times as system model."
)
PARITY = (
    "The same scenario and seed in a simulation and on real clients: the largest difference over the rounds that both "
    "evaluated, and of the final parameters. Synchronous rounds and gossip agree to rounding unless clients were "
    "missing; clocked modes follow a wall clock and do not. A run of the deployment's own fitted.yaml has the "
    "times that it measured."
)


def deployments(runs: Sequence[Record], shown: Sequence[Metric]) -> Iterator[object]:
    """Parts of the page; nothing where no run was a deployment."""
    deployed = [run for run in runs if is_deployment(run.dir)]
    for run in deployed:
        known = accounts(_replies(run.dir), _clients(run.dir))
        yield heading(2, "Deployment" if len(deployed) == 1 else f"Deployment {run.dir}")
        yield table(["client", "answers used", "work", "rest", "troubles"], [_line(a) for a in known])
        yield paragraph(LEAD, soft=True)
        yield from _gaps(run, known)
    fitted = {run.dir: _fitted(run) for run in deployed}
    pairs = [(run, other) for run in deployed for other in runs if _same(run, other, fitted[run.dir])]
    if pairs:
        yield heading(2, "Parity")
        yield paragraph(PARITY, soft=True)
        compared = [m.name for m in shown if m.kind == "quality" and (m.figure != "clients" or m.brief)]
        rows = [[str(run.dir), _called(run, other), *_differences(run, other, compared)] for run, other in pairs]
        header = [
            "deployment",
            "simulation",
            "rounds",
            *compared,
            "parameters",
            "seconds, deployed",
            "virtual seconds",
        ]
        filled = [i for i in range(len(header)) if any(row[i] for row in rows)]
        yield table([header[i] for i in filled], [[row[i] for i in filled] for row in rows], text=(0, 1))


def _line(account: Account) -> list[str]:
    shown = [f"{v:.3g}" if v is not None else "\N{EN DASH}" for v in (account.work, account.rest)]
    return [str(account.client), str(account.good), *shown, str(len(account.troubles))]


def _gaps(run: Record, known: Sequence[Account]) -> Iterator[object]:
    """What went wrong, in order of time, and which rounds went on without whom."""
    troubles = sorted((t for a in known for t in a.troubles), key=lambda t: t["at"])
    if troubles:
        yield heading(3, "What went wrong")
        rows = [
            [f"{t['at']:.1f}", str(t["client"]), str(t["round"]), t["status"], str(t.get("reason", ""))]
            for t in troubles[:_MOST_TROUBLES]
        ]
        yield table(["second", "client", "its round", "", "reason"], rows, text=(3, 4))
    if len(troubles) > _MOST_TROUBLES:
        yield paragraph(f"and {len(troubles) - _MOST_TROUBLES} more in {run.dir / 'replies.jsonl'}", soft=True)
    trace = _rows(run.dir / "trace.jsonl")
    gaps = [f"{row['round']} (without {', '.join(map(str, row['missing']))})" for row in trace if row.get("missing")]
    if gaps:
        yield paragraph(f"Rounds with a gap: {', '.join(gaps)}.")


def _same(run: Record, other: Record, fitted: Mapping[str, Any] | None) -> bool:
    """Whether `other` is a simulation of the same scenario and seed, or of what was `fitted` to the run."""
    known = [_told(run.scenario)] + ([_told(fitted)] if fitted is not None else [])
    return not is_deployment(other.dir) and _told(other.scenario) in known


def _told(scenario: Mapping[str, Any]) -> str:
    """What a scenario says besides its name and its place."""
    kept = {k: v for k, v in scenario.items() if k not in ("name", "backend")}
    return json.dumps(kept, sort_keys=True, default=str)


def _fitted(run: Record) -> Mapping[str, Any] | None:
    """The scenario that has the times which the deployment `run` measured, as a run of it is recorded."""
    file = run.dir / "fitted.yaml"
    if not file.exists():
        return None
    try:
        found: Mapping[str, Any] = yaml.safe_load(load(file, notes=False).to_yaml())
    except InputError:  # a part of somebody's own is not there any more
        return None
    return found


def _called(run: Record, other: Record) -> str:
    """A simulation by its folder, and whether it has the times that were measured."""
    return str(other.dir) + ("" if _told(run.scenario) == _told(other.scenario) else " (fitted.yaml)")


def _differences(run: Record, other: Record, compared: Sequence[str]) -> list[str]:
    mine, theirs = ({int(row["round"]): row for row in r.rows} for r in (run, other))
    common = sorted(set(mine) & set(theirs))
    cells = [str(len(common))]
    for key in compared:
        gaps = [abs(mine[r][key] - theirs[r][key]) for r in common if _number(mine[r], key) and _number(theirs[r], key)]
        cells.append(f"{max(gaps):.2g}" if gaps else "")
    seconds = [f"{r.final('time'):.4g}" for r in (run, other)]
    return [*cells, _parameters(run.dir, other.dir), *seconds]


def _number(row: Any, key: str) -> bool:
    return isinstance(row.get(key), (int, float))


def _parameters(one: Path, other: Path) -> str:
    """The largest difference of the final parameters."""
    from safetensors.numpy import load_file

    files = [folder / "params.safetensors" for folder in (one, other)]
    if not all(f.exists() for f in files):
        return ""
    a, b = (load_file(f)["params"] for f in files)
    return f"{np.abs(a - b).max():.2g}" if a.shape == b.shape else "other shape"


def _clients(folder: Path) -> int:
    try:
        facts = json.loads((folder / "deployment.json").read_text(encoding="utf-8"))
        return int(facts["of"])
    except (OSError, ValueError, LookupError, TypeError):
        return 0


def _replies(folder: Path) -> list[dict[str, Any]]:
    return _rows(folder / "replies.jsonl")


def _rows(file: Path) -> list[dict[str, Any]]:
    return read_jsonl(file) if file.exists() else []
