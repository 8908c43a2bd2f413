"""Who works when: one row per client, a bar for each job, a line for each combine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fedsim.figures.curves import INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BUSY, _WAITING, _IN_VAIN, _COMBINE, _OFF = "#2f7ebc", "#bcd6ea", "#a39a8e", "#c4501b", "#e3e0da"
_MOST_ROWS, _MOST_JOBS_PER_ROW, _JOBS_OF_SLOWEST = 50, 30, 3
_MANY_LINES = 60
TimesOff = Callable[[int, float], list[tuple[float, float]]]


class Bar(NamedTuple):
    """A job of `client` in virtual seconds: at work from `start` to `end`; its result is combined at `combined`.

    `kind`: ``in vain`` for work that is never combined.
    """

    client: int
    start: float
    end: float
    combined: float | None = None
    kind: Literal["work", "in vain"] = "work"


def schedule_figure(
    bars: Sequence[Bar],
    combines: Sequence[float] | npt.NDArray[np.float64],
    clients: int,
    until: float,
    title: str = "",
    *,
    times_off: TimesOff | None = None,
    gossip: bool = False,
    clock: str = "virtual time (s)",
) -> Figure:
    """The beginning of a schedule. No pyplot state: save it with ``figure.savefig``.

    Parameters
    ----------
    bars : all jobs that start before second `until`.
    combines : virtual seconds of the combines.
    clients : how many there are; beyond 50 those are shown that are spread evenly from the slowest to the fastest.
    until : end of what is known. The figure ends there, or earlier: after the time of three of the longest jobs, or
        when the shown clients have begun 30 jobs each on average.
    times_off : ``times_off(client, until)``, stretches of seconds in which its device is off; work in them is paled.
    gossip : clients are the nodes of a graph, and combines the ends of its rounds.
    clock : what the seconds are.
    """
    from fedsim.figures.drawing import Drawing

    shown, by_speed = _rows(bars, clients)
    place = {c: i for i, c in enumerate(shown)}
    drawn = [b for b in bars if b.client in place]
    end = _end(drawn, len(shown), until)
    figure = Drawing(figsize=(9, 1.7 + 0.16 * max(len(shown), 6)), layout="constrained")
    axes = figure.add_subplot()
    _draw_bars(axes, drawn, place, end)
    off = {} if times_off is None else {place[c]: stretches for c in shown if (stretches := times_off(c, end))}
    for row, stretches in off.items():
        lengths = [(start, stop - start) for start, stop in stretches]
        axes.broken_barh(lengths, (row - 0.45, 0.9), facecolor=_OFF, alpha=0.75, linewidth=0, zorder=2.5)
    times = [t for t in combines if t <= end]
    many = len(times) > _MANY_LINES
    width, order = (0.5, 0) if many else (1.0, 3)  # many lines would hide the bars
    axes.vlines(times, -0.5, len(shown) - 0.5, color=_COMBINE, linewidth=width, alpha=0.5, zorder=order)
    size = 9 if len(shown) <= 25 else 4
    arrived = [(b.combined, place[b.client]) for b in drawn if b.combined is not None and b.combined <= end]
    if arrived:
        x, y = zip(*arrived, strict=True)
        axes.scatter(x, y, s=size, color=_COMBINE, linewidths=0, zorder=4, clip_on=False)
    axes.set_xlim(0, end)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    step = 1 if len(shown) <= 25 else 2
    axes.set_yticks(range(0, len(shown), step), [str(c) for c in shown[::step]])
    axes.set_xlabel(clock, fontsize=9, color=INK)
    who = "node" if gossip else "client"
    label = f"{who} ({len(shown)} of {clients}, slowest first)" if by_speed else who
    axes.set_ylabel(label, fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(INK)
    in_vain = any(b.kind == "in vain" for b in drawn)
    figure.legend(
        handles=_legend(in_vain, bool(off), gossip), loc="outside lower center", ncols=6, frameon=False, fontsize=8
    )
    if title:
        axes.set_title(title.replace("$", r"\$"), fontsize=10, color=INK, loc="left")
    return figure


def staleness_figure(counts: Mapping[int, int]) -> Figure:
    """How many results were how many combines old when they were combined."""
    from matplotlib.ticker import MaxNLocator

    from fedsim.figures.drawing import Drawing

    figure = Drawing(figsize=(5, 2.4), layout="constrained")
    axes = figure.add_subplot()
    axes.bar(list(counts), list(counts.values()), width=0.9, color=_BUSY)
    axes.set_xlabel("staleness (combines)", fontsize=9, color=INK)
    axes.set_ylabel("results", fontsize=9, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=8, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    return figure


def _rows(bars: Sequence[Bar], clients: int) -> tuple[list[int], bool]:
    """The clients to show, from top to bottom, and whether they are a choice in the order of speed."""
    if clients <= _MOST_ROWS:
        return list(range(clients)), False
    total: dict[int, tuple[float, int]] = {}
    for b in bars:
        work, count = total.get(b.client, (0.0, 0))
        total[b.client] = work + b.end - b.start, count + 1
    order = sorted(total, key=lambda c: (-total[c][0] / total[c][1], c))
    at = np.unique(np.linspace(0, len(order) - 1, min(_MOST_ROWS, len(order))).round().astype(int))
    return [order[i] for i in at], True


def _end(bars: Sequence[Bar], rows: int, until: float) -> float:
    longest = max((b.end - b.start for b in bars), default=until)
    end = min(until, _JOBS_OF_SLOWEST * longest)
    starts = sorted(b.start for b in bars)
    most = _MOST_JOBS_PER_ROW * rows
    if len(starts) > most and starts[most] > 0:
        end = min(end, starts[most])
    return end or 1.0


def _draw_bars(axes: Any, bars: Sequence[Bar], place: dict[int, int], end: float) -> None:
    """Busy stretches with a seam between jobs; waiting ones thinner and lighter, up to the client's next start."""
    by_row: dict[int, list[Bar]] = {}
    for b in sorted((b for b in bars if b.start < end), key=lambda b: b.start):
        by_row.setdefault(place[b.client], []).append(b)
    for row, jobs in by_row.items():
        following = [b.start for b in jobs[1:]] + [end]
        waits = []
        for b, following_start in zip(jobs, following, strict=True):
            stop = min(end if b.combined is None else b.combined, following_start)
            if stop > b.end and b.kind == "work":
                waits.append((b.end, stop - b.end))
        axes.broken_barh(waits, (row - 0.22, 0.44), facecolor=_WAITING, linewidth=0, zorder=1)
        for kind, color in (("work", _BUSY), ("in vain", _IN_VAIN)):
            work = [(b.start, min(b.end, end) - b.start) for b in jobs if b.kind == kind]
            axes.broken_barh(work, (row - 0.38, 0.76), facecolor=color, edgecolor="white", linewidth=0.5, zorder=2)


def _legend(in_vain: bool, off: bool, gossip: bool) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    waiting, line, dot = (
        ("done, waits for the round's end", "end of a round", "of a round the node computed in")
        if gossip
        else ("done, not combined yet", "combine", "of this client's result")
    )
    return [
        Patch(color=_BUSY, linewidth=0, label="at work"),
        *([Patch(color=_IN_VAIN, linewidth=0, label="at work in vain")] if in_vain else []),
        *([Patch(color=_OFF, linewidth=0, label="device off or gone")] if off else []),
        Patch(color=_WAITING, linewidth=0, label=waiting),
        Line2D([], [], color=_COMBINE, alpha=0.6, label=line),
        Line2D([], [], color=_COMBINE, marker="o", markersize=3.5, linestyle="", label=dot),
    ]
