"""Curves of a metric against rounds, time, bytes or work, and clouds of points: one panel, or a grid of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]
Dashes = Literal["-", "--", "-."]

INK = "#41464d"
"""The colour of all text and lines that are not data; a page may put its own text colour in its place."""

BAND = "line: mean over seeds, band: lowest to highest; both end where the first seed ends"
OPEN_END = "dotted, ends in \N{MULTIPLICATION SIGN}: unfinished run"

# Told apart by colour-blind eyes, on white and on black.
_COLOURS = ("#2f7ebc", "#e07b00", "#0f9d76", "#cf4b7d", "#8a6fd1", "#a5822f", "#3fb0d6", "#8a8f96")
_STYLES: tuple[Dashes, ...] = ("-", "--", "-.")
MOST_POINTS = 1500
"""Of a line that are drawn."""
_MARKERS: dict[Dashes, str] = {"-": "o", "--": "s", "-.": "^"}
_SPREAD = 20
"""Largest over smallest `x` of a cloud from which on its axis is logarithmic."""
_LARGEST = 1e300
"""Beyond it an axis has no ticks: what they are computed from overflows. A run that diverged so far is off it."""
_LEGEND_ROWS = 30


@dataclass(frozen=True)
class Line:
    """``x, y [points]`` of a group of runs (`group` decides its colour), the band around it, or one unfinished run.

    With `cloud` the points stand for themselves: nothing joins them, and none is left out.
    """

    group: int
    x: Floats
    y: Floats
    low: Floats | None = None
    high: Floats | None = None
    unfinished: bool = False
    cloud: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes. `unit` scales the ticks of `x` (``B`` gives MB); `log` is the scale of `y`."""

    name: str
    xlabel: str
    ylabel: str
    lines: Sequence[Line]
    unit: str | None = None
    log: bool = False


def banded(series: Sequence[tuple[Floats, Floats]]) -> tuple[Floats, Floats, Floats, Floats] | None:
    """`x`, and mean, lowest and highest `y` there, of several curves ``x, y [points]``; None for fewer than two.

    Where the curves have different `x` (delays, say), each is interpolated linearly at every `x` of any of them,
    between the first and the last that all reached.
    """
    if len(series) < 2 or any(len(x) == 0 for x, _ in series):
        return None
    grid = np.unique(np.concatenate([x for x, _ in series]))
    grid = grid[(grid >= max(x[0] for x, _ in series)) & (grid <= min(x[-1] for x, _ in series))]
    if len(grid) == 0:
        return None
    values = np.stack([np.interp(grid, x, y) for x, y in series])
    return grid, values.mean(0), values.min(0), values.max(0)


def style(group: int, groups: int) -> tuple[str, Dashes]:
    """Colour (``#rrggbb``) and line style of a group; a gradient where there are more groups than styles."""
    if groups <= len(_COLOURS) * len(_STYLES):
        return _COLOURS[group % len(_COLOURS)], _STYLES[group // len(_COLOURS)]
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return to_hex(colormaps["turbo"](0.08 + 0.84 * group / (groups - 1))), "-"


def panel_figure(panel: Panel, groups: int, size: tuple[float, float] = (3.5, 2.5)) -> Figure:
    """One panel of `size` (inches) without legend, on a transparent ground; without pyplot's state, for ``savefig``."""
    from fedsim.figures.drawing import Drawing

    figure = Drawing(figsize=size, layout="constrained", facecolor="none", dpi=200)
    _draw(figure.add_subplot(), panel, groups)
    return figure


def grid_figure(
    rows: Sequence[Sequence[Panel]], labels: Sequence[str], title: str = "", across: float | None = None
) -> Figure:
    """Panels in rows, `across` inches wide, with one legend for all. No pyplot state: save it with ``savefig``."""
    from fedsim.figures.drawing import Drawing

    width = max(len(row) for row in rows)
    entries = _entries(rows, labels)
    across = across or max(3.2 * width, 4.5)
    columns = _columns([max(map(len, e.get_label().split("\n"))) for e in entries], int(12 * across))
    extra = 0.25 * (-(-len(entries) // columns) + max(e.get_label().count("\n") for e in entries))
    size = (across, 2.4 * len(rows) + extra + (0.3 if title else 0))
    figure = Drawing(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), width, squeeze=False)
    for i, row in enumerate(rows):
        for k in range(width):
            if k < len(row):
                _draw(axes[i][k], row[k], len(labels))
            else:
                axes[i][k].set_visible(False)
    figure.legend(handles=entries, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    if title:
        figure.suptitle(_plain(title), fontsize=11)
    return figure


def _columns(lengths: Sequence[int], characters: int) -> int:
    """As many columns of a legend as fit, each as wide as its longest label; one line's sample takes 8 characters."""
    fits = (
        count
        for count in range(len(lengths), 1, -1)
        if sum(8 + max(part) for part in np.array_split(lengths, count)) <= characters
    )
    return next(fits, 1)


def _draw(axes: Any, panel: Panel, groups: int) -> None:
    from matplotlib.ticker import AutoLocator, EngFormatter, MaxNLocator

    for line in panel.lines:
        colour, dashes = style(line.group, groups)
        if line.cloud:
            _draw_cloud(axes, line, colour, dashes)
            continue
        x, y, low, high = thinned(line)
        if panel.log:  # a logarithm has no place for zero
            y = np.where(y > 0, y, np.nan)
        if low is not None and high is not None:
            axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        short = len(x) < 3
        if line.unfinished:
            axes.plot(x, y, ":", color=colour, linewidth=1.4, marker="." if short else "")
            axes.plot(x[-1:], y[-1:], "x", color=colour, markersize=6)
        else:
            axes.plot(x, y, dashes, color=colour, linewidth=1.5, marker="." if short else "")
    if panel.log:
        axes.set_yscale("log", nonpositive="mask")
        _log_ticks(axes)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    if panel.unit is None:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=panel.xlabel == "round"))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4) if panel.lines else AutoLocator())
        axes.xaxis.set_major_formatter(EngFormatter(unit=panel.unit, sep=" " if panel.unit else ""))
    clouds = [line.x for line in panel.lines if line.cloud and len(line.x)]
    if clouds:
        _spread_out(axes, np.concatenate(clouds))
    axes.set_xlabel(_plain(panel.xlabel), fontsize=9, color=INK)
    axes.set_ylabel(_plain(panel.ylabel), fontsize=9, color=INK)
    axes.set_facecolor("none")
    axes.tick_params(which="both", labelsize=8, colors=INK)
    axes.grid(color="#80858c", alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)


