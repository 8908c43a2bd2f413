"""Named, interchangeable parts: what a scenario's ``name:`` can stand for, and how users add their own.

A registered part is a frozen dataclass whose fields are its YAML keys, or (models) a factory function.
``"pkg.mod:Attr"`` names somebody's own part without registering it.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import ConfigDict

from fedsim.core import modules
from fedsim.core.errors import InputError, unknown

T = TypeVar("T")


@dataclass(frozen=True)
class Kind:
    """A kind of part: the module that registers the built-in ones, and what all of them inherit (None: functions).

    Both are imported on first use, so that a name look-up costs nothing more.
    """

    home: str
    base: str | None = None


KINDS = {
    "algorithm": Kind("fedsim.algorithms", "fedsim.algorithms.base:Algorithm"),
    "solver": Kind("fedsim.algorithms.solvers", "fedsim.algorithms.solvers:LocalSolver"),
    "surrogate": Kind("fedsim.algorithms.surrogates", "fedsim.algorithms.surrogates:Surrogate"),
    "dataset": Kind("fedsim.data.all", "fedsim.data.sets:DatasetPart"),
    "partition": Kind("fedsim.data.all", "fedsim.data.partition:Partition"),
    "model": Kind("fedsim.models.all", "fedsim.models.build:Model"),
    "loss": Kind("fedsim.models.build"),
    "graph": Kind("fedsim.graphs.topology", "fedsim.graphs.base:Graph"),
    "mixing": Kind("fedsim.graphs.mixing"),
    "aggregator": Kind("fedsim.messages.rules", "fedsim.messages.aggregators:Aggregator"),
    "pre": Kind("fedsim.messages.pre", "fedsim.messages.pre:PreAggregation"),
    "compressor": Kind("fedsim.messages.compressors", "fedsim.messages.base:MessageTransform"),
    "attack": Kind("fedsim.messages.attacks", "fedsim.messages.base:MessageTransform"),
    "participation": Kind("fedsim.participation.modes", "fedsim.participation.synchronous:Participation"),
    "selection": Kind("fedsim.participation.selections", "fedsim.participation.selection:Selection"),
    "privacy": Kind("fedsim.privacy", "fedsim.privacy.base:Mechanism"),
    "metric": Kind("fedsim.engine.measures", "fedsim.core.metrics:Measure"),
    "logger": Kind("fedsim.engine.loggers", "fedsim.engine.watch:Logger"),
    "section": Kind("fedsim.reports.sections", "fedsim.reports.sections:ReportSection"),
    "audit": Kind("fedsim.audit", "fedsim.audit.base:Audit"),
}
_named: set[str] = set()
_parts: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}


class Part:
    """Base class of registered dataclasses: unknown keys and silent type conversions are errors."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)
    without: ClassVar[Mapping[str, str]] = {}
    """Keys that others of its kind have, and why it has not: a sentence after ``found ..., but``."""

    def recorded(self, base: Path) -> Self:
        """The part with what it knows of files that its keys name; relative paths are from the folder `base`."""
        return self


class _Register:
    """``@register.algorithm("name")`` and its siblings, one per kind."""

    def __getattr__(self, kind: str) -> Callable[[str], Callable[[T], T]]:
        if kind not in _parts:
            raise AttributeError(unknown("kind of part", kind, list(_parts)))

        def named(name: str) -> Callable[[T], T]:
            def add(part: T) -> T:
                if _parts[kind].get(name, part) is not part and not _same(_parts[kind][name], part):
                    raise ValueError(f"{kind} '{name}' is already registered by {_parts[kind][name]!r}")
                _parts[kind][name] = part
                return part

            return add

        return named

    def __dir__(self) -> list[str]:
        return list(_parts)


register = _Register()


def kinds() -> list[str]:
    return list(_parts)


def names(kind: str) -> list[str]:
    """Sorted names registered for `kind`."""
    importlib.import_module(KINDS[kind].home)
    return sorted(_parts[kind])


def lookup(kind: str, name: object) -> Any:
    """The part called `name`: a registered name, or ``pkg.mod:Attr``.

    Raises
    ------
    InputError
        The name is not registered, the module cannot be imported, or it has no such attribute.
    """
    allowed = names(kind)
    if not isinstance(name, str):
        raise InputError(f"found {name!r}, allowed: a name ({', '.join(allowed)}) or 'pkg.mod:Attr'")
    if ":" in name:
        return load_object(name)
    if name not in _parts[kind]:
        raise InputError(unknown(kind, name, allowed) + ", or 'pkg.mod:Attr' for your own")
    return _parts[kind][name]


def load_object(path: str) -> Any:
    """Import ``pkg.mod:Attr``; modules beside the scenario and in the working directory come before installed ones."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    module_name, _, attribute = path.partition(":")
    try:
        module = modules.find(module_name)
    except (Exception, SystemExit) as error:  # a user's module may fail in any way while it is imported
        raise InputError(f"cannot import '{module_name}' of '{path}': {type(error).__name__}: {error}") from error
    _named.add(getattr(module, "__name__", module_name).partition(".")[0])
    if not hasattr(module, attribute):
        if module_name == "__main__":
            message = f"'{path}' is of the script or notebook that began the run, and this is another program"
            raise InputError(f"{message}; allowed: the name of a module that it can be imported from")
        public = [n for n in vars(module) if not n.startswith("_")]
        raise InputError(unknown(f"attribute of module {module_name}", attribute, public))
    return getattr(module, attribute)


def spelled(value: Any, key: str = "") -> Any:
    """Nested mappings and lists with ``pkg.mod:Attr`` in the place of classes and functions, as a scenario has them.

    Raises
    ------
    InputError
        One would not be found again by such a name: it was made inside a function, say.
    """
    if isinstance(value, Mapping):
        return {k: spelled(v, f"{key}.{k}" if key else str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [spelled(v, f"{key}.{i}") for i, v in enumerate(value)]
    if not (isinstance(value, type) or inspect.isroutine(value)):
        return value
    home, name = str(getattr(value, "__module__", None)), str(getattr(value, "__qualname__", None))
    if getattr(sys.modules.get(home), name, None) is not value:
        message = f"found {name} of {home}, which cannot be found again by its name"
        raise InputError(f"{message}; allowed: a class or function at the top of a module, or its name", key)
    return f"{modules.plain_name(home)}:{name}"


def is_named(module: str) -> bool:
    """Whether a module is of a package that somebody named as ``pkg.mod:Attr``."""
    top = module.partition(".")[0]
    return top in _named and top != "fedsim"


def _same(old: Any, new: Any) -> bool:
    """A module imported twice (a reload, a doctest) registers the same part again; that is no clash."""
    return getattr(old, "__qualname__", 0) == getattr(new, "__qualname__", 1) and old.__module__ == new.__module__
