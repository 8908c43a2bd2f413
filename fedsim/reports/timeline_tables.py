"""The tables and the picture of a schedule: its first combines, and what clients do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.figures.schedule import schedule_figure
from fedsim.reports.timeline import Timeline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN_CLIENTS, _SHOWN_IN_ROW = 40, 5
_HEADERS = {
    "share_of_combines": "per combine", "share_of_rounds": "per round", "weight": "weight per combine",
    "importance": "p_i", "in_vain": "in vain",
}  # fmt: skip
_QUANTILES = (("smallest", 0.0), ("25 %", 0.25), ("median", 0.5), ("75 %", 0.75), ("largest", 1.0))


def combine_rows(timeline: Timeline) -> tuple[list[str], list[tuple[str, ...]]]:
    """Header and rows of the table of the first combines."""
    called = timeline.called
    if timeline.gossip:
        nodes_and_links: list[tuple[str, ...]] = [
            (
                str(c.number),
                f"{c.time:.6g}",
                _some(c.clients, called),
                _some([f"{called(i)}-{called(j)}" for i, j in c.links], str),
            )
            for c in timeline.first
        ]
        return ["round", "time (s)", "nodes that compute", "links that fire"], nodes_and_links
    rows: list[tuple[str, ...]] = [
        (
            str(c.number),
            f"{c.time:.6g}",
            _some(c.clients, called),
            _some(c.staleness, str, " …"),
            _some(c.weights, _short, " …"),
        )
        for c in timeline.first
    ]
    return ["combine", "time (s)", "clients", "staleness", "weights"], rows


def client_rows(timeline: Timeline) -> tuple[list[str], list[tuple[str, ...]]]:
    """Header and rows of the table of clients; quantiles over them where they are many."""
    columns = timeline.columns()
    header = [_HEADERS.get(name, name) for name in columns]
    who = "node" if timeline.gossip else "client"
    if timeline.clients <= _SHOWN_CLIENTS:
        values = list(zip(*(v.tolist() for v in columns.values()), strict=True))
        return [who, *header], [(timeline.called(i), *map(_short, row)) for i, row in enumerate(values)]
    found = [
        [float(np.quantile(v[np.isfinite(v)], q)) if np.isfinite(v).any() else np.nan for v in columns.values()]
        for _, q in _QUANTILES
    ]
    rows = [(name, *map(_short, row)) for (name, _), row in zip(_QUANTILES, found, strict=True)]
    return [f"over {who}s", *header], rows


def timeline_figure(timeline: Timeline, title: str = "", real: bool = False) -> Figure:
    """How the schedule begins; `real`: its seconds are those of a wall clock."""
    t, clock = timeline, "time (s)" if real else "virtual time (s)"
    return schedule_figure(
        t.bars, t.times, t.clients, t.bars_until, title, times_off=t.times_off, gossip=t.gossip, clock=clock
    )


def headline(timeline: Timeline, real: bool = False) -> str:
    """One sentence about the whole schedule; `real`: its seconds are those of a wall clock."""
    cut = f"; only the first {timeline.combines:,} combines were followed" if timeline.shortened else ""
    cut += f"; then {timeline.ended}" if timeline.ended else ""
    done = int(timeline.delivered.sum())
    if timeline.gossip:
        what = f"{timeline.clients} nodes, {timeline.combines:,} rounds of {done:,} computations"
    else:
        what = f"{timeline.clients} clients, {timeline.combines:,} combines of {done:,} results"
    return f"{timeline.name}: {timeline.mode}, {what} in {timeline.end:.6g} {'' if real else 'virtual '}seconds{cut}"


def _some(values: list[Any], text: Any, rest: str = " and {} more") -> str:
    """The first values, and how many more there are."""
    more = len(values) - _SHOWN_IN_ROW
    if more <= 1:
        return ", ".join(map(text, values)) or "none"
    return ", ".join(map(text, values[:_SHOWN_IN_ROW])) + rest.format(more)


def _short(value: float) -> str:
    return "" if value != value else f"{value:.3g}" if isinstance(value, float) else f"{value:,}"
