"""Who works, when and how much: participation modes turn a scenario into events of the simulation loop.

An event is either a `Dispatch` (clients start local work from the current model) or an `Arrival` (these clients'
results are combined: one round). Modes draw from keys alone, so any round can be reproduced without the ones before it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedsim import rng
from fedsim.algorithms.base import Algorithm, ServerAlgorithm
from fedsim.clock import seconds, ticks
from fedsim.errors import InputError
from fedsim.registry import Part, register
from fedsim.system import Durations, SystemSection
from fedsim.task import Ints, Task
from fedsim.types import Count, Fraction, Positive, Probability

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
    (processing, transmission) of this round, `sends` the number of messages that cross a link, `in_vain` the clients
    that pulled the model and were left out, `trace` what is recorded of the realised schedule.
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
    in_vain: int = 0


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


@dataclass(frozen=True)
class _Report:
    """Who reports in a synchronous round, how often each was drawn, the round's ticks, how many pulled in vain."""

    clients: Ints
    steps: Ints
    multiplicity: Floats
    length: int
    in_vain: int


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
    over_selection : that many times the cohort is asked, and the first cohort's worth of clients to finish is used.
    deadline : seconds after which a round ends; who has not finished by then is left out.
    dropout : probability that a client that was asked never reports.
    straggler_policy : ``partial`` uses what stragglers did (FedProx), ``drop`` leaves them out (the paper's FedAvg).
    """

    setting: ClassVar[Literal["server", "gossip"]] = "server"
    fraction: Fraction | None = None
    clients_per_round: Count | None = None
    sampling: Literal["uniform", "bernoulli", "weighted"] = "uniform"
    stragglers: Probability = 0.0
    straggler_policy: Literal["partial", "drop"] = "partial"
    over_selection: Annotated[float, Field(ge=1)] = 1.0
    deadline: Positive | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def check(self, task_clients: int) -> None:
        if self.fraction is not None and self.clients_per_round is not None:
            raise InputError("found both 'fraction' and 'clients_per_round', allowed: one of the two", key="fraction")
        if self.clients_per_round is not None and self.clients_per_round > task_clients:
            raise InputError(
                f"found {self.clients_per_round}, allowed: at most data.clients = {task_clients}",
                key="clients_per_round",
            )
        if self.over_selection > 1 and self.sampling != "uniform":
            message = f"found sampling {self.sampling}: over-selection needs exact cohort sizes, allowed: uniform"
            raise InputError(message, key="over_selection")
        if self.straggler_policy == "drop" and self.stragglers == 1.0:
            raise InputError("every client of every cohort would be dropped: lower 'stragglers'", key="stragglers")

    def leaves_out(self, n: int) -> list[str]:
        """Keys by which some of n clients may not take part in a round with all their work."""
        given = {
            "fraction": self.fraction not in (None, 1.0),
            "clients_per_round": self.clients_per_round not in (None, n),
            "sampling": self.sampling == "weighted",
            "stragglers": self.stragglers > 0,
            "deadline": self.deadline is not None,
            "dropout": self.dropout > 0,
        }
        return [key for key, does in given.items() if does]

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
        now = sum(self._round(task, algorithm, seed, k, durations).length for k in range(1, start + 1))
        number = start
        while True:
            number += 1
            report = self._round(task, algorithm, seed, number, durations)
            clients, steps = report.clients, report.steps
            rounds = np.full(len(clients), number, dtype=np.int64)
            if len(clients):
                yield Dispatch(clients, rounds, steps)
            if self.sampling == "weighted":
                share = report.multiplicity
            else:
                share = task.importance[clients] if algorithm.weighting == "samples" else np.ones(len(clients))
            weights = share / share.sum() if len(clients) else share
            stale = np.zeros(len(clients), dtype=np.int64)
            now += report.length
            trace = {"clients": clients, "steps": steps, "staleness": stale, "weights": weights}
            if (roles := algorithm.role_of(clients, rounds, seed)) is not None:
                trace["roles"] = roles
            yield Arrival(
                number, seconds(now), clients, rounds, steps, stale, len(clients), weights, trace=trace,
                in_vain=report.in_vain,
            )  # fmt: skip

    def _round(self, task: Task, algorithm: Algorithm, seed: int, number: int, durations: Durations) -> _Report:
        """Who reports in a round, and how long the server waits for it."""
        if number == 1 and isinstance(algorithm, ServerAlgorithm) and algorithm.begins_with_everybody:
            wanted = task.num_clients
            clients, multiplicity = np.arange(wanted, dtype=np.int64), np.ones(wanted)
        else:
            wanted = self.cohort_size(task.num_clients)
            clients, multiplicity = self._cohort(task, seed, number)
        steps = self._steps(task, algorithm, clients, np.full(len(clients), number, dtype=np.int64), seed)
        work = zip(clients.tolist(), steps.tolist(), strict=True)
        ticks_of_each = [durations.of(c, number - 1, k) if k else 0 for c, k in work]
        # Jobs of more than a year do not fit 64 bits; they need no exact ties.
        lengths = np.array(ticks_of_each, dtype=np.int64 if max(ticks_of_each, default=0) < 2**62 else np.float64)
        limit = None if self.deadline is None else ticks(self.deadline)
        reports = (steps > 0) & (rng.uniform(rng.key(seed, "dropout", clients, number)) >= self.dropout)
        if limit is not None:
            reports &= lengths <= limit
        fastest = np.flatnonzero(reports)[np.lexsort((clients[reports], lengths[reports]))]
        kept = np.sort(fastest[:wanted] if self.over_selection > 1 else fastest)
        waits_in_vain = len(kept) < (min(wanted, len(clients)) if self.over_selection > 1 else int((steps > 0).sum()))
        length = int(lengths[kept].max(initial=0))
        if waits_in_vain:  # for clients that never report: until the deadline, or until the slowest would have
            length = limit if limit is not None else int(lengths.max(initial=0))
        in_vain = int((steps > 0).sum()) - len(kept)
        return _Report(clients[kept], steps[kept], multiplicity[kept], max(length, 1), in_vain)

    def _cohort(self, task: Task, seed: int, number: int) -> tuple[Ints, Floats]:
        """The round's clients in ascending order, and how often each was drawn."""
        n = task.num_clients
        size = min(n, math.ceil(self.cohort_size(n) * self.over_selection - 1e-9))
        generator = rng.generator(seed, "cohort", number)
        if self.sampling == "weighted":
            draws = np.searchsorted(task.cumulative_importance, generator.random(size), side="right")
            clients, count = np.unique(np.minimum(draws, n - 1), return_counts=True)
            return clients.astype(np.int64), count.astype(np.float64)
        if self.sampling == "bernoulli":
            size = 0
            while size == 0:  # a binomial number of clients, all sets of that size alike: without touching all n
                size = int(generator.binomial(n, self.cohort_size(n) / n if self.fraction is None else self.fraction))
        if size == n:
            return np.arange(n, dtype=np.int64), np.ones(n)
        return np.sort(generator.choice(n, size=size, replace=False)).astype(np.int64), np.ones(size)

    def _steps(self, task: Task, algorithm: Algorithm, clients: Ints, rounds: Ints, seed: int) -> Ints:
        units, per_unit = np.empty(len(clients), dtype=np.int64), np.ones(len(clients), dtype=np.int64)
        for role, rows in algorithm.by_role(clients, rounds, seed):
            work, epochs = role.work()
            units[rows] = work.of(clients[rows], rounds[rows], seed)
            if epochs:
                per_unit[rows] = task.steps_per_epoch(clients[rows], role.batch_size)
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
        return units * per_unit
