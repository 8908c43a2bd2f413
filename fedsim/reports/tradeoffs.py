"""What a sweep's groups bought and what it cost them: quality against spectral gap, bytes and time, and heat maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.core.arrays import Floats
from fedsim.core.metrics import TABLE, Metric
from fedsim.figures.curves import INK, style
from fedsim.figures.html import heading, image, inline_svg, legend, panels, paragraph, swatch
from fedsim.graphs.files import read_graph
from fedsim.graphs.mixing import mixing_matrix, spectral_gap
from fedsim.reports.groups import Group, Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Save = Callable[[str, "Figure"], bytes]
_FEWEST = 3  # groups
_MOST_NUMBERS = 120  # cells of a heat map that show theirs

_Panel = tuple[str, Mapping[int, float], str | None]
"""What a panel is drawn against: its name, the groups' values, and, where less is better, its unit."""


def tradeoffs(groups: Sequence[Group], differing: Sequence[str], shown: Sequence[Metric], save: Save) -> list[object]:
    """Sections of a page: points per group, mean and sample standard deviation over its seeds; none for few groups."""
    larger = [m for m in shown if m.larger_is_better]
    chosen = next((m for m in larger if m.figure == "gossip"), next(iter(larger), None))
    if chosen is None or len(groups) < _FEWEST:
        return []
    quality, called = chosen.name, "Accuracy against cost" if chosen.name in TABLE else f"{chosen.words} against cost"
    gaps = {i: gap for i, group in enumerate(groups) if (gap := _gap(group.runs[0])) is not None}
    drawn: list[_Panel] = []
    if len(set(gaps.values())) > 1:
        drawn.append(("spectral gap of the (first) graph", gaps, None))
    for m in (m for m in shown if m.kind == "cost" and m.unit in ("B", "s") and m.axis):
        cost = {i: group.final(m.name)[0] for i, group in enumerate(groups) if group.final(m.name)[0] > 0}
        if len(set(cost.values())) > 1:
            drawn.append((m.axis, cost, m.unit))
    found: list[object] = []
    if drawn:
        save("tradeoffs", _scatters(groups, quality, drawn))
        lead = (
            "Each point is a group at its last evaluation, with the sample standard deviation over its seeds. The line "
            "joins the groups that no other beats in both cost and accuracy (the Pareto front)."
        )
        entries = [(swatch(*style(i, len(groups))), f"{i + 1} {group.label}") for i, group in enumerate(groups)]
        figures = [
            inline_svg(_scatter(groups, quality, panel), f"tradeoffs-{i}", f"{quality} against {panel[0]}")
            for i, panel in enumerate(drawn)
        ]
        found += [heading(2, called), paragraph(lead, soft=True), legend(entries), panels(figures)]
    if len(differing) == 2 and (grid := _grid(groups, quality, *differing)) is not None:
        png = save("heatmap", _heatmap(grid, quality, *differing))
        found += [heading(2, "Two axes"), image(png, f"{quality} over {differing[0]} and {differing[1]}")]
    return found


def pareto(cost: Sequence[float], quality: Sequence[float]) -> list[int]:
    """Positions that no other beats in both, by rising cost."""
    front: list[int] = []
    best = -math.inf
    for i in sorted(range(len(cost)), key=lambda i: (cost[i], -quality[i])):
        if quality[i] > best:
            front.append(i)
            best = quality[i]
    return front


def _gap(run: Record) -> float | None:
    """Spectral gap of a run's graph; None under a server or where it is not recorded."""
    file, rule = run.dir / "topology.graphml", run.value("topology.weights")
    if not file.exists() or run.value("topology.graph") == "random_peers":
        return None
    try:
        graph = read_graph(file)
        return float(spectral_gap(mixing_matrix(graph, rule or ("uniform" if graph.is_directed() else "metropolis"))))
    except Exception:  # somebody's own weights, or a file that was changed by hand: the report goes on without
        return None


def _scatter(groups: Sequence[Group], quality: str, panel: _Panel) -> Figure:
    """One panel without legend, on a transparent ground."""
    from fedsim.figures.drawing import Drawing

    figure = Drawing(figsize=(3.5, 2.8), layout="constrained", facecolor="none")
    _draw(figure.add_subplot(), groups, quality, panel)
    return figure


