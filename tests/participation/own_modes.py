"""Participation modes that somebody else has written, as scenarios name them: ``own_modes:Half`` and its siblings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import ClassVar, Literal

import numpy as np

from fedsim.core.clock import TICKS_PER_SECOND, seconds, ticks
from fedsim.core.types import Count, Positive
from fedsim.graphs.mixing_matrix import MixingMatrix
from fedsim.participation.base import Arrival, Dispatch, Event, Participation, Setting
from fedsim.participation.clocked import Clocked
from fedsim.participation.policy import Action, Alert, Arrived, Combine, Happened, Policy, Rang, Start, Work


class HalfOrPatience(Policy):
    """Combine when half of those at work have delivered, or when `patience` ticks have passed since the last time."""

    def __init__(self, patience: int) -> None:
        self.patience, self.done, self.others = patience, list[Work](), list[int]()

    def begin(self) -> Iterable[Action]:
        return [*super().begin(), Alert(self.clock.tick + self.patience)]

    def on(self, event: Happened) -> Iterable[Action]:
        if isinstance(event, Arrived):
            self.done.append(event.job)
        elif not isinstance(event, Rang):
            self.others.append(event.client)
        if not isinstance(event, Rang) and 2 * len(self.done) < self.clock.n:
            return
        done, others, self.done, self.others = self.done, self.others, [], []
        yield Combine(done)
        yield Start(sorted([*(job.client for job in done), *others]))
        if self.clock.busy:
            yield Alert(self.clock.tick + self.patience)


@dataclass(frozen=True, kw_only=True)
class Half(Clocked):
    """`HalfOrPatience` with `patience` in seconds."""

    patience: Positive = 1.0

    def policy(self, n: int, seed: int) -> Policy:
        return HalfOrPatience(ticks(self.patience))


@dataclass(frozen=True, kw_only=True)
class Shifts(Participation):
    """`size` clients at a time take turns; a round takes as long as its slowest."""

    setting: ClassVar[Literal["server", "gossip"]] = "server"
    size: Count = 2

    def events(self, setting: Setting, after: int = 0) -> Iterator[Event]:
        n, now = setting.task.num_clients, 0
        for number in count(1):
            clients = np.unique(np.arange((number - 1) * self.size, number * self.size) % n)
            rounds = np.full(len(clients), number)
            steps = setting.server.steps(setting.task, clients, rounds, setting.seed)
            jobs = zip(clients.tolist(), steps.tolist(), strict=True)
            ends = [now + setting.clocks.of(c, number - 1, k) for c, k in jobs]
            start, now = now, max(ends)
            if number > after:
                yield Dispatch(clients, rounds, steps, ends, start=start)
                weights = np.full(len(clients), 1 / len(clients))
                stale = np.zeros_like(clients)
                yield Arrival(number, seconds(now), clients, rounds, steps, stale, len(clients), weights)


@dataclass(frozen=True, kw_only=True)
class Turns(Participation):
    """Links take turns, one each round; everybody computes."""

    setting: ClassVar[Literal["server", "gossip"]] = "gossip"

    def events(self, setting: Setting, after: int = 0) -> Iterator[Event]:
        (algorithm, network), n = setting.gossip, setting.task.num_clients
        base, nodes = network.mixings[0], np.arange(n)
        for number in count(after + 1):
            rounds, fires = np.full(n, number), np.arange(len(base.links)) == number % len(base.links)
            steps = algorithm.steps(setting.task, nodes, rounds, setting.seed)
            now = (number - 1) * TICKS_PER_SECOND
            yield Dispatch(nodes, rounds, steps, [now + TICKS_PER_SECOND] * n, start=now)
            mixing = MixingMatrix(base.realised(fires), setting.task.device)
            yield Arrival(
                number, float(number), nodes, rounds, steps, np.zeros(n, dtype=np.int64), 2, mixing=mixing,
                delays=(1.0, 1.0), compute=nodes, edges=base.links[fires],
            )  # fmt: skip


class Forgetful(Shifts):
    """Does not say when jobs end."""

    def events(self, setting: Setting, after: int = 0) -> Iterator[Event]:
        for event in super().events(setting, after):
            yield Dispatch(event.clients, event.rounds, event.steps, []) if isinstance(event, Dispatch) else event


@dataclass(frozen=True)
class Unfinished(Clocked):
    """Has no policy."""


@dataclass(frozen=True, kw_only=True)
class RunsDry(Shifts):
    """Stops after three rounds without a word."""

    def events(self, setting: Setting, after: int = 0) -> Iterator[Event]:
        for event in super().events(setting, after):
            yield event
            if isinstance(event, Arrival) and event.number == 3:
                return
