"""A picture of a graph: where its nodes are, who talks to whom, and over how slow a link."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Places = npt.NDArray[np.float64]

_LABELLED = 60  # up to here a name beside every node stays readable
_SIDES = ((6, 5), (-6, 5), (6, -5), (-6, -5), (0, 7), (0, -7), (8, 0), (-8, 0))  # of a name from its node, in points
_SPRINGS = 5000  # above, springs take as long as the square of the nodes: a circle it is
_ARROWS = 100  # up to here one arrow per edge does too


def topology_figure(graph: nx.Graph[Any], title: str = "") -> Figure:
    """Draw `graph` (nodes ``0 .. n-1``); a colour per degree and, where edges carry ``latency_ms``, per latency.

    Nodes lie where they are (``longitude``, ``latitude`` or ``x``, ``y``), on a circle for rings and the like, else
    where springs put them, always the same way. The figure belongs to no pyplot state: save it with
    ``figure.savefig(path)``.
    """
    from fedsim.figures.drawing import Drawing

    places, geographic = _places(graph)
    n = len(places)
    figure = Drawing(figsize=(8.6, 6.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    _edges(figure, axes, graph, places)
    _nodes(figure, axes, graph, places)
    axes.set_aspect(_map_aspect(places) if geographic else "equal", adjustable="box" if geographic else "datalim")
    axes.margins(0.08)
    if geographic:
        axes.set_xlabel("longitude (degrees)", color="0.4")
        axes.set_ylabel("latitude (degrees)", color="0.4")
        axes.grid(color="0.93", zorder=0)
        axes.tick_params(colors="0.5", labelsize=8)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    arrow = "directed edges" if graph.is_directed() else "edges"
    axes.set_title(f"{title}\n" if title else "", loc="left", fontweight="bold", fontsize=13)
    axes.text(0, 1.01, f"{n} nodes, {graph.number_of_edges()} {arrow}", transform=axes.transAxes, color="0.35")
    if n <= _LABELLED:
        _labels(figure, axes, graph, places)
    return figure


def _map_aspect(places: Places) -> float:
    """How much taller than wide a degree is drawn: true to scale in the middle, but never a strip or a column."""
    width, height = np.maximum(np.ptp(places, axis=0), 1e-6)
    true = 1 / math.cos(math.radians(float(np.clip(places[:, 1].mean(), -65, 65))))
    return float(np.clip(true, 0.45 * width / height, 1.5 * width / height))


def _places(graph: nx.Graph[Any]) -> tuple[Places, bool]:
    """Positions ``[n, 2]`` and whether they are longitude and latitude."""
    data = dict(graph.nodes(data=True))
    nodes = range(graph.number_of_nodes())
    if all("latitude" in data[i] and "longitude" in data[i] for i in nodes):
        return _apart(np.array([[data[i]["longitude"], data[i]["latitude"]] for i in nodes], dtype=float)), True
    if all("x" in data[i] and "y" in data[i] for i in nodes):
        return np.array([[data[i]["x"], data[i]["y"]] for i in nodes], dtype=float), False
    if graph.graph.get("layout") == "circular" or len(nodes) > _SPRINGS:
        angle = math.pi / 2 - 2 * math.pi * np.arange(len(nodes)) / len(nodes)
        return np.column_stack([np.cos(angle), np.sin(angle)]), False
    plain: nx.Graph[Any] = nx.Graph(graph.edges())
    plain.add_nodes_from(nodes)
    if len(nodes) <= 150 and nx.is_connected(plain):
        layout = nx.kamada_kawai_layout(plain)
    else:
        layout = nx.spring_layout(plain, seed=0, iterations=80 if len(nodes) <= 500 else 30, weight=None)
    return np.array([layout[i] for i in nodes], dtype=float), False


def _apart(places: Places) -> Places:
    """Spread nodes of the same city on a small circle around it, so that none hides another."""
    span = float(np.ptp(places, axis=0).max()) or 1.0
    _, group = np.unique(places.round(2), axis=0, return_inverse=True)
    group = group.ravel()
    for g in np.flatnonzero(np.bincount(group) > 1):
        members = np.flatnonzero(group == g)
        angle = 2 * math.pi * np.arange(len(members)) / len(members)
        radius = 0.0045 * span * math.sqrt(len(members))
        places[members] += radius * np.column_stack([np.cos(angle), np.sin(angle)])
    return places


def _edges(figure: Any, axes: Any, graph: nx.Graph[Any], places: Places) -> None:
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection

    edges = list(graph.edges(data=True))
    if not edges:
        return
    ends = np.array([[u, v] for u, v, _ in edges])
    width = float(np.clip(60 / math.sqrt(len(edges) + 1) / 5, 0.35, 1.6))
    latency = np.array([data.get("latency_ms", np.nan) for *_, data in edges], dtype=float)
    order = np.argsort(-np.nan_to_num(latency))  # short, fast links on top: they are the ones that get covered
    segments = _segments(graph, places, ends)
    lines = LineCollection([segments[k] for k in order], linewidths=width, zorder=1)
    if np.isfinite(latency).any():
        times = np.ma.masked_invalid(latency[order])
        lines.set_array(times)
        lines.set_cmap(colormaps["plasma_r"].with_extremes(bad="0.6"))
        lines.set_alpha(0.85)
        figure.colorbar(lines, ax=axes, label="latency (ms)", shrink=0.55, pad=0.02, aspect=25)
        colors = lines.to_rgba(times, alpha=0.85)
    else:
        lines.set_color("0.6")
        lines.set_alpha(float(np.clip(40 / math.sqrt(len(edges)), 0.12, 0.9)))
        colors = np.full((len(edges), 4), (0.5, 0.5, 0.5, 1.0))
    axes.add_collection(lines)
    if graph.is_directed() and len(edges) <= _ARROWS * 2 and len(places) <= _ARROWS:
        lines.set_visible(False)  # an arrow stands for each
        style = {"arrowstyle": "-|>", "lw": width * 0.8, "mutation_scale": 8, "shrinkA": 6, "shrinkB": 7}
        style["connectionstyle"] = "arc3,rad=0.06"
        for (start, end), color in zip(places[ends[order]], colors, strict=True):
            axes.annotate("", end, start, arrowprops={**style, "color": tuple(color)}, zorder=1)


def _segments(graph: nx.Graph[Any], places: Places, ends: npt.NDArray[np.int64]) -> list[Places]:
    """The line of each edge; one that wraps around a torus leaves on one side and comes back on the other."""
    segments = [np.asarray(places[pair]) for pair in ends]
    if graph.graph.get("layout") != "torus":
        return segments
    gap = np.full(2, np.nan)  # a line breaks at nan
    for k, (a, b) in enumerate(segments):
        step = np.sign(b - a) * (np.abs(b - a) > 1.5)
        if step.any():
            segments[k] = np.array([a, a - 0.4 * step, gap, b + 0.4 * step, b])
    return segments


def _nodes(figure: Any, axes: Any, graph: nx.Graph[Any], places: Places) -> None:
    from matplotlib.ticker import MaxNLocator

    n = len(places)
    degree = np.array([d for _, d in sorted(graph.degree())])
    size = float(np.clip(9000 / n, 10, 170))
    style = {"s": size, "zorder": 3, "edgecolors": "white", "linewidths": 0.8 if n <= 300 else 0.3}
    if degree.min() == degree.max():
        axes.scatter(places[:, 0], places[:, 1], color="#2a788e", **style)
        return
    dots = axes.scatter(places[:, 0], places[:, 1], c=degree, cmap="viridis", **style)
    bar = figure.colorbar(dots, ax=axes, label="degree", shrink=0.55, pad=0.02, aspect=25)
    bar.locator = MaxNLocator(integer=True, nbins=6)
    bar.update_ticks()


def _labels(figure: Any, axes: Any, graph: nx.Graph[Any], places: Places) -> None:
    """A name beside each node, on the side where it covers the fewest nodes and other names."""
    from matplotlib.patheffects import withStroke

    names = [
        axes.annotate(
            str(graph.nodes[i].get("label", i)),
            (x, y),
            xytext=_SIDES[0],
            textcoords="offset points",
            fontsize=7.5,
            color="0.15",
            zorder=4,
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )
        for i, (x, y) in enumerate(places)
    ]
    figure.draw_without_rendering()  # only now is it known where nodes are on the page, and how long names are
    dots = axes.transData.transform(places)
    pixels = figure.dpi / 72
    taken = np.column_stack([dots - 4 * pixels, dots + 4 * pixels])  # left, bottom, right, top
    for name, dot in zip(names, dots, strict=True):
        extent = name.get_window_extent()
        boxes = [_box(dot, side, extent.width, extent.height, pixels) for side in _SIDES]
        best = min(range(len(_SIDES)), key=lambda k: _covered(boxes[k], taken))
        (right, up), taken = _SIDES[best], np.vstack([taken, boxes[best]])
        name.set(position=(right, up), ha="left" if right > 0 else "right" if right < 0 else "center")
        name.set_va("bottom" if up > 0 else "top" if up < 0 else "center")


def _box(dot: Places, side: tuple[int, int], width: float, height: float, pixels: float) -> Places:
    """Left, bottom, right and top of a text of that size beside a node, in pixels."""
    size, shift = np.array([width, height]), np.array(side)
    low = dot + shift * pixels - size * (1 - np.sign(shift)) / 2
    return np.concatenate([low, low + size])


def _covered(box: Places, taken: Places) -> int:
    """How many of the boxes it lies on."""
    apart = (taken[:, 0] > box[2]) | (taken[:, 2] < box[0]) | (taken[:, 1] > box[3]) | (taken[:, 3] < box[1])
    return int((~apart).sum())
