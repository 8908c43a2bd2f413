"""Clients that have cost the run a timeout: rounds do not wait for them again until there is reason to.

One that is not connected is not waited for until it is. One that is connected and silent is asked again after as long
as it was waited for, then after twice as long, and so on. Whatever it sends, and a new SuperNode in its place, ends
that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

_MOST_DOUBLINGS = 16


@dataclass
class _Gap:
    """A client's silence: the `node` it had then (None: none), how often it was waited for, and until when it rests."""

    node: int | None
    times: int
    until: float


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
        before, node = self._gaps.get(client), self._node_of(client)
        times = 1 if before is None else min(before.times + 1, _MOST_DOUBLINGS)
        rest = waited * 2 ** (times - 1)
        self._gaps[client] = _Gap(node, times, time.monotonic() + rest)
        if node is None:
            return "rounds do not wait for it until it is back"
        return f"it is asked again after {rest:g} s"

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
        return node is None or time.monotonic() < gap.until
