"""What clients or nodes cost, learned from the seconds that shards take, and how to divide them anew where one lags.

The model is ``seconds = slowness[k] * sum_i cost[i]`` for a job of clients i in shard k. At first a cost is the work
that was predicted. Where a job takes r times as long as expected, the costs of its clients are multiplied by r**0.3
and the slowness of its shard by r**0.05: gradient steps on the squared error of the logarithm, as in the normalised
least-mean-squares rule (Widrow and Hoff 1960). Clients take most of the blame, since what is put down to them is taken
to move along with them: a division then moves too few of them sooner than too many, and the next one sees what is left.

Nothing here knows Ray, or computes a client. Where a client is computed changes no number but for rounding.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fedsim.core.arrays import Floats, Ints
from fedsim.core.job import Job
from fedsim.core.types import Message

log = logging.getLogger("fedsim")

RATIO = 1.3
"""Times the mean that the slowest actor takes where clients are divided anew."""
_BLAME, _SLOWNESS = 0.3, 0.05  # exponents of r
_ODD = 4.0  # r and 1/r are at most that: one odd job is no reason to believe something else altogether
_OUTLIER = 2.0  # times what was expected that a job counts for at most where actors are compared
_WINDOW = 4  # jobs of the busiest shard that are judged together
_WINDOWS = 2  # in a row in which the same actor has to lag
_LEAST = 0.01  # seconds per job that the slowest actor has to take above the mean
_WORTH = 1.0  # seconds that have to be lost altogether; and twice what the last division took
_GAIN = 0.9  # of the slowest actor's time, which a division has to promise at most
_PATIENT = 16  # times as many windows at most, where divisions were of no use
_USUAL = 4.0  # jobs that a client is taken to have had, besides those that it had
_GOOD = 1.1  # times an actor's share: a division that needs no other
_FULL = 1.01  # times its share that an actor keeps of its own clients

Spent = list[tuple[float, Ints | None]]
"""What jobs of a shard took, in seconds, and whose they were (None: of all its clients)."""


Divide = Callable[[Floats, Ints, Mapping[int, int], Floats], Ints]
"""Makes a division of costs, of the one that there is: see `divided`."""


class Stopwatch:
    """A worker that notes how long it computes."""

    def __init__(self, worker: Any, clients: Ints) -> None:
        self._worker, self._clients = worker, clients
        self.spent: Spent = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, name)

    def run(self, job: Job) -> Message:
        """As the worker's."""
        begin = time.perf_counter()
        messages: Message = self._worker.run(job)
        seconds = seconds_since(begin, self._worker.initial.device)
        everybody = np.array_equal(job.clients, self._clients)
        self.spent.append((seconds, None if everybody else job.clients.astype(np.int32)))
        return messages


def seconds_since(begin: float, device: torch.device) -> float:
    """How long it takes until everything is computed that was asked for up to now."""
    if device.type == "cuda":  # where work is only queued until somebody waits for it
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


