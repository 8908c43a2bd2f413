"""Reference pages of the site, written anew at every build from the parts, the command line and the package.

Nothing of them lies in the repository, so nothing of them can be out of date.
"""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import click
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import fedsim
from fedsim.cli.app import app
from fedsim.cli.parts import modes, plurals
from fedsim.core.described import Key, keys, papers, prose
from fedsim.core.documents import flow
from fedsim.core.registry import lookup, names
from fedsim.scenario.sections import SECTIONS
from fedsim.scenario.table import FormSection, ListSection, NameSection, PartSection, PartsSection, Section

_SHARED = 4  # parts that have a key with the same default, at least, where a table of its own tells it once
_LETTERED = {
    "selections": "selection of clients",
    "weights": "mixing weights",
    "pre-aggregators": "steps before a rule",
}
_PROGRAMS = (
    "run", "Run", "load", "Scenario", "plan", "report", "sweep", "topology", "check", "InputError", "RunError",
    "register", "rng",
)  # fmt: skip


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The pages of parts stand in the navigation, one for each kind."""
    reference = next(entry["Reference"] for entry in config.nav or [] if "Reference" in entry)
    at = next(i for i, entry in enumerate(reference) if "Every part" in entry)
    reference[at] = {"Every part": ["reference/parts.md", *(f"reference/{word}.md" for word, _ in _kinds())]}
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = {"keys": _keys_page(), "parts": _parts_page(), "commands": _commands_page(), **_python_pages()}
    pages |= {word: _kind_page(word, kind) for word, kind in _kinds()}
    for name, lines in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content="\n".join(lines) + "\n"))
    return files


def _kinds() -> list[tuple[str, str]]:
    """The kinds of parts that fedsim brings some of, as ``fedsim list`` calls them and as the registry does."""
    return [(word, kind) for word, kind in plurals().items() if _own(kind)]


def _own(kind: str) -> list[str]:
    return [name for name in names(kind) if lookup(kind, name).__module__.startswith("fedsim.")]


# Scenario keys


def _keys_page() -> Iterator[str]:
    yield "# Every key of a scenario\n"
    yield "The sections of a scenario, in the order of its [schema](../scenario.schema.json), which editors use."
    yield "Examples and longer explanations are in [Scenario files](../scenario.md).\n"
    words = {kind: word for word, kind in plurals().items()}
    for row in SECTIONS.values():
        yield f"## `{row.path}`\n"
        if row.required:
            yield "Every scenario needs it.\n"
        if isinstance(row, PartSection | NameSection | ListSection | PartsSection) and row.kind:
            yield from _named(row, words[row.kind])
        elif isinstance(row, FormSection):
            yield f"{_text(prose(row.form))}\n"
            yield from _table(keys(row.form))
        else:
            yield from _value(row)


def _named(row: Section, word: str) -> Iterator[str]:
    kind = row.kind  # type: ignore[attr-defined]
    key = row.key if isinstance(row, PartSection) else None
    where = f"`{key}` names one of the [{word}]({word}.md)" if key else f"Names of [{word}]({word}.md)"
    yield f"{where}, or `pkg.mod:Name` one of your own; its keys stand beside it.\n"
    yield ", ".join(f"[`{name}`]({word}.md#{_anchor(name)})" for name in _own(kind)) + "\n"


def _value(row: Section) -> Iterator[str]:
    from fedsim.core.fields import in_words

    definitions: dict[str, Any] = {}
    schema = row.schema(definitions, {})
    default = f" By default it is `{json.dumps(schema['default'])}`." if schema.get("default") is not None else ""
    said = f"{schema['description']} " if "description" in schema else ""
    yield f"{_text(said)}Allowed: {_text(_signs(in_words(schema, definitions)) or 'see Scenario files')}.{default}\n"


# Parts


def _parts_page() -> Iterator[str]:
    yield "# Every part that a scenario can name\n"
    yield "The same as `fedsim list`; `fedsim describe NAME` also says what goes with what, and has BibTeX.\n"
    for word, kind in _kinds():
        found = ", ".join(f"[`{name}`]({word}.md#{_anchor(name)})" for name in _own(kind))
        yield f"## {_title(word)}\n\n[All {word}]({word}.md): {found}\n"


def _title(word: str) -> str:
    return _LETTERED.get(word, word).capitalize()


def _kind_page(word: str, kind: str) -> Iterator[str]:
    parts = {name: lookup(kind, name) for name in _own(kind)}
    found = {name: keys(part) for name, part in parts.items()}
    counts = Counter((k.name, flow(k.default) if not k.required else "") for of in found.values() for k in of)
    often = {k for k, n in counts.items() if n >= max(_SHARED, len(parts) / 2)}
    common = {k.name: k for of in found.values() for k in of if not k.required and (k.name, flow(k.default)) in often}
    yield f"# {_title(word)}\n"
    for name, part in parts.items():
        yield f"## `{name}` {{ #{_anchor(name)} }}\n"
        yield f"{_text(prose(part))}\n"
        if kind == "algorithm":
            where = "Under a server" if part.setting == "server" else "On a graph"
            yield f"{where}; participation modes: {', '.join(f'`{m}`' for m in modes(part))}.\n"
        if numbers := papers(part):
            links = ", ".join(f"[arXiv {n}](https://arxiv.org/abs/{n})" for n in numbers)
            yield f"Source: {links}.\n"
        own = [k for k in found[name] if common.get(k.name) is None or common[k.name].default != k.default]
        yield from _table(own)
        rest = [k.name for k in found[name] if k not in own]
        if rest:
            yield f"Also: {', '.join(f'`{k}`' for k in rest)} ([below](#common-keys)).\n"
        if inspect.isfunction(part):
            yield f"A function of `{part.__module__}`.\n"
    if common:
        yield "## Common keys\n"
        yield from _table(common.values())


def _table(of: Iterable[Key]) -> Iterator[str]:
    of = list(of)
    if not of:
        return
    yield "| key | default | allowed | meaning |\n|---|---|---|---|"
    for key in of:
        default = "required" if key.required else "unset" if key.default is None else f"`{_default(key.default)}`"
        yield f"| `{key.name}` | {default} | {_cell(_signs(key.allowed))} | {_cell(key.says)} |"
    yield ""


def _default(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else flow(value)


def _signs(allowed: str) -> str:
    for words, sign in (("greater than or equal to ", "≥ "), ("less than or equal to ", "≤ "),
                        ("greater than ", "> "), ("less than ", "< ")):  # fmt: skip
        allowed = allowed.replace(words, sign)
    return allowed


# The command line


def _commands_page() -> Iterator[str]:
    command = typer.main.get_command(app)
    context = click.Context(command, info_name="fedsim")
    assert isinstance(command, click.Group)
    yield "# Commands and options\n"
    yield "What `fedsim COMMAND --help` says. [The command line](../commands.md) shows the commands at work.\n"
    yield from _options(command, context)
    for name in command.list_commands(context):
        one = command.get_command(context, name)
        if one is None or one.hidden:
            continue
        inner = click.Context(one, info_name=name, parent=context)
        yield f"## `fedsim {name}` {{ #{name} }}\n"
        yield f"```text\n{' '.join(['fedsim', name, *one.collect_usage_pieces(inner)])}\n```\n"
        yield "\n\n".join(_text(" ".join(p.split())) for p in inspect.cleandoc(one.help or "").split("\n\n")) + "\n"
        yield from _options(one, inner)


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    rows = []
    for option in command.get_params(context):
        if getattr(option, "hidden", False):
            continue
        argument = option.param_type_name == "argument"
        kind = "" if getattr(option, "is_flag", False) else _cell(f"`{option.make_metavar(context)}`")
        written = " ".join(f"`{o}`" for o in (*option.opts, *option.secondary_opts) if not argument)
        default = option.default if isinstance(option.default, str | int | float) else None
        told = "required" if option.required else "" if default is None or default is False else f"`{default}`"
        says = _cell(getattr(option, "help", "") or "")
        rows.append(f"| {' '.join(filter(None, (written, kind)))} | {told} | {says} |")
    if rows:
        yield "| argument or option | default | meaning |\n|---|---|---|"
        yield from rows
        yield ""


# Python


def _python_pages() -> dict[str, Iterable[str]]:
    rest = [name for name in fedsim.__all__ if name not in _PROGRAMS]
    homes = sorted({fedsim._HOME[n].split(".")[0] for n in rest}, key=lambda h: (h == "core", h))
    by_home = {h: [n for n in rest if fedsim._HOME[n].split(".")[0] == h] for h in homes}
    programs = ["# Python: programs\n", "Everything here is imported from `fedsim`.\n"]
    parts = [
        "# Python: parts of your own\n",
        "Everything here is imported from `fedsim`, as in [the guide](../extending.md).\n",
    ]
    return {
        "python": [
            *programs,
            *_documented(_PROGRAMS),
            "::: fedsim.data.from_arrays\n    options: {show_root_full_path: true}\n",
        ],
        "python-parts": [*parts, *(line for of in by_home.values() for line in _documented(of))],
    }


def _documented(of: Sequence[str]) -> Iterator[str]:
    for name in of:
        home, _, other = fedsim._HOME[name].partition(":")
        options = f"{{heading: {name}, toc_label: {name}}}"
        yield f"::: fedsim.{home}.{other or name}\n    options: {options}\n"


# Text


def _anchor(name: str) -> str:
    return name.replace("_", "-")


def _text(text: str) -> str:
    """Plain text as markdown: equations at its head as they stand, names in backticks as code."""
    return "\n\n".join(_paragraph(p) for p in text.strip().split("\n\n"))


def _paragraph(text: str) -> str:
    if re.match(r"[^.:]{1,60} [+-]?= ", text.split("\n")[0]) and not text.startswith("`"):
        return f"```text\n{text}\n```"
    return _escaped(" ".join(text.split()))


def _escaped(text: str) -> str:
    pieces = re.split(r"(`[^`]+`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([\\*_\[\]<>#])", r"\\\1", p) for p in pieces)


def _cell(text: str) -> str:
    return _escaped(" ".join(text.split())).replace("|", "\\|")
