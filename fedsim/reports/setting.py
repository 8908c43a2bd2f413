"""The parts of a report that say what a run was given: the partition of the data, the graph, the machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.core.arrays import Ints
from fedsim.core.errors import InputError
from fedsim.data.partition_csv import FILE, PartitionTable, read_table
from fedsim.figures.html import Markup, details, heading, image, notes, paragraph, table
from fedsim.reports.groups import Group, Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Save = Callable[[str, "Figure"], bytes]
"""Saves a figure as PNG under a name and returns the PNG."""

_MOST_PICTURES = 6
_MOST_ROWS = 60
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_QUANTILE_NAMES = ("smallest", "5 %", "25 %", "median", "75 %", "95 %", "largest")


def partitions(groups: Sequence[Group], save: Save) -> list[object]:
    """Table and picture of each distinct partition among the groups' first runs."""
    from fedsim.figures.partition import partition_figure

    found, missing = _distinct(groups, FILE, lambda run: _divides(run))
    if not found and not missing:
        return []
    parts: list[object] = [heading(2, "Partition of the data"), notes(missing)]
    for number, (path, labels) in enumerate(found[:_MOST_PICTURES], 1):
        try:
            held = read_table(path)
        except InputError as error:
            parts.append(notes([str(error)]))
            continue
        name = "partition" if len(found) == 1 else f"partition-{number}"
        samples, counts = held.samples, held.counts
        png = save(name, partition_figure(samples[:, None] if counts is None else counts, labels=held.labels))
        parts += [_whose(labels, len(groups)), paragraph(_partition_facts(samples, counts), soft=True)]
        parts += [
            image(png, f"samples per client{'' if counts is None else ' and label'}"),
            _partition_table(held),
        ]
    return [*parts, _rest(len(found), "partitions")]


def topologies(groups: Sequence[Group], save: Save) -> list[object]:
    """Picture and facts of each distinct graph among the groups' first runs."""
    found, missing = _distinct(groups, "topology.graphml", lambda run: run.value("topology") is not None)
    if not found and not missing:
        return []
    parts: list[object] = [heading(2, "Graph"), notes(missing)]
    columns: list[tuple[str, dict[str, str]]] = []
    pictures: list[object] = []
    for number, (path, members) in enumerate(found[:_MOST_PICTURES], 1):
        first = members[0]
        try:
            facts, png = _graph(path, first.runs[0], save, "topology" if len(found) == 1 else f"topology-{number}")
        except InputError as error:
            parts.append(notes([str(error)]))
            continue
        columns.append(("; ".join(group.label for group in members) if len(groups) > 1 else "", facts))
        pictures += [_whose(members, len(groups)), image(png, "the graph", "tall")]
    keys = list(dict.fromkeys(key for _, facts in columns for key in facts))
    if keys:
        parts.append(
            table(["", *(label for label, _ in columns)], [[k, *(f.get(k, "") for _, f in columns)] for k in keys])
        )
    return [*parts, *pictures, _rest(len(found), "graphs")]


def environments(runs: Sequence[Record]) -> list[object]:
    """What the machines were, one table per distinct environment."""
    found: dict[str, list[Record]] = {}
    missing = []
    for run in runs:
        try:
            values = json.loads((run.dir / "environment.json").read_text(encoding="utf-8"))
            found.setdefault(json.dumps(values, sort_keys=True), []).append(run)
        except FileNotFoundError:
            missing.append(f"{run.dir}: environment.json is missing")
        except (OSError, ValueError, RecursionError) as error:
            missing.append(f"{run.dir}: environment.json cannot be read: {error}")
    parts: list[object] = [heading(2, "Environment"), notes(missing)]
    for text, members in found.items():
        values = json.loads(text)
        rows = _environment_rows(values if isinstance(values, dict) else {"environment": values})
        whose = "" if len(found) == 1 else f": {len(members)} runs ({', '.join(str(run.dir) for run in members)})"
        parts.append(details(f"Python, packages, machine{whose}", table(["", ""], rows, text=(1,))))
    return parts


def _distinct(
    groups: Sequence[Group], file: str, expected: Callable[[Record], bool]
) -> tuple[list[tuple[Path, list[Group]]], list[str]]:
    """The files of that name that differ in content, with the groups whose first run holds each; what is missing."""
    found: dict[bytes, tuple[Path, list[Group]]] = {}
    missing = []
    for group in groups:
        path = group.runs[0].dir / file
        try:
            found.setdefault(path.read_bytes(), (path, []))[1].append(group)
        except FileNotFoundError:
            if expected(group.runs[0]):
                missing.append(f"{group.runs[0].dir}: {file} is missing")
        except OSError as error:
            missing.append(f"{path}: {error}")
    return list(found.values()), missing


