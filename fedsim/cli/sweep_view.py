"""What a terminal shows of a sweep: its runs while they are under way, and its summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fedsim.cli.terminal import cell, metrics_line
from fedsim.engine.run_directory import LAST
from fedsim.sweeps.book import Outcome
from fedsim.sweeps.files import Point

_COLUMNS = (  # of a sweep's summary, the most telling first: a terminal shows as many as fit
    "round", "test_accuracy", "node_accuracy", "optimum_distance", "train_loss", "bytes_sent", "time", "epsilon",
    f"test_accuracy_mean_of_last_{LAST}", "test_accuracy_best", f"node_accuracy_mean_of_last_{LAST}",
    "node_accuracy_best", "delay_total",
)  # fmt: skip
_SHORT = {
    f"_mean_of_last_{LAST}": f", mean of last {LAST}",
    "_best": ", best",
    "optimum_distance": "distance to optimum",
}
_PADDING = 3  # characters between columns
_SHOWN = 20  # runs at work


def print_summary(console: Any, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of a sweep's runs, with as many columns as the terminal has room for."""
    from rich import box
    from rich.table import Table

    known = [k for k in _COLUMNS if any(row.get(k) is not None for row in rows)]
    if any(row["status"] != "finished" for row in rows):
        known.insert(0, "status")
    widths = {k: max(map(len, [*_head(k).split(), *(cell(row.get(k)) for row in rows)])) for k in ("run", *known)}
    widths["run"] = min(widths["run"], console.width // 2)
    shown = ["run"]
    for key in known:
        if sum(widths[k] + _PADDING for k in (*shown, key)) >= console.width:
            break
        shown.append(key)
    table = Table(title=title, title_justify="left", box=box.SIMPLE, highlight=False)
    for key in shown:
        side: Any = "left" if key in ("run", "status") else "right"
        table.add_column(_head(key), width=widths[key], justify=side, overflow="fold")
    for row in rows:
        table.add_row(*(cell(row.get(key)).replace("[", "\\[") for key in shown))
    console.print(table)
    if len(shown) <= len(known):
        console.print("more columns are in summary.csv there", highlight=False)


@contextmanager
def follow_sweep(
    console: Any,
) -> Iterator[tuple[Callable[[Point, Mapping[str, Any]], None], Callable[[Outcome], None]]]:
    """A live table of the runs of a sweep that are under way, and a line for each that ends.

    Gives what is to be told their latest metrics, and what is to be told how they ended.
    """
    from rich.live import Live
    from rich.table import Table

    latest: dict[str, tuple[str, str]] = {}
    counts = dict.fromkeys(("finished", "stopped", "failed"), 0)
    begun = time.monotonic()

    def table() -> Any:
        minutes, seconds = divmod(int(time.monotonic() - begun), 60)
        ended = ", ".join(f"{n} {what}" for what, n in counts.items() if n)
        shown = Table(title=f"{ended or 'none finished yet'}, {minutes}:{seconds:02}", title_justify="left", box=None)
        running = list(latest.items())[:_SHOWN]
        longest = max((len(label) for label, _ in running), default=0)
        shown.add_column("under way", no_wrap=True, min_width=min(longest, console.width // 2))
        shown.add_column("round", no_wrap=True, min_width=9)
        shown.add_column("latest", no_wrap=True)
        for label, (rounds, line) in running:
            shown.add_row(label, rounds, line)
        return shown

    live = Live(get_renderable=table, console=console, refresh_per_second=2, transient=True)

    def told(point: Point, row: Mapping[str, Any]) -> None:
        line = metrics_line({k: v for k, v in row.items() if k != "round"})
        latest[point.label] = f"{row['round']}/{point.scenario.run.rounds}", line

    def ended(outcome: Outcome) -> None:
        latest.pop(outcome.point.label, None)
        counts[outcome.status] += 1
        what = {"failed": f"failed: {outcome.error}", "stopped": "stopped early"}.get(outcome.status, "finished")
        console.print(f"{outcome.point.label}: {what}", highlight=False, markup=False, soft_wrap=True)

    with live:
        yield told, ended


def _head(key: str) -> str:
    for long, short in _SHORT.items():
        key = key.replace(long, short)
    return key.replace("_", " ")
