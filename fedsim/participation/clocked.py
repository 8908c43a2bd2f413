"""Participation on a virtual clock: asynchronous, fedbuff, fixed_interval (FedFix) as schedules of server algorithms.

The framework of arXiv 2206.10189: ``x = x + server_lr * sum_i omega_i delta_i``, delta_i against the model that was
sent to i, weights not renormalised over who arrives. `weights` chooses d_i, the weight of a contribution that arrives:

* ``debiased``: d_i such that a client's mean weight per combine is p_i, from the closed forms for constant durations:
  (sum_j 1/tau_j) tau_i p_i when every arrival is combined by itself, ceil(tau_i / window) p_i for FedFix;
* ``estimated``: d_i = p_i / (share of combines in which i delivers), for random durations and for FedBuff, counted in a
  schedule that is made before the run, lost jobs and all;
* ``identical``: 1 (asynchronous), 1/n (fixed_interval), 1/buffer (fedbuff): then the optimum of a surrogate is found,
  where fast clients weigh more.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Discriminator, Field

from fedsim.algorithms.base import Algorithm
from fedsim.core import rng
from fedsim.core.arrays import Floats, Ints
from fedsim.core.clock import exact, seconds, ticks
from fedsim.core.errors import InputError
from fedsim.core.one_of import Chosen, Form, OneOf
from fedsim.core.oracle import Task
from fedsim.core.registry import register
from fedsim.core.types import Count, NonNegative, Seconds
from fedsim.messages.aggregators import Aggregator
from fedsim.participation import schedule
from fedsim.participation.base import Arrival, Dispatch, Ended, Event, InVain, Participation, Setting
from fedsim.participation.fates import jobs_of
from fedsim.participation.policy import Barrier, Buffer, EachArrival, Policy, Windows
from fedsim.participation.schedule import Combined, Jobs, Started, Step, Stopped

Weights = Literal["debiased", "estimated", "identical"]


class _Ageing(Form):
    @abstractmethod
    def of(self, s: Floats) -> Floats:
        """The factor of contributions that are `s` combines old."""


class ConstantFactor(_Ageing):
    """1."""

    model: Literal["constant"] = "constant"

    def of(self, s: Floats) -> Floats:
        return np.ones_like(s)

    def written(self) -> Any:
        return self.model


class PolynomialFactor(_Ageing):
    """``(1 + s)^-power``."""

    older = ("power",)
    model: Literal["polynomial"]
    power: NonNegative

    def of(self, s: Floats) -> Floats:
        return np.asarray((1.0 + s) ** -self.power)


class HingeFactor(_Ageing):
    """1 for s <= b, else ``1 / (a (s - b) + 1)``."""

    older = ("a", "b")
    model: Literal["hinge"]
    a: NonNegative
    b: NonNegative

    def of(self, s: Floats) -> Floats:
        return np.where(s <= self.b, 1.0, 1.0 / (self.a * np.maximum(s - self.b, 0.0) + 1.0))


_FACTORS = OneOf(
    allowed="allowed: constant, {model: polynomial, power: ...} or {model: hinge, a: ..., b: ...}",
    plain=lambda value: {"model": "constant"} if value in ("constant", {}) else None,
    plain_type=Literal["constant"],
    what="factor",
)


class Staleness(Chosen[Annotated[ConstantFactor | PolynomialFactor | HingeFactor, Discriminator("model"), _FACTORS]]):
    """A factor on a contribution that is s combines old (fresh = 0), as in FedAsync's code (arXiv 1903.03934).

    ``constant`` = 1 · ``{model: polynomial, power: a}`` = (1 + s)^-a · ``{model: hinge, a: 10, b: 4}`` = 1 for s <= b,
    else 1 / (a (s - b) + 1).
    """

    root: Annotated[ConstantFactor | PolynomialFactor | HingeFactor, Discriminator("model"), _FACTORS] = (
        ConstantFactor()
    )

    def factor(self, stale: Ints) -> Floats:
        """The factor of each contribution, ``[m]``."""
        return self.root.of(np.asarray(stale, dtype=np.float64))


_CONSTANT, _INVERSE_ROOT = Staleness(), Staleness(PolynomialFactor(model="polynomial", power=0.5))


@dataclass(frozen=True, kw_only=True)
class Clocked(Participation):
    """Base of the modes that run on the virtual clock.

    Parameters
    ----------
    weights : what a contribution weighs (see the module).
    staleness : a further factor for old contributions.
    pilot : combines of the schedule that ``estimated`` counts deliveries in.
    timeout : seconds after its start at which the server gives a job up that has not arrived; its client starts anew if
        it is still there (none: the server waits as long as the job would have taken).
    """

    setting: ClassVar[Literal["server", "gossip"]] = "server"
    clocked: ClassVar[bool] = True
    asks_connected: ClassVar[bool] = True
    renormalises: ClassVar[bool] = False
    weights: Weights = "debiased"
    staleness: Staleness = _CONSTANT
    pilot: Annotated[int, Field(gt=0, le=10_000_000)] = 10_000
    timeout: Seconds | None = None

    @abstractmethod
    def policy(self, n: int, seed: int) -> Policy:
        """What the server of n clients does when something happens, on a virtual and on a wall clock."""

    def arrival_weights(self, n: int, p: Floats, tau: list[int] | None, rates: Floats | None) -> Floats:
        """d_i of every client ``[n]``, from importance and constant durations in ticks or rates of delivery.

        Both are None for ``weights: identical``; here that is 1/n.

        Raises
        ------
        InputError
            The mode has no closed form for constant durations.
        """
        if tau is not None:
            name = type(self).__name__
            raise InputError(f"{name} has no closed form; allowed: estimated, identical", key="participation.weights")
        return np.full(n, 1.0 / n) if rates is None else np.asarray(p / rates)

    def arrived(self, arrival: Arrival, aggregator: Aggregator) -> Arrival:
        """The arrival as it is combined."""
        return arrival

    def steps(self, n: int, jobs: Jobs, seed: int) -> Iterator[Step]:
        """The schedule in virtual time."""
        return schedule.steps(self.policy(n, seed), n, jobs)

    def check_run(self, setting: Setting) -> None:
        """Raise InputError where the weights that the mode is to give cannot be had (see the module)."""
        jobs = self._jobs(setting)
        self._contribution_weights(setting, jobs)
        next(self.steps(setting.task.num_clients, jobs, setting.seed), None)  # the first jobs can be followed

    def _check_closed_form(self, setting: Setting) -> None:
        """Raise InputError where jobs do not all arrive after the same time."""
        durations = setting.clocks
        if not (durations.constant and _Work(setting.task, setting.server, setting.seed).constant):
            raise InputError(
                "durations vary from job to job, for which there is no closed form; allowed: estimated, identical",
                key="participation.weights",
            )
        why = [*durations.section.unreliable, *(["participation.timeout"] if self.timeout is not None else [])]
        if why:
            raise InputError(
                f"with {', '.join(why)} not every job arrives in its time, for which there is no closed form; "
                "allowed: estimated, identical",
                key="participation.weights",
            )

    def events(self, setting: Setting, after: int = 0) -> Iterator[Event]:
        work, jobs = _Work(setting.task, setting.server, setting.seed), self._jobs(setting)
        d = self._contribution_weights(setting, jobs)
        number = 0
        for step in self.steps(setting.task.num_clients, jobs, setting.seed):
            if isinstance(step, Stopped):
                yield Ended(number, seconds(step.tick), step.reason)
                return
            if number < after:  # a resumed run makes its schedule again, which costs next to nothing
                number += isinstance(step, Combined)
                continue
            if isinstance(step, Started):
                yield _dispatch(step, work)
                continue
            number += 1
            clients, rounds = np.asarray(step.clients, dtype=np.int64), np.asarray(step.indices, dtype=np.int64) + 1
            stale = np.asarray(step.staleness, dtype=np.int64)
            omega = d[clients] * self.staleness.factor(stale)
            done = work.many(clients, rounds)
            jobs_of_step = np.asarray(step.jobs, dtype=np.int64)
            arrival = Arrival(
                number, seconds(step.tick), clients, rounds, done, stale, len(clients), omega, jobs=jobs_of_step
            )
            yield self.arrived(arrival, setting.aggregator)

    def _jobs(self, setting: Setting) -> Jobs:
        """What becomes of the jobs of this run."""
        work = _Work(setting.task, setting.server, setting.seed)
        return jobs_of(setting.clocks, work.of, None if self.timeout is None else max(ticks(self.timeout), 1))

    def _contribution_weights(self, setting: Setting, jobs: Jobs) -> Floats:
        """d_i of every client ``[n]``."""
        task, algorithm, seed, n = setting.task, setting.server, setting.seed, setting.task.num_clients
        share = task.importance if algorithm.weighting == "samples" else np.ones(n)
        p = share / share.sum()  # the arithmetic of a synchronous round, so that limit cases agree bit for bit
        if self.weights == "debiased":
            self._check_closed_form(setting)
        if self.weights != "estimated":
            tau = [jobs.fate(c, 0, 0).end for c in range(n)] if self.weights == "debiased" else None
            return self.arrival_weights(n, p, tau, None)
        rates, last = schedule.participation_rates(self.steps(n, jobs, seed), n, self.pilot)
        for client in np.flatnonzero(rates == 0).tolist():
            if jobs.ready(client, last) is not None:
                raise InputError(
                    f"client {client} delivers in none of the first {self.pilot} combines; allowed: more",
                    key="participation.pilot",
                )
        present = rates > 0  # who left without having delivered never weighs anything
        weights = self.arrival_weights(n, p, None, np.where(present, rates, 1.0))
        return np.where(present, weights, 0.0)


def _dispatch(step: Started, work: _Work) -> Dispatch:
    """Clients that go to work, apart from those whose job is lost."""
    clients, rounds = np.asarray(step.clients, dtype=np.int64), np.asarray(step.indices, dtype=np.int64) + 1
    jobs, ends = np.asarray(step.jobs, dtype=np.int64), [fate.end for fate in step.fates]
    if all(fate.arrives for fate in step.fates):
        return Dispatch(clients, rounds, work.many(clients, rounds), ends, jobs, step.tick)
    kept = np.array([i for i, fate in enumerate(step.fates) if fate.arrives], dtype=np.int64)
    lost = [
        InVain(c, step.tick, fate.end, fate.sent)
        for c, fate in zip(step.clients, step.fates, strict=True)
        if not fate.arrives
    ]
    steps = work.many(clients[kept], rounds[kept])
    return Dispatch(clients[kept], rounds[kept], steps, [ends[i] for i in kept.tolist()], jobs[kept], step.tick, lost)


class _Work:
    """Local steps of every job; the same number for all jobs of a client where the algorithm says so."""

    def __init__(self, task: Task, algorithm: Algorithm, seed: int) -> None:
        self.task, self.algorithm, self.seed = task, algorithm, seed
        one = np.zeros(1, dtype=np.int64)
        self.constant = algorithm.work()[0].constant and algorithm.role_of(one, one + 1, seed) is None
        self._steps = (
            self._of(np.arange(task.num_clients), np.ones(task.num_clients, dtype=np.int64)).tolist()
            if self.constant
            else []
        )

    def of(self, client: int, index: int) -> int:
        """Steps of the client's job number `index` (0, 1, ...)."""
        if self.constant:
            return int(self._steps[client])
        return int(self._of(np.array([client]), np.array([index + 1]))[0])

    def many(self, clients: Ints, rounds: Ints) -> Ints:
        """Steps of several jobs; `rounds` count from 1."""
        if self.constant:
            return np.array([self._steps[c] for c in clients], dtype=np.int64)
        return self._of(clients, rounds)

    def _of(self, clients: Ints, rounds: Ints) -> Ints:
        return self.algorithm.steps(self.task, clients, rounds, self.seed)


