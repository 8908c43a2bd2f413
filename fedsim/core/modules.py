"""Modules of somebody's own: beside a scenario they win over installed ones of that name, for their owner alone.

A module beside the scenario is imported under its own name where nothing else has that name. Otherwise it is imported
under a name made of its folder, and the installed module stays what it is for everybody else: a `random.py` beside a
scenario breaks nothing. What such a module imports is looked for beside it first, as for a Python script.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

_PREFIX = "fedsim_beside_"
_NEVER = ("fedsim", "__main__")
"""Names that always are what they are: a clone of fedsim may lie in the working directory."""

_packages: dict[str, Path] = {}
"""Names that stand for folders whose modules have namesakes elsewhere: ``PREFIX...module`` is ``module`` there."""
_plain: dict[str, Path] = {}
"""Modules that have no namesake, and the folders they were found in."""
_beside: ContextVar[tuple[Path, ...]] = ContextVar("beside", default=())


@contextmanager
def beside(folder: Path) -> Iterator[None]:
    """While it lasts, modules are looked for in `folder` first."""
    token = _beside.set((folder.resolve(),))
    try:
        yield
    finally:
        _beside.reset(token)


def find(name: str) -> ModuleType:
    """The module called `name`: beside the scenario that is being read, in the working directory, or installed."""
    for folder in (*_beside.get(), Path.cwd()):
        if own_file(folder, name) is not None:
            return importlib.import_module(_alias(folder, name))
    return importlib.import_module(name)


def plain_name(module: str) -> str:
    """What its owner calls a module that may have got another name here."""
    top, _, rest = module.partition(".")
    return rest if top in _packages else module


def own_file(folder: Path, name: str) -> Path | None:
    """The file in `folder` that a module of that name, or the package it is in, would be imported from."""
    top = name.partition(".")[0]
    if top in _NEVER or top.startswith(_PREFIX):
        return None
    files = (folder / f"{top}.py", folder / top / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def imported_from(folder: Path) -> set[str]:
    """Names of the modules and packages of `folder` that were imported so far, by scenarios or by each other."""
    tops = {name for name, home in _plain.items() if home == folder}
    for package in (p for p, home in _packages.items() if home == folder):
        tops |= {name.split(".")[1] for name in sys.modules if name.startswith(f"{package}.")}
    return tops


@dataclass(frozen=True)
class Places:
    """Where this process finds modules, for another one that gets objects from it."""

    paths: Sequence[str]
    packages: Mapping[str, Path]
    plain: Mapping[str, Path]

    @classmethod
    def here(cls) -> Places:
        return cls(list(sys.path), dict(_packages), dict(_plain))

    def adopt(self) -> None:
        """Find modules there, too, as the other process does."""
        sys.path.extend(p for p in self.paths if p not in sys.path)
        _packages.update(self.packages)
        _plain.update({name: folder for name, folder in self.plain.items() if name not in sys.modules})


def _alias(folder: Path, name: str) -> str:
    """The name under which the module `name` of `folder` is imported."""
    top = name.partition(".")[0]
    if _plain.get(top) == folder:
        return name
    file = own_file(folder, top)
    importlib.invalidate_caches()
    if top in _plain or _elsewhere(top, file):
        package = _PREFIX + hashlib.sha256(str(folder).encode()).hexdigest()[:12]
        _packages[package] = folder
        return f"{package}.{name}"
    _plain[top] = folder
    return name


def _elsewhere(top: str, file: Path | None) -> bool:
    """Whether `top` is the name of another module than `file`."""
    if top in sys.modules:
        found = getattr(sys.modules[top], "__file__", None)
    else:
        finders = (f for f in sys.meta_path if not isinstance(f, _Finder))
        specs = (finder.find_spec(top, None) for finder in finders)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None:
            return False
        found = spec.origin
    return found is None or Path(found).resolve() != file


class _Finder(MetaPathFinder):
    """Finds what `_alias` gave names to, and nothing else."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        top = fullname.partition(".")[0]
        if fullname in _packages:
            package = ModuleSpec(fullname, None, is_package=True)
            package.submodule_search_locations = [str(_packages[fullname])]
            return package
        folder = _packages.get(top) or _plain.get(top)
        if folder is None:
            return None
        spec = PathFinder.find_spec(fullname, [str(folder)] if path is None else path)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Runs a module whose own ``import`` looks beside it first."""

    def exec_module(self, module: ModuleType) -> None:
        top = module.__name__.partition(".")[0]
        folder = _packages.get(top) or _plain[top]
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": _importing(folder)}
        super().exec_module(module)


def _importing(folder: Path) -> Callable[..., Any]:
    def own_import(
        name: str, globals: Any = None, locals: Any = None, fromlist: Sequence[str] = (), level: int = 0
    ) -> Any:
        if level == 0 and not _is_itself(folder, name, globals) and own_file(folder, name) is not None:
            alias = _alias(folder, name)
            if alias != name:
                importlib.import_module(alias)
                if not fromlist:  # `import a.b` gives a
                    return sys.modules[_alias(folder, name.partition(".")[0])]
                return builtins.__import__(alias, globals, locals, fromlist, 0)
        return builtins.__import__(name, globals, locals, fromlist, level)

    return own_import


def _is_itself(folder: Path, name: str, globals: Any) -> bool:
    """Whether a module that is one file imports its own name: then its namesake is meant (`random.py` of `random`)."""
    file = (globals or {}).get("__file__")
    return file is not None and Path(file) == folder / f"{name.partition('.')[0]}.py"


sys.meta_path.insert(0, _Finder())
