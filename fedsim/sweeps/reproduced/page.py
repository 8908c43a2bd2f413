"""The page of a reproduced result in Markdown, and its figure, from a reproduction file and results alone."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.core.metrics import metric
from fedsim.figures.curves import Line, Panel, banded, grid_figure, panel_figure
from fedsim.sweeps.reproduced.files import Data, Quantity, Reproduction
from fedsim.sweeps.reproduced.measured import Cell, Verdict, cells, judge

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH = 118
_NEVER, _NONE = "never", "none"
_MEETS = 0.8
"""Share of the longest curve's x that all seeds reach where their mean is drawn."""


def page(
    made: Reproduction, found: Mapping[str, Mapping[str, Any]], picture: Callable[[str], str], file: str = ""
) -> str:
    """The page: what the paper says, and for each choice of data its results `found`, with the `picture` of them.

    `file` is a link to the reproduction file, where there is one.
    """
    paper = made.paper
    lines = [
        f"# {paper.title}\n",
        f"[arXiv {paper.arxiv}](https://arxiv.org/abs/{paper.arxiv}), {paper.where}. "
        f"Reproduced here: {paper.result}.\n",
        f"**What the paper says.** {paper.claim}\n",
        f"**What is smaller here, and why.** {paper.scaled}\n",
        f"```bash\nfedsim reproduce {_called(made, next(iter(found.values())))}\n```\n",
        *([f"What exactly is run, and what is checked: {file}.\n"] if file else []),
    ]
    for on, results in found.items():
        lines += _section(made, on, made.data[on], results, picture(on))
    return "\n".join(_wrapped(line) for line in lines if line).rstrip("\n") + "\n"


