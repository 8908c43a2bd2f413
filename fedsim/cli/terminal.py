"""How numbers, sentences and tables look in a terminal, and in a file that output is sent to.

A number, a name or a path is never broken. What goes into a file or a pipe is as wide as it needs to be; in a terminal
a table that is too wide wraps between words, and where that is not enough every row becomes a few lines.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from fedsim.core.metrics import TABLE, Metric

_PADDING = 3  # characters between columns
_WIDE = 100_000  # columns of what is no terminal


def cell(value: Any) -> str:
    """A value of a table: floats with four digits, nothing for None."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(cell(v) for v in value)
    return "" if value is None else str(value)


def metrics_line(row: Mapping[str, Any], columns: Mapping[str, Metric] = TABLE) -> str:
    """The latest metrics of a run in one line; `columns` says which of them are the telling ones."""
    shown = [m.name for m in columns.values() if m.brief == "line"]
    return "  ".join(f"{k} {cell(row[k])}" for k in shown if row.get(k) is not None)


def console(stderr: bool = False) -> Any:
    """Standard output or error; as wide as it takes where it is no terminal."""
    from rich.console import Console

    found = Console(stderr=stderr)
    return found if found.is_terminal else Console(stderr=stderr, width=_WIDE)


def say(text: str, bold: str = "", out: Any = None) -> None:
    """A line of text, after `bold` in bold letters; never broken by us, and nothing in it is markup."""
    from rich.text import Text

    line = Text(bold, style="bold") + Text(text)
    (out or console()).print(line, soft_wrap=True)


def table(
    title: str, rows: Sequence[Sequence[str]], header: Sequence[str] | None = None, right: bool = False, out: Any = None
) -> None:
    """A table of text on the console `out` (default: standard output).

    Without `header` the first column names the second one. With `right`, all columns but the first are numbers, which
    stand to the right.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = out or console()
    if not rows:
        say(title, out=out)
        return
    width = out.width
    count = len(header or (rows[0] if rows else ("",)))
    widths = _widths([[row[i] for row in (header or rows[0], *rows)] for i in range(count)] if rows else [], width)
    if widths is None:
        say(title, out=out)
        for row in rows:
            say(_stacked(row, header, width), out=out)
        return
    if title:  # not the table's own: that would be cut off at the table's width
        out.print(Text(_wrapped(title, width), style="table.title"), soft_wrap=True)
    shown = Table(
        box=box.SIMPLE if header else None,
        show_header=bool(header),
        highlight=False,
    )
    for i in range(count):
        head = _wrapped(header[i], widths[i]) if header and widths else ""
        side: Any = "right" if right and i else "left"
        style = "cyan" if i == 0 and not header else None
        shown.add_column(head, justify=side, style=style, no_wrap=True, overflow="ignore")
    for row in rows:
        shown.add_row(*(Text(_wrapped(text, w)) for text, w in zip(row, widths, strict=True)))
    out.print(shown, width=_WIDE, crop=False, no_wrap=True)


def _widths(columns: Sequence[Sequence[str]], width: int) -> list[int] | None:
    """Widths of columns that fit into `width` together without breaking a word; None where there are none."""
    room = width - _PADDING * len(columns) - 2
    natural = [max(map(len, texts), default=0) for texts in columns]
    least = [max((len(word) for text in texts for word in text.split()), default=0) for texts in columns]
    if sum(natural) <= room:
        return natural
    if sum(least) > room:
        return None
    spare = room - sum(least)
    widths = list(least)
    for i in sorted(range(len(columns)), key=lambda i: natural[i] - least[i]):  # first those that need little more
        more = min(natural[i] - least[i], spare)
        widths[i], spare = widths[i] + more, spare - more
    return widths


def _wrapped(text: str, width: int, first: str = "", others: str = "") -> str:
    """The text in lines of at most that many characters, or of one longer word."""
    lines = textwrap.wrap(
        text, max(width, 1), initial_indent=first, subsequent_indent=others, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    return "\n".join(lines)


def _stacked(row: Sequence[str], header: Sequence[str] | None, width: int) -> str:
    """A row as lines: what it is of, and under it what is known of it."""
    named = [f"{header[i]} {text}" if header and header[i] else text for i, text in enumerate(row)]
    return "\n".join([row[0], *(_wrapped(text, width, "  ", "    ") for text in named[1:])])