@register.participation("asynchronous")
@dataclass(frozen=True, kw_only=True)
class Asynchronous(Clocked):
    """Every arrival is combined by itself and its client restarts at once (asynchronous FedAvg)."""

    one_at_a_time: ClassVar[bool] = True

    def most_messages(self, clients: int) -> int:
        return 1

    def policy(self, n: int, seed: int) -> Policy:
        return EachArrival()

    def arrival_weights(self, n: int, p: Floats, tau: list[int] | None, rates: Floats | None) -> Floats:
        if tau is not None:
            lengths = np.array(tau, dtype=np.float64)
            return np.asarray((1.0 / lengths).sum() * lengths * p)
        return np.ones(n) if rates is None else p / rates


@dataclass(frozen=True, kw_only=True)
class Gathering(Clocked):
    """Base of the modes that combine several contributions, among which a fast client may have several.

    Parameters
    ----------
    per_client : ``last``, only a client's last contribution to a combine counts, so that a fast attacker has one place
        (the default with a robust aggregator); ``all``, each of them (the default with others).
    """

    per_client: Literal["all", "last"] | None = None

    def arrived(self, arrival: Arrival, aggregator: Aggregator) -> Arrival:
        last = self.per_client == "last" or (self.per_client is None and not aggregator.is_linear)
        return arrival.last_of_each() if last else arrival


