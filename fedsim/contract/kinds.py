"""Which laws are there for a part: ``fedsim check NAME`` finds out what kind of part NAME is."""

from __future__ import annotations

from collections.abc import Callable

from fedsim.algorithms.base import Algorithm
from fedsim.contract.laws import check_algorithm
from fedsim.contract.participation_laws import check_participation
from fedsim.contract.tools import CheckResult
from fedsim.core.errors import InputError, unknown
from fedsim.core.registry import load_object, names
from fedsim.participation.base import Participation

Check = Callable[[str, list[str]], list[CheckResult]]

CHECKS: dict[str, tuple[type, Check]] = {
    "algorithm": (Algorithm, check_algorithm),
    "participation": (Participation, check_participation),
}
"""For every kind of part that has laws: its base class, and what checks them."""


def check(name: str, settings: list[str]) -> list[CheckResult]:
    """Check the laws of the part called `name`, a registered name or ``pkg.mod:Class``.

    Raises
    ------
    InputError
        There is no such part, or no laws for its kind; its settings are wrong.
    """
    if ":" in name:
        part = load_object(name)
        for base, test in CHECKS.values():
            if isinstance(part, type) and issubclass(part, base):
                return test(name, settings)
        bases = ", ".join(base.__name__ for base, _ in CHECKS.values())
        raise InputError(f"'{name}' is {part!r}, allowed: a frozen dataclass that inherits one of {bases}")
    for kind, (_, test) in CHECKS.items():
        if name in names(kind):
            return test(name, settings)
    allowed = [known for kind in CHECKS for known in names(kind)]
    raise InputError(unknown("part", name, allowed) + ", or 'pkg.mod:Class' for your own")
