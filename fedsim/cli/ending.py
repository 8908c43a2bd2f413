"""How a command ends when somebody asks it to: Ctrl-C and SIGTERM give exit code 130 and a sentence, at any moment."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED = 130
_told: list[str] = []


def say_interrupted(what: str) -> None:
    """Say, once, that the command was interrupted, and what is left of it."""
    _told.append(what)
    print(f"interrupted: {what}", file=sys.stderr)


@contextmanager
def interruptible() -> Iterator[None]:
    """While it lasts, either signal ends the process so, whatever exception it becomes on its way.

    Libraries that are being imported turn an interrupt into errors of their own.
    """
    asked, _told[:] = False, []

    def interrupt(number: int, frame: Any) -> None:  # noqa: ARG001
        nonlocal asked
        asked = True
        raise KeyboardInterrupt

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, interrupt)
    except ValueError:  # not in the main thread
        before = {}
    try:
        yield
    except BaseException as error:
        if not asked and not isinstance(error, KeyboardInterrupt):
            raise
        if not _told:
            say_interrupted("nothing more is written")
        raise SystemExit(INTERRUPTED) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