def _divides(run: Record) -> bool:
    return run.value("data.dataset") not in (None, "quadratic")


def _whose(members: Sequence[Group], groups: int) -> Markup:
    """Which groups a picture belongs to, and that other seeds may have drawn another one."""
    seeds = [run.seed for group in members for run in group.runs]
    first = members[0].runs[0]
    others = f" The other seeds' may differ; this is seed {first.seed}." if len(set(map(str, seeds))) > 1 else ""
    said = [paragraph(others.strip(), soft=True)] if others else []
    named = [heading(3, "; ".join(group.label for group in members))] if groups > 1 else []
    return Markup("\n").join([*named, *said])


def _rest(count: int, what: str) -> Markup:
    left = count - _MOST_PICTURES
    return paragraph(f"{left} more {what} are not shown.", soft=True) if left > 0 else Markup("")


def _partition_facts(samples: Ints, counts: Ints | None) -> str:
    text = (
        f"{len(samples):,} clients, {int(samples.sum()):,} training samples; "
        f"{samples.min():,} to {samples.max():,} per client, median {np.median(samples):,.6g}."
    )
    if counts is None:
        return text
    held = (counts > 0).sum(axis=1)
    return f"{text} Labels per client: {held.min()} to {held.max()} of {counts.shape[1]}, mean {held.mean():.3g}."


def _partition_table(held: PartitionTable) -> Markup:
    """Clients times labels; beyond 60 clients the quantiles of what a client holds."""
    samples, counts = held.samples, held.counts
    labels = 0 if counts is None else counts.shape[1]
    if len(samples) <= _MOST_ROWS:
        names = None if held.names is None else [[name] for name in held.names]
        header = ["client", *(["name"] if names else []), "samples", *(f"label {k}" for k in held.labels)]
        rows = [
            [
                f"{i}",
                *(names[i] if names else []),
                f"{n:,}",
                *(f"{c:,}" if c else "" for c in ([] if counts is None else counts[i])),
            ]
            for i, n in enumerate(samples)
        ]
        return details("Table: samples of each client" + (" and label" if labels else ""), table(header, rows))
    columns: list[tuple[str, Any]] = [("samples", samples)]
    if counts is not None:
        share = counts.max(axis=1) / np.maximum(samples, 1)
        columns += [("labels held", (counts > 0).sum(axis=1)), ("share of the main label", share)]
    values = [np.quantile(column, _QUANTILES) for _, column in columns]
    rows = [[name, *(f"{v[q]:,.4g}" for v in values)] for q, name in enumerate(_QUANTILE_NAMES)]
    return table(["over clients", *(name for name, _ in columns)], rows)


def _graph(path: Path, run: Record, save: Save, name: str) -> tuple[dict[str, str], bytes]:
    from matplotlib import rc_context

    from fedsim.figures.topology import topology_figure
    from fedsim.graphs.facts import summary
    from fedsim.graphs.files import read_graph
    from fedsim.graphs.mixing import mixing_matrix
    from fedsim.graphs.topology import OWN

    graph = read_graph(path)
    weights = str(run.value("topology.weights") or ("uniform" if graph.is_directed() else "metropolis"))
    facts: dict[str, Any] = {"graph": run.value("topology.graph"), "weights": weights}
    try:
        if run.value("topology.graph") == "random_peers":  # its file has all who may meet, without weights
            facts |= {"weights": OWN, "nodes": len(graph)}
        else:
            facts |= summary(graph, mixing_matrix(graph, weights))
    except InputError as error:  # e.g. weights of a package that is not installed here
        facts["notes"] = [str(error)]
    with rc_context({"text.parse_math": False}):  # labels come from files: a $ in them is a $
        png = save(name, topology_figure(graph))
    shown = {key.replace("_", " "): _fact(value) for key, value in facts.items() if value is not None and value != []}
    return shown, png


def _fact(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        numbers = len(value) == 2 and not any(isinstance(v, str) for v in value)
        return (" to " if numbers else "; ").join(_fact(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _environment_rows(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += _environment_rows(value, f"{prefix}{key}: ")
        else:
            rows.append((f"{prefix}{key}", "none" if value is None else str(value)))
    return rows
