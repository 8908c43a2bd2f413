"""Panels of a report: curves of the groups' metrics, and how several panels stand on a page with one legend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedsim.core.metrics import Metric
from fedsim.figures.curves import BAND, OPEN_END, Line, Panel, panel_figure, style
from fedsim.figures.html import Markup, inline_svg, legend, named, panels, swatch
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
    """The panels one by one, so that a narrow screen puts them below each other, and one legend for all."""
    drawn = [panel for row in rows for panel in row]
    lines = [line for panel in drawn for line in panel.lines]
    entries = [(swatch(*style(i, len(groups))), groups[i].label) for i in sorted({line.group for line in lines})]
    if any(line.low is not None for line in lines):
        entries.append((swatch("", "band"), BAND))
    if any(line.unfinished for line in lines):
        entries.append((swatch("", ":", marker=True), OPEN_END))
    plain = len(groups) == 1 and len(entries) == 1

    def picture(panel: Panel) -> Markup:
        alt = f"{panel.ylabel} against {panel.xlabel}"
        return inline_svg(panel_figure(panel, len(groups)), f"{name}-{panel.name}", alt)

    return ["" if plain else legend(entries), *(panels(map(picture, row)) for row in rows)]


def named_group(groups: Sequence[Group], index: int, state: bool = True) -> Markup:
    """A group's label with its colour, and, with `state`, what is unfinished about it."""
    group = groups[index]
    status = group.status if state and group.status != "finished" else ""
    return named(swatch(*style(index, len(groups))), group.label, status)
