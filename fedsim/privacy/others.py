"""Which mechanisms go with an algorithm, for the answer of one that does not."""

from __future__ import annotations

from collections.abc import Callable

from fedsim.algorithms.base import Algorithm, ServerAlgorithm
from fedsim.algorithms.diff2 import Diff2
from fedsim.algorithms.diff2_bvr import Diff2Bvr
from fedsim.core.errors import InputError
from fedsim.participation.base import Setting
from fedsim.privacy.local_dp import check_messages
from fedsim.privacy.oracle import calls_per_step
from fedsim.privacy.updates import check_sent

OTHERS, NO_OTHERS = "; allowed with this one: ", "; no mechanism goes with this one"


def not_for(setting: Setting, whom: str) -> InputError:
    """The answer of a mechanism that is for `whom` alone."""
    found = going_with(setting.algorithm)
    allowed = f"{OTHERS}{', '.join(found)}" if found else NO_OTHERS
    return InputError(f"this mechanism is for algorithm {whom}{allowed}", "privacy.mechanism")


def going_with(algorithm: Algorithm) -> list[str]:
    """The mechanisms that go with an algorithm by what it sends and asks for, whatever else its scenario says."""
    own = [name for kind, name in ((Diff2, "gaussian"), (Diff2Bvr, "gaussian_bvr")) if type(algorithm) is kind]
    if not own and _passes(lambda: calls_per_step(algorithm)):
        own.append("dp_sgd")
    if not isinstance(algorithm, ServerAlgorithm):
        return own if algorithm.needs.flows else [*own, "decor", "muffliato"]
    if "synchronous" in (algorithm.needs.modes or ("synchronous",)) and _passes(lambda: check_sent(algorithm)):
        own += ["dp_fedavg", "dp_ftrl"]
    return [*own, "local_dp"] if _passes(lambda: check_messages(algorithm, 3)) else own


def _passes(check: Callable[[], object]) -> bool:
    try:
        check()
    except InputError:
        return False
    return True
