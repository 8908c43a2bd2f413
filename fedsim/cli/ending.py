"""How a command ends when somebody asks it to, or somebody's own part raises: with a sentence, at any moment.

Ctrl-C and SIGTERM give exit code 130.
"""

from __future__ import annotations

import inspect
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, get_type_hints

import typer
from typer.core import TyperGroup

from fedsim.core.blame import blamed
from fedsim.core.errors import RunError
from fedsim.engine.signals import ASKED, InterruptedAtEndError

INTERRUPTED = 130
_AGAIN = 0.02
"""Seconds after which an interrupt is sent again that was lost in code whose exceptions Python ignores."""
_NOTHING = ""
"""Text to execute: where an interrupt came in such text, as dataclasses execute it, Python otherwise remembers that to
its end, and ``python -m fedsim`` would kill itself with SIGINT instead of exiting with a code."""
_told: list[str] = []


def say_interrupted(what: str) -> None:
    """Say, once, that the command was interrupted, and what is left of it."""
    _told.append(what)
    print(f"interrupted: {what}", file=sys.stderr)


@contextmanager
def resumable() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the command with exit code 130 and say what was saved."""
    try:
        yield
    except KeyboardInterrupt as error:
        saved = "--resume continues from the last checkpoint, if there is one"
        if str(error):
            saved = f"{error}" if isinstance(error, InterruptedAtEndError) else f"{error}, --resume continues"
        say_interrupted(saved)
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def interruptible() -> Iterator[None]:
    """While it lasts, either signal ends the process so, whatever exception it becomes on its way.

    Libraries that are being imported turn an interrupt into errors of their own.
    """
    _told.clear()
    ASKED.clear()

    def interrupt(number: int, frame: Any) -> None:  # noqa: ARG001
        ASKED.append(number)
        raise KeyboardInterrupt

    def ignored(what: Any) -> None:
        if ASKED and what.exc_type is not None and issubclass(what.exc_type, KeyboardInterrupt):
            again = threading.Timer(_AGAIN, os.kill, (os.getpid(), ASKED[-1]))
            again.daemon = True
            again.start()
            sent_again.append(again)
        else:
            others(what)

    sent_again: list[threading.Timer] = []
    others, sys.unraisablehook = sys.unraisablehook, ignored
    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, interrupt)
    except ValueError:  # not in the main thread
        before = {}
    try:
        yield
    except BaseException as error:
        if not ASKED and not isinstance(error, KeyboardInterrupt):
            raise
        if not _told:
            say_interrupted("nothing more is written")
        raise SystemExit(INTERRUPTED) from None
    finally:
        for again in sent_again:  # none may meet Python when it no longer answers signals, at its end
            again.cancel()
        sys.unraisablehook = others
        ASKED.clear()
        exec(_NOTHING)
        for number, handler in before.items():
            signal.signal(number, handler)


class Commands(TyperGroup):
    """The commands; none of them ends the process by itself, so whoever does so is a module that was named."""

    tracebacks: ClassVar[bool] = False
    """Whether the traceback of an error in somebody's own part is printed."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, whose arguments have the texts of their annotations, which click 8.5 takes from Typer's."""
        command: Any = super().get_command(ctx, cmd_name)
        bare = [p for p in command.params if getattr(p, "help", "") is None] if command is not None else []
        if bare:
            hints = get_type_hints(inspect.unwrap(command.callback), include_extras=True)
            for parameter in bare:
                said = [m.help for m in getattr(hints.get(parameter.name), "__metadata__", ()) if hasattr(m, "help")]
                parameter.help = said[0] if said else None
        return command

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SystemExit as error:
            if isinstance(error.__context__, BrokenPipeError):  # rich, where nobody reads on: fedsim plan ... | head
                raise
            who = own_fault(error) or f"a module that was named ended the command by sys.exit({error.code!r})"
            raise RunError(who) from error


def own_fault(error: BaseException) -> str | None:
    """What to say of an exception that somebody's own part raised; None where it did not."""
    said = blamed(error)
    if said is None:
        return None
    if Commands.tracebacks:
        return f"{''.join(traceback.format_exception(error))}{said}"
    return f"{said} (fedsim --traceback COMMAND ... shows the way there)"


def out_of_memory(error: BaseException) -> str | None:
    """What to say where numpy or PyTorch got no memory; None of anything else."""
    words = ("can't allocate memory", "out of memory")
    if not (
        isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in words))
    ):
        return None
    asked = re.search(r"[\d.]+ [KMGTPE]iB|\d+ bytes", str(error))
    wanted = f", which was asked for {asked[0]} more" if asked else ""
    return f"this does not fit the memory{wanted}; fedsim plan says what a run needs. What was recorded is on the disk"
