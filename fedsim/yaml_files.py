"""YAML with the line of every key: scenario and sweep files, and ``--set`` overrides."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from fedsim.errors import InputError, Problem

Lines = dict[tuple[str, ...], int]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers and booleans: ``1e-3`` is a number (PyYAML reads a string), ``on`` and ``no`` are strings."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, regexp) for tag, regexp in resolvers if tag not in ("tag:yaml.org,2002:float", "tag:yaml.org,2002:bool")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
# Integers are looked for before floats, so that 10 stays an integer.
for _resolvers in _Loader.yaml_implicit_resolvers.values():
    _resolvers.sort(key=lambda r: r[0] != "tag:yaml.org,2002:int")


@dataclass(frozen=True)
class Document:
    """A YAML mapping, the file it came from, the line of each key, and which keys ``--set`` gave."""

    values: dict[str, Any]
    file: Path | None = None
    lines: Lines = field(default_factory=dict)
    overridden: frozenset[tuple[str, ...]] = frozenset()

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
        path = tuple(problem.key.split(".")) if problem.key else ()
        if any(path[: len(o)] == o for o in self.overridden):
            return replace(problem, file="--set")
        while path and path not in self.lines:
            path = path[:-1]
        return replace(problem, file=str(self.file) if self.file else None, line=self.lines.get(path))


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
        _walk(node, (), lines, file)
        values = _Loader(text).construct_document(yaml.compose(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = Problem(
            f"not valid YAML: {error.problem or error.context}", None, str(file), mark.line + 1 if mark else None
        )
        raise InputError([problem]) from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"not valid YAML: {error}", file=str(file)) from None
    return Document(values, file, lines)


def override(document: Document, settings: list[str]) -> Document:
    """The document with ``key.path=value`` settings applied; values are YAML."""
    values, overridden = _copy(document.values), set(document.overridden)
    for setting in settings:
        dotted, equals, text = setting.partition("=")
        path = tuple(dotted.strip().split("."))
        if not equals or not all(path):
            raise InputError(f"--set: found {setting!r}, allowed: key.path=value, e.g. --set run.rounds=20")
        try:
            value = _Loader(text).get_single_data()
        except yaml.YAMLError as error:
            raise InputError(f"--set {dotted}: {text!r} is not valid YAML: {error}") from None
        set_path(values, path, value)
        overridden.add(path)
    return replace(document, values=values, overridden=frozenset(overridden))


def set_path(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Set ``values[path[0]][path[1]]... = value``, making mappings on the way."""
    inner = values
    for i, key in enumerate(path[:-1]):
        if not isinstance(inner.get(key), dict):
            if inner.get(key) is not None:
                raise InputError(
                    f"--set: '{'.'.join(path[: i + 1])}' is {inner[key]!r}, not a mapping with a key '{path[i + 1]}'"
                )
            inner[key] = {}
        inner = inner[key]
    inner[path[-1]] = value


def _walk(node: yaml.Node, path: tuple[str, ...], lines: Lines, file: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            line = key.start_mark.line + 1
            if here in lines:
                message = f"found twice, here and in line {lines[here]}; allowed: each key once"
                raise InputError([Problem(message, ".".join(here), str(file), line)])
            lines[here] = line
            _walk(value, here, lines, file)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            lines[(*path, str(i))] = value.start_mark.line + 1
            _walk(value, (*path, str(i)), lines, file)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list) else value
