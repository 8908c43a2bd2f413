"""A run as a notebook shows it: a progress bar while it goes on, curves, and a table of its last metrics."""

from __future__ import annotations

import html
import importlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.core.errors import InputError, unknown
from fedsim.core.metrics import TABLE, Metric
from fedsim.figures.curves import Line, Panel, grid_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedsim.engine.watch import Progress

Rows = Sequence[Mapping[str, Any]]

_PAUSE = 0.2
"""Seconds at least between two pictures of a bar; the last one is always drawn."""
_MOST = 4  # curves where nobody says which


def displays() -> Callable[..., Any] | None:
    """What shows things in the notebook that this runs in (Jupyter, VS Code, Colab); None where it is no notebook."""
    console = sys.modules.get("IPython")
    shell = None if console is None else console.get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    return importlib.import_module("IPython.display").display  # type: ignore[no-any-return]


@contextmanager
def bar(name: str, rounds: int, columns: Mapping[str, Metric]) -> Iterator[Progress | None]:
    """A progress bar with the latest metrics, where this is a notebook."""
    display = displays()
    if display is None:
        yield None
        return
    shown = display(_bar(name, 0, rounds, ""), raw=True, display_id=True)
    done, said, drawn = 0, "", time.monotonic()

    def update(number: int, row: Mapping[str, Any] | None) -> None:
        nonlocal done, said, drawn
        done = number
        if row:
            said = ", ".join(f"{m.words} {_plain(row[m.name])}" for m in _telling(columns, [row]) if m.name in row)
        if number >= rounds or time.monotonic() - drawn >= _PAUSE:
            drawn = time.monotonic()
            shown.update(_bar(name, done, rounds, said), raw=True)

    try:
        yield update
    finally:
        shown.update(_bar(name, done, rounds, said), raw=True)


def curves(rows: Rows, table: Mapping[str, Metric], names: Sequence[str], x: str, label: str) -> Figure:
    """A panel for each column of `names`, or for the telling ones, against the column `x`.

    Raises
    ------
    InputError
        The run has no such column, or no metrics yet.
    """
    every = list(dict.fromkeys(k for row in rows for k, v in row.items() if _is_number(v)))
    if not every:
        raise InputError("found no metrics yet; allowed: a run that was evaluated, as all are in round 0")
    for name in (*names, x):
        if name not in every:
            raise InputError(unknown("column", name, every))
    known = {**TABLE, **table}
    chosen = list(names) or [m.name for m in _telling(known, rows)][:_MOST] or [n for n in every if n != x][:_MOST]
    axis = known.get(x, Metric(x))
    panels = []
    for name in chosen:
        metric = known.get(name, Metric(name))
        points = [(row[x], row[name]) for row in rows if _is_number(row.get(name)) and _is_number(row.get(x))]
        at, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
        line = Line(0, at, values)
        panels.append(Panel(name, axis.axis or axis.title, metric.title, [line], axis.unit or None, metric.log))
    return grid_figure([panels[i : i + 2] for i in range(0, len(panels), 2)], [label])


def table(title: str, state: str, rows: Rows, columns: Mapping[str, Metric]) -> str:
    """HTML: what a run is called, how far it came, and the first and the last of its telling metrics."""
    known = {**TABLE, **columns}
    ends = _ends(rows)
    lines = [
        f"<tr><td>{html.escape(m.words)}</td>{''.join(f'<td>{_cell(row.get(m.name))}</td>' for row in ends)}</tr>"
        for m in _telling(known, rows)
    ]
    head = "".join(f"<th>round {_cell(row.get('round'))}</th>" for row in ends)
    return (
        f"<div><b>{html.escape(title)}</b> <span>{html.escape(state)}</span>"
        f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _ends(rows: Rows) -> Rows:
    return [rows[0], rows[-1]] if len(rows) > 1 else list(rows)


def _telling(columns: Mapping[str, Metric], rows: Rows) -> list[Metric]:
    """What is shown where there is little room, of what was measured."""
    found = {name for row in rows for name, value in row.items() if value is not None}
    return [m for m in columns.values() if m.brief == "line" and m.name != "round" and m.name in found]


def _bar(name: str, done: int, rounds: int, said: str) -> dict[str, str]:
    """By media type, for a notebook to choose from; the plain words are for consoles and for readers of files."""
    words = f"round {done} of {rounds}{f': {said}' if said else ''}"
    drawn = f'<progress value="{done}" max="{rounds}" style="width: 16em"></progress>'
    return {
        "text/html": f"<div><b>{html.escape(name)}</b> {drawn} {html.escape(words)}</div>",
        "text/plain": f"{name}: {words}",
    }


def _cell(value: Any) -> str:
    return html.escape(_plain(value))


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}"
    return "" if value is None else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