def _scatters(groups: Sequence[Group], quality: str, panels: Sequence[_Panel]) -> Figure:
    """All panels in a row, with one legend."""
    from matplotlib.lines import Line2D

    from fedsim.figures.drawing import Drawing

    columns = max(1, 4 * len(panels) // 3)
    figure = Drawing(figsize=(4.2 * len(panels), 3.4 + 0.2 * -(-len(groups) // columns)), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(axes, groups, quality, panel)
    points = [
        Line2D([], [], marker="o", linestyle="", color=style(i, len(groups))[0], label=_plain(f"{i + 1} {group.label}"))
        for i, group in enumerate(groups)
    ]
    figure.legend(handles=points, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    return figure


def _draw(axes: Any, groups: Sequence[Group], quality: str, panel: _Panel) -> None:
    """Numbered points; names beside them would lie on top of each other."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter

    name, x, unit = panel
    front: list[int] = []
    if unit is not None:
        order = list(x)
        front = [order[i] for i in pareto([x[i] for i in order], [groups[i].final(quality)[0] for i in order])]
        line = [(x[i], groups[i].final(quality)[0]) for i in front]
        axes.plot(*zip(*line, strict=True), color=INK, linewidth=0.8, zorder=1)
    for i, at in x.items():
        mean, std = groups[i].final(quality)
        colour, _ = style(i, len(groups))
        axes.errorbar(at, mean, yerr=None if math.isnan(std) else std, color=colour, capsize=2, elinewidth=1)
        axes.plot(at, mean, marker="o", markersize=10, color=colour, zorder=3)
        axes.annotate(
            str(i + 1),
            (at, mean),
            ha="center",
            va="center_baseline",
            fontsize=7,
            color="white",
            weight="bold",
            zorder=4,
        )
    if min(x.values()) > 0 and max(x.values()) > 5 * min(x.values()):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(x.values()) < 50 * min(x.values()) else (1,)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}") if unit is None else EngFormatter(unit))
    axes.set_xlabel(name, fontsize=9, color=INK)
    axes.set_ylabel(_plain(quality.replace("_", " ")), fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK)
    for spine in axes.spines.values():
        spine.set_color(INK)
    axes.grid(alpha=0.25)


@dataclass(frozen=True)
class _Grid:
    """Values ``[ys, xs]`` over two axes, nan where no group is."""

    xs: Sequence[str]
    ys: Sequence[str]
    cells: Floats


def _grid(groups: Sequence[Group], quality: str, first: str, second: str) -> _Grid | None:
    """The groups over two keys; None where some do not have both (a graph file's path), or they fill less than half."""
    if any(key not in group.settings for group in groups for key in (first, second)):
        return None
    xs, ys = _ticks(groups, first), _ticks(groups, second)
    if min(len(xs), len(ys)) < 2 or 2 * len(groups) < len(xs) * len(ys):
        return None
    cells = np.full((len(ys), len(xs)), np.nan)
    for group in groups:
        cells[ys.index(group.settings[second]), xs.index(group.settings[first])] = group.final(quality)[0]
    return _Grid(xs, ys, cells)


def _ticks(groups: Sequence[Group], key: str) -> list[str]:
    """A key's values: numbers by size, anything else in the order of the groups."""
    values = list(dict.fromkeys(group.settings[key] for group in groups))
    try:
        return sorted(values, key=float)
    except ValueError:
        return values


def _heatmap(grid: _Grid, quality: str, first: str, second: str) -> Figure:
    from fedsim.figures.drawing import Drawing

    rows, columns = grid.cells.shape
    figure = Drawing(figsize=(2.2 + 0.7 * columns, 1.4 + 0.5 * rows), layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.imshow(grid.cells, origin="lower", aspect="auto", cmap="viridis")
    axes.set_xticks(range(columns), [_plain(x[:24]) for x in grid.xs], fontsize=8)
    axes.set_yticks(range(rows), [_plain(y[:24]) for y in grid.ys], fontsize=8)
    axes.set_xlabel(first, fontsize=9)
    axes.set_ylabel(second, fontsize=9)
    middle = (np.nanmin(grid.cells) + np.nanmax(grid.cells)) / 2
    if rows * columns <= _MOST_NUMBERS:
        for (y, x), value in np.ndenumerate(grid.cells):
            if not math.isnan(value):
                colour = "black" if value > middle else "white"
                axes.text(x, y, f"{value:.3f}", ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(drawn, ax=axes, label=quality.replace("_", " "))
    return figure


def _plain(text: str) -> str:
    """Text in which matplotlib finds no formula."""
    return text.replace("$", r"\$")
