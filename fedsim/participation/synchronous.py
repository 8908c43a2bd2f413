"""Who works, when and how much: participation modes turn a scenario into events of the simulation loop.

An event is a `Dispatch` (clients start local work from the current model), an `Arrival` (these clients' results are
combined: one round) or, where nothing more can come, an `Ended`. Modes draw from keys alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedsim.algorithms.base import ServerAlgorithm
from fedsim.core import rng
from fedsim.core.arrays import Floats, Ints
from fedsim.core.clock import seconds, ticks
from fedsim.core.errors import InputError
from fedsim.core.oracle import Task
from fedsim.core.registry import register
from fedsim.core.types import Count, Fraction, Probability, Seconds
from fedsim.devices.system import Durations
from fedsim.participation.base import Arrival, Dispatch, Ended, Event, InVain, Participation, Setting
from fedsim.participation.fates import jobs_of
from fedsim.participation.selection import Choosing, SelectionKey
from fedsim.participation.tokens import visits

_DRAWS = 1000
"""Cohorts that are drawn until somebody is in one, before one with somebody is drawn at once."""

_BLOCK = 1024
"""Clients that are looked at together while a cohort of available ones is sought."""


@dataclass(frozen=True)
class _Report:
    """Who reports in a synchronous round that starts at tick `start` and ends at `end`, and how often each was drawn.

    `ends` ``[m]`` are the ticks at which these clients are done.
    """

    start: int
    end: int
    clients: Ints
    steps: Ints
    multiplicity: Floats
    ends: list[int]
    in_vain: list[InVain]


@register.participation("synchronous")
@dataclass(frozen=True, kw_only=True)
class Synchronous(Participation):
    """Every round a cohort works from the same model and the server waits for all of it.

    Parameters
    ----------
    fraction, clients_per_round : cohort size, one of the two (default: everybody). A fraction of n clients is
        round(fraction * n), at least 1.
    sampling : ``uniform`` without replacement, exactly the cohort size; ``bernoulli``, each client with probability
        `fraction`, drawn again if nobody is; ``poisson``, the same with rounds of nobody (as privacy needs it);
        ``weighted``, with replacement with probability p_i and weight 1 / cohort size per draw (Li et al., arXiv
        1907.02189, scheme I: unbiased).
    stragglers : share of each cohort that does only part of its work, uniform between 1 and all but one unit (FedProx,
        arXiv 1812.06127).
    over_selection : that many times the cohort is asked, and the first cohort's worth of clients to finish is used.
    deadline : seconds after which a round ends; who has not finished by then is left out.
    dropout : probability that a client that was asked never reports.
    selection : chooses each cohort by what clients lose, or how fast they are, in place of a draw of `sampling`.
    straggler_policy : ``partial`` uses what stragglers did (FedProx), ``drop`` leaves them out (the paper's FedAvg).
    """

    setting: ClassVar[Literal["server", "gossip"]] = "server"
    asks_connected: ClassVar[bool] = True
    fraction: Fraction | None = None
    clients_per_round: Count | None = None
    sampling: Literal["uniform", "bernoulli", "poisson", "weighted"] = "uniform"
    stragglers: Probability = 0.0
    straggler_policy: Literal["partial", "drop"] = "partial"
    over_selection: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    deadline: Seconds | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    selection: SelectionKey | None = None

    @property
    def asks_losses(self) -> bool:
        return self.selection is not None

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
        if self.selection is not None:
            if self.sampling != "uniform":
                message = f"found {self.sampling} beside selection, which says who takes part; allowed: uniform"
                raise InputError(message, key="sampling")
            try:
                self.selection.check(self._asked(task_clients), task_clients)
            except InputError as error:
                raise error.under("selection") from None
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

    def most_messages(self, clients: int) -> int:
        return clients if self.sampling in ("bernoulli", "poisson") else self.cohort_size(clients)

    def picked(self, task: Task) -> Floats:
        return task.importance if self.sampling == "weighted" else super().picked(task)

    def rate(self, n: int) -> float:
        """Share of the clients in a cohort: `fraction` itself, or a cohort size over n."""
        return self.fraction if self.fraction is not None else self.cohort_size(n) / n

    def events(self, setting: Setting, after: int = 0) -> Iterator[Event]:
        task, algorithm, seed, durations = setting.task, setting.server, setting.seed, setting.clocks
        if algorithm.tokens is not None:
            yield from visits(setting, algorithm.tokens, self.sampling == "weighted", after)
            return
        now = number = 0
        choosing = None
        if self.selection is not None:
            choosing = Choosing(self.selection, task, seed, setting.inquiry, after)
            now, number = choosing.tick, choosing.number
        while True:
            asked_at = self._first_on(durations, now)
            if asked_at is None:
                yield Ended(number, seconds(now), "no client is left that could be asked")
                return
            number += 1
            on = None if setting.connected is None or number <= after else setting.connected()
            report = self._round(task, algorithm, seed, number, asked_at, durations, choosing, on)
            now = report.end
            if number <= after:  # a resumed run makes its rounds again, which costs next to nothing
                continue
            clients, steps = report.clients, report.steps
            rounds = np.full(len(clients), number, dtype=np.int64)
            yield Dispatch(clients, rounds, steps, report.ends, start=report.start, in_vain=report.in_vain)
            weighted = self.sampling == "weighted"
            share = report.multiplicity if weighted else _shares(task, algorithm, clients)
            weights = share / share.sum() if len(clients) else share
            stale = np.zeros(len(clients), dtype=np.int64)
            roles = algorithm.role_of(clients, rounds, seed)
            yield Arrival(number, seconds(now), clients, rounds, steps, stale, len(clients), weights, roles=roles)

    def in_place(self, setting: Setting, event: Arrival, lost: Ints, free: Ints) -> Arrival | None:
        """As many others, drawn as a cohort is; with a `selection` nobody, since it says who takes part."""
        task, algorithm, seed = setting.task, setting.server, setting.seed
        chances = None
        if self.sampling == "weighted":
            free = free[task.importance[free] > 0]
            chances = task.importance[free] / task.importance[free].sum() if len(free) else None
        size = min(len(lost), len(free))
        if size == 0 or self.selection is not None or event.weights is None:
            return None
        generator = rng.generator(seed, "in_place", event.number, int(lost.min()))
        clients = np.sort(generator.choice(free, size=size, replace=False, p=chances)).astype(np.int64)
        rounds = np.full(size, event.number, dtype=np.int64)
        if self.sampling == "weighted":
            weights = event.weights[np.isin(event.clients, lost)][:size]
        else:
            scale = event.weights.sum() / _shares(task, algorithm, event.clients).sum()
            weights = _shares(task, algorithm, clients) * scale
        steps, roles = (
            self._work_of(task, algorithm, event, lost, clients, seed),
            algorithm.role_of(clients, rounds, seed),
        )
        fresh = np.zeros(size, dtype=np.int64)
        return Arrival(event.number, event.time, clients, rounds, steps, fresh, size, weights, roles=roles)

    def _work_of(
        self, task: Task, algorithm: ServerAlgorithm, event: Arrival, lost: Ints, clients: Ints, seed: int
    ) -> Ints:
        """Steps of `clients` in place of the `lost` ones, one for each: in place of a straggler as small a part."""
        gone, own = np.sort(lost)[: len(clients)], np.full(len(clients), event.number, dtype=np.int64)
        whole = algorithm.steps(task, gone, own, seed)
        share = event.steps[np.searchsorted(event.clients, gone)] / np.maximum(whole, 1)
        units, per_unit = algorithm.steps_by_unit(task, clients, own, seed)
        return np.where(share < 1, np.maximum(1, np.rint(units * share)), units).astype(np.int64) * per_unit

    def _first_on(self, durations: Durations, tick: int) -> int | None:
        """The first tick from `tick` on at which some client can be asked (None: never again)."""
        if durations.presence is None and durations.leaves is None:
            return tick
        first: int | None = None
        for client in range(durations.n):
            at = durations.ready(client, tick)
            if at == tick:
                return tick
            if at is not None and (first is None or at < first):
                first = at
        return first

    def _asked(self, n: int) -> int:
        """Clients that are asked in a round, where cohorts have an exact size."""
        return math.ceil(min(n, self.cohort_size(n) * self.over_selection - 1e-9))

    def _chosen(
        self, choosing: Choosing, task: Task, seed: int, number: int, tick: int, durations: Durations, on: Ints | None
    ) -> tuple[Ints, Floats]:
        """The round's clients in ascending order, chosen among those that are `on` (None: as the device says)."""
        n, connected = task.num_clients, on
        if durations.presence is not None or durations.leaves is not None:
            on = np.array([c for c in range(n) if durations.ready(c, tick) == tick], dtype=np.int64)

        def draw(size: int) -> Ints:
            return self._cohort(task, seed, number, tick, durations, size, connected)[0]

        clients = choosing.cohort(number, self._asked(n), on, draw)
        return clients, np.ones(len(clients))

    def _round(
        self,
        task: Task,
        algorithm: ServerAlgorithm,
        seed: int,
        number: int,
        start: int,
        durations: Durations,
        choosing: Choosing | None = None,
        on: Ints | None = None,
    ) -> _Report:
        """Who reports in a round that starts at tick `start`, and how long the server waits for it."""
        if number == 1 and algorithm.needs.begins_with_everybody:
            wanted = task.num_clients
            clients, multiplicity = np.arange(wanted, dtype=np.int64), np.ones(wanted)
        else:
            wanted = self.cohort_size(task.num_clients)
            if choosing is None:
                clients, multiplicity = self._cohort(task, seed, number, start, durations, on=on)
            else:
                clients, multiplicity = self._chosen(choosing, task, seed, number, start, durations, on)
        steps = self._steps(task, algorithm, clients, np.full(len(clients), number, dtype=np.int64), seed)
        asked = np.flatnonzero(steps > 0)
        work = dict(zip(clients.tolist(), steps.tolist(), strict=True))
        limit = None if self.deadline is None else max(ticks(self.deadline), 1)
        fates = jobs_of(durations, lambda client, _: work[client], limit)
        found = [fates.fate(c, number - 1, start) for c in clients[asked].tolist()]
        silent = rng.uniform(rng.key(seed, "dropout", clients[asked], number)) < self.dropout
        reports = [i for i, fate in enumerate(found) if fate.arrives and not silent[i]]
        fastest = sorted(reports, key=lambda i: (found[i].end, clients[asked[i]]))
        kept = sorted(fastest[:wanted] if self.over_selection > 1 else fastest)
        full = min(wanted, len(clients)) if self.over_selection > 1 else len(asked)
        end = max((found[i].end for i in kept), default=start)
        if len(kept) < full:  # it waits in vain: until the deadline, or until the slowest would have reported
            end = start + limit if limit is not None else max((fate.heard for fate in found), default=start)
        end = max(end, start + 1)
        left_out = sorted(set(range(len(found))) - set(kept))
        in_vain = [
            InVain(int(clients[asked[i]]), start, min(found[i].end, end), found[i].sent and not found[i].arrives)
            for i in left_out
        ]
        chosen, ends = asked[kept], [found[i].end for i in kept]
        if choosing is not None:
            choosing.close(number, clients[asked], clients[chosen], start, ends, end)
        return _Report(start, end, clients[chosen], steps[chosen], multiplicity[chosen], ends, in_vain)

    def _cohort(
        self,
        task: Task,
        seed: int,
        number: int,
        tick: int,
        durations: Durations,
        size: int | None = None,
        on: Ints | None = None,
    ) -> tuple[Ints, Floats]:
        """The round's clients in ascending order, and how often each was drawn; among those that are on."""
        n = task.num_clients
        size = self._asked(n) if size is None else size
        generator = rng.generator(seed, "cohort", number)
        if on is not None:
            return self._among(task, generator, size, on)
        if durations.presence is not None or durations.leaves is not None:
            return self._available_cohort(task, seed, number, size, tick, durations)
        if self.sampling == "weighted":
            draws = np.searchsorted(task.cumulative_importance, generator.random(size), side="right")
            clients, count = np.unique(np.minimum(draws, n - 1), return_counts=True)
            return clients.astype(np.int64), count.astype(np.float64)
        if self.sampling in ("bernoulli", "poisson"):
            size = self._binomial(generator, n, n)  # all sets of that size alike: without touching all n
        if size == n:
            return np.arange(n, dtype=np.int64), np.ones(n)
        return np.sort(generator.choice(n, size=size, replace=False)).astype(np.int64), np.ones(size)

    def _binomial(self, generator: np.random.Generator, among: int, n: int) -> int:
        """How many of `among` clients are chosen, each by itself at the rate of n; ``bernoulli`` wants at least one."""
        rate = self.rate(n)
        for _ in range(_DRAWS):
            size = int(generator.binomial(among, rate))
            if size > 0 or self.sampling != "bernoulli":
                return size
        return _somebody(generator, among, rate)

    def _available_cohort(
        self, task: Task, seed: int, number: int, size: int, tick: int, durations: Durations
    ) -> tuple[Ints, Floats]:
        """The same among the clients that are on at `tick`; all of them, if they are fewer than `size`."""
        n = task.num_clients
        if self.sampling == "uniform" and size < n:  # ask in random order until enough are on, not all n
            word, chosen = rng.key(seed, "available_cohort", number), list[int]()
            for first in range(0, n, _BLOCK):
                for c in rng.permute(word, np.arange(first, min(first + _BLOCK, n)), n).tolist():
                    if len(chosen) < size and durations.ready(c, tick) == tick:
                        chosen.append(c)
                if len(chosen) == size:
                    break
            return np.array(sorted(chosen), dtype=np.int64), np.ones(len(chosen))
        on = np.array([c for c in range(n) if durations.ready(c, tick) == tick], dtype=np.int64)
        return self._among(task, rng.generator(seed, "cohort", number), size, on)

    def _among(self, task: Task, generator: np.random.Generator, size: int, on: Ints) -> tuple[Ints, Floats]:
        """Those of `on` that are in a cohort of `size`, ascending, and how often each was drawn."""
        if self.sampling == "weighted":
            share = np.cumsum(task.importance[on])
            draws = np.searchsorted(share, generator.random(size) * share[-1], side="right")
            picked, count = np.unique(np.minimum(draws, len(on) - 1), return_counts=True)
            return on[picked], count.astype(np.float64)
        if self.sampling in ("bernoulli", "poisson"):
            on = np.sort(generator.choice(on, size=self._binomial(generator, len(on), task.num_clients), replace=False))
        elif size < len(on):
            on = np.sort(generator.choice(on, size=size, replace=False))
        return on, np.ones(len(on))

    def _steps(self, task: Task, algorithm: ServerAlgorithm, clients: Ints, rounds: Ints, seed: int) -> Ints:
        units, per_unit = algorithm.steps_by_unit(task, clients, rounds, seed)
        if self.stragglers > 0 and len(clients):
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


def _shares(task: Task, algorithm: ServerAlgorithm, clients: Ints) -> Floats:
    """What clients weigh beside each other, ``[m]``."""
    return task.importance[clients] if algorithm.weighting == "samples" else np.ones(len(clients))


def _somebody(generator: np.random.Generator, among: int, rate: float) -> int:
    """A binomial number given that it is not 0: the first chosen client by inversion, and those after it."""
    nobody = math.log1p(-rate)
    first = math.ceil(math.log1p(generator.random() * math.expm1(among * nobody)) / nobody)
    first = min(max(first, 1), among)
    return 1 + int(generator.binomial(among - first, rate))
