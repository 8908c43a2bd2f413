"""How often each client will be asked in a run: a schedule does not look at data, so it is known before the run."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fedsim.core.arrays import Ints
from fedsim.participation.base import Arrival, Dispatch, Ended, Event, Setting


def events(setting: Setting) -> Iterator[Event]:
    """The events of the whole run."""
    s = setting
    for event in s.participation.events(s):
        yield event
        if isinstance(event, Ended) or (isinstance(event, Arrival) and event.number == s.rounds):
            return


def gradients_per_client(setting: Setting) -> Ints:
    """Local steps of every client in the whole run, ``[n]``."""
    steps = np.zeros(setting.task.num_clients, dtype=np.int64)
    for event in events(setting):
        if isinstance(event, Dispatch):
            np.add.at(steps, event.clients, event.steps)
    return steps


def messages_per_client(setting: Setting) -> Ints:
    """Messages of every client in the whole run, ``[n]``."""
    count = np.zeros(setting.task.num_clients, dtype=np.int64)
    for event in events(setting):
        if isinstance(event, Dispatch):
            np.add.at(count, event.clients, 1)
    return count


def rounds_of_clients(setting: Setting) -> dict[int, Ints]:
    """The rounds (from 1) in which each client that ever contributes does."""
    rounds: dict[int, list[int]] = {}
    for event in events(setting):
        if isinstance(event, Arrival):
            for client in event.clients.tolist():
                rounds.setdefault(client, []).append(event.number)
    return {client: np.array(numbers, dtype=np.int64) for client, numbers in rounds.items()}