def _draw_cloud(axes: Any, line: Line, colour: str, dashes: Dashes) -> None:
    """Every point; of many the picture, since a page would grow by a hundred bytes for each."""
    count = len(line.x)
    axes.plot(
        line.x, drawable(line.y), _MARKERS[dashes], color=colour, markersize=4.5 if count <= 100 else 3,
        alpha=0.7 if count <= 100 else 0.4, markeredgewidth=0, rasterized=count > MOST_POINTS,
    )  # fmt: skip


def spread_out(x: Floats) -> bool:
    """Whether values spread over orders of magnitude, so that their axis is logarithmic."""
    return bool(len(x) and x.min() > 0 and x.max() > _SPREAD * x.min())


def _spread_out(axes: Any, x: Floats) -> None:
    """A logarithmic axis where values spread over orders of magnitude."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if spread_out(x):
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if x.max() < 300 * x.min() else (1,), numticks=6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def _log_ticks(axes: Any) -> None:
    """Powers of ten where there are some to see, else numbers between them, so that no axis is without."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = axes.get_ylim()
    axes.yaxis.set_minor_locator(NullLocator())
    if high > 100 * low:
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        return
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8) if high > 5 * low else MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))


def _entries(rows: Sequence[Sequence[Panel]], labels: Sequence[str]) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    lines = [line for row in rows for panel in row for line in panel.lines]
    shown = sorted({line.group for line in lines})
    entries: list[Any] = []
    for group in shown[:_LEGEND_ROWS]:
        colour, dashes = style(group, len(labels))
        entries.append(Line2D([], [], color=colour, linestyle=dashes, label=_plain(labels[group])))
    if len(shown) > _LEGEND_ROWS:
        entries.append(Line2D([], [], linestyle="", label=f"and {len(shown) - _LEGEND_ROWS} more"))
    if any(line.low is not None for line in lines):
        entries.append(Patch(color=INK, alpha=0.25, linewidth=0, label=BAND.replace(", ", "\n").replace("; ", "\n")))
    if any(line.unfinished for line in lines):
        entries.append(Line2D([], [], color=INK, linestyle=":", marker="x", label=OPEN_END))
    return entries


def thinned(line: Line) -> tuple[Floats, Floats, Floats | None, Floats | None]:
    """Every k-th point and the last one, so that a long run does not make a page of megabytes; none past `_LARGEST`."""
    count = len(line.x)
    keep = np.unique(np.append(np.arange(0, count, max(1, -(-count // MOST_POINTS))), count - 1))
    x, y, low, high = (None if v is None else drawable(v[keep]) for v in (line.x, line.y, line.low, line.high))
    assert x is not None
    assert y is not None
    return x, y, low, high


def drawable(values: Floats) -> Floats:
    return np.where(np.abs(values) < _LARGEST, values, np.nan)


def _plain(text: str) -> str:
    """Text that matplotlib neither reads as a formula nor hides (a legend leaves out labels that begin with _)."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
