"""What a terminal shows of a sweep: its runs while they are under way, and its summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from fedsim.cli.progress import logged, reminding
from fedsim.cli.terminal import cell, console, metrics_line, say, table
from fedsim.core.metrics import TABLE, Metric
from fedsim.engine.log_file import FILE as LOG_FILE
from fedsim.engine.run_directory import LAST
from fedsim.engine.watch import Progress
from fedsim.sweeps.book import Outcome
from fedsim.sweeps.files import Point

_PADDING = 3  # characters between columns
_SHOWN = 20  # runs at work
_NAMED = 5  # runs with warnings


def print_summary(
    out: Any, title: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Metric] = TABLE
) -> None:
    """A table of a sweep's runs, with as many columns as the terminal has room for, or all of them in a file."""
    titles = _titles(columns)
    known = [k for k in titles if any(row.get(k) is not None for row in rows)]
    if any(row["status"] != "finished" for row in rows):
        known.insert(0, "status")
    widths = {
        k: max(map(len, [*titles.get(k, k).split(), *(cell(row.get(k)) for row in rows)])) for k in ("run", *known)
    }
    room, shown = out.width, ["run"]
    for key in known:
        if sum(widths[k] + _PADDING for k in (*shown, key)) >= room:
            break
        shown.append(key)
    cells = [[cell(row.get(key)) for key in shown] for row in rows]
    table(title, cells, [titles.get(key, key) for key in shown], right=True, out=out)
    if len(shown) <= len(known):
        say("more columns are in summary.csv there", out=out)


def say_warned(outcomes: Sequence[Outcome]) -> None:
    """Which runs have warnings in their directories: on Ray nobody has seen them yet."""
    found = [outcome.dir for outcome in outcomes if (outcome.dir / LOG_FILE).exists()]
    if found:
        names = [place.name for place in found[:_NAMED]]
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        where = f"in {LOG_FILE} of their folders: {', '.join(names)}{more}"
        say(f"{len(found)} of {len(outcomes)} runs have warnings, {where}")


@contextmanager
def follow_runs(quiet: bool) -> Iterator[Callable[[Point, int, int], Progress | None]]:
    """What is told of each run of a sweep that starts, one after another, and gives what its rounds are told to."""
    label, rounds, columns = "the sweep", 0, TABLE
    lines = (
        nullcontext()
        if quiet or console(stderr=True).is_terminal
        else logged(lambda: label, lambda: rounds, lambda: columns)
    )
    with lines as progress:

        def started(point: Point, index: int, count: int) -> Progress | None:
            nonlocal label, rounds, columns
            columns = {**TABLE, **point.scenario.columns}
            label, rounds = f"[{index + 1}/{count}] {point.label}", point.scenario.run.rounds
            if not quiet:
                say(label)
            return progress

        yield started


@contextmanager
def follow_sweep() -> Iterator[tuple[Callable[[Point, Mapping[str, Any]], None], Callable[[Outcome], None]]]:
    """A live table of the runs of a sweep that are under way, and a line for each that ends, on standard error.

    Where that is no terminal, lines say now and then what is under way.

    Gives what is to be told their latest metrics, and what is to be told how they ended.
    """
    from rich.live import Live
    from rich.table import Table

    out = console(stderr=True)
    latest: dict[str, tuple[str, str]] = {}
    counts = dict.fromkeys(("finished", "stopped", "failed"), 0)
    begun = time.monotonic()

    def counted() -> str:
        return ", ".join(f"{n} {what}" for what, n in counts.items() if n) or "none finished yet"

    def under_way() -> str:
        runs = ", ".join(f"{label} at {rounds}" for label, (rounds, _) in list(latest.items())[:_SHOWN])
        return f"{counted()}; under way: {runs or 'none'}"

    def live_table() -> Any:
        minutes, seconds = divmod(int(time.monotonic() - begun), 60)
        shown = Table(title=f"{counted()}, {minutes}:{seconds:02}", title_justify="left", box=None)
        running = list(latest.items())[:_SHOWN]
        longest = max((len(label) for label, _ in running), default=0)
        shown.add_column("under way", no_wrap=True, min_width=min(longest, out.width // 2))
        shown.add_column("round", no_wrap=True, min_width=9)
        shown.add_column("latest", no_wrap=True)
        for label, (rounds, line) in running:
            shown.add_row(label, rounds, line)
        return shown

    live = Live(get_renderable=live_table, console=out, refresh_per_second=2, transient=True)

    def told(point: Point, row: Mapping[str, Any]) -> None:
        columns = {**TABLE, **point.scenario.columns}
        line = metrics_line({k: v for k, v in row.items() if k != "round"}, columns)
        latest[point.label] = f"{row['round']}/{point.scenario.run.rounds}", line

    def ended(outcome: Outcome) -> None:
        latest.pop(outcome.point.label, None)
        counts[outcome.status] += 1
        what = {"failed": f"failed: {outcome.error}", "stopped": "stopped early"}.get(outcome.status, "finished")
        out.print(f"{outcome.point.label}: {what}", highlight=False, markup=False, soft_wrap=True)

    with live if out.is_terminal else reminding(under_way):
        yield told, ended


def _titles(columns: Mapping[str, Metric]) -> dict[str, str]:
    """Columns of a sweep's summary and what is written above them, the most telling first: as many as fit are shown."""
    line = [m for m in columns.values() if m.brief == "line" and m.kind == "quality"]
    costs = [m for m in columns.values() if m.brief and m.kind == "cost"]
    found = {m.name: m.axis or m.words for m in [*costs[:1], *line, *costs[1:]]}
    chosen = [m for m in line if m.larger_is_better or (m.name not in TABLE and m.larger_is_better is not None)]
    for m in chosen:
        found[f"{m.name}_mean_of_last_{LAST}"] = f"{m.words}, mean of last {LAST}"
        found[f"{m.name}_best"] = f"{m.words}, best"
    return found
