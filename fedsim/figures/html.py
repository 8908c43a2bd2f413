"""Self-contained HTML pages and their pieces, from the Jinja2 templates beside this file.

Whatever is not `Markup` is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from fedsim.figures.curves import INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Markup", "chart", "details", "found", "heading", "image", "inline_svg", "lead", "legend", "mark", "named", "notes",
    "page", "panels", "paragraph", "pre", "swatch", "table",
]  # fmt: skip

_CHART = '<figure class="chart"'
_IN_SCRIPT = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&"})  # JSON that no HTML can end
_PATTERNS = {"-": "", "--": "6 3", "-.": "6 2 1 2", ":": "2 2", "band": "band"}


def page(title: str, body: Iterable[object]) -> str:
    """A whole page that asks nothing of any other file; what draws charts is in it where it has some."""
    parts = [part for part in body if part]
    charts = any(isinstance(part, Markup) and _CHART in part for part in parts)
    return _templates().get_template("page.html").render(title=title, body=parts, charts=charts)


def heading(level: int, text: object) -> Markup:
    return _part("heading", level, text)


def paragraph(text: object, soft: bool = False) -> Markup:
    """A paragraph; a `soft` one says how something is to be read."""
    return _part("paragraph", text, soft)


def found(text: object) -> Markup:
    """What came out, at the head of a page; nothing without words."""
    return _part("found", text)


def lead(term: str, text: object) -> Markup:
    """A paragraph that begins with the term it is about."""
    return _part("lead", term, text)


def mark(text: object) -> Markup:
    """What is to be seen at once."""
    return _part("mark", text)


def pre(text: str) -> Markup:
    """Text in its own lines."""
    return _part("pre", text)


def table(header: Sequence[object], rows: Iterable[Sequence[object]], text: Sequence[int] = ()) -> Markup:
    """A table that scrolls by itself where the screen is narrow; columns in `text` hold words, the others numbers."""
    return _part("table", list(header), list(rows), list(text))


def details(summary: object, content: object) -> Markup:
    """Content that is unfolded on demand."""
    return _part("details", summary, content)


def notes(lines: Sequence[object]) -> Markup:
    """A list of what is wrong or has to be known; nothing without lines."""
    return _part("notes", list(lines))


def legend(entries: Iterable[tuple[Markup, object]]) -> Markup:
    """Swatches and what they stand for."""
    return _part("legend", list(entries))


def panels(pictures: Iterable[Markup]) -> Markup:
    """Pictures side by side, below each other where the screen is narrow."""
    return _part("panels", list(pictures))


def chart(
    title: str,
    still: Markup,
    header: Sequence[object],
    rows: Iterable[tuple[int, Sequence[object]]],
    data: str,
    note: str = "",
) -> Markup:
    """A chart: its picture, a table with a row for each group (its number, its cells), and its data as JSON."""
    return _part("chart", title, still, list(header), list(rows), Markup(data.translate(_IN_SCRIPT)), note)


def named(piece: Markup, label: str, state: str = "") -> Markup:
    """A label with its swatch and, marked, what state it is in."""
    return _part("named", piece, label, state)


def swatch(colour: str, dashes: str, marker: bool = False) -> Markup:
    """A legend's piece of line (``band``: of a band); an empty `colour` stands for any."""
    return _part("swatch", colour or "currentColor", _PATTERNS[dashes], marker)


def inline_svg(figure: Figure, name: str, alt: str) -> Markup:
    """A figure as SVG in the page's own text colour; `name` keeps its ids apart from other figures'."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "svg.id": None}):
        empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=empty)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1))


def image(png: bytes, alt: str, css: str = "") -> Markup:
    """A picture inside the page."""
    return _part("image", base64.b64encode(png).decode(), alt, css)


def _part(name: str, *arguments: Any) -> Markup:
    """What a macro of ``parts.html`` makes."""
    made: Markup = getattr(_parts(), name)(*arguments)
    return Markup(made.strip())


@cache
def _parts() -> Any:
    return _templates().get_template("parts.html").module


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("fedsim.figures"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
