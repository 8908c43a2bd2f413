"""Draws of somebody's own parts from global random generators, which the seed of a scenario does not reach.

A run that is made again or resumed may get other numbers then. Parts are not refused for it: one may seed such a
generator itself.
"""

from __future__ import annotations

import importlib
import logging
import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

LOG = logging.getLogger("fedsim")
_OTHERS: ContextVar[frozenset[str]] = ContextVar("others", default=frozenset())


class GlobalDraws:
    """Looks whether the global generators have moved since it was made, for the sake of `parts` (names as asked for).

    Where none of them is somebody's own (``pkg.mod:Name``) it does not look.
    """

    def __init__(self, parts: Iterable[str]) -> None:
        self.own = sorted({name for name in parts if ":" in name})
        self.said: str | None = None
        if self.own:
            with undisturbed():
                importlib.import_module("rich.style")  # draws when it is imported, as it is by other libraries, late
        self._before = _states() if self.own else {}

    def look(self) -> str | None:
        """Say once, in a warning too, whose draws they may be; None where there are none."""
        if not self.own or self.said is not None:
            return self.said
        now = _states()
        moved = [name for name in now if name in self._before and now[name] != self._before[name]]
        if moved:
            whose, which = " or ".join(self.own), " and ".join(moved)
            self.said = (
                f"{whose} drew from the global generator of {which}, which the seed of the scenario does not reach: "
                "made again or resumed, a run may get other numbers; draw from fedsim.rng instead"
            )
            LOG.warning("%s", self.said)
        return self.said


@contextmanager
def undisturbed() -> Iterator[None]:
    """Python's generator is afterwards where it was: for libraries that draw names and ports from it."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


@contextmanager
def others_draw(*generators: str) -> Iterator[None]:
    """While it lasts, nothing is said of these generators here: a library's threads draw from them, whenever."""
    before = _OTHERS.set(_OTHERS.get() | set(generators))
    try:
        yield
    finally:
        _OTHERS.reset(before)


def _states() -> dict[str, Any]:
    import numpy as np

    kind, words, *rest = np.random.get_state()  # noqa: NPY002 - what a user's code may use
    found: dict[str, Any] = {"random": random.getstate()}
    found["numpy.random"] = (kind, words.tobytes(), *rest)  # type: ignore[attr-defined]
    torch = sys.modules.get("torch")
    found["torch"] = None if torch is None else torch.get_rng_state().numpy().tobytes()
    return {name: state for name, state in found.items() if name not in _OTHERS.get()}
