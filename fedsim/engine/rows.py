"""Rows of ``metrics.jsonl`` and ``trace.jsonl``: read, and compared with what a checkpoint says must be there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedsim.core.errors import InputError, Problem, RunError
from fedsim.scenario.sections import Scenario

_SHOWN = 5
_WAY_OUT = "put back the file as the run wrote it, or start from the beginning, without --resume"


def rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Rows and their lines; a last line that a crash cut short is left out.

    Raises
    ------
    InputError
        Another line is no JSON object, or the file cannot be read.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise InputError("no such file", file=str(path)) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=str(path)) from None
    lines = text.split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            yield row, line.decode()
        elif number < len(lines):
            message = f"found {line[:40].decode(errors='replace')!r}, expected a JSON object on every line"
            raise InputError([Problem(message, None, str(path), number)])


def kept(folder: Path, done: int, scenario: Scenario) -> dict[str, list[str]]:
    """Lines of a run's files of rows up to round `done`, at which its checkpoint was written.

    Raises
    ------
    RunError
        They are not the rows that the checkpoint implies.
    """
    run = scenario.run
    found = {"metrics.jsonl": _kept(folder, "metrics.jsonl", [n for n in range(done + 1) if run.evaluates(n)], done)}
    if run.trace:
        found["trace.jsonl"] = _kept(folder, "trace.jsonl", range(1, done + 1), done)
    return found


def _kept(folder: Path, name: str, wanted: Sequence[int], done: int) -> list[str]:
    path, needed = folder / name, set(wanted)
    implied = f"the checkpoint of round {done} implies"
    if not path.exists():
        raise RunError(f"{path} is missing, but {implied} {shown_rounds(wanted)}; {_WAY_OUT}")
    try:
        both = [(row.get("round"), line) for row, line in rows(path) if not row.get("merged")]
    except InputError as error:
        raise RunError(f"{error}; {_WAY_OUT}") from None
    numbers = [n for n, _ in both if type(n) is not int or n in needed]  # what came later is recorded again
    if numbers != list(wanted):
        lost = [n for n in wanted if n not in numbers]
        missing = f"{shown_rounds(lost)} missing" if lost else "some twice, in another order, or without a number"
        found = f"{path} has {shown_rounds([n for n, _ in both])}"
        raise RunError(f"{found}, but {implied} {shown_rounds(wanted)}: {missing}; {_WAY_OUT}")
    return [line for n, line in both if n in needed]


def shown_rounds(numbers: Sequence[object]) -> str:
    """Round numbers in words, the middle of many left out."""
    if not numbers:
        return "no rows"
    first, last = numbers[:_SHOWN], numbers[max(_SHOWN, len(numbers) - 2) :]
    dots = ["..."] if len(numbers) > len(first) + len(last) else []
    return f"rows of rounds {', '.join(map(str, [*first, *dots, *last]))}"
