"""What goes into an app beside the scenario: modules of one's own, what they import, and data files that they name.

Python has no list of what a module needs. So its source is read: every ``import``, also those inside functions, and
every text that names a file beside it. What reading cannot see, `fedsim.deployment.proof` finds out by trying.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from os.path import normpath
from pathlib import Path
from re import fullmatch
from typing import Any

from fedsim.core.errors import InputError
from fedsim.core.modules import imported_from, own_file
from fedsim.scenario.sections import Scenario

PACKED = (".py", ".toml", ".md", ".yaml", ".yml", ".json", ".jsonl")
"""Files that Flower packs into an app; it leaves others out, and tests."""

_OURS = ("__init__", "client_app", "server_app", "scenario")
_SCENARIO = "scenario.yaml"
_IMPORTERS = ("import_module", "__import__")


@dataclass(frozen=True)
class OwnFiles:
    """Files of one's own for an app.

    Parameters
    ----------
    files : by their paths in the app's package.
    homes : the folders that they come from.
    left : data files that modules name, but that Flower leaves out of apps.
    """

    files: dict[str, Path]
    homes: list[Path]
    left: list[Path]


def own_files(scenario: Scenario) -> OwnFiles:
    """What belongs to parts named ``pkg.mod:Attr``, where they lie beside the scenario or in the working directory.

    Raises
    ------
    InputError
        Flower would leave a module out of the app, a module or a file that one names has a name that the app's own
        files have, or two modules have the same name.
    """
    places = list(dict.fromkeys((scenario.base.resolve(), Path.cwd())))
    named = sorted({name.partition(":")[0].partition(".")[0] for name in _part_names(scenario.resolved())})
    waiting = [(name, home) for name in named if (home := _home(name, places)) is not None]
    if waiting:
        waiting += [(name, places[0]) for name in sorted(imported_from(places[0]))]
    homes: dict[str, Path] = {}
    files: dict[str, Path] = {}
    left: set[Path] = set()
    while waiting:
        name, home = waiting.pop(0)
        file = own_file(home, name)
        if file is None or homes.get(name) == home:
            continue
        _check(name, home, homes)
        homes[name] = home
        for source in _sources(file):
            files[source.relative_to(home).as_posix()] = source
            if source.suffix == ".py":
                tree = _tree(source)
                waiting += [(top, home) for top in sorted(_imports(tree))]
                data = set(_data_files(tree, source, home))
                if home / _SCENARIO in data:
                    message = f"{source} names {home / _SCENARIO}, in whose place the app has the resolved scenario"
                    raise InputError(f"{message}; allowed: another name")
                files |= {file.relative_to(home).as_posix(): file for file in data if _packs(file)}
                left |= {file for file in data if not _packs(file)}
    return OwnFiles(dict(sorted(files.items())), sorted(set(homes.values())), sorted(left))


def _home(name: str, places: list[Path]) -> Path | None:
    return next((place for place in places if own_file(place, name) is not None), None)


def _check(name: str, home: Path, homes: dict[str, Path]) -> None:
    if fullmatch(r"test_.*|.*_test", name):
        raise InputError(f"Flower leaves {name}.py out of apps: give the module another name")
    if name in _OURS:
        raise InputError(f"found a module {name} in {home}, which the app has of its own; allowed: another name")
    if name in homes:
        raise InputError(f"found two modules {name}, in {homes[name]} and in {home}; allowed: different names")


def _sources(file: Path) -> Iterator[Path]:
    """A module's file, or all files of a package that Flower packs."""
    if file.name != "__init__.py":
        yield file
        return
    yield from (f for f in sorted(file.parent.rglob("*")) if f.is_file() and "__pycache__" not in f.parts and _packs(f))


def _tree(source: Path) -> ast.AST:
    """A module's syntax; of one that is none, nothing: whether it is needed shows when the app is tried."""
    try:
        return ast.parse(source.read_bytes(), str(source))
    except (SyntaxError, ValueError):
        return ast.Module([], [])


def _packs(file: Path) -> bool:
    return file.suffix in PACKED and not fullmatch(r"test_.*|.*_test", file.stem)


def _imports(tree: ast.AST) -> set[str]:
    """Top-level names of all that a module imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
            if node.level and not node.module:  # from . import a, b
                found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in _IMPORTERS and isinstance(node.args[0].value, str):
                found.add(node.args[0].value.lstrip(".").partition(".")[0])
    return found - {""}


def _data_files(tree: ast.AST, source: Path, home: Path) -> Iterator[Path]:
    """Files beside `source` that it names: as a text, or by folders and a name put together with ``/``."""
    for node in ast.walk(tree):
        for text in {_text(node), _joined(node)} - {""}:
            if len(text) > 255 or "\n" in text or "\0" in text or Path(text).is_absolute():
                continue
            file = Path(normpath(source.parent / text))
            inside = file.is_relative_to(home) and file.resolve().is_relative_to(home)  # neither is, through links
            if file.suffix != ".py" and file.is_file() and inside:
                yield file


def _text(node: ast.AST) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _joined(node: ast.AST) -> str:
    """``... / "a" / "b.json"`` as ``a/b.json``."""
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Div) or not (last := _text(node.right)):
        return ""
    before = _joined(node.left)
    return f"{before}/{last}" if before else last


def _part_names(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _part_names(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _part_names(inner)
    elif isinstance(value, str) and fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value):
        yield value
