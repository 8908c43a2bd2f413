"""``fedsim check``: which kind of part somebody names, and the laws of that kind."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fedsim.contract.tools import CheckResult, checked, explained, part_of
from fedsim.core.errors import InputError, unknown
from fedsim.core.registry import KINDS, load_object, names, spelled

Laws = Mapping[str, Callable[[], str]]
"""Law: a function that says what it measured, or raises `LawBrokenError`."""


@dataclass(frozen=True)
class _Promise:
    """Where the laws of a kind are: a function of the part that returns them, and whether the part is made first.

    Or (`whole`) a function of the part's name and settings that checks them itself.
    """

    laws: str
    made: bool = True
    whole: bool = False


PROMISES = {
    "algorithm": _Promise("fedsim.contract.laws:check_algorithm", whole=True),
    "participation": _Promise("fedsim.contract.participation_laws:check_participation", whole=True),
    "solver": _Promise("fedsim.contract.solver_laws:solver_laws"),
    "aggregator": _Promise("fedsim.contract.aggregator_laws:aggregator_laws"),
    "compressor": _Promise("fedsim.contract.attack_laws:laws_of_transforms"),
    "attack": _Promise("fedsim.contract.attack_laws:laws_of_transforms"),
    "privacy": _Promise("fedsim.contract.mechanism_laws:mechanism_laws"),
    "dataset": _Promise("fedsim.contract.dataset_laws:dataset_laws"),
    "partition": _Promise("fedsim.contract.partition_laws:partition_laws"),
    "graph": _Promise("fedsim.contract.graph_laws:graph_laws"),
    "metric": _Promise("fedsim.engine.measure_laws:measure_laws"),
    "logger": _Promise("fedsim.engine.logger_laws:logger_laws"),
    "section": _Promise("fedsim.reports.section_laws:section_laws"),
    "backend": _Promise("fedsim.contract.backend_laws:backend_laws", made=False),
}
"""Kinds of parts whose laws are known; the laws of parts of higher packages are there, beside what they inherit."""


def check(
    name: str | Callable[..., object], settings: Sequence[str] = (), kind: str | None = None
) -> list[CheckResult]:
    """Check every law of a part: registered, or somebody's own ``pkg.mod:Name``.

    Parameters
    ----------
    name : of the part; or a class or function of one's own itself, also of a notebook.
    settings : ``key=value`` for the part's keys, values in YAML.
    kind : of the part, where its name alone does not tell (``backend`` always: a function that makes one of a worker).

    Raises
    ------
    InputError
        No such part, it is of no kind that promises anything, or the settings are wrong.
    """
    name = str(spelled(name))
    kind = kind or kind_of(name)
    if kind not in PROMISES:
        raise InputError(unknown("kind", kind, list(PROMISES)))
    promise = PROMISES[kind]
    module, _, function = promise.laws.partition(":")
    find = getattr(importlib.import_module(module), function)
    if promise.whole:
        found: list[CheckResult] = find(name, list(settings))
        return explained(found)
    part = part_of(kind, name, settings) if promise.made else load_object(name)
    laws: Laws = find(part)
    results = []
    for law, test in laws.items():
        results.append(checked(law, test, type(part) if promise.made else None))
        if not results[0].passed:  # the others would say the same
            break
    return explained(results)


def kind_of(name: str) -> str:
    """The kind of a part, by its registered name or by what a class inherits.

    Raises
    ------
    InputError
        None, or several kinds have a part of that name.
    """
    kinds = [k for k in PROMISES if k in KINDS]
    if ":" in name:
        part = load_object(name)
        for kind in kinds:  # the first: compressors and attacks are transforms alike, and have the same laws
            if isinstance(part, type) and issubclass(part, load_object(KINDS[kind].base or "")):
                return kind
        raise InputError(
            f"'{name}' is {part!r}, which inherits nothing that promises anything; allowed: a subclass of "
            f"{', '.join(sorted({(KINDS[k].base or '').rpartition(':')[2] for k in kinds}))}, --kind graph for a "
            f"function that makes a graph, or --kind backend"
        )
    found = [k for k in kinds if name in names(k)]
    if len(found) > 1:
        raise InputError(f"'{name}' is the name of several parts; allowed: --kind {' or --kind '.join(found)}")
    if not found:
        every = [n for k in kinds for n in names(k)]
        raise InputError(unknown("part", name, every) + ", or 'pkg.mod:Name' for your own")
    return found[0]
