"""Sweeps: one scenario, many variations, each in its own run directory, one after another or side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedsim.core.errors import FedsimError
from fedsim.core.lock import owned
from fedsim.engine.continued import say_replaced
from fedsim.engine.run_directory import clear
from fedsim.engine.signals import InterruptedAtEndError, terminable
from fedsim.engine.watch import Progress, listening
from fedsim.sweeps.book import Book, Outcome
from fedsim.sweeps.files import Plan, Point, read_sweep
from fedsim.sweeps.trial import attempt
from fedsim.sweeps.tune import Together, run_together


def sweep(
    path: str | Path,
    out: str | Path | None = None,
    resume: bool = False,
    settings: list[str] | None = None,
    started: Callable[[Point, int, int], Progress | None] | None = None,
    together: Together | None = None,
    retry: bool = True,
    told: Callable[[Point, Mapping[str, Any]], None] | None = None,
    ended: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Run a sweep file, one run after another or `together`.

    With `resume`, finished runs and those that were stopped early are kept and unfinished ones continued; those that
    failed are run again unless `retry` is off. A run that fails (diverges, say, or has data too few for its clients) is
    noted and the others go on.

    Parameters
    ----------
    started : called before each run with its number and their count; may return its progress callback.
    told : called, of runs side by side, with their latest metrics.
    ended : called after each run, in the order in which they end.

    Raises
    ------
    InputError
        The sweep file is wrong, or there is no cluster that could run it, or another process writes into the folder.
    KeyboardInterrupt
        Interrupted; `resume` continues.
    """
    plan = read_sweep(path, settings)
    folder = Path(out) if out is not None else Path("sweeps") / plan.name
    with owned(folder):
        return sweep_plan(plan, folder, resume, started, together, retry, told, ended)


def sweep_plan(
    plan: Plan,
    folder: Path,
    resume: bool = False,
    started: Callable[[Point, int, int], Progress | None] | None = None,
    together: Together | None = None,
    retry: bool = True,
    told: Callable[[Point, Mapping[str, Any]], None] | None = None,
    ended: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """The runs of a sweep that is checked already, in a `folder` that is this process's; see `sweep`."""
    book = Book(plan, folder)
    todo = list(enumerate(plan.points))
    if resume:
        book.read(retry)
        todo = [(number, point) for number, point in todo if point.label not in book.outcomes]

    def note(point: Point, error: FedsimError | None) -> None:
        outcome = book.note(point, error)
        if ended is not None:
            ended(outcome)

    with terminable():
        if together is None:
            for number, point in todo:
                progress = started(point, number, len(plan.points)) if started else None
                try:
                    attempt(point.scenario, book.place(point), resume, listening([progress]))
                    note(point, None)
                except FedsimError as error:
                    note(point, error)
                except InterruptedAtEndError as error:
                    cause = error.__cause__
                    if cause is None or isinstance(cause, FedsimError):
                        note(point, cause)
                    raise KeyboardInterrupt(str(error)) from None
        elif todo:
            work = [point for _, point in todo]
            for point in work:  # runs continue what they find
                with owned(book.place(point)):
                    if not resume:
                        say_replaced(book.place(point), point.scenario)
                        clear(book.place(point))
            run_together(
                [(point.scenario, book.place(point)) for point in work], book.folder, together, plan.stop,
                lambda number, row: told(work[number], row) if told is not None else None,
                lambda number, error: note(work[number], error),
            )  # fmt: skip
    book.write()
    return [book.outcomes[p.label] for p in plan.points]
