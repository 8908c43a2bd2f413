"""Writes docs/scenarios.md and its figures from the scenario files and docs/scenarios.json: python docs/scenarios.py

`python benchmarks/scenarios.py` measures what stands in that file.
"""

from __future__ import annotations

import html
import json
import math
import re
import textwrap
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).parent
FOLDER = DOCS.parent / "scenarios"
MEASURED = DOCS / "scenarios.json"
FIGURES = DOCS / "images" / "scenarios"
_FROM_HUB = {"mnist", "cifar10", "california_housing"}
_COLOURS = ("#2f7ebc", "#e07b00", "#0f9d76", "#cf4b7d", "#8a6fd1", "#a5822f", "#3fb0d6", "#8a8f96")
_LEFT, _TOP, _WIDE, _HIGH, _KEY, _LETTERS = 8, 20, 300, 80, 190, 28
HEAD = """\
# The scenarios, one by one

Each of these files runs as it is, with `fedsim run FILE`; those that are sweeps, with `fedsim sweep FILE`, and an
audit with `fedsim audit FILE`. `fedsim plan FILE` says before that how long it is and what it moves. The text is what
the file says at its top; `python docs/scenarios.py` makes this page from them.

Where data come from a hub, a copy on the disk does as well: `--set data.path=DIR` ([data.md](data.md)).

Times are from the start of the command to its end, as `python benchmarks/scenarios.py` measured them on the date given.
Time of processors is that of all cores together; it stands alone where the machine had other work. A curve is the main
metric over the rounds; in sweeps there is a line for each group of runs that differ in their seed alone, the mean of
the seeds. One that takes longer than the measurement allowed was interrupted, and its curve is the beginning.
"""


def page() -> str:
    """The text of the page."""
    measured = found()
    runs, sweeps = [], []
    for file in sorted(FOLDER.glob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        values = yaml.safe_load(text)
        (sweeps if "scenario" in values else runs).append(_entry(file.name, text, values, measured.get(file.name)))
    return "\n".join([HEAD, "## Scenarios\n", *runs, "## Sweeps\n", *sweeps]).rstrip("\n") + "\n"


def found() -> dict[str, Any]:
    """What was measured, by the names of files."""
    measured: dict[str, Any] = json.loads(MEASURED.read_text(encoding="utf-8"))
    return measured


def figures() -> dict[str, str]:
    """The figures by their names, SVG."""
    return {f"{Path(name).stem}.svg": _drawn(of) for name, of in found().items() if of.get("lines")}


def _entry(name: str, text: str, values: dict[str, object], measured: dict[str, Any] | None) -> str:
    data = values.get("data")
    needs = isinstance(data, dict) and data.get("dataset") in _FROM_HUB and "path" not in data
    of = f"\nvaries [{values['scenario']}](../scenarios/{values['scenario']})" if "scenario" in values else ""
    head = f"**[{name}](../scenarios/{name})**{' *needs data from a hub*' if needs else ''}{of}"
    told = [head, "\n".join(textwrap.wrap(_said(text), 118, break_on_hyphens=False)), _took(measured)]
    if measured and "found" in measured:
        told.append("\n".join(textwrap.wrap(f"Found: {measured['found']}", 118, break_on_hyphens=False)))
    if measured and measured.get("lines"):
        told.append(f"![{measured['metric']} over the rounds](images/scenarios/{Path(name).stem}.svg)")
    return "\n\n".join(told) + "\n"


def _took(measured: dict[str, Any] | None) -> str:
    if measured is None:
        return "Time: not measured."
    wall, used = (_seconds(measured[key]) for key in ("seconds", "processor_seconds"))
    cores = f"{measured['cores']} cores, {measured['date']}"
    if measured["busy"]:
        more = "more than " if measured["interrupted"] else ""
        return f"Time: {more}{used} of processors ({cores}, beside other work)."
    return f"Time: {f'more than {wall}' if measured['interrupted'] else wall}, {used} of processors ({cores})."


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min"


def _drawn(measured: dict[str, Any]) -> str:
    """A small figure: a line for each group, the lowest and the highest value, and the last round."""
    lines: dict[str, list[list[float]]] = measured["lines"]
    log = measured["log"] and all(y > 0 for points in lines.values() for _, y in points)
    flat = [point for points in lines.values() for point in points]
    low, high = min(y for _, y in flat), max(y for _, y in flat)
    last = max(x for x, _ in flat)

    def scaled(y: float) -> float:
        at, bottom, top = (math.log10(v) if log else v for v in (y, low, high))
        return _TOP + _HIGH * (1 - (at - bottom) / ((top - bottom) or 1))

    named = any(lines)  # a run alone has no name
    few = len(lines) <= len(_COLOURS)
    height = _TOP + max(_HIGH + 18, 14 * len(lines) if named and few else 0)
    drawn = []
    for i, (label, points) in enumerate(lines.items()):
        colour = _COLOURS[i] if few else _COLOURS[0]
        path = " ".join(f"{_LEFT + _WIDE * x / (last or 1):.1f},{scaled(y):.1f}" for x, y in points)
        style = f'fill="none" stroke="{colour}" stroke-width="{1.8 if few else 0.8}"'
        drawn.append(f'<polyline points="{path}" {style}/>')
        if named and few:
            short = label if len(label) <= _LETTERS else label[: _LETTERS - 1] + "…"
            drawn.append(_text(_LEFT + _WIDE + 12, _TOP + 8 + 14 * i, short, colour))
    words = f"{measured['metric']}{', logarithmic' if log else ''}: {low:.3g} to {high:.3g}"
    words += f", {len(lines)} groups" if not few else ""
    base = _TOP + _HIGH
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDE + 12 + _KEY * (named and few)}" '
            f'height="{height}" font-family="sans-serif" font-size="11">',
            _text(_LEFT, 12, words),
            f'<path d="M{_LEFT} {base}h{_WIDE}" stroke="#8a8f96" stroke-width="0.7"/>',
            *drawn,
            _text(_LEFT, base + 14, "round 0"),
            _text(_LEFT + _WIDE, base + 14, f"{last:g}", anchor="end"),
            "</svg>\n",
        ]
    )


def _text(x: float, y: float, words: str, colour: str = "#7a8088", anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" fill="{colour}" text-anchor="{anchor}">{html.escape(words)}</text>'


def _said(text: str) -> str:
    """The comment at the top, without the schema's line; commands in it as code."""
    said: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if "yaml-language-server" in line:
            continue
        bare = line[1:].removeprefix(" ")
        said.append(f"`{bare.strip()}`" if re.match(r"  \s*(fedsim |--set)", " " + bare) else bare.strip())
    return " ".join(said)


def main() -> None:
    (DOCS / "scenarios.md").write_text(page(), encoding="utf-8")
    made = figures()
    FIGURES.mkdir(exist_ok=True)
    for old in FIGURES.glob("*.svg"):
        if old.name not in made:
            old.unlink()
    for name, drawn in made.items():
        (FIGURES / name).write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
