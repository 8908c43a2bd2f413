"""Local work to be done."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.core.arrays import Ints
from fedsim.core.types import Message


@dataclass(frozen=True)
class Job:
    """Local work to be done: ``steps[i]`` steps of client ``clients[i]`` in its round ``rounds[i]``.

    `received` holds ``[d]`` tensors where all clients got the same, ``[m, d]`` where each got its own.
    """

    clients: Ints
    rounds: Ints
    steps: Ints
    received: Message
    jobs: Ints | None = None

    @property
    def numbers(self) -> Ints:
        """Serial numbers of the jobs; the clients' own where each has only one."""
        return self.clients if self.jobs is None else self.jobs
