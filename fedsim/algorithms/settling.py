"""Keys that are ``auto`` until a run is assembled, where two algorithms share them."""

from __future__ import annotations

import math
from typing import Any, Literal

from fedsim.algorithms.round import Surroundings
from fedsim.core.errors import InputError

Auto = Literal["auto"]


def found_chi(algorithm: Any, run: Surroundings) -> tuple[float, float]:
    """`chi_1` and `chi_2` of the run's graph and rates, for the algorithm's keys of these names.

    Raises
    ------
    InputError
        A key has another value: it was found for another graph, or for other rates.
    """
    found = run.chi()
    for name, value in zip(("chi_1", "chi_2"), found, strict=True):
        given = getattr(algorithm, name)
        if given != "auto" and not math.isclose(given, value, rel_tol=1e-9):
            message = f"found {given!r}, but links at these rates have {value!r}; allowed: auto"
            raise InputError(message, key=f"algorithm.{name}")
    return found


def number(value: float | Auto) -> float:
    """The value of a settled algorithm's key.

    Raises
    ------
    InputError
        The algorithm is not settled.
    """
    if value == "auto":
        raise InputError("found auto, which is found out when a run is assembled; allowed: a number")
    return value