class Balance:
    """Learns what clients cost, and says when and how to divide them anew.

    Parameters
    ----------
    load : the work that is predicted of each client, ``[n]``, in any unit.
    members : the clients of each shard; a shard without any has no actor.
    """

    def __init__(self, load: Floats, members: Sequence[Ints]) -> None:
        mean = float(load.mean())
        self.cost: Floats = np.maximum(load / mean, 1e-3) if mean > 0 else np.ones(len(load))
        """Seconds of a job of each client, ``[n]``; in units of the mean client's until the first job is heard of."""
        self.slowness: Floats = np.ones(len(members))
        """Of each shard's actor, with geometric mean 1."""
        self.due = False
        """Whether an actor lags for so long that a division is worth it."""
        self.before = self.expected = self.measured = float("nan")
        """Of the last division: the slowest actor's time before it in times of the mean, as it was expected to be, and
        as it was in the first jobs after it."""
        self._members = members
        self._jobs: Ints = np.zeros(len(load), dtype=np.int64)
        self._floor: Floats = np.empty(0)
        self._sums: Floats = np.zeros(1)
        self._unit_known, self._price, self._patience, self._proves = False, 0.0, 1, False
        self.disregard()

    def disregard(self) -> None:
        """What is heard next of each shard is of no use: it was just made, or has work to do again."""
        self._new = {k for k, mine in enumerate(self._members) if len(mine)}
        self._clear()
        self._start_over()

    def hear(self, k: int, spent: Spent) -> None:
        """Learn from the jobs of shard k."""
        if spent and k in self._new:
            self._new.discard(k)
            return
        for seconds, clients in spent:
            mine = self._members[k] if clients is None else clients
            self._jobs[mine] += 1
            expected = float(self.slowness[k] * self.cost[mine].sum())
            if seconds <= 0 or expected <= 0:
                continue
            if not self._unit_known:
                self.cost *= seconds / expected
                self._unit_known = True
                expected = seconds
            r = min(max(seconds / expected, 1 / _ODD), _ODD)
            self.cost[mine] *= r**_BLAME
            self.slowness[k] *= r**_SLOWNESS
            self._seconds[k] += min(seconds, _OUTLIER * expected)
            self._counts[k] += 1

    def judge(self, at: Mapping[int, int]) -> None:
        """See whether an actor lags, once enough has been heard; ``at[k]`` is the actor of shard k."""
        if self.due or max(self._counts) < _WINDOW:
            return
        totals = np.zeros(max(at.values()) + 1)
        for k, actor in at.items():
            totals[actor] += self._seconds[k]
        jobs, mean = max(self._counts), float(totals.mean())
        self._clear()
        shift = float(np.exp(np.log(self.slowness[list(at)]).mean()))
        self.slowness /= shift
        self.cost *= shift
        share = totals / mean
        if self._proves:
            self._prove(float(share.max()))
        if len(share) != len(self._floor) or np.minimum(self._floor, share).max() < RATIO:
            self._start_over()
            self._floor, self._sums = share, np.zeros(len(share))
        self._floor = np.minimum(self._floor, share)
        if self._floor.max() < RATIO or totals.max() - mean < _LEAST * jobs:
            self._start_over()
            return
        self._streak += 1
        self._sums += totals
        lost = float(self._sums.max() - self._sums.mean())
        self.due = self._streak >= _WINDOWS * self._patience and lost >= max(_WORTH, 2 * self._price)

    def better(self, owner: Ints, at: Mapping[int, int], divide: Divide) -> Ints | None:
        """The shard of each client, ``[n]``, in a better division than `owner`; None where none is worth it."""
        usual = (self._jobs + _USUAL) / (self._jobs.mean() + _USUAL)
        actors = max(at.values()) + 1
        slowness = np.array([np.mean([self.slowness[k] for k, a in at.items() if a == b]) for b in range(actors)])
        actor = np.array([at.get(k, 0) for k in range(len(self._members))])
        now = np.bincount(actor[owner], self.cost * usual, minlength=actors) * slowness
        other = divide(self.cost * usual, owner, at, slowness)
        loads = np.bincount(actor[other], self.cost * usual, minlength=actors) * slowness
        before = float(self._sums.max() / self._sums.mean())
        if loads.max() > _GAIN * now.max() or np.array_equal(owner, other):
            self._patience = min(2 * self._patience, _PATIENT)
            self._start_over()
            return None
        self.before, self.expected = before, float(loads.max() / loads.mean())
        return other

    def moved(self, members: Sequence[Ints], seconds: float) -> None:
        """Clients were divided so, which took `seconds`."""
        self._members, self._price, self._proves = members, seconds, True
        self.disregard()

    def _prove(self, measured: float) -> None:
        """Look at the first jobs after a division."""
        self.measured, self._proves = measured, False
        self._patience = 1 if measured < 0.95 * self.before else min(2 * self._patience, _PATIENT)
        log.info(
            "since clients were divided anew, the slowest actor takes %.2f times the mean (before: %.2f)",
            measured,
            self.before,
        )

    def _clear(self) -> None:
        self._seconds, self._counts = np.zeros(len(self._members)), [0] * len(self._members)

    def _start_over(self) -> None:
        """No actor lags as far as is known."""
        self.due, self._streak = False, 0
        self._floor, self._sums = np.empty(0), np.zeros(1)


def divided(cost: Floats, owner: Ints, at: Mapping[int, int], slowness: Floats) -> Ints:
    """The shard of each client, ``[n]``, where actors take about the same time.

    An actor keeps of its own clients the dearest ones that fit into its share; the others go, dearest first, to where
    they are done first (Graham's rule for machines of different speeds). Where that is bad, since clients are few, all
    go by that rule.

    Parameters
    ----------
    cost : seconds of each client, ``[n]``, at slowness 1.
    owner : the shard of each client now, ``[n]``; every shard keeps at least one client.
    at : the actor of each shard; where an actor has several, what comes to it comes to the first one.
    slowness : of each actor.
    """
    slow, home, price = slowness.tolist(), [at[k] for k in owner.tolist()], cost.tolist()
    share = _FULL * float(cost.sum()) / float((1 / slowness).sum())
    order = np.argsort(-cost, kind="stable").tolist()

    def assigned(stay: bool) -> tuple[list[int], list[float]]:
        """The actor of each client, and each one's load."""
        actor, loads, left = list(home), [0.0] * len(slow), []
        for i in order:
            a = home[i]
            seconds = slow[a] * price[i]
            if not stay or (loads[a] and loads[a] + seconds > share):
                left.append(i)
            else:
                loads[a] += seconds
        for i in left:
            a = min(range(len(slow)), key=lambda b: (loads[b] + slow[b] * price[i], b != home[i]))
            actor[i] = a
            loads[a] += slow[a] * price[i]
        return actor, loads

    actor, loads = assigned(stay=True)
    if max(loads) > _GOOD * share:
        other, heavy = assigned(stay=False)
        actor, loads = (other, heavy) if max(heavy) < _GAIN * max(loads) else (actor, loads)
    first = {a: k for k, a in sorted(at.items(), reverse=True)}
    result: Ints = np.array([k if a == b else first[a] for k, a, b in zip(owner.tolist(), actor, home, strict=True)])
    counts = np.bincount(result, minlength=max(at) + 1)
    for k in at:
        if not counts[k]:  # one of several shards of an actor, or an actor that is better off without
            mine = np.flatnonzero(owner == k)
            result[mine[np.argmin(cost[mine])]] = k
    return result
