"""Panels of a report: curves of the groups' metrics, and how several panels stand on a page with one legend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedsim.core.metrics import Metric
from fedsim.figures.charts import charts
from fedsim.figures.curves import BAND, OPEN_END, Line, Panel, style
from fedsim.figures.html import Markup, legend, named, swatch
from fedsim.reports.groups import Group

_TICKS = {"s": "s", "B": "B", "count": ""}  # units in which an axis counts thousands and millions


def curves(groups: Sequence[Group], x: Metric, y: Metric) -> Panel:
    """A metric of every group against another one; no lines where there is no axis to draw against."""
    lines = [line for i, group in enumerate(groups) for line in _lines(i, group, x.name, y.name)]
    if all(len(line.x) == 0 or line.x[-1] <= 0 for line in lines) and x.name != "round":
        lines = []  # nothing was sent, or nothing was delayed: no axis to draw against
    return Panel(f"{y.name}-{x.name}", x.axis, y.title, lines, _TICKS.get(x.unit), log=y.log)


def _lines(index: int, group: Group, x: str, y: str) -> Iterator[Line]:
    band = group.band(x, y)
    if band is not None:
        yield Line(index, *band)
    for run in group.runs:
        a, b = run.series(x, y)
        if len(a) and (band is None or not run.finished):
            yield Line(index, a, b, unfinished=not run.finished)


def shown_panels(name: str, rows: Sequence[Sequence[Panel]], groups: Sequence[Group]) -> list[object]:
    """The panels of each row as charts, one for each quantity, and what bands and dotted lines are."""
    drawn = [charts(name, row, [group.label for group in groups]) for row in rows]
    lines = [line for row in rows for panel in row for line in panel.lines]
    entries = []
    if any(line.low is not None for line in lines):
        entries.append((swatch("", "band"), BAND))
    if any(line.unfinished for line in lines):
        entries.append((swatch("", ":", marker=True), OPEN_END))
    return [legend(entries) if entries else "", *(chart for row in drawn for chart in row)]


def named_group(groups: Sequence[Group], index: int, state: bool = True) -> Markup:
    """A group's label with its colour, and, with `state`, what is unfinished about it."""
    group = groups[index]
    status = group.status if state and group.status != "finished" else ""
    return named(swatch(*style(index, len(groups))), group.label, status)
