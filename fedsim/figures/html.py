"""Pieces of a self-contained HTML page. Whatever is not `Markup` is escaped."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fedsim.figures.curves import INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CSS = """
:root { color-scheme: light dark; --ground: #fff; --text: #1c2127; --soft: #5d656f; --line: #dde1e6;
  --card: #f6f7f9; --mark: #a34400; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #15181c; --text: #e3e6ea; --soft: #a0a8b2; --line: #333a42;
    --card: #1d2126; --mark: #ffab66; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 78rem; padding: 1rem clamp(0.8rem, 3vw, 2.5rem) 4rem;
  background: var(--ground); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; margin: 1rem 0 0.2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 0.6rem; padding-bottom: 0.25rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 0.4rem; overflow-wrap: anywhere; }
p { margin: 0.4rem 0 0.8rem; max-width: 48rem; }
.soft { color: var(--soft); font-size: 0.88rem; }
.notes { border-left: 4px solid var(--mark); background: var(--card); padding: 0.5rem 0.9rem 0.5rem 2rem;
  overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: 0.5rem 0; }
table { border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.28rem 0.7rem; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; white-space: nowrap; }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; }
th:first-child, td:first-child, td.text { text-align: left; }
td.text { white-space: normal; min-width: 8rem; max-width: 26rem; overflow-wrap: anywhere; }
thead th { white-space: normal; min-width: 4rem; }
.mark { color: var(--mark); font-weight: 600; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: 0.4rem 0.8rem; }
.panels svg { width: 100%; height: auto; display: block; color: var(--text); }
.legend { display: flex; flex-wrap: wrap; gap: 0.1rem 1.2rem; font-size: 0.86rem; margin: 0.3rem 0 0.6rem;
  overflow-wrap: anywhere; }
.legend svg { width: 1.9rem; height: 0.7rem; margin-right: 0.4rem; vertical-align: middle; }
figure { margin: 0.6rem 0; } figure img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
.tall img { max-height: 36rem; }
details { margin: 0.5rem 0; } summary { cursor: pointer; overflow-wrap: anywhere; }
pre { background: var(--card); padding: 0.8rem 1rem; overflow-x: auto; font-size: 0.82rem; border-radius: 6px; }
"""


class Markup(str):
    """HTML that is already safe."""

    __slots__ = ()


def escape(value: object) -> Markup:
    """`value` as text that no browser takes for markup; `Markup` stays as it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


def tag(name: str, content: object, css: str = "") -> Markup:
    """``<name class="css">content</name>``."""
    attribute = f' class="{html.escape(css)}"' if css else ""
    return Markup(f"<{name}{attribute}>{escape(content)}</{name}>")


def join(parts: Iterable[object]) -> Markup:
    return Markup("\n".join(escape(part) for part in parts))


def page(title: str, body: Iterable[object]) -> str:
    """A whole page that asks nothing of any other file."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n{join(body)}\n</body>\n</html>\n"
    )


def table(header: Sequence[object], rows: Iterable[Sequence[object]], text: Sequence[int] = ()) -> Markup:
    """A table that scrolls by itself where the screen is narrow; columns in `text` hold words, the others numbers."""
    head = join(tag("th", cell) for cell in header)
    body = join(
        tag("tr", Markup("".join(tag("td", cell, "text" if i in text else "") for i, cell in enumerate(row))))
        for row in rows
    )
    top = tag("thead", tag("tr", head)) if any(header) else ""
    return tag("div", Markup(f"<table>{top}<tbody>{body}</tbody></table>"), "scroll")


def details(summary: object, content: object) -> Markup:
    return Markup(f"<details><summary>{escape(summary)}</summary>{escape(content)}</details>")


def notes(lines: Sequence[object]) -> Markup:
    return tag("ul", join(tag("li", line) for line in lines), "notes") if lines else Markup("")


def inline_svg(figure: Figure, name: str, alt: str) -> Markup:
    """A figure as SVG in the page's own text colour; `name` keeps its ids apart from other figures'."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "svg.id": None}):
        empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=empty)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(alt)}"', 1))


def image(png: bytes, alt: str, css: str = "") -> Markup:
    """A picture inside the page."""
    data = base64.b64encode(png).decode()
    return tag("figure", Markup(f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'), css)


def swatch(colour: str, dashes: str, marker: bool = False) -> Markup:
    """A legend's piece of line; an empty `colour` stands for any."""
    pattern = {
        "-": "",
        "--": ' stroke-dasharray="6 3"',
        "-.": ' stroke-dasharray="6 2 1 2"',
        ":": ' stroke-dasharray="2 2"',
    }
    stroke = html.escape(colour or "currentColor")
    if dashes == "band":
        return Markup(f'<svg viewBox="0 0 30 10"><rect width="30" height="10" fill="{stroke}" opacity="0.3"/></svg>')
    end = f'<path d="M23 2l6 6m0-6l-6 6" stroke="{stroke}" fill="none" stroke-width="1.5"/>' if marker else ""
    line = f'<path d="M0 5H{26 if marker else 30}" stroke="{stroke}" stroke-width="2.4"{pattern[dashes]}/>'
    return Markup(f'<svg viewBox="0 0 30 10">{line}{end}</svg>')
