"""YAML with the line of every key: scenario and sweep files, and ``--set`` overrides."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from fedsim.core.errors import InputError, Problem

Lines = dict[str, int]
"""Dotted key (list items by their number) to line."""

Source = tuple[str, int | None]
"""The file, or ``--set``, that a value came from, and its line."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars: ``1e-3`` is a number, which PyYAML takes for text; ``on`` and ``2020-01-01`` are text."""


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)  # 010 is ten, not PyYAML's eight


_SCALARS = {  # in this order: 10 stays an integer
    "tag:yaml.org,2002:int": (r"^([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$",
        "-+0123456789.",
    ),
    "tag:yaml.org,2002:bool": (r"^(true|True|TRUE|false|False|FALSE)$", "tTfF"),
}
_Loader.yaml_implicit_resolvers = {
    first: kept
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if (kept := [r for r in resolvers if r[0] not in (*_SCALARS, "tag:yaml.org,2002:timestamp")])
}
for _tag, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


@dataclass(frozen=True)
class Document:
    """A YAML mapping, the file it came from, the line of each key, and where keys changed later came from."""

    values: dict[str, Any]
    file: Path | None = None
    lines: Lines = field(default_factory=dict)
    changed: Mapping[str, Source] = field(default_factory=dict)

    @property
    def base(self) -> Path:
        """The folder that relative paths are relative to."""
        return self.file.parent if self.file else Path.cwd()

    def locate(self, error: InputError) -> InputError:
        """`error` with file and line of each problem's key."""
        return InputError([self._locate(p) for p in error.problems])

    def _locate(self, problem: Problem) -> Problem:
        if problem.file is not None:
            return problem
        file, line = self._source(problem.key or "")
        return replace(problem, file=file, line=line)

    def _source(self, key: str) -> tuple[str | None, int | None]:
        """Where the value of `key` came from; of a key that is not there, its nearest parent's place."""
        file = str(self.file) if self.file else None
        inner = next((source for changed, source in self.changed.items() if changed.startswith(key + ".")), None)
        while key:
            if key in self.changed:
                return self.changed[key]
            if key in self.lines:
                return file, self.lines[key]
            if inner is not None:
                return inner
            key = key.rpartition(".")[0]
        return file, None


def read_yaml(path: str | Path) -> Document:
    """Read one YAML mapping.

    Raises
    ------
    InputError
        The file is missing, not text, not YAML, not one mapping, or names a key twice.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError("no such file", file=str(file)) from None
    except IsADirectoryError:
        raise InputError("is a folder, allowed: a YAML file", file=str(file)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read as UTF-8 text: {error}", file=str(file)) from None
    try:
        node = yaml.compose(text, Loader=_Loader)
        if not isinstance(node, yaml.MappingNode):
            raise InputError(
                f"found {'nothing' if node is None else 'no mapping'}, allowed: keys and values", file=str(file)
            )
        lines: Lines = {}
        _walk(node, "", lines, file)
        values = _Loader(text).construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason, line = _reason(error, text)
        raise InputError([Problem(f"not valid YAML: {reason}", None, str(file), line)]) from None
    return Document(values, file, lines)


def override(document: Document, settings: list[str]) -> Document:
    """The document with ``key.path=value`` settings applied; values are YAML."""
    for setting in settings:
        dotted, equals, text = setting.partition("=")
        dotted = dotted.strip()
        if not equals or not all(dotted.split(".")):
            raise InputError(f"found {setting!r}, allowed: key.path=value, e.g. --set run.rounds=20", file="--set")
        try:
            value = _Loader(text).get_single_data()
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise InputError(f"{text!r} is not valid YAML: {_reason(error, text)[0]}", dotted, "--set") from None
        document = change(document, dotted, value, ("--set", None))
    return document


def change(document: Document, dotted: str, value: Any, source: Source) -> Document:
    """The document with one value replaced, mappings made on the way; `source` is where the value came from.

    Raises
    ------
    InputError
        A key on the way holds something that is not a mapping.
    """
    values = _copy(document.values)
    inner, path = values, dotted.split(".")
    for i, key in enumerate(path[:-1]):
        if inner.get(key) is None:
            inner[key] = {}
        if not isinstance(inner[key], dict):
            message = f"'{'.'.join(path[: i + 1])}' is {inner[key]!r}, not a mapping with a key '{path[i + 1]}'"
            raise InputError([Problem(message, dotted, *source)])
        inner = inner[key]
    inner[path[-1]] = value
    lines = {k: n for k, n in document.lines.items() if not f"{k}.".startswith(f"{dotted}.")}
    kept = {k: s for k, s in document.changed.items() if not f"{k}.".startswith(f"{dotted}.")}
    return replace(document, values=values, lines=lines, changed={**kept, dotted: source})


def _walk(node: yaml.Node, path: str, lines: Lines, file: Path) -> None:
    """Note the line of every key and list item; refuse keys that are there twice."""
    prefix = f"{path}." if path else ""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = f"{prefix}{key.value}"
            line = key.start_mark.line + 1
            if here in lines:
                message = f"found twice, here and in line {lines[here]}; allowed: each key once"
                raise InputError([Problem(message, here, str(file), line)])
            lines[here] = line
            _walk(value, here, lines, file)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            lines[f"{prefix}{i}"] = value.start_mark.line + 1
            _walk(value, f"{prefix}{i}", lines, file)


def _reason(error: Exception, text: str) -> tuple[str, int | None]:
    """What PyYAML complains about, in one line, and the line it is in."""
    if isinstance(error, RecursionError):
        return "nested too deeply, or an alias inside its own anchor", None
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        return reason, mark.line + 1 if mark else None
    if isinstance(error, yaml.reader.ReaderError):
        return f"the character {chr(error.character)!r} is not allowed", text.count("\n", 0, error.position) + 1
    return str(error).splitlines()[0], None


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list) else value
