"""Interrupts that let a round end, and none that is lost."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fedsim.core.interrupts import HOW, here_answered

ASKED: list[int] = []
"""Signals that asked this process to end. A library may have caught what they raised while it was being imported."""


class InterruptedAtEndError(KeyboardInterrupt):
    """An interrupt that came while a run ended by itself: it is finished, or its cause is what ended it."""


@contextmanager
def stop_requested(finished: str) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C or SIGTERM lets the round end, so that a checkpoint can be written; the second ends at once.

    Raises
    ------
    InterruptedAtEndError
        Nobody answered the first one, since all was over: `finished` says so, or an error that ended it meanwhile.
        Whoever has more to do after this must not go on with it.
    """
    requested = bool(ASKED)

    def note(number: int, frame: Any) -> None:  # noqa: ARG001
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True

    with here_answered(HOW, note):
        try:
            yield lambda: requested
        except Exception as error:
            if requested:
                raise InterruptedAtEndError(str(error)) from error
            raise
    if requested:
        raise InterruptedAtEndError(finished)


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM is as Ctrl-C, unless somebody else answers it: a KeyboardInterrupt, so that what was started is ended."""

    def interrupt(number: int, frame: Any) -> None:  # noqa: ARG001
        raise KeyboardInterrupt

    mine = [signal.SIGTERM] if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL else []
    with here_answered(mine, interrupt):
        yield
