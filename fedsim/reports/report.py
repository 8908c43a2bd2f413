"""One self-contained HTML page from run directories: what came out, what it cost, on which data, graph and scenario.

Runs that differ only in their seed are one group; groups are compared. Figures also go into ``figures/`` beside
the page.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.core.disk import write_whole
from fedsim.core.errors import InputError
from fedsim.core.metrics import TABLE, Metric
from fedsim.engine.run_directory import LAST
from fedsim.figures.curves import Panel, grid_figure
from fedsim.figures.html import (
    Markup,
    details,
    found,
    heading,
    mark,
    notes,
    page,
    paragraph,
    pre,
    table,
)
from fedsim.reports.findings import findings
from fedsim.reports.groups import Group, Record, find_runs, group_runs, metrics_of, sweep_errors
from fedsim.reports.numbers import number, spread
from fedsim.reports.panels import curves, named_group, shown_panels
from fedsim.reports.sections import Page, ReportSection, made, sections_named
from fedsim.reports.setting import environments

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FIGURES = {  # what a metric's `figure` may be, in the order of a page: its heading
    "progress": "Progress",
    "optimum": "Distance to the optimum",
    "gossip": "Nodes of the graph",
    "delay": "Against delay",
    "other": "Other quantities",
}
_LEADS = {
    "optimum": "Euclidean distance of the (mean) parameters to the minimiser.",
    "gossip": (
        "Node accuracy: mean over the nodes' own models. Consensus distance: mean over nodes of the squared distance "
        "to the mean model; it begins after round 0, where all nodes are equal."
    ),
    "delay": (
        "Cumulative normalised delay of computing and of sending: a round in which every node computes once and every "
        "link fires costs 1 + 1."
    ),
}
_MANY_GROUPS = 6
_TAIL = f"mean of the last {LAST}"

FINAL_AND_BEST = (
    f"Final is the last evaluation, mean of the last {LAST} that of the last {LAST} evaluations (of all, if there are "
    "fewer). Best is the best evaluation of the whole run (largest accuracy, smallest loss or distance; a metric "
    "without a direction has none): it picks its round afterwards, for test metrics by looking at the test set, and "
    "is never worse than final."
)


def write_report(
    directories: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    sections: Sequence[str | Mapping[str, Any] | ReportSection] = (),
) -> Path:
    """Write the page, and its figures as PNG into ``figures/`` beside it; return the page's path.

    Parameters
    ----------
    directories : run directories, or folders (a sweep's, say) with run directories in them.
    out : the HTML file; default ``report.html`` in the first directory.
    sections : sections of one's own: ``pkg.mod:Name``, mappings with `name` and keys, or `ReportSection` themselves.

    Raises
    ------
    InputError
        A directory does not exist or holds no run, a run has no readable ``scenario.yaml``, or `out` cannot be written.
        Lesser damage becomes a note in the page.
    """
    directories = [directories] if isinstance(directories, (str, Path)) else directories
    if not isinstance(directories, Sequence) or not all(isinstance(d, (str, Path)) for d in directories):
        found = type(directories).__name__
        raise InputError(f"found directories of type {found}; allowed: a path, or a list of paths")
    own = [s if isinstance(s, ReportSection) else sections_named([s])[0] for s in sections]
    runs = find_runs([Path(d) for d in directories])
    place = Path(out) if out is not None else Path(directories[0]) / "report.html"
    if place.is_dir():
        raise InputError(f"--out: found the folder {place}, allowed: a file")
    try:
        (place.parent / "figures").mkdir(parents=True, exist_ok=True)
        write_whole(place, make_page(runs, place.parent / "figures", _title(runs), own))
    except OSError as error:
        raise InputError(f"--out: the page cannot be written to {place}: {error}") from None
    return place


def make_page(runs: Sequence[Record], figures: Path, title: str, own: Sequence[ReportSection] = ()) -> str:
    """The page about `runs`; its figures are also saved in the folder `figures`."""

    def save(name: str, figure: Figure) -> bytes:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
        (figures / f"{name}.png").write_bytes(buffer.getvalue())
        return buffer.getvalue()

    groups, differing = group_runs(runs)
    known, said = metrics_of(runs)
    shown = [m for m in known.values() if any(group.has(m.name) for group in groups)]
    warnings = [*_never_started(runs), *_notes(runs, groups), *said]
    body: list[object] = [
        found(findings(groups, shown)),
        paragraph(_subtitle(runs, groups), soft=True),
        notes(warnings),
    ]
    body += _results(groups, differing, shown) if len(runs) > 1 else _one_result(runs[0], shown)
    for name, called, rows in _figures(groups, shown):
        save(name, grid_figure(rows, [g.label for g in groups], called))
        if name == "delay":
            continue  # the page has delays among the axes of other charts
        rows = _with_delays(groups, shown, rows)
        lead = " ".join(_LEADS[key] for key in (name, *_delayed(rows)) if key in _LEADS)
        body += [heading(2, called), paragraph(lead, soft=True) if lead else "", *shown_panels(name, rows, groups)]
    body += made(Page(runs, groups, differing, shown, save), own)
    if len(runs) > 1:
        body += _runs_table(groups, shown)
    body += [heading(2, "Scenario"), *(_scenario(group) for group in groups)]
    body += environments(runs)
    return page(title, body)


def _title(runs: Sequence[Record]) -> str:
    if len(runs) == 1:
        return str(runs[0].scenario.get("name", runs[0].dir.name))
    parents = {run.dir.resolve().parent for run in runs}
    try:
        (parent,) = parents
        return str(json.loads((parent / "sweep.json").read_text(encoding="utf-8"))["name"])
    except (OSError, ValueError, LookupError, TypeError):
        return f"{len(runs)} runs compared"


def _subtitle(runs: Sequence[Record], groups: Sequence[Group]) -> object:
    if len(runs) == 1:
        run = runs[0]
        parts = [
            run.value("algorithm.name"),
            run.value("participation.mode"),
            run.value("data.dataset"),
            f"seed {run.seed}",
        ]
        status = run.status if run.finished else mark(run.status)
        return Markup(", ").join([*(str(p) for p in parts if p is not None), status])
    unfinished = sum(not run.finished for run in runs)
    plural = "s" if len(groups) > 1 else ""
    text = f"{len(runs)} runs in {len(groups)} group{plural} (runs of a group differ only in their seed)"
    return Markup(", ").join([text, *([mark(f"{unfinished} unfinished")] if unfinished else [])])


def _notes(runs: Sequence[Record], groups: Sequence[Group]) -> Iterator[str]:
    for run in runs:
        yield from (f"{run.dir}: {note}" for note in run.notes)
        if not run.finished and len(runs) > 1:
            yield f"{run.dir}: {run.status}"
    for group in groups:
        seeds = [run.seed for run in group.counted]
        again = sorted({str(seed) for seed in seeds if seeds.count(seed) > 1})
        if again:
            seed = ", ".join(again)
            yield f"{group.label}: seed {seed} is there more than once; the spread over seeds looks smaller than it is"
    if any(group.has("epsilon") for group in groups):
        yield "Privacy: epsilon covers each run by itself, not the choice of its hyperparameters or of the best run."


def _never_started(runs: Sequence[Record]) -> Iterator[str]:
    """Runs of the same sweeps that failed before they had a folder."""
    here = {run.dir.resolve() for run in runs}
    if len(runs) > 1:
        for parent in dict.fromkeys(run.dir.parent for run in runs):
            for name, error in sweep_errors(parent).items():
                if (parent / name).resolve() not in here:
                    yield f"{parent / name}: not in this report: {error}"


# --- numbers ----------------------------------------------------------------------------------------------------------


def _one_result(run: Record, shown: Sequence[Metric]) -> list[object]:
    rows = []
    for m in _quality(shown):
        best, where = run.best(m.name)
        directed = (number(best, m), str(where), number(run.tail(m.name), m))
        rest = ("", "", "") if m.larger_is_better is None else directed
        rows.append((m.title, number(run.final(m.name), m), *rest))
    cost = [(m.title, number(run.final(m.name), m)) for m in _costs(shown)]
    header = ["", "final", "best", "best in round", _TAIL]
    quality = [table(header, rows), paragraph(FINAL_AND_BEST, soft=True)] if rows else []
    return [heading(2, "Results"), *quality, heading(3, "Cost up to the last evaluation"), table(["", ""], cost)]


@dataclass(frozen=True)
class _Column:
    """A column of the groups' tables: the mean and the spread of one metric's final, best or last values."""

    title: str
    metric: Metric
    value: Callable[[Group, str], tuple[float, float]] = Group.final

    def cell(self, group: Group) -> str:
        return spread(*self.value(group, self.metric.name), self.metric)


def _results(groups: Sequence[Group], differing: Sequence[str], shown: Sequence[Metric]) -> list[object]:
    quality = []
    for m in _quality(shown):
        quality.append(_Column(f"{m.title}, final", m))
        if m.larger_is_better is not None:
            quality.append(_Column(f"{m.title}, best", m, Group.best))
            quality.append(_Column(f"{m.title}, {_TAIL}", m, Group.tail))
    cost = [_Column(m.title, m) for m in _costs(shown)]

    def compare(columns: Sequence[_Column]) -> Markup:
        names = [(named_group(groups, i), str(len(g.counted))) for i, g in enumerate(groups)]
        rows = [[*name, *(column.cell(g) for column in columns)] for name, g in zip(names, groups, strict=True)]
        return table(["group", "k", *(column.title for column in columns)], rows)

    several = any(len(g.counted) > 1 for g in groups)
    spoken = "Mean \N{PLUS-MINUS SIGN} sample standard deviation (k - 1) over k seeds. " if several else ""
    part: list[object] = [heading(2, "Results")]
    if quality:
        part += [compare(quality), paragraph(spoken + FINAL_AND_BEST, soft=True)]
    part += [heading(3, "Cost up to the last evaluation"), compare(cost)]
    if differing:
        keys = f"{len(differing)} key{'s' if len(differing) > 1 else ''}"
        part.append(details(f"What differs between the groups: {keys}", _differences(groups, differing)))
    return part


def _differences(groups: Sequence[Group], differing: Sequence[str]) -> Markup:
    if len(groups) > _MANY_GROUPS:
        lines = [[g.label, *(g.settings.get(key, "") for key in differing)] for g in groups]
        return table(["group", *differing], lines)
    labels = [named_group(groups, i, state=False) for i, g in enumerate(groups)]
    return table(["key", *labels], [[key, *(g.settings.get(key, "") for g in groups)] for key in differing])


def _runs_table(groups: Sequence[Group], shown: Sequence[Metric]) -> list[object]:
    metrics = _quality(shown)
    header = ["run", "group", "seed", "status", "round", *(f"{m.title}, final" for m in metrics)]
    rows = [
        [
            str(run.dir), named_group(groups, i, state=False), str(run.seed),
            run.status if run.finished else mark(run.status), str(run.round),
            *(number(run.final(m.name), m) for m in metrics),
        ]
        for i, group in enumerate(groups) for run in group.runs
    ]  # fmt: skip
    return [heading(2, "Runs"), table(header, rows, text=(0, 1, 3))]


def _quality(shown: Sequence[Metric]) -> list[Metric]:
    """What a run achieved; of what is told per client the main numbers, the rest is in a section of its own."""
    return [m for m in shown if m.kind == "quality" and (m.figure != "clients" or m.brief)]


def _costs(shown: Sequence[Metric]) -> list[Metric]:
    return [m for m in shown if m.kind == "cost"]


# --- curves -----------------------------------------------------------------------------------------------------------


def _figures(groups: Sequence[Group], shown: Sequence[Metric]) -> Iterator[tuple[str, str, list[list[Panel]]]]:
    """Name, heading and rows of panels of each figure that has something to show."""
    called = {m.name: m for m in shown}
    usual = [called.get(m.name, m) for m in TABLE.values() if m.axis and m.figure != "delay"]
    for name, words in _FIGURES.items():
        ys = _larger(shown) if name == "delay" else [m for m in shown if m.figure == name]
        xs = _delays() if name == "delay" else usual[:1] if name == "other" else usual
        rows = [[panel for x in xs if (panel := curves(groups, x, y)).lines] for y in ys]
        rows = [row for row in rows if row]
        if name == "other":
            flat = [panel for row in rows for panel in row]
            rows = [flat[i : i + 4] for i in range(0, len(flat), 4)]
        if rows:
            yield name, words, rows


def _larger(shown: Sequence[Metric]) -> list[Metric]:
    """What is drawn against delays."""
    return [m for m in shown if m.larger_is_better] or [m for m in shown if m.figure == "progress"][-1:]


def _delays() -> list[Metric]:
    return [m for m in TABLE.values() if m.axis and m.figure == "delay"]


def _with_delays(groups: Sequence[Group], shown: Sequence[Metric], rows: Sequence[list[Panel]]) -> list[list[Panel]]:
    """The rows of a figure, those of what is drawn against delays with these as further axes."""
    larger = {m.title: m for m in _larger(shown)}
    more = {title: [p for x in _delays() if (p := curves(groups, x, m)).lines] for title, m in larger.items()}
    return [[*row, *(more.get(row[0].ylabel, []) if len({p.ylabel for p in row}) == 1 else [])] for row in rows]


def _delayed(rows: Sequence[Sequence[Panel]]) -> tuple[str, ...]:
    """The key of what there is to say of delays, where a panel has them."""
    names = {m.axis for m in _delays()}
    return ("delay",) if any(panel.xlabel in names for row in rows for panel in row) else ()


# --- what it was run with ---------------------------------------------------------------------------------------------


def _scenario(group: Group) -> Markup:
    first = group.runs[0]
    others = "" if len(group.runs) == 1 else f" (seed {first.seed}; the others differ in name and seed only)"
    return details(f"{group.label}: the resolved scenario{others}", pre(first.text))
