"""Rounds of an algorithm whose models walk from client to client: each goes to a client that is drawn for it alone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np

from fedsim.core import rng
from fedsim.core.arrays import Ints
from fedsim.core.clock import seconds
from fedsim.core.job import VISIT
from fedsim.participation.base import Arrival, Dispatch, Event, Setting


def visits(setting: Setting, tokens: int, weighted: bool, after: int = 0) -> Iterator[Event]:
    """Events of the rounds after round `after`: in each every token visits one client, and all of them are waited for.

    A token's clients do not depend on how many others there are. Two that are at one client are worked on side by side.
    """
    number_of, now, clocks = np.arange(tokens, dtype=np.int64), 0, setting.clocks
    for number in count(1):
        clients, rounds = _drawn(setting, number_of, weighted, number), number + VISIT * number_of
        steps = setting.algorithm.steps(setting.task, clients, rounds, setting.seed)
        work = zip(clients.tolist(), steps.tolist(), strict=True)
        ends = [now + clocks.of(client, number - 1, k) for client, k in work]
        start, now = now, max(ends)
        if number <= after:
            continue
        yield Dispatch(clients, rounds, steps, ends, jobs=number_of, start=start)
        alike, stale = np.full(tokens, 1 / tokens), np.zeros(tokens, dtype=np.int64)
        yield Arrival(number, seconds(now), clients, rounds, steps, stale, tokens, alike, jobs=number_of)


def _drawn(setting: Setting, tokens: Ints, weighted: bool, number: int) -> Ints:
    """Where each token goes."""
    key, n = rng.key(setting.seed, "visit", tokens, number), setting.task.num_clients
    if not weighted:
        return rng.integers(key, n)
    share = setting.task.cumulative_importance
    found: Ints = np.minimum(np.searchsorted(share, rng.uniform(key) * share[-1], side="right"), n - 1).astype(np.int64)
    return found
