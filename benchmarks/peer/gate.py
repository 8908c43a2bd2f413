"""A peer's side of the conversation with `peers.py`: what it starts from, and when it is its turn.

A peer computes a round whenever the gate lets it, and stands still otherwise, so that all of them take turns on the
same cores. Needs NumPy alone: every peer's environment has it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from works import WORKS, Work


class Over(BaseException):
    """No more rounds are wanted."""


class Given:
    """What all peers start from, in `folder`: data, who has which rows, parameters, minibatches of the first round."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.facts: dict[str, Any] = json.loads((self.folder / "facts.json").read_text())
        self.work: Work = WORKS[self.facts["work"]]
        self.threads, self.lr = int(self.facts["threads"]), float(self.facts["lr"])

    def _array(self, name: str) -> Any:
        return np.load(self.folder / f"{name}.npy", mmap_mode="r")

    @cached_property
    def x(self) -> Any:
        """Samples ``[N, ...]``, float32, read where they are needed."""
        return self._array("x")

    @cached_property
    def y(self) -> Any:
        """Classes ``[N]``, int64."""
        return self._array("y")

    @cached_property
    def rows(self) -> Any:
        """Rows of the data that each client has ``[clients, samples]``."""
        return self._array("rows")

    @cached_property
    def start(self) -> Any:
        """Parameters ``[d]`` before the first round, in PyTorch's order and layout."""
        return self._array("start")

    @cached_property
    def cohort(self) -> Any:
        """Who works in the first round ``[m]``, in any order."""
        return self._array("cohort")

    @cached_property
    def orders(self) -> Any:
        """Minibatches of the first round as rows of the data ``[m, steps, batch]``."""
        return self._array("orders")

    @cached_property
    def mixing(self) -> Any:
        """On a graph: the mixing matrix ``[clients, clients]``, float32."""
        return self._array("mixing")

    def steps_of(self, client: int) -> Any:
        """The first round's minibatches of `client` ``[steps, batch]``, or None where it does not work in it."""
        place = np.flatnonzero(self.cohort == client)
        return self.orders[place[0]] if len(place) else None


class Gate:
    """Lets rounds through when they are asked for, and tells how long they took.

    What the peer's libraries print goes to standard error. Standard output and input are the conversation: lines of
    JSON. The first round is to be that of the given minibatches (`first`); its parameters are written for comparison.
    """

    def __init__(self, name: str, folder: str | Path) -> None:
        self.name, self.folder, self.first = name, Path(folder), True
        self._told, self._asked = os.fdopen(os.dup(1), "w"), os.fdopen(os.dup(0))
        os.dup2(2, 1)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        self._began, self._cpu, self._seconds, self._rounds = 0.0, 0.0, 0.0, 0
        self._doing = "ready"

    def between(self, parameters: Callable[[], Any], *packages: str) -> None:
        """To be called before every round, and so after every round; `packages` are the peer's, for their versions.

        `parameters` gives the global parameters ``[d]`` in PyTorch's order (of nodes on a graph ``[clients, d]``).

        Raises
        ------
        Over
            No more rounds are wanted.
        """
        now, cpu = time.perf_counter(), time.process_time()
        if self._doing == "turn":
            self._rounds += 1
            if now - self._began < self._seconds:
                return
            took, busy = now - self._began, cpu - self._cpu
            self._tell(seconds=took / self._rounds, cpu=busy / self._rounds, rounds=self._rounds)
        elif self._doing == "first":
            self.first = False
            np.save(self.folder / f"after-{self.name}.npy", np.asarray(parameters(), dtype=np.float32))
            self._tell(seconds=now - self._began)
        else:
            from importlib.metadata import version

            self._tell(versions={"python": sys.version.split()[0], **{p: version(p) for p in packages}})
        line = self._asked.readline().split()
        if not line or line[0] == "end":
            raise Over
        self._doing, self._seconds, self._rounds = line[0], float(line[1]), 0
        self._began, self._cpu = time.perf_counter(), time.process_time()

    def _tell(self, **facts: object) -> None:
        print(json.dumps(facts), file=self._told, flush=True)


def begin(name: str) -> tuple[Given, Gate]:
    """What the command line names: the folder of what is given, and this peer's gate. To be called before imports."""
    given = Given(sys.argv[1])
    if hasattr(os, "sched_setaffinity"):  # XLA and Ray make as many threads as there are cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.threads])
    return given, Gate(name, given.folder)