def summary(made: Reproduction, results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a results' table: the rows, and of each quantity the paper's number and ours."""
    found = cells(results["runs"], made.quantities)
    header, rows = ["row"], [[row] for row in next(iter(found.values()))]
    for name, quantity in made.quantities.items():
        of = found[name]
        if quantity.paper:
            header.append(f"{quantity.words}: paper")
            for row in rows:
                row.append(_number(quantity.paper[row[0]]) if row[0] in quantity.paper else "")
        header.append(f"{quantity.words}: here" if quantity.paper else quantity.words)
        for row in rows:
            row.append(_ranged(of[row[0]], _NEVER if quantity.take == "first" else _NONE))
        if quantity.against:
            header += [f"over {quantity.against}: paper"] * bool(quantity.paper) + [f"over {quantity.against}: here"]
            for row in rows:
                row += [_over(quantity.paper, row[0], quantity.against)] * bool(quantity.paper)
                row.append(_over({r: c.median for r, c in of.items()}, row[0], quantity.against))
    return header, rows


def verdicts(made: Reproduction, results: Mapping[str, Any]) -> list[Verdict]:
    """Whether each of the paper's claims holds of the results."""
    found = cells(results["runs"], made.quantities)
    return [judge(check, found[check.of]) for check in made.checks]


def absent(made: Reproduction, results: Mapping[str, Any]) -> list[str]:
    """Of quantities whose columns no run has, a sentence each: their claims fail for want of numbers, not by these."""
    done = [run for run in results["runs"] if run["error"] is None]
    lacking = {column for run in done[:1] for column in run.get("absent", ())}
    lacking.intersection_update(*(run.get("absent", ()) for run in done))
    return [
        f"No run has the column {column}, so that there is nothing of {quantity.words}."
        for quantity in made.quantities.values()
        for column in dict.fromkeys(quantity.columns)
        if column in lacking
    ]


def headline(judged: Sequence[Verdict]) -> str:
    """How many of the claims hold, in words."""
    held = sum(verdict.holds for verdict in judged)
    if held == len(judged):
        return {1: "The claim holds.", 2: "Both claims hold."}.get(held, f"All {held} claims hold.")
    return "The claim does not hold." if len(judged) == 1 else f"{held} of {len(judged)} claims hold."


def told(verdict: Verdict) -> str:
    """Of how many seeds a claim holds, in words."""
    seeds = f"{verdict.seeds} of {verdict.of} seeds" if verdict.of > 1 else "one seed"
    return f"{'holds' if verdict.holds else 'DOES NOT HOLD'} ({seeds})"


def figure(made: Reproduction, results: Mapping[str, Any]) -> Figure:
    """The curve of each row: its mean over the seeds, with a band from the lowest to the highest.

    Where a seed ends long before another (in a delay of its own, say), the mean would end there, too: each seed is a
    line then.
    """
    rows = list(dict.fromkeys(run["row"] for run in results["runs"]))
    lines: list[Line] = []
    labels = list(rows)
    for i, name in enumerate(rows):
        of = [run for run in results["runs"] if run["row"] == name and len(run["x"])]
        curves = [(np.array(run["x"], dtype=float), np.array(run["y"], dtype=float)) for run in of]
        band = banded(curves)
        if band is not None and band[0][-1] >= _MEETS * max(x[-1] for x, _ in curves):
            lines.append(Line(i, *band))
            continue
        lines += [Line(i, x, y) for x, y in curves]
        labels[i] += ", each seed" if len(curves) > 1 else ""
    chart = made.figure
    x, y = metric(chart.x), metric(chart.y)
    unit = "B" if x.unit == "B" else "" if x.name != "round" else None
    panel = Panel(made.name, x.title, y.title, lines, unit, chart.log)
    drawn = grid_figure([[panel]], labels, across=7.0) if lines else panel_figure(panel, 1)  # empty: every run failed
    drawn.set_size_inches(7.0, max(4.2, 3.0 + 0.19 * len(rows)))
    return drawn


def _section(made: Reproduction, on: str, choice: Data, results: Mapping[str, Any], picture: str) -> list[str]:
    judged = verdicts(made, results)
    header, rows = summary(made, results)
    seeds = sorted({run["seed"] for run in results["runs"]})
    ranged = " The range over the seeds is in brackets." if len(seeds) > 1 else ""
    lines = [
        f"## On {choice.title}\n",
        "Made with `--quick`: it shows that everything runs, and says nothing about the paper.\n" * results["quick"],
        headline(judged) + " A claim holds if it does for the medians over the seeds." * (len(seeds) > 1) + "\n",
        *_table(["claim", "here"], [[v.says, told(v)] for v in judged]),
        f"Numbers here are {'medians over' if len(seeds) > 1 else 'of'} seed{'s' * (len(seeds) > 1)} "
        f"{', '.join(map(str, seeds))}.{ranged}{_meant(made.quantities)}\n",
        *_table(header, rows),
        *(f"{text}\n" for text in absent(made, results)),
        f"![{metric(made.figure.y).words} over {metric(made.figure.x).words}]({picture})\n",
    ]
    failed = [f"{run['row']}, seed {run['seed']}: {_line(run['error'])}" for run in results["runs"] if run["error"]]
    if failed:
        lines.append("Runs that failed, counted as the worst:\n\n" + "\n".join(f"- {text}" for text in failed) + "\n")
    if choice.differs:
        lines.append(f"**Where it differs, and why.** {choice.differs}\n")
    return [*lines, _made_by(made, on, results) + "\n"]


def _meant(quantities: Mapping[str, Quantity]) -> str:
    never = any(quantity.take == "first" for quantity in quantities.values())
    return f" A run that does not reach the target has '{_NEVER}'." if never else ""


def _made_by(made: Reproduction, on: str, results: Mapping[str, Any]) -> str:
    env, busy = results["environment"], results.get("processor_seconds")
    packages = ", ".join(f"{name} {env['packages'][name]}" for name in ("torch", "numpy") if env["packages"].get(name))
    first = next(iter(made.data)) == on
    options = ("" if first else f" --on {on}") + "".join(f" --set {shlex.quote(s)}" for s in results["settings"])
    folder = " --data DIR" if made.data[on].path else ""
    quick = " --quick" if results["quick"] else ""
    computing = f" ({busy:,.0f} of processor time)" if busy else ""
    return (
        f"Made by `fedsim reproduce {_called(made, results)}{options}{folder}{quick}` on {results['date']}: "
        f"{len(results['runs'])} runs, {results['seconds']:,.0f} seconds in all{computing}, "
        f"with Python {env['python']}, {packages}, {env['threads']} thread{'s' * (env['threads'] != 1)} "
        f"({env.get('processor') or env['machine']}, {env['cpus']} cores)."
    )


def _called(made: Reproduction, results: Mapping[str, Any]) -> str:
    """What the command line calls it: one that does not come along, by its file."""
    return shlex.quote(results.get("file") or made.name)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = ([_line(cell).replace("|", "\\|") for cell in row] for row in (header, *rows))
    lines = [f"| {' | '.join(row)} |" for row in (head, *body)]
    return ["\n".join([lines[0], f"|{'---|' * len(head)}", *lines[1:]]) + "\n"]


def _line(text: str) -> str:
    """Text of several lines as one: tables and lists have no others."""
    return " ".join(text.split())


def _wrapped(text: str) -> str:
    """Prose in lines of the sources' length; tables, code and lists as they are."""
    if text.startswith(("|", "```", "#", "![")) or "\n- " in text:
        return text
    return "\n".join(textwrap.wrap(text, _WIDTH, break_on_hyphens=False, break_long_words=False)) + "\n"


def _ranged(cell: Cell, without: str) -> str:
    low, high = cell.range
    if len(cell.values) == 1 or (low == high):
        return _number(cell.median, without)
    return f"{_number(cell.median, without)} ({_number(low, without)} to {_number(high, without)})"


def _over(values: Mapping[str, float | None], row: str, against: str) -> str:
    value, base = values.get(row), values.get(against)
    return f"{value / base:.2f}" if value is not None and base else ""


def _number(value: float | None, without: str = "") -> str:
    if value is None:
        return without
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
