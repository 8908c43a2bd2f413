"""Who of a deployment's clients can be asked, and a round in which others take the place of those that failed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from fedsim.core.arrays import Ints
from fedsim.participation.base import Arrival


class Population(Protocol):
    """The clients of a deployment; `patience`: seconds for which a run waits for them before it ends."""

    @property
    def patience(self) -> float: ...

    def here(self, client: int) -> bool:
        """Whether `client` can be asked now."""

    def node(self, client: int) -> int | None:
        """A number of its connection: another one after it was away; None while it is."""

    def connected(self) -> Ints | None:
        """Those that can be asked now, ascending; None: everybody can."""

    def enough(self, least: int = 0) -> None:
        """Wait until so many can be asked as a round needs, and at least `least`.

        Raises
        ------
        RunError
            They cannot, for too long.
        """


def joined(event: Arrival, others: Arrival) -> Arrival:
    """`event` with the clients of `others`, too, in the order of their numbers."""
    both: dict[str, Any] = {}
    for name in ("clients", "rounds", "steps", "staleness", "weights", "roles"):
        mine, theirs = getattr(event, name), getattr(others, name)
        both[name] = None if mine is None or theirs is None else np.concatenate([mine, theirs])
    return replace(event, **both).of(np.argsort(both["clients"], kind="stable"))
