"""What a sweep's groups bought and what it cost them: quality against spectral gap, bytes and time, and heat maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedsim.figures.curves import INK, style
from fedsim.mixing import mixing_matrix, spectral_gap
from fedsim.page import image, tag
from fedsim.run_groups import Group, Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Save = Callable[[str, "Figure"], bytes]
_ACCURACY = ("node_accuracy", "test_accuracy")
_COSTS = {"bytes_sent": "bytes sent", "time": "virtual time (s)"}
_FEWEST = 3  # groups


def tradeoffs(groups: Sequence[Group], differing: Sequence[str], save: Save) -> list[object]:
    """Sections of a page: points per group, mean and sample standard deviation over its seeds; none for few groups."""
    quality = next((k for k in _ACCURACY if any(group.has(k) for group in groups)), None)
    if quality is None or len(groups) < _FEWEST:
        return []
    gaps = {i: gap for i, group in enumerate(groups) if (gap := _gap(group.runs[0])) is not None}
    panels: list[tuple[str, Mapping[int, float], bool]] = []
    if len(set(gaps.values())) > 1:
        panels.append(("spectral gap of the first graph", gaps, False))
    for key, name in _COSTS.items():
        cost = {i: group.final(key)[0] for i, group in enumerate(groups) if group.final(key)[0] > 0}
        if len(set(cost.values())) > 1:
            panels.append((name, cost, True))
    found: list[object] = []
    if panels:
        png = save("tradeoffs", _scatter(groups, quality, panels))
        lead = (
            "Each point is a group at its last evaluation, with the sample standard deviation over its seeds. The line "
            "joins the groups that no other beats in both cost and accuracy (the Pareto front)."
        )
        found += [tag("h2", "Accuracy against cost"), tag("p", lead, "soft"), image(png, "accuracy against cost")]
    axes = [key for key in differing if _numbers(groups, key) is not None]
    if len(axes) == 2 and len(differing) == 2:
        png = save("heatmap", _heatmap(groups, quality, axes[0], axes[1]))
        found += [tag("h2", "Two axes"), image(png, f"{quality} over {axes[0]} and {axes[1]}")]
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
    import networkx as nx

    file, rule = run.dir / "topology.graphml", run.value("topology.weights")
    if not file.exists():
        return None
    graph = nx.read_graphml(file)
    try:
        return float(spectral_gap(mixing_matrix(graph, rule or ("uniform" if graph.is_directed() else "metropolis"))))
    except Exception:  # somebody's own weights, or a file that was changed by hand: the report goes on without
        return None


def _scatter(groups: Sequence[Group], quality: str, panels: Sequence[tuple[str, Mapping[int, float], bool]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    for axes, (name, x, is_cost) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for i, at in x.items():
            mean, std = groups[i].final(quality)
            colour, _ = style(i, len(groups))
            axes.errorbar(at, mean, yerr=None if math.isnan(std) else std, fmt="o", color=colour, capsize=2)
            label = groups[i].label[:28].replace("$", r"\$")
            axes.annotate(label, (at, mean), xytext=(4, 4), textcoords="offset points", fontsize=7, color=INK)
        if is_cost:
            order = list(x)
            front = pareto([x[i] for i in order], [groups[i].final(quality)[0] for i in order])
            line = [(x[order[i]], groups[order[i]].final(quality)[0]) for i in front]
            axes.plot(*zip(*line, strict=True), color=INK, linewidth=0.8)
        if min(x.values()) > 0 and max(x.values()) > 20 * min(x.values()):
            axes.set_xscale("log")
        axes.set_xlabel(name, fontsize=9)
        axes.set_ylabel(quality.replace("_", " "), fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
    return figure


def _heatmap(groups: Sequence[Group], quality: str, first: str, second: str) -> Figure:
    from matplotlib.figure import Figure

    a, b = _numbers(groups, first), _numbers(groups, second)
    assert a is not None
    assert b is not None
    xs, ys = sorted(set(a)), sorted(set(b))
    cells = np.full((len(ys), len(xs)), np.nan)
    for group, x, y in zip(groups, a, b, strict=True):
        cells[ys.index(y), xs.index(x)] = group.final(quality)[0]
    figure = Figure(figsize=(1.6 + 0.7 * len(xs), 1.4 + 0.5 * len(ys)), layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.imshow(cells, origin="lower", aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(xs)), [f"{x:g}" for x in xs], fontsize=8)
    axes.set_yticks(range(len(ys)), [f"{y:g}" for y in ys], fontsize=8)
    axes.set_xlabel(first, fontsize=9)
    axes.set_ylabel(second, fontsize=9)
    figure.colorbar(drawn, ax=axes, label=quality.replace("_", " "))
    return figure


def _numbers(groups: Sequence[Group], key: str) -> list[float] | None:
    """A key's value in every group, where all are numbers."""
    try:
        return [float(group.settings[key]) for group in groups]
    except (KeyError, ValueError):
        return None
