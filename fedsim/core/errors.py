"""Errors that are answers: each names what was found, what is allowed, and where."""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from fedsim.core.elsewhere import called_here, underscored


class FedsimError(Exception):
    """Base class of every error this package raises on purpose."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with what the user gave us, printed as ``file:line: key: message``."""

    message: str
    key: str | None = None
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        where = self.file or ""
        if self.file and self.line:
            where += f":{self.line}"
        return ": ".join(part for part in (_one_line(where), _one_line(self.key or ""), _cut(self.message)) if part)


def _cut(message: str) -> str:
    """The message without the middle of words too long to be read, as damaged files and scenarios have them."""
    return re.sub(r"\S{300,}", lambda word: f"{word[0][:100]}...{word[0][-20:]}", message)


def _one_line(name: str) -> str:
    """A name as it can be printed; line ends and other control characters are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


class InputError(FedsimError):
    """The scenario, the command line, or a file they name is wrong (exit code 2).

    `key` is the dotted key relative to whoever raises it (a data set says ``path``; the scenario
    reader turns that into ``data.path`` and adds file and line).
    """

    def __init__(self, message: str | Iterable[Problem], key: str | None = None, file: str | None = None) -> None:
        self.problems = [Problem(message, key, file)] if isinstance(message, str) else list(message)
        super().__init__("\n".join(str(p) for p in self.problems))

    def under(self, prefix: str) -> InputError:
        """The same problems with `prefix` put before each key that has no file of its own."""
        return InputError(replace(p, key=f"{prefix}.{p.key}" if p.key else prefix) for p in self.problems)

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the sentences, and no path through fedsim, in which nothing is wrong.

        Somebody's own error from which it follows keeps its traceback. IPython asks exceptions for this method.
        """
        before = [] if self.__cause__ is None else traceback.format_exception(self.__cause__)
        return ["".join(before) + f"{type(self).__name__}: {self}"]


class RunError(FedsimError):
    """The run itself failed (exit code 1); what was recorded stays readable."""


def reason(error: BaseException, most: int = 200) -> str:
    """What a library's exception says, as part of our sentence: its first line, printable, not longer than `most`.

    Damaged files make libraries quote kilobytes of them, or objects by their address.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    plain = re.sub(r"\x1b\[[0-9;]*m", "", lines[0])  # some print in colours
    text = _one_line(re.sub(r"<?[\w.]+ object at 0x[0-9a-f]+>?", "...", plain))
    return text if len(text) <= most else f"{text[: most - 3]}..."


def nearest(name: object, allowed: Sequence[str]) -> str:
    """`` (did you mean 'x'?)`` for the nearest allowed name, how a scenario says what the field calls so, or ""."""
    known = called_here(str(name), allowed)
    if known is not None:
        return known
    spelled = {underscored(word): word for word in reversed(allowed)}
    close = difflib.get_close_matches(underscored(str(name)), spelled, n=1, cutoff=0.6)
    return f" (did you mean '{spelled[close[0]]}'?)" if close else ""


def unknown(what: str, name: object, allowed: Sequence[str]) -> str:
    """The message for a name that is not one of `allowed`."""
    return f"unknown {what} {name!r}{nearest(name, allowed)}; allowed: {', '.join(allowed)}"
