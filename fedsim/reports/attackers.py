"""What attackers left of the honest nodes' accuracy, against the spectral gap that they left of the graph."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.core.metrics import Metric
from fedsim.engine.attackers import FILE
from fedsim.figures.curves import INK, style
from fedsim.figures.html import heading, inline_svg, paragraph, table
from fedsim.reports.groups import Group, Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FACTS = ("f", "delta_max", "honest_gap", "connected", "within_bound")
_FEWEST = 2  # different gaps
_COLUMNS = 3
_MARKERS = "os^DvP"


@dataclass(frozen=True)
class _Point:
    """A group of runs: honest gap, accuracy with its sample standard deviation, and what was against what."""

    gap: float
    value: float
    spread: float
    attack: str
    rule: str
    placement: str


def attackers(groups: Sequence[Group], shown: Sequence[Metric], save: Callable[[str, Figure], bytes]) -> list[object]:
    """A section of a page: who attacks, then a panel per attack, a colour per rule, a marker per placement; nothing
    without attackers."""
    who = _table(groups)
    return [heading(2, "Attackers"), *who, *_figure(groups, shown, save)] if who else []


def _figure(groups: Sequence[Group], shown: Sequence[Metric], save: Callable[[str, Figure], bytes]) -> list[object]:
    quality = next((m for m in shown if m.figure == "gossip" and m.larger_is_better), None)
    if quality is None:
        return []
    points = [point for group in groups if (point := _point(group, quality.name)) is not None]
    if len({point.gap for point in points}) < _FEWEST:
        return []
    figure = _drawn(points, quality)
    save("attackers", figure)
    lead = (
        "Each point is a group at its last evaluation, over the honest nodes alone, with the sample standard deviation "
        "over its seeds. The honest gap is the spectral gap of the mixing matrix in which attackers' weight stays at "
        "home, the mean over the seeds; 0 where the honest nodes are not connected."
    )
    said = f"{quality.words} of honest nodes against the honest gap, {len({p.attack for p in points})} attacks"
    return [paragraph(lead, soft=True), inline_svg(figure, "attackers", said)]


def _table(groups: Sequence[Group]) -> list[object]:
    """Who attacks in a group's first run and what its rule is up against; nothing where nobody does."""
    rows = []
    for group in groups:
        run = group.runs[0]
        found = _record(run)
        if found is None or not found.get("attackers"):
            continue
        rule = run.value("aggregator.name") or "mean"
        rows.append(
            [group.label, ", ".join(map(str, found["attackers"])), str(found.get("name")), str(rule)]
            + [_said(found.get(key)) for key in _FACTS]
        )
    if not rows:
        return []
    lead = (
        "Losses, accuracies and distances of these runs are over honest clients and nodes alone; costs count "
        "everybody. "
        "A group's attackers are those of its first run. A dash: the rule has no number f, or there is no graph."
    )
    header = ["group", "attackers", "attack", "rule", *(key.replace("_", " ") for key in _FACTS)]
    return [table(header, rows, text=(0, 1, 2, 3)), paragraph(lead, soft=True)]


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "\N{EN DASH}" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _point(group: Group, quality: str) -> _Point | None:
    """None for a group without attackers on a graph, or without the metric."""
    found = [record for run in group.counted if (record := _record(run)) is not None]
    value, spread = group.final(quality)
    gaps = [record["honest_gap"] for record in found if isinstance(record.get("honest_gap"), (int, float))]
    if not gaps or math.isnan(value):
        return None
    run = group.runs[0]
    rule = run.value("aggregator") or {"name": "mean"}
    keys = "".join(f", {k} {v}" for k, v in rule.items() if k in ("f", "tau", "trim") and v is not None)
    placement = "given" if isinstance(run.value("attack.attackers"), list) else str(run.value("attack.placement"))
    return _Point(float(np.mean(gaps)), value, spread, str(found[0].get("name")), f"{rule['name']}{keys}", placement)


def _record(run: Record) -> Mapping[str, Any] | None:
    """``attack.json`` of a run; None where it has none that can be read."""
    try:
        found = json.loads((run.dir / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _drawn(points: Sequence[_Point], quality: Metric) -> Figure:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    from fedsim.figures.drawing import Drawing

    attacks, rules, places = (
        list(dict.fromkeys(getattr(p, key) for p in points)) for key in ("attack", "rule", "placement")
    )
    columns = min(_COLUMNS, len(attacks))
    rows = -(-len(attacks) // columns)
    figure = Drawing(figsize=(3.6 * columns, 2.9 * rows + 0.6), layout="constrained", facecolor="none")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes, attack in zip(panels.flat, attacks, strict=False):
        for point in (p for p in points if p.attack == attack):
            colour, _ = style(rules.index(point.rule), len(rules))
            marker = _MARKERS[places.index(point.placement) % len(_MARKERS)]
            error = None if math.isnan(point.spread) else point.spread
            axes.errorbar(
                point.gap, point.value, yerr=error, color=colour, marker=marker, markersize=6, alpha=0.85, capsize=2,
                elinewidth=1, linestyle="",
            )  # fmt: skip
        axes.set_title(attack.replace("$", r"\$"), fontsize=9, color=INK)
        axes.tick_params(labelsize=8, colors=INK)
        for spine in axes.spines.values():
            spine.set_color(INK)
        axes.grid(alpha=0.25)
    for axes in panels.flat[len(attacks) :]:
        axes.set_visible(False)
    gaps = [p.gap for p in points]
    if min(gaps) > 0 and max(gaps) > 5 * min(gaps):
        panels[0, 0].set_xscale("log")
        panels[0, 0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panels[0, 0].xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panels[0, 0].xaxis.set_minor_formatter(NullFormatter())
    for axes in panels[-1]:
        axes.set_xlabel("honest gap", fontsize=9, color=INK)
    for axes in panels[:, 0]:
        axes.set_ylabel(f"{quality.words} (honest)", fontsize=9, color=INK)
    handles = [
        Line2D([], [], marker="o", linestyle="", color=style(i, len(rules))[0], label=rule.replace("$", r"\$"))
        for i, rule in enumerate(rules)
    ]
    handles += [
        Line2D([], [], marker=_MARKERS[i % len(_MARKERS)], linestyle="", color=INK, markerfacecolor="none", label=place)
        for i, place in enumerate(places)
        if len(places) > 1
    ]
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_color(INK)
    return figure
