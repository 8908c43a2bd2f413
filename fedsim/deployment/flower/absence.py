"""Clients that have cost the run a timeout: rounds do not wait for them again until they show that they are there.

One that is not connected is not asked until it is. One that is connected and silent is asked in the next round, then
after as long as it was waited for, after twice as long, and so on, but no round waits for it when the others have
answered. Whatever it sends, also too late, and a new SuperNode in its place, ends that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

_MOST_DOUBLINGS = 16


@dataclass
class _Gap:
    """A client's silence: the `node` it had then (None: none), the seconds it was `waited` for, and until when it rests
    after having been asked in vain so many `times`."""

    node: int | None
    waited: float
    until: float
    times: int = 0


class Absence:
    """Who is not waited for.

    Parameters
    ----------
    node_of : the node that is a client now, if it is connected.
    """

    def __init__(self, node_of: Callable[[int], int | None]) -> None:
        self._node_of, self._gaps = node_of, dict[int, _Gap]()

    def missed(self, client: int, waited: float) -> str:
        """`client` was waited for in vain, for `waited` seconds; what follows from it, in words."""
        if client in self._gaps:
            self.passed(client)
        else:
            self._gaps[client] = _Gap(self._node_of(client), waited, time.monotonic())
        return "it is not waited for again until " + ("it is back" if self._node_of(client) is None else "it answers")

    def passed(self, client: int) -> None:
        """`client`, which was not waited for, was asked and has not answered before the others."""
        gap = self._gaps[client]
        gap.until = time.monotonic() + gap.waited * 2 ** min(gap.times, _MOST_DOUBLINGS)
        gap.times += 1

    def ask(self, client: int) -> None:
        """Let the rest of `client` be over: there is nobody else to ask."""
        if client in self._gaps:
            self._gaps[client].until = time.monotonic()

    def heard(self, client: int) -> None:
        """`client` has sent something."""
        self._gaps.pop(client, None)

    def lasts(self, client: int) -> bool:
        """Whether `client` is not to be waited for."""
        gap = self._gaps.get(client)
        if gap is None:
            return False
        node = self._node_of(client)
        if node is not None and node != gap.node:
            del self._gaps[client]
            return False
        return True

    def rests(self, client: int) -> bool:
        """Whether `client` is not even to be asked."""
        if not self.lasts(client):
            return False
        return self._node_of(client) is None or time.monotonic() < self._gaps[client].until
