"""YAML with the line of every key: scenario and sweep files, and ``--set`` overrides."""

from __future__ import annotations

import math
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

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag.rpartition(":")[2] not in _PLAIN and node.tag.startswith("tag:yaml.org,2002:"):
            message = f"found the type !!{_cut(node.tag.rpartition(':')[2])}, allowed: {', '.join(_PLAIN)}"
            raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError) as error:  # PyYAML looks 'maybe' up among its words for true and false
            said = str(error) if str(error).startswith("found") else ""
            message = said or f"found {_cut(str(node.value))}, which is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, message, node.start_mark) from None


MOST_BYTES = 16 * 2**20
MOST_REPEATED = 100_000
"""Values that aliases may add to those that are written out; nine lines of them can stand for a billion."""
DEEPEST = 100

_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map", "merge")
"""YAML's types that a scenario has; PyYAML would also make bytes, sets and dates."""


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    if len(text) > 100:  # Python itself refuses to read more than 4300 digits, in words that do not help
        raise ValueError(f"found a whole number of {len(text):,} digits, allowed: 64 bits, {-(2**63)} to {2**64 - 1}")
    value = int(text, 0) if text[:2] in ("0x", "0o") else int(text)  # 010 is ten, not PyYAML's eight
    if not -(2**63) <= value < 2**64:
        raise ValueError(f"found {value}, allowed: 64 bits, {-(2**63)} to {2**64 - 1}")
    return value


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node))
    value = float(loader.construct_yaml_float(node))
    if math.isinf(value) and any(digit in text for digit in "0123456789"):
        raise ValueError(f"found {_cut(text)}, larger than any number of 64 bits; allowed: up to 1.8e308, or .inf")
    return value


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
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


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
        The file is missing, not text, not YAML, not one mapping, names a key twice, or is larger, deeper or, once
        aliases are followed, longer than a scenario can be.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise InputError(f"is too large, allowed: at most {MOST_BYTES // 2**20} MiB of YAML", file=str(file))
        text = data.decode("utf-8").replace("\r\n", "\n")
    except FileNotFoundError:
        raise InputError("no such file", file=str(file)) from None
    except IsADirectoryError:
        raise InputError("is a folder, allowed: a YAML file", file=str(file)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read as UTF-8 text: {error}", file=str(file)) from None
    lines: Lines = {}
    try:
        loader, node = _compose(text)
        if not isinstance(node, yaml.MappingNode):
            raise InputError(
                f"found {'nothing' if node is None else 'no mapping'}, allowed: keys and values", file=str(file)
            )
        _walk(node, "", lines, file)
        values = loader.construct_document(node)
    except _UNREADABLE as error:
        reason, line = _reason(error, text)
        raise InputError([Problem(f"not valid YAML: {reason}", None, str(file), line)]) from None
    return Document(values, file, lines)


def flow(value: Any) -> str:
    """A value in YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
    return text.strip().removesuffix("...").strip()


def override(document: Document, settings: list[str]) -> Document:
    """The document with ``key.path=value`` settings applied; values are YAML."""
    for setting in settings:
        dotted, equals, text = setting.partition("=")
        dotted = dotted.strip()
        if not equals or not all(dotted.split(".")):
            raise InputError(f"found {setting!r}, allowed: key.path=value, e.g. --set run.rounds=20", file="--set")
        try:
            loader, node = _compose(text)
            value = None if node is None else loader.construct_document(node)
        except _UNREADABLE as error:
            raise InputError(f"{_cut(text)!r} is not valid YAML: {_reason(error, text)[0]}", dotted, "--set") from None
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


_UNREADABLE = (yaml.YAMLError, ValueError, RecursionError)


def _compose(text: str) -> tuple[yaml.SafeLoader, yaml.Node | None]:
    """The one document in `text` as nodes, none of them made yet, and the loader that can make their values.

    Raises
    ------
    YAMLError, ValueError, RecursionError
        Not YAML, nested too deeply, or too long once aliases are followed.
    """
    loader = _Loader(text)
    node = loader.get_single_node()
    sizes: dict[int, int] = {}
    repeated = (0 if node is None else _size(node, sizes, 0)) - len(sizes)
    if repeated > MOST_REPEATED:
        raise ValueError(f"aliases repeat {repeated:.4g} values, allowed: at most {MOST_REPEATED:,}")
    return loader, node


def _size(node: yaml.Node, sizes: dict[int, int], depth: int) -> int:
    """The number of values under `node` with every alias followed; long text counts as several."""
    if depth > DEEPEST:
        raise RecursionError
    if id(node) not in sizes:
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [each for pair in node.value for each in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        own = 1 + (len(node.value) // 100 if isinstance(node, yaml.ScalarNode) else 0)
        sizes[id(node)] = own + sum(_size(child, sizes, depth + 1) for child in children)
    return sizes[id(node)]


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
        return f"nested too deeply (allowed: {DEEPEST} levels), or an alias inside its own anchor", None
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        return reason, mark.line + 1 if mark else None
    if isinstance(error, yaml.reader.ReaderError):
        return f"the character {chr(error.character)!r} is not allowed", text.count("\n", 0, error.position) + 1
    return str(error).splitlines()[0], None


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list) else value
