"""Imports between packages go strictly downwards, those between files have no cycles, and heavy libraries wait."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent

FLOORS = (  # a package imports only from rows below its own; the top is the last one
    "core figures",
    "algorithms messages graphs devices data models",
    "clients participation objective",
    "privacy backends contract",
    "scenario",
    "engine",
    "reports sweeps deployment audit",
    "cli",
)
_FLOOR = {name: floor for floor, row in enumerate(FLOORS) for name in row.split()}


def files() -> dict[str, set[str]]:
    """Modules of fedsim and the modules of fedsim that each imports, anywhere in its code."""
    paths = sorted((ROOT / "fedsim").rglob("*.py"))
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}
    found: dict[str, set[str]] = {}
    for name, path in names.items():
        imports = found.setdefault(name, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imports |= {a.name for a in node.names if a.name.split(".")[0] == "fedsim"}
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fedsim":
                module = node.module or ""
                imports |= {f"{module}.{a.name}" if f"{module}.{a.name}" in names else module for a in node.names}
        imports -= {name, "fedsim"}  # `fedsim` itself: lazy names and the version
    return found


def _package(module: str) -> str:
    return [*module.split("."), ""][1]


def test_every_file_is_in_a_package_with_a_floor() -> None:
    loose = {"", "__main__", "deploy_server", "deploy_client"}  # the last two: shims for apps of 0.1.0
    assert {_package(m) for m in files()} - set(_FLOOR) == loose
    assert len(_FLOOR) == 21
    assert len(FLOORS) == 8


def test_imports_between_packages_go_downwards() -> None:
    upwards = {
        f"{name} imports {other}"
        for name, imports in files().items()
        for other in imports
        if _package(name) in _FLOOR
        and _package(other) != _package(name)
        and _FLOOR[_package(other)] >= _FLOOR[_package(name)]
    }
    assert upwards == set()


def test_files_have_no_import_cycles() -> None:
    try:
        list(TopologicalSorter(files()).static_order())
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_every_package_says_what_it_is() -> None:
    for name in _FLOOR:
        doc = ast.get_docstring(ast.parse((ROOT / "fedsim" / name / "__init__.py").read_text(encoding="utf-8"))) or ""
        assert 4 <= len(doc.splitlines()) <= 12, (
            f"fedsim/{name}/__init__.py: {len(doc.splitlines())} lines of docstring"
        )
        assert "import" in doc, f"fedsim/{name}/__init__.py does not say what it may import"


def test_the_simulator_starts_without_what_it_may_not_need() -> None:
    heavy = ("ray", "flwr", "datasets", "flwr_datasets", "sklearn", "matplotlib", "pandas")
    code = f"import fedsim.engine.loop, sys; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
