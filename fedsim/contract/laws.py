"""The laws every algorithm has to keep; ``fedsim check PKG.MOD:CLASS`` checks them on anybody's own.

They are checked on small generated quadratics (`bench`): different objectives, unequal local steps, noisy
gradients, float64. An exception inside the algorithm is a failed check that names it, never a crash.
"""

from __future__ import annotations

from fedsim.algorithms.base import Algorithm
from fedsim.contract.algorithm_laws import LAWS
from fedsim.contract.bench import CLIENTS, Bench
from fedsim.contract.solver_laws import solver_laws
from fedsim.contract.tools import CheckResult, LawBrokenError, checked, part_of
from fedsim.core.errors import InputError

__all__ = ["LAWS", "CheckResult", "check_algorithm"]


def check_algorithm(name: str, settings: list[str]) -> list[CheckResult]:
    """Check every law on the algorithm called `name` (registered, or ``pkg.mod:Class``).

    Parameters
    ----------
    settings : ``key=value`` for the algorithm's keys, values in YAML. A `solver` among them has to keep its own laws.

    Raises
    ------
    InputError
        No such algorithm, it is not one, or the settings are wrong.
    """
    algorithm: Algorithm = part_of("algorithm", name, settings)
    results = [checked("keys fit together", lambda: _keys(algorithm))]
    if not results[0].passed:
        return results
    bench = Bench(algorithm)
    results += [checked(law, lambda test=test: test(bench)) for law, test in LAWS.items()]  # type: ignore[misc]
    if algorithm.solver is not None:
        results += [checked(f"solver: {law}", test) for law, test in solver_laws(algorithm.solver).items()]
    return results


def _keys(algorithm: Algorithm) -> str:
    try:
        algorithm.check_solver()
        algorithm.check(CLIENTS)
    except InputError as error:
        raise LawBrokenError(str(error)) from None
    return f"{type(algorithm).__name__}, {algorithm.setting}"