@register.participation("fixed_interval")
@dataclass(frozen=True, kw_only=True)
class FixedInterval(Gathering):
    """FedFix (arXiv 2206.10189): a combine every `window` seconds of what has arrived.

    With a window of the slowest client it is FedAvg.
    """

    window: Seconds

    def policy(self, n: int, seed: int) -> Policy:
        return Windows(self._ticks())

    def arrival_weights(self, n: int, p: Floats, tau: list[int] | None, rates: Floats | None) -> Floats:
        if tau is not None:
            window = self._ticks()
            return np.asarray([-(-t // window) for t in tau] * p)
        return super().arrival_weights(n, p, None, rates)

    def _ticks(self) -> int:
        return max(ticks(exact(self.window)), 1)


@register.participation("fedbuff")
@dataclass(frozen=True, kw_only=True)
class FedBuff(Gathering):
    """FedBuff (arXiv 2106.06639): a combine whenever `buffer` results have arrived.

    Parameters
    ----------
    buffer : results per combine.
    concurrency : clients at work at any time (default: all).
    restart : ``immediately``, whoever finishes is replaced at once by a random idle client (the paper); ``barrier``,
        who has delivered waits for the buffer to fill and all of its clients restart together (the closed variant in
        FedFix's code; all clients are at work).
    reduce : ``mean`` divides by `buffer` (the paper), ``sum`` does not (FLSim's default); for ``weights: identical``.
    """

    weights: Weights = "identical"
    staleness: Staleness = _INVERSE_ROOT
    buffer: Annotated[int, Field(gt=0, le=10_000_000)]
    concurrency: Count | None = None
    restart: Literal["immediately", "barrier"] = "immediately"
    reduce: Literal["mean", "sum"] = "mean"

    def check(self, task_clients: int) -> None:
        if self.concurrency is not None and self.concurrency > task_clients:
            raise InputError(
                f"found {self.concurrency}, allowed: at most data.clients = {task_clients}", key="concurrency"
            )
        if self.restart == "barrier" and self.concurrency is not None:
            raise InputError("with restart: barrier all clients are at work: remove the key", key="concurrency")
        if self.restart == "barrier" and self.buffer > task_clients:
            raise InputError(f"found {self.buffer}, allowed: at most data.clients = {task_clients}", key="buffer")
        if self.weights == "debiased":
            raise InputError("FedBuff's rates have no closed form; allowed: estimated, identical", key="weights")

    def most_messages(self, clients: int) -> int:
        return self.buffer if self.per_client == "all" else min(self.buffer, clients)

    def policy(self, n: int, seed: int) -> Policy:
        if self.restart == "barrier":
            return Barrier(self.buffer)
        return Buffer(self.buffer, self.concurrency or n, rng.generator(seed, "fedbuff"))

    def arrival_weights(self, n: int, p: Floats, tau: list[int] | None, rates: Floats | None) -> Floats:
        if rates is not None:
            return p / rates
        return np.full(n, 1.0 / self.buffer if self.reduce == "mean" else 1.0)
