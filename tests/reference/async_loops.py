"""Virtual time written the slow, obvious way: seconds as exact Fractions, one event and one gradient at a time.

Each function makes its own schedule and trains every job alone at the moment it starts. Nothing here is imported from
the package under test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Times = list[Fraction]


@dataclass
class Server:
    """The model, how often it was combined, and what every client is doing."""

    problem: Any
    tau: Times
    lr: float
    steps: list[int]
    server_lr: float = 1.0
    factor: Callable[[int], float] = lambda _: 1.0
    x: Array = field(init=False)
    version: int = 0
    time: Fraction = Fraction(0)
    history: list[tuple[Fraction, list[int], list[int]]] = field(default_factory=list)
    """Time, clients and staleness of every combine."""

    def __post_init__(self) -> None:
        self.x = self.problem.x0.copy()
        self.ready = [Fraction(0)] * len(self.tau)
        self.delta = [np.zeros(self.problem.d)] * len(self.tau)
        self.pulled = [0] * len(self.tau)
        self.start(range(len(self.tau)))

    def start(self, clients: Any) -> None:
        """Clients pull the model and do their work, whose result the server sees tau later."""
        for i in clients:
            y = self.x.copy()
            for _ in range(self.steps[i]):
                y = y - self.lr * self.problem.grad(i, y)
            self.delta[i], self.pulled[i], self.ready[i] = y - self.x, self.version, self.time + self.tau[i]

    def combine(self, time: Fraction, clients: list[int], d: list[float]) -> None:
        """x = x + server_lr * sum_i d_i s(staleness_i) delta_i."""
        self.time = time
        stale = [self.version - self.pulled[i] for i in clients]
        move = np.zeros(self.problem.d)
        for i, s in zip(clients, stale, strict=True):
            move = move + d[i] * self.factor(s) * self.delta[i]
        self.x = self.x + self.server_lr * move
        self.version += 1
        self.history.append((time, clients, stale))
        self.start(clients)


def asynchronous(server: Server, rounds: int, d: list[float]) -> Server:
    """The next to arrive, ties by client, one at a time."""
    for _ in range(rounds):
        first = min(server.ready)
        server.combine(first, [server.ready.index(first)], d)
    return server


def fixed_interval(server: Server, rounds: int, d: list[float], window: Fraction) -> Server:
    """At every multiple of the window, whoever has finished by then."""
    for k in range(1, rounds + 1):
        server.combine(k * window, [i for i, t in enumerate(server.ready) if t <= k * window], d)
    return server


def barrier(server: Server, rounds: int, d: list[float], size: int) -> Server:
    """Whenever `size` clients have finished: those with the smallest (time, client); they restart together."""
    for _ in range(rounds):
        first = sorted((t, i) for i, t in enumerate(server.ready))[:size]
        server.combine(first[-1][0], sorted(i for _, i in first), d)
    return server
