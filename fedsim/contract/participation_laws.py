"""The laws every participation mode has to keep; ``fedsim check PKG.MOD:CLASS`` checks them on anybody's own.

The events of a few rounds are made, of six clients of a server with unequal speeds or of six nodes of a ring, without
any training: a mode never looks at models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedsim.algorithms.base import Algorithm
from fedsim.contract.bench import CLIENTS
from fedsim.contract.tools import CheckResult, LawBrokenError, checked, global_seed, part_of
from fedsim.core.clock import TICKS_PER_SECOND
from fedsim.core.errors import InputError
from fedsim.core.fields import make_part
from fedsim.core.registry import lookup
from fedsim.data.sets import Quadratic
from fedsim.devices.system import Durations, SystemSection
from fedsim.graphs.mixing_matrix import MixingMatrix
from fedsim.graphs.network import build_network
from fedsim.graphs.topology import topology_of
from fedsim.messages.aggregators import Mean
from fedsim.objective.quadratic import QuadraticTask
from fedsim.participation.base import Arrival, Dispatch, Ended, Event, Participation, Setting

ROUNDS = 25
_MOST_EVENTS = 20_000
_SPEEDS: dict[str, Any] = {"compute": {"model": "linear", "slowest": 1.0, "fastest": 0.2}}
_VARYING: dict[str, Any] = {**_SPEEDS, "jitter": {"model": "exponential", "mean": 0.3}}


@dataclass
class Stand:
    """The mode under test and the runs it makes events for."""

    mode: Participation

    @cached_property
    def setting(self) -> Setting:
        """Six clients; jobs vary from one to the next where the mode allows that."""
        p = np.arange(1.0, CLIENTS + 1)
        A, b, x0, share = (
            torch.as_tensor(v) for v in (np.ones((CLIENTS, 1)), np.zeros((CLIENTS, 1)), np.zeros(1), p / p.sum())
        )
        task = QuadraticTask(Quadratic(A, b, x0, share), 0, torch.device("cpu"), torch.float64)
        gossip = self.mode.setting == "gossip"
        algorithm: Algorithm = make_part(lookup("algorithm", "dspodfl" if gossip else "fedavg"), {"lr": 0.1})
        bare = Setting(0, ROUNDS, task, algorithm, self.mode, Mean(), None)
        if gossip:
            ring = make_part(lookup("graph", "ring"), {})
            topology, weights = topology_of(ring, None, CLIENTS, 0, Path(), "ring")
            return replace(bare, network=build_network(topology, weights, "dspodfl", True))
        made = [
            replace(bare, durations=Durations(SystemSection.model_validate(section), CLIENTS, 0))
            for section in (_VARYING, _SPEEDS)
        ]
        try:
            self.mode.check_run(made[0])
        except InputError:
            return made[1]
        return made[0]

    def events(self, after: int = 0, rounds: int = ROUNDS) -> list[Event]:
        """Events up to the end of round `rounds`."""
        found: list[Event] = []
        for event in islice(self.mode.events(self.setting, after), _MOST_EVENTS):
            found.append(event)
            if isinstance(event, Ended) or (isinstance(event, Arrival) and event.closes and event.number >= rounds):
                return found
        raise LawBrokenError(f"{_MOST_EVENTS:,} events did not close {rounds} rounds")

    @cached_property
    def whole(self) -> list[Event]:
        return self.events()


def check_participation(name: str, settings: list[str]) -> list[CheckResult]:
    """Check every law on the participation mode called `name` (registered, or ``pkg.mod:Class``).

    Parameters
    ----------
    settings : ``key=value`` for the mode's keys, values in YAML.

    Raises
    ------
    InputError
        No such mode, it is not one, or the settings are wrong.
    """
    mode: Participation = part_of("participation", name, settings)
    results = [checked("keys fit together", lambda: _keys(mode))]
    if not results[0].passed:
        return results
    stand = Stand(mode)
    return results + [checked(law, lambda test=test: test(stand)) for law, test in LAWS.items()]  # type: ignore[misc]


def _keys(mode: Participation) -> str:
    try:
        mode.check(CLIENTS)
        mode.check_run(Stand(mode).setting)
    except InputError as error:
        raise LawBrokenError(str(error)) from None
    return f"{type(mode).__name__}, {mode.setting}"


# --- the laws ---------------------------------------------------------------------------------------------------------


def _order(stand: Stand) -> str:
    """Rounds count up by one, and time never goes back."""
    closed, number, last = 0, 0, 0.0
    for event in stand.whole:
        if isinstance(event, Dispatch):
            if event.start < closed - _slack(closed):
                raise LawBrokenError(f"clients start at tick {event.start}, but round {number} ended at {closed}")
            early = [e for e in event.ends if e < event.start]
            if early:
                raise LawBrokenError(f"clients that start at tick {event.start} end at {early[0]}, before it")
            continue
        if event.time < last:
            raise LawBrokenError(f"round {event.number} is at second {event.time:g}, after one at {last:g}")
        wanted = number if isinstance(event, Ended) else number + 1
        if event.number != wanted:
            raise LawBrokenError(f"found round {event.number} after round {number}, allowed: {wanted}")
        last = event.time
        if isinstance(event, Arrival) and event.closes:
            number, closed = event.number, _tick(event)
    return f"{number} rounds, {last:g} virtual seconds"


def _jobs(stand: Stand) -> str:
    """What arrives was dispatched, is done, and arrives once."""
    out: dict[int, tuple[int, int, int, int]] = {}
    used, arrived = set[int](), 0
    for event in stand.whole:
        if isinstance(event, Dispatch):
            numbers = (event.clients if event.jobs is None else event.jobs).tolist()
            rows = zip(event.clients.tolist(), event.rounds.tolist(), event.steps.tolist(), event.ends, strict=True)
            for job, row in zip(numbers, rows, strict=True):
                if job in out or (event.jobs is not None and job in used):
                    raise LawBrokenError(f"job {job} of client {row[0]} is dispatched twice")
                out[job] = row
            used |= set(numbers)
        elif isinstance(event, Arrival):
            numbers = (event.clients if event.jobs is None else event.jobs).tolist()
            found = zip(event.clients.tolist(), event.rounds.tolist(), event.steps.tolist(), strict=True)
            for job, now in zip(numbers, found, strict=True):
                where = f"round {event.number}, client {now[0]}: job {job}"
                if job not in out:
                    raise LawBrokenError(f"{where} arrives, but is not at work: never dispatched, or arrived before")
                *sent, end = out.pop(job)
                if tuple(sent) != now:
                    raise LawBrokenError(f"{where} was sent out as (client, round, steps) {sent} and is now {now}")
                if end > _tick(event) + _slack(end):
                    raise LawBrokenError(f"{where} arrives at tick {_tick(event)} and is done at {end}")
                arrived += 1
    return f"{arrived} jobs"


def _numbers(stand: Stand) -> str:
    """Clients are there, weights are numbers, what mixes keeps the mean of equal models."""
    heaviest = 0.0
    for event in stand.whole:
        if isinstance(event, Ended):
            continue
        for name, low, high in (("clients", 0, CLIENTS - 1), ("rounds", 1, None), ("steps", 0, None)):
            values = getattr(event, name)
            wrong = values[(values < low) | (values > (high if high is not None else values))]
            if len(wrong):
                most = "" if high is None else f" and at most {high}"
                raise LawBrokenError(f"found {wrong[0]} among the {name}, allowed: at least {low}{most}")
        if isinstance(event, Dispatch):
            continue
        if event.weights is None and not isinstance(event.mixing, MixingMatrix) and len(event.clients):
            raise LawBrokenError(f"round {event.number} has neither weights nor a mixing matrix")
        if event.weights is not None:
            if not np.isfinite(event.weights).all() or (event.weights < 0).any():
                raise LawBrokenError(f"round {event.number} has weights {event.weights}, allowed: numbers from 0 on")
            heaviest = max(heaviest, float(event.weights.max(initial=0.0)))
        if isinstance(event.mixing, MixingMatrix):
            matrix = event.mixing.matrix
            if matrix.shape != (len(event.clients),) * 2 or abs(matrix.sum(1) - 1).max(initial=0.0) > 1e-9:
                raise LawBrokenError(f"round {event.number}: rows of the mixing matrix do not sum to 1")
    return f"largest weight {heaviest:.3g}" if heaviest else "rows sum to 1"


def _resumed(stand: Stand) -> str:
    """Events after round k are those that follow round k from the beginning."""
    ends = [i for i, e in enumerate(stand.whole) if isinstance(e, Arrival) and e.closes]
    for k in sorted({k for k in (1, 2, 7, 16) if k < len(ends)}):
        tail = stand.whole[ends[k - 1] + 1 :]
        _same(tail, stand.events(after=k), f"after round {k}")
    return f"of {len(ends)} rounds"


def _keyed(stand: Stand) -> str:
    """Events depend on the seed alone: not on global generators, nor on what else is asked meanwhile."""
    with global_seed(1):
        one = stand.events()
    with global_seed(2):
        other = stand.events()
    _same(one, other, "made again")
    streams: list[Iterator[Event]] = [stand.mode.events(stand.setting) for _ in range(2)]
    for event in one:
        found = [next(stream) for stream in streams]
        for again in found:
            _same([event], [again], "made side by side")
    return f"{len(one)} events"


LAWS: dict[str, Callable[[Stand], str]] = {
    "time goes on, rounds count up by one": _order,
    "a job arrives once, when it is done": _jobs,
    "clients, steps, weights and mixing are in their ranges": _numbers,
    "resumed = unbroken": _resumed,
    "same seed = same events": _keyed,
}


def _tick(event: Arrival) -> int:
    return round(event.time * TICKS_PER_SECOND)


def _slack(tick: int) -> int:
    """Ticks that are lost where a time is written in seconds."""
    return 1 + tick // 2**50


def _same(one: list[Event], other: list[Event], when: str) -> None:
    for number, (a, b) in enumerate(zip(one, other, strict=False)):
        difference = _difference(a, b)
        if difference:
            raise LawBrokenError(f"{when}: event {number} {difference}; draw from keys (rng.key, rng.generator) alone")
    if len(one) != len(other):
        raise LawBrokenError(f"{when}: found {len(other)} events, allowed: the same {len(one)}")


def _difference(a: Event, b: Event) -> str:
    if type(a) is not type(b):
        return f"is a {type(b).__name__} and was a {type(a).__name__}"
    for field in fields(a):
        one, other = getattr(a, field.name), getattr(b, field.name)
        if isinstance(one, MixingMatrix) and isinstance(other, MixingMatrix):
            one, other = one.matrix.toarray(), other.matrix.toarray()
        alike = np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other
        if not alike:
            return f"({type(a).__name__}) has another '{field.name}': {other} where it was {one}"
    return ""
