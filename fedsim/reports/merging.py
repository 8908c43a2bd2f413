"""Own models against their mean: what a merge of all nodes brings, and when nodes communicate more or merge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from fedsim.core.clock import ticks
from fedsim.core.metrics import TABLE
from fedsim.figures.curves import INK, style
from fedsim.figures.html import heading, inline_svg, paragraph
from fedsim.participation.stretches import Stretch, Timetable
from fedsim.participation.windows import NEVER, Merge, Schedule, Window
from fedsim.reports.groups import Group, Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS, _MOST = 3, 12
_MANY_LINES = 40
_MOST_ROUNDS = 10_000_000
_OWN, _MEAN = (
    next(m.name for m in TABLE.values() if m.figure == figure and m.larger_is_better)
    for figure in ("gossip", "progress")
)


def merging(groups: Sequence[Group], save: Callable[[str, Figure], bytes]) -> list[object]:
    """A section of a page with a panel per group; none where no run has a schedule or merges."""
    found = [group for group in groups if _asked(group.runs[0]) and _curve(group.runs[0])][:_MOST]
    if not found:
        return []
    figure = _drawn(found)
    save("merging", figure)
    lead = (
        "The nodes' own models (mean accuracy) and their mean model, of each group's first run. The area between them "
        "is what a merge would bring. Grey: windows of the schedule with links of their own. Upright lines: merges; "
        "the diamond is what merge: final made."
    )
    return [
        heading(2, "Merging"),
        paragraph(lead, soft=True),
        inline_svg(figure, "merging", "accuracy of nodes' own models and of their mean over the rounds"),
    ]


def _asked(run: Record) -> bool:
    return bool(run.value("participation.schedule")) or (run.value("participation.merge") or "never") != "never"


def _curve(run: Record) -> list[tuple[int, float, float]]:
    """Round, accuracy of own models and of the mean, of every evaluation before a final merge."""
    rows = [row for row in run.rows if not row.get("merged")]
    wanted = [(row.get("round"), row.get(_OWN), row.get(_MEAN)) for row in rows]
    return [(k, own, mean) for k, own, mean in wanted if k is not None and own is not None and mean is not None]


def _times(run: Record) -> tuple[list[tuple[float, float]], list[int]]:
    """Windows with links of their own (from and until, in rounds), and the rounds at whose end nodes merge."""
    rounds, given = int(run.value("run.rounds")), run.value("participation.schedule") or ()
    merge = Merge.model_validate(run.value("participation.merge") or NEVER)
    schedule: Schedule | Timetable
    if run.value("participation.mode") == "poisson":
        length = max(ticks(float(run.value("participation.window"))), 1)
        schedule = Timetable([Stretch.model_validate(w) for w in given], rounds, length)
        spans = schedule.spans()
    else:
        windows = [Window.model_validate(w) for w in given]
        schedule = Schedule(windows, rounds)
        spans = [(first - 0.5, last + 0.5) for first, last in (w.span(rounds) for w in windows if w.links is not None)]
    if rounds > _MOST_ROUNDS:
        return spans, []
    return spans, [k for k in range(1, rounds + 1) if schedule.merges(k) or merge.due(k)]


def _drawn(groups: Sequence[Group]) -> Figure:
    from matplotlib.lines import Line2D

    from fedsim.figures.drawing import Drawing

    columns = min(_COLUMNS, len(groups))
    rows = -(-len(groups) // columns)
    figure = Drawing(figsize=(3.8 * columns, 2.7 * rows + 0.5), layout="constrained", facecolor="none")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    (own, _), (mean, _) = style(0, 2), style(1, 2)
    for axes, group in zip(panels.flat, groups, strict=False):
        _panel(axes, group, own, mean)
    for axes in panels.flat[len(groups) :]:
        axes.set_visible(False)
    for axes in panels[-1]:
        axes.set_xlabel("round", fontsize=9, color=INK)
    for axes in panels[:, 0]:
        axes.set_ylabel("accuracy", fontsize=9, color=INK)
    handles = [Line2D([], [], color=own, label="own models"), Line2D([], [], color=mean, label="mean model")]
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_color(INK)
    return figure


def _panel(axes: Any, group: Group, own: str, mean: str) -> None:
    run = group.runs[0]
    x, alone, together = zip(*_curve(run), strict=True)
    spans, merges = _times(run)
    for first, last in spans:
        axes.axvspan(first, last, color=INK, alpha=0.12, linewidth=0)
    if len(merges) <= _MANY_LINES:
        for k in merges:
            axes.axvline(k, color=INK, linewidth=0.7, alpha=0.6)
    else:
        for first, last in _runs(merges):
            axes.axvspan(first, last, color=INK, alpha=0.25, linewidth=0)
    axes.fill_between(x, alone, together, color=mean, alpha=0.15, linewidth=0)
    axes.plot(x, alone, color=own, linewidth=1.4)
    axes.plot(x, together, color=mean, linewidth=1.4)
    for row in run.rows:
        if row.get("merged"):
            axes.plot(row["round"], row[_OWN], marker="D", markersize=5, color=own, clip_on=False)
    axes.set_title(group.label.replace("$", r"\$") or "run", fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK)
    for spine in axes.spines.values():
        spine.set_color(INK)
    axes.grid(alpha=0.25)


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending numbers as stretches without gaps."""
    breaks = [i + 1 for i, (a, b) in enumerate(pairwise(numbers)) if b > a + 1]
    edges = [0, *breaks, len(numbers)]
    return [(numbers[a], numbers[b - 1]) for a, b in pairwise(edges)]
