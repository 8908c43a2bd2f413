"""Charts of pages: one for each quantity, with a choice of what it is drawn against, values and downloads.

uPlot draws them in the browser (``templates/charts.js``). A figure has what it needs as JSON, and the first choice of
its axis as SVG, for readers without JavaScript and for paper.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fedsim.figures import html
from fedsim.figures.curves import MOST_POINTS, Floats, Line, Panel, drawable, panel_figure, spread_out, style, thinned

_SIZE = (8.0, 3.3)
_DASHES = {"-": [], "--": [8, 4], "-.": [8, 3, 2, 3]}
_DIGITS = 9


def charts(name: str, panels: Sequence[Panel], labels: Sequence[str]) -> list[html.Markup]:
    """A chart for each `ylabel` of the panels, in which their `xlabel` are the choices of its axis.

    Clouds of more points than a line may have stay pictures: a page would grow by megabytes.
    """
    found: dict[str, list[Panel]] = {}
    pictures = []
    for panel in panels:
        if any(line.cloud and len(line.x) > MOST_POINTS for line in panel.lines):
            pictures.append(_still(name, panel, len(labels)))
        else:
            found.setdefault(panel.ylabel, []).append(panel)
    return [_chart(name, views, labels) for views in found.values()] + pictures


def _chart(name: str, views: Sequence[Panel], labels: Sequence[str]) -> html.Markup:
    shown = sorted({line.group for view in views for line in view.lines})
    pool = _Pool()
    data = {
        "name": f"{name}-{views[0].ylabel}", "y": views[0].ylabel, "log": views[0].log,
        "groups": [_group(i, labels) for i in shown], "views": [_view(view, pool) for view in views],
        "pool": pool.arrays,
    }  # fmt: skip
    banded = any(line.low is not None for view in views for line in view.lines)
    header = ["", "at the end", *(["lowest to highest"] if banded else [])]
    rows = [(i, [_named(i, labels), *_last(views[0], i, banded)]) for i in shown]
    step = max(_step(line) for view in views for line in view.lines)
    note = f"Of long lines every {step}th point is kept, and the last one." if step > 1 else ""
    said = json.dumps(data, separators=(",", ":"), allow_nan=False)
    title = views[0].ylabel[:1].upper() + views[0].ylabel[1:]
    return html.chart(title, _still(name, views[0], len(labels)), header, rows, said, note)


def _still(name: str, panel: Panel, groups: int) -> html.Markup:
    alt = f"{panel.ylabel} against {panel.xlabel}"
    return html.inline_svg(panel_figure(panel, groups, _SIZE), f"{name}-{panel.name}", alt)


def _named(group: int, labels: Sequence[str]) -> html.Markup:
    return html.named(html.swatch(*style(group, len(labels))), labels[group])


def _last(view: Panel, group: int, banded: bool) -> Iterator[str]:
    """The table's cells of a group without a pointer on the chart; `charts.js` writes the same."""
    lines = [line for line in view.lines if line.group == group]
    if any(line.cloud for line in lines):
        yield ", ".join(f"{len(line.x):,}" for line in lines)
        return
    yield ", ".join(_text(line.y[-1]) for line in lines)
    if banded:
        bands = [(line.low[-1], line.high[-1]) for line in lines if line.low is not None and line.high is not None]
        yield ", ".join(f"{_text(low)} to {_text(high)}" for low, high in bands)


def _text(value: float) -> str:
    if not math.isfinite(value):
        return "\N{EN DASH}"
    return f"{int(value):,}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"


def _step(line: Line) -> int:
    return 1 if line.cloud else max(1, -(-len(line.x) // MOST_POINTS))


def _group(group: int, labels: Sequence[str]) -> dict[str, Any]:
    colour, dashes = style(group, len(labels))
    return {"id": group, "label": labels[group], "colour": colour, "dash": _DASHES[dashes]}


def _view(view: Panel, pool: _Pool) -> dict[str, Any]:
    clouds = [line.x for line in view.lines if line.cloud]
    return {
        "x": view.xlabel, "unit": view.unit, "whole": view.xlabel == "round",
        "xlog": bool(clouds) and spread_out(np.concatenate(clouds)),
        "lines": [_line(line, view.log, pool) for line in view.lines],
    }  # fmt: skip


def _line(line: Line, log: bool, pool: _Pool) -> dict[str, Any]:
    x, *ys = (line.x, drawable(line.y), None, None) if line.cloud else thinned(line)
    kept = np.isfinite(x)
    found: dict[str, int | None] = {"x": pool.place(x[kept])}
    for key, values in zip(("y", "low", "high"), ys, strict=True):
        if values is not None and log:  # a logarithm has no place for zero
            values = np.where(values > 0, values, np.nan)
        found[key] = None if values is None else pool.place(values[kept])
    return {"group": line.group, **found, "open": line.unfinished, "cloud": line.cloud}


class _Pool:
    """Arrays of numbers, each once: many lines share their rounds, or their values against other axes."""

    def __init__(self) -> None:
        self.arrays: list[list[float | None]] = []
        self._known: dict[tuple[float | None, ...], int] = {}

    def place(self, values: Floats) -> int:
        numbers = tuple(map(_rounded, values.tolist()))
        if numbers not in self._known:
            self._known[numbers] = len(self.arrays)
            self.arrays.append(list(numbers))
        return self._known[numbers]


def _rounded(value: float) -> float | None:
    """JSON's number with nine digits; None where the value is not finite."""
    if not math.isfinite(value):
        return None
    if value.is_integer() and abs(value) < 1e15:
        return int(value)
    return float(f"{value:.{_DIGITS}g}")
