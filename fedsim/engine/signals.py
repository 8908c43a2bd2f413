"""Interrupts that let a round end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ASKED: list[int] = []
"""Signals that asked this process to end. A library may have caught what they raised while it was being imported."""


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C or SIGTERM lets the round end, so that a checkpoint can be written; the second ends at once."""
    requested = bool(ASKED)

    def note(number: int, frame: Any) -> None:  # noqa: ARG001
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True

    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                previous[number] = signal.signal(number, note)
            except ValueError:  # not in the main thread: interrupts arrive elsewhere
                break
        yield lambda: requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
