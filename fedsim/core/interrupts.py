"""Who answers Ctrl-C and SIGTERM for a while."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

HOW = (signal.SIGINT, signal.SIGTERM)
"""How a process is asked to end."""


@contextmanager
def here_answered(numbers: Sequence[int], answer: Callable[[int, Any], object]) -> Iterator[None]:
    """While it lasts, `answer` is called with the number of each such signal; then whoever answered it before is again.

    It is so whatever a library puts in the place of `answer` meanwhile. Only the main thread answers signals: in any
    other one this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}
    try:
        for number in numbers:
            before[number] = signal.signal(number, answer)
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: of a library that is not Python's
                signal.signal(number, handler)


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Ctrl-C and SIGTERM come at the end, to whoever answers them then, also where a library would answer them."""
    asked: list[int] = []
    try:
        with here_answered(HOW, lambda number, _: asked.append(number)):
            yield
    finally:
        for number in asked[:1]:
            signal.raise_signal(number)
