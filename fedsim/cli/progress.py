"""How far a command is: a bar in a terminal, and in a log file a line at least every half minute."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fedsim.cli.terminal import console, metrics_line
from fedsim.core.metrics import TABLE, Metric

if TYPE_CHECKING:
    from fedsim.engine.watch import Progress

Columns = Mapping[str, Metric]

SECONDS = 30.0
"""Between two lines at most, where there is no terminal."""


@contextmanager
def reminding(text: Callable[[], str], seconds: float | None = None) -> Iterator[Callable[[], None]]:
    """Write what `text` says to standard error, with the time, whenever nothing was written for that long.

    Gives what writes it at once.
    """
    pause = SECONDS if seconds is None else seconds
    begun, over, lock = time.monotonic(), threading.Event(), threading.Lock()
    last = begun

    def write() -> None:
        nonlocal last
        with lock:
            last = time.monotonic()
            minutes, rest = divmod(int(last - begun), 60)
            print(f"{text()}, {minutes}:{rest:02} passed", file=sys.stderr, flush=True)

    def remind() -> None:
        wait = pause
        while not over.wait(max(wait, 0.01)):
            if time.monotonic() - last >= pause:
                write()
            wait = last + pause - time.monotonic()

    thread = threading.Thread(target=remind, name="fedsim-progress", daemon=True)
    thread.start()
    try:
        yield write
    finally:
        over.set()
        thread.join()


@contextmanager
def run_progress(name: str, rounds: int, quiet: bool, own: Columns = MappingProxyType({})) -> Iterator[Progress | None]:
    """What a run tells its rounds to: a bar, or lines, on standard error, with the latest metrics, `own` among them."""
    if quiet:
        yield None
        return
    columns = {**TABLE, **own}
    on_terminal = console(stderr=True).is_terminal
    shown = _bar(name, rounds, columns) if on_terminal else logged(lambda: name, lambda: rounds, lambda: columns)
    with shown as progress:
        yield progress


@contextmanager
def told_steps(quiet: bool) -> Iterator[Callable[[str], None] | None]:
    """What is told the sentences that say what a command does; they go to standard error."""
    if quiet:
        yield None
        return
    latest = "begun"

    def tell(text: str) -> None:
        nonlocal latest
        latest = text
        print(text, file=sys.stderr, flush=True)

    with nullcontext() if console(stderr=True).is_terminal else reminding(lambda: f"still at it: {latest}"):
        yield tell


@contextmanager
def logged(
    name: Callable[[], str], rounds: Callable[[], int], columns: Callable[[], Columns] = lambda: TABLE
) -> Iterator[Progress]:
    """What a run tells its rounds to where there is no terminal: the first row, and a line every `SECONDS`."""
    done, latest = 0, ""

    def text() -> str:
        return f"{name()}: round {done} of {rounds()}" + (f", {latest}" if latest else "")

    with reminding(text) as write:

        def update(number: int, row: Mapping[str, Any] | None) -> None:
            nonlocal done, latest
            done = number
            if row:
                at = "" if row.get("round") == number else f"round {row.get('round')}: "
                latest = at + metrics_line({k: v for k, v in row.items() if k != "round"}, columns())
                if number in (0, rounds()):
                    write()

        yield update


@contextmanager
def _bar(name: str, rounds: int, shown: Columns) -> Iterator[Progress]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[last]}"),
    )
    bar = Progress(*columns, console=console(stderr=True))
    task = bar.add_task(name, total=rounds, last="")

    def update(done: int, row: Any) -> None:
        bar.start()  # not earlier: a run that cannot begin shows no bar
        bar.update(task, completed=done)
        if row:
            bar.update(task, last=metrics_line(row, shown))

    try:
        yield update
    finally:
        if bar.live.is_started:
            bar.stop()
