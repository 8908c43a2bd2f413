"""A selection of somebody's own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim import InputError, Pool, Reported, Selection
from fedsim.core.arrays import Floats, Ints


@dataclass(frozen=True, kw_only=True)
class Rarest(Selection):
    """Those that took part least often, of equal ones those that lose least on `samples`."""

    samples: int = 4

    def check(self, size: int, clients: int) -> None:
        if self.samples < 1:
            raise InputError(f"found {self.samples}, allowed: 1 or more", key="samples")

    def fresh(self, clients: int) -> dict[str, Floats]:
        return {"times": np.zeros(clients)}

    def choose(self, pool: Pool, known: dict[str, Floats]) -> Ints:
        lost = pool.losses(pool.clients, self.samples).mean
        return pool.clients[np.lexsort((lost, known["times"][pool.clients]))[: pool.size]]

    def learn(self, known: dict[str, Floats], reported: Reported) -> dict[str, Floats]:
        times = known["times"].copy()
        times[reported.clients] += 1
        return {"times": times}
