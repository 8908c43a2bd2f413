"""The part of a report about privacy: what each private run has spent, and what that number means."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fedsim.core.errors import RunError
from fedsim.figures.html import Markup, details, heading, notes, paragraph, table
from fedsim.privacy.releases import recounted
from fedsim.reports.groups import Group, Record

_ROWS = {  # key of privacy.json: how it is called
    "epsilon": "epsilon spent",
    "delta": "delta",
    "budget": "budget",
    "by": "accounted by",
    "pld": "epsilon by PLD",
    "rdp": "epsilon by Renyi accounting",
    "unit": "protects one",
    "adjacency": "adjacency",
    "trust": "trust",
    "against": "epsilon holds",
    "sampling": "sampling",
}


def privacy(groups: Sequence[Group]) -> list[object]:
    """A table with a column for each group of private runs; of its first run."""
    private = [group for group in groups if group.runs[0].value("privacy") is not None]
    if not private:
        return []
    columns: list[tuple[str, dict[str, Any]]] = []
    missing = []
    for group in private:
        try:
            columns.append((group.label, _read(group.runs[0])))
        except (OSError, ValueError, KeyError, TypeError, RunError) as error:
            missing.append(f"{group.runs[0].dir}: privacy.json cannot be read: {error}")
    parts: list[object] = [heading(2, "Privacy"), notes(missing)]
    if not columns:
        return parts
    many = len(groups) > 1
    rows = [[_ROWS[key], *(_text(facts.get(key)) for _, facts in columns)] for key in _ROWS]
    parts.append(
        table(["", *(label if many else "" for label, _ in columns)], rows, text=tuple(range(len(columns) + 1)))
    )
    for label, facts in columns:
        parts.append(_releases(f"Releases of the worst client{f': {label}' if many else ''}", facts))
    first = columns[0][1]
    oracle = ", ".join(dict.fromkeys(m for _, facts in columns for m in facts.get("oracle_metrics", [])))
    lines = [*first.get("not_covered", []), *([f"the metrics {oracle}: they look at protected data"] if oracle else [])]
    return [*parts, paragraph("Epsilon does not cover:", soft=True), notes(lines)]


def _read(run: Record) -> dict[str, Any]:
    facts = json.loads((run.dir / "privacy.json").read_text(encoding="utf-8"))
    if not isinstance(facts, dict):
        raise ValueError("found no mapping")
    return recounted(facts, run.dir)


def _releases(title: str, facts: dict[str, Any]) -> Markup:
    rows = [
        [r["kind"], f"{r['z']:.6g}", f"{r['q']:.4g}" if r["q"] != 1 else "everybody", f"{r['count']:,}"]
        for r in facts.get("releases", [])
    ]
    return details(title, table(["release", "noise / sensitivity", "sampling rate", "times"], rows))


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
