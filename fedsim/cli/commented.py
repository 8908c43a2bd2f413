"""A scenario as text with comments: what each key means, and which others there are, from the parts themselves."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedsim.cli.parts import plurals
from fedsim.core.described import Key, keys, prose
from fedsim.core.documents import flow
from fedsim.core.registry import lookup

_WIDTH = 118


def commented(values: Mapping[str, Any], file: str, guessed: Sequence[str] = ()) -> str:
    """The text of a scenario for `file`; `guessed` are keys that somebody should look at."""
    lines = [
        "# Made by `fedsim new`; lines that begin with # are what else there is, at its default.",
        f"# What it would do: fedsim plan {file}. Run it: fedsim run {file}",
    ]
    if guessed:
        lines += _remark(f"Chosen because something asked for them, so have a look: {', '.join(guessed)}.", "")
    for section, value in values.items():
        lines += ["", *_section(section, value)] if isinstance(value, Mapping) else [f"{section}: {flow(value)}"]
    return "\n".join(lines) + "\n"


def _section(path: str, values: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """A section with its keys, and sections in it."""
    from fedsim.scenario.sections import SECTIONS
    from fedsim.scenario.table import FormSection, PartSection

    row = next((r for r in SECTIONS.values() if r.path == path), None)
    inner = {r.path.rpartition(".")[2]: r for r in SECTIONS.values() if r.path.startswith(f"{path}.")}
    known: list[Key] = []
    said = ""
    yield f"{indent}{path.rpartition('.')[2]}:"
    indent += "  "
    if isinstance(row, PartSection) and row.key in values:
        part = lookup(row.kind, values[row.key])
        word = next(word for word, kind in plurals().items() if kind == row.kind)
        said = " ".join(prose(part).split("\n\n")[0].split())
        yield from _remark(f"{said} (Others: fedsim list {word}.)", indent)
        yield f"{indent}{row.key}: {flow(values[row.key])}"
        known = keys(part)
    elif isinstance(row, FormSection):
        known = keys(row.form)
    meanings = {key.name: key.says for key in known}
    for key, value in values.items():
        if isinstance(row, PartSection) and key == row.key:
            continue
        if key in inner and isinstance(value, Mapping):
            yield from _section(f"{path}.{key}", value, indent)
            continue
        if (meaning := meanings.get(key, "")) not in said:  # a sentence about the part need not come twice
            yield from _remark(meaning, indent)
        yield f"{indent}{key}: {flow(value)}"
    for other in known:
        if other.name not in values and other.name not in inner and not other.required:
            yield _cut(f"{indent}# {other.name}: {flow(other.default)}", "" if other.says in said else other.says)


def _remark(text: str, indent: str) -> list[str]:
    wrapped = textwrap.wrap(text, _WIDTH - len(indent) - 2, break_long_words=False, break_on_hyphens=False)
    return [f"{indent}# {line}" for line in wrapped]


def _cut(line: str, says: str) -> str:
    """The line of a key that is left at its default, with as much of its meaning as goes on it."""
    room = _WIDTH - len(line) - 4
    return f"{line}  # {textwrap.shorten(says, room, placeholder=' ...')}" if says and room > 20 else line
