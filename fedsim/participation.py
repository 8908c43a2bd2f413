"""Who works, when and how much: participation modes turn a scenario into events of the simulation loop.

An event is either a `Dispatch` (clients start local work from the current model) or an `Arrival` (these clients'
results are combined: one round). Modes draw from keys alone, so any round can be reproduced without the ones before it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from fedsim import rng
from fedsim.algorithms.base import Algorithm, ServerAlgorithm
from fedsim.clock import seconds
from fedsim.errors import InputError
from fedsim.registry import Part, register
from fedsim.system import Durations, SystemSection
from fedsim.task import Ints, Task
from fedsim.types import Count, Fraction, Probability

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Dispatch:
    """`clients` start ``steps[i]`` local steps of their round ``rounds[i]`` from the current model."""

    clients: Ints
    rounds: Ints
    steps: Ints
    jobs: Ints | None = None
    """Serial numbers of the jobs where a client may have several not combined yet (None: the clients' own numbers)."""


@dataclass(frozen=True)
class Arrival:
    """The results of `clients` are combined: round `number` ends at virtual second `time`.

    `weights` ``[m]`` aggregate at a server; `mixing` is the realised matrix of a gossip round. `delays` are DSpodFL's
    (processing, transmission) of this round, `sends` the number of messages that cross a link, `trace` what is recorded
    of the realised schedule.
    """

    number: int
    time: float
    clients: Ints
    rounds: Ints
    steps: Ints
    staleness: Ints
    sends: int
    weights: Floats | None = None
    mixing: Any = None
    delays: tuple[float, float] | None = None
    trace: dict[str, Any] = field(default_factory=dict)
    jobs: Ints | None = None


Event = Dispatch | Arrival


class Participation(Part, ABC):
    """A participation mode; its fields are its YAML keys."""

    setting: ClassVar[Literal["server", "gossip"]]

    @abstractmethod
    def events(
        self, task: Task, algorithm: Algorithm, seed: int, start: int, network: Any, durations: Durations | None = None
    ) -> Iterator[Event]:
        """Events from the first one after round `start` on, without end. `network` is the gossip network or None."""

    def check(self, task_clients: int) -> None:
        """Raise InputError where keys do not fit the number of clients."""


@register.participation("synchronous")
@dataclass(frozen=True, kw_only=True)
class Synchronous(Participation):
    """Every round a cohort works from the same model and the server waits for all of it.

    Parameters
    ----------
    fraction, clients_per_round : cohort size, one of the two (default: everybody). A fraction of n clients is
        round(fraction * n), at least 1.
    sampling : ``uniform`` without replacement, exactly the cohort size; ``bernoulli``, each client with probability
        `fraction`, drawn again if nobody is; ``weighted``, with replacement with probability p_i and weight 1 / cohort
        size per draw (Li et al., arXiv 1907.02189, scheme I: unbiased).
    stragglers : share of each cohort that does only part of its work, uniform between 1 and all but one unit (FedProx,
        arXiv 1812.06127).
    straggler_policy : ``partial`` uses what stragglers did (FedProx), ``drop`` leaves them out (the paper's FedAvg).
    """

    setting: ClassVar[Literal["server", "gossip"]] = "server"
    fraction: Fraction | None = None
    clients_per_round: Count | None = None
    sampling: Literal["uniform", "bernoulli", "weighted"] = "uniform"
    stragglers: Probability = 0.0
    straggler_policy: Literal["partial", "drop"] = "partial"

    def check(self, task_clients: int) -> None:
        if self.fraction is not None and self.clients_per_round is not None:
            raise InputError("found both 'fraction' and 'clients_per_round', allowed: one of the two", key="fraction")
        if self.clients_per_round is not None and self.clients_per_round > task_clients:
            raise InputError(
                f"found {self.clients_per_round}, allowed: at most data.clients = {task_clients}",
                key="clients_per_round",
            )
        if self.straggler_policy == "drop" and self.stragglers == 1.0:
            raise InputError("every client of every cohort would be dropped: lower 'stragglers'", key="stragglers")

    def cohort_size(self, n: int) -> int:
        """Clients per round (expected number for Bernoulli sampling)."""
        if self.clients_per_round is not None:
            return self.clients_per_round
        return n if self.fraction is None else max(1, round(self.fraction * n))

    def events(
        self, task: Task, algorithm: Algorithm, seed: int, start: int, network: Any, durations: Durations | None = None
    ) -> Iterator[Event]:
        assert isinstance(algorithm, ServerAlgorithm)
        durations = durations or Durations(SystemSection(), task.num_clients, seed)
        now = sum(self._round(task, algorithm, seed, k, durations)[-1] for k in range(1, start + 1))
        number = start
        while True:
            number += 1
            clients, steps, multiplicity, length = self._round(task, algorithm, seed, number, durations)
            rounds = np.full(len(clients), number, dtype=np.int64)
            yield Dispatch(clients, rounds, steps)
            if self.sampling == "weighted":
                weights = multiplicity / multiplicity.sum()
            else:
                share = task.importance[clients] if algorithm.weighting == "samples" else np.ones(len(clients))
                weights = share / share.sum()
            stale = np.zeros(len(clients), dtype=np.int64)
            now += length
            trace = {"clients": clients, "steps": steps, "staleness": stale, "weights": weights}
            yield Arrival(number, seconds(now), clients, rounds, steps, stale, len(clients), weights, trace=trace)

    def _round(
        self, task: Task, algorithm: Algorithm, seed: int, number: int, durations: Durations
    ) -> tuple[Ints, Ints, Floats, int]:
        """Clients of a round, their steps, how often each was drawn, and the ticks until the last one is done."""
        clients, multiplicity = self._cohort(task, seed, number)
        steps = self._steps(task, algorithm, clients, np.full(len(clients), number, dtype=np.int64), seed)
        keep = steps > 0
        clients, steps, multiplicity = clients[keep], steps[keep], multiplicity[keep]
        length = max(durations.of(c, number - 1, k) for c, k in zip(clients.tolist(), steps.tolist(), strict=True))
        return clients, steps, multiplicity, length

    def _cohort(self, task: Task, seed: int, number: int) -> tuple[Ints, Floats]:
        """The round's clients in ascending order, and how often each was drawn."""
        n, size = task.num_clients, self.cohort_size(task.num_clients)
        generator = rng.generator(seed, "cohort", number)
        if self.sampling == "weighted":
            draws = np.searchsorted(task.cumulative_importance, generator.random(size), side="right")
            clients, count = np.unique(np.minimum(draws, n - 1), return_counts=True)
            return clients.astype(np.int64), count.astype(np.float64)
        if self.sampling == "bernoulli":
            size = 0
            while (
                size == 0
            ):  # a binomial number of clients, all sets of that size alike: Bernoulli without touching all n
                size = int(generator.binomial(n, self.cohort_size(n) / n if self.fraction is None else self.fraction))
        if size == n:
            return np.arange(n, dtype=np.int64), np.ones(n)
        return np.sort(generator.choice(n, size=size, replace=False)).astype(np.int64), np.ones(size)

    def _steps(self, task: Task, algorithm: Algorithm, clients: Ints, rounds: Ints, seed: int) -> Ints:
        work, epochs = algorithm.work()
        units = work.of(clients, rounds, seed)
        if self.stragglers > 0:
            slow = np.zeros(len(clients), dtype=bool)
            count = len(clients) - round(len(clients) * (1.0 - self.stragglers))
            generator = rng.generator(seed, "stragglers", int(rounds[0]))
            slow[generator.permutation(len(clients))[:count]] = True
            if self.straggler_policy == "drop":
                if slow.all():
                    slow[0] = False  # somebody has to report
                units = np.where(slow, 0, units)
            else:
                part = 1 + rng.integers(rng.key(seed, "straggler_work", clients, rounds), np.maximum(units - 1, 1))
                units = np.where(slow, np.minimum(part, units), units)
        return units * task.steps_per_epoch(clients, algorithm.batch_size) if epochs else units
