"""The laws every algorithm has to keep; ``fedsim check PKG.MOD:CLASS`` checks them on anybody's own.

They are checked on small generated quadratics (`bench`): different objectives, unequal local steps, noisy
gradients, float64. An exception inside the algorithm is a failed check that names it, never a crash.
"""

from __future__ import annotations

import dataclasses

from fedsim.algorithms.base import Algorithm
from fedsim.contract.algorithm_laws import LAWS
from fedsim.contract.bench import CLIENTS, Bench
from fedsim.contract.tools import CheckResult, LawBrokenError, checked
from fedsim.core.documents import Document, override
from fedsim.core.errors import InputError
from fedsim.core.fields import make_part
from fedsim.core.registry import lookup

__all__ = ["LAWS", "CheckResult", "check_algorithm"]


def check_algorithm(name: str, settings: list[str]) -> list[CheckResult]:
    """Check every law on the algorithm called `name` (registered, or ``pkg.mod:Class``).

    Parameters
    ----------
    settings : ``key=value`` for the algorithm's keys, values in YAML.

    Raises
    ------
    InputError
        No such algorithm, it is not one, or the settings are wrong.
    """
    kind = lookup("algorithm", name)
    if not (isinstance(kind, type) and issubclass(kind, Algorithm) and dataclasses.is_dataclass(kind)):
        raise InputError(
            f"'{name}' is {kind!r}, allowed: a frozen dataclass that inherits fedsim.algorithms.base.Algorithm"
        )
    missing = sorted(kind.__abstractmethods__)
    if missing:
        raise InputError(
            f"'{name}' does not define {', '.join(missing)}, allowed: an algorithm that defines all of its methods"
        )
    if getattr(kind, "setting", None) not in ("server", "gossip"):
        raise InputError(f"'{name}' has no setting, allowed: inherit ServerAlgorithm or GossipAlgorithm")
    algorithm = make_part(kind, override(Document({}), settings).values)
    results = [checked("keys fit together", lambda: _keys(algorithm))]
    if not results[0].passed:
        return results
    bench = Bench(algorithm)
    return results + [checked(law, lambda test=test: test(bench)) for law, test in LAWS.items()]  # type: ignore[misc]


def _keys(algorithm: Algorithm) -> str:
    try:
        algorithm.check_solver()
        algorithm.check(CLIENTS)
    except InputError as error:
        raise LawBrokenError(str(error)) from None
    return f"{type(algorithm).__name__}, {algorithm.setting}"
