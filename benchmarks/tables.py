"""Tables of the benchmarks: Markdown, written between two marks of a page, and the same as JSON beside it."""

from __future__ import annotations

import argparse
import json
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

BUSY = 1.2
"""Processes that wait for a core, per core, from which figures are said to be of a busy machine."""
PAGE = Path(__file__).parents[1] / "docs" / "speed.md"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; all rows have as many cells as there are columns."""
    lines = [columns, ["---"] * len(columns), *rows]
    assert all(len(line) == len(columns) for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def between(page: str, name: str, text: str) -> str:
    """`page` with `text` between the marks ``<!-- name -->`` and ``<!-- end of name -->``.

    Raises
    ------
    ValueError
        The page does not have these marks, once each and in this order.
    """
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if page.count(first) != 1 or page.count(last) != 1 or page.index(first) > page.index(last):
        raise ValueError(f"the page needs {first} and {last} after it, once each")
    head, tail = page[: page.index(first) + len(first)], page[page.index(last) :]
    return f"{head}\n\n{text.strip()}\n\n{tail}"


def page_of(text: str) -> Path:
    """The page that ``--write`` names, as argparse wants it: before hours of measuring."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text} is no file; what is to be measured stands before --write")
    return Path(text)


def with_earlier(
    name: str, page: Path, found: Mapping[str, Any], rows: Callable[[Any], Mapping[str, Any]]
) -> tuple[dict[str, Any], list[str]]:
    """What was `found`, and of the table that was written before the rows of all else, with the names of those.

    `rows` are those of the JSON beside the page.
    """
    file = beside(name, page)
    before = rows(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}
    kept = [row for row in before if row not in found]
    return {**{row: found.get(row, before[row]) for row in before}, **found}, kept


def said_of(kept: Sequence[str]) -> str:
    """A sentence about rows that were not measured now; nothing where there are none."""
    return f" Of an earlier run: {'; '.join(kept)}." if kept else ""


def beside(name: str, page: Path) -> Path:
    """The file with a table's facts."""
    return page.with_name(f"{page.stem}-{name}.json")


def write(name: str, text: str, facts: object, page: Path = PAGE) -> None:
    """Put `text` between the marks `name` of `page`, and `facts` as JSON beside the page."""
    page.write_text(between(page.read_text(encoding="utf-8"), name, text), encoding="utf-8")
    beside(name, page).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def wrapped(text: str) -> str:
    """`text` in lines of at most 120 characters."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def load_words() -> str:
    """What machine this is, and whether others keep it busy: to be asked before anything is measured."""
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    state = "a busy" if load > BUSY * cores else "a quiet"
    return f"{state} machine of {cores} cores (load {load:.1f})"
