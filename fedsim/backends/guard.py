"""A worker among whose clients some may raise: they are found, and named or left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from fedsim.clients.worker import Worker
from fedsim.core.blame import blamed
from fedsim.core.errors import FedsimError, RunError
from fedsim.core.job import Job
from fedsim.core.returned import WrongFormError
from fedsim.core.types import Message, State


class ClientError(FedsimError):
    """The local work of some clients raised: client numbers to what was raised."""

    def __init__(self, clients: Mapping[int, str]) -> None:
        super().__init__(clients)
        self.clients = dict(clients)


class Failed(NamedTuple):
    """The work of a client raised: in its own round `work` (0: not known), in round `round` of the run (None: this)."""

    client: int
    why: str
    work: int = 0
    round: int | None = None


class Guard:
    """A worker whose clients cannot take the others down: who raises is found, and named or left out."""

    def __init__(self, worker: Worker, drop: bool) -> None:
        self.worker, self.drop = worker, drop
        self.dropped: dict[int, Failed] = {}
        """Jobs left out since they were last asked for, and why; their rows are zeros."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.worker, name)

    def run(self, job: Job) -> Message:
        """As `Worker.run`.

        Raises
        ------
        ClientError
            Some clients' work raises when each is computed alone, and they are not to be dropped. What clients keep is
            then as before.
        """
        before = self.worker.store.gather(job.clients)
        try:
            return self.worker.run(job)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a library's sys.exit as well, which would end the actor
            self.worker.store.scatter(job.clients, before)
            guilty = {} if isinstance(error, WrongFormError) else self._guilty(job, before)  # that is no client's fault
            if not guilty and isinstance(error, Exception):
                raise  # only all together: out of memory, say
            if not guilty:
                raise RunError(f"local work raised {type(error).__name__}: {error}") from error
            if not self.drop:
                raise ClientError({int(job.clients[i]): why for i, why in guilty.items()}) from None
            numbers = job.numbers
            self.dropped |= {
                int(numbers[i]): Failed(int(job.clients[i]), why, int(job.rounds[i])) for i, why in guilty.items()
            }
            idle = job.steps.copy()
            idle[list(guilty)] = 0
            return self.worker.run(replace(job, steps=idle))

    def _guilty(self, job: Job, before: State) -> dict[int, str]:
        """Rows that raise when computed alone."""
        found = {}
        for i in range(len(job.clients)):
            one = slice(i, i + 1)
            try:
                self.worker.run(job.of(np.array([i])))
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # somebody's data may raise anything
                found[i] = blamed(error) or f"{type(error).__name__}: {error}"
            self.worker.store.scatter(job.clients[one], {k: v[one] for k, v in before.items()})
        return found
