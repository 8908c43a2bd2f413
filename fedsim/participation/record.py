"""What is recorded of a round: one row of ``trace.jsonl``, made from the arrivals it had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np

from fedsim.core.arrays import Ints
from fedsim.core.clock import seconds
from fedsim.participation.base import Arrival

_JOINED = ("clients", "rounds", "steps", "staleness", "compute", "edges", "missing")


def whole(parts: Sequence[Arrival]) -> Arrival:
    """One arrival with all that happened in a round that had several; time, mixing and delays are the last one's."""
    if len(parts) == 1:
        return parts[0]
    joined: dict[str, Any] = {}
    for name in _JOINED:
        given = [value for part in parts if (value := getattr(part, name)) is not None]
        joined[name] = np.concatenate(given) if given else None
    for name in ("weights", "jobs", "roles", "seconds"):  # one for each client, or none
        given = [getattr(part, name) for part in parts]
        joined[name] = None if any(value is None for value in given) else np.concatenate(given)
    if any(part.ticks is not None for part in parts):
        joined["ticks"] = sorted(chain.from_iterable(part.ticks or () for part in parts))
        alone = [t for t in joined["ticks"] if len(t.nodes) == 1]
        joined["compute"] = np.array([t.nodes[0] for t in alone], dtype=np.int64)
        pairs = [t.nodes for t in joined["ticks"] if len(t.nodes) == 2]
        joined["edges"] = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return replace(parts[-1], **joined, sends=sum(part.sends for part in parts))


def is_empty(parts: Sequence[Arrival]) -> bool:
    """Whether nothing came of a round: nobody computed, and no message crossed a link."""
    return not any(part.sends or part.steps.any() for part in parts)


def trace_row(parts: Sequence[Arrival]) -> dict[str, Any]:
    """What ``trace.jsonl`` says of the round that `parts` are: who took part, how old and how heavy it was."""
    event = whole(parts)
    row: dict[str, Any] = {"round": event.number, "time": event.time}
    if event.compute is not None:
        steps = _of_all(event) if event.ticks is None else [t.steps for t in event.ticks if len(t.nodes) == 1]
        row |= {"compute": event.compute, "edges": event.edges, "steps": steps}
        if event.there is not None:
            row |= event.there.counts
        if event.ticks is not None:
            row["events"] = [[seconds(t.time), *t.nodes] for t in event.ticks]
    else:
        row["clients"] = event.clients
        if event.jobs is not None:  # otherwise they are the number of the round
            row["rounds"] = event.rounds
        row |= {"steps": event.steps, "staleness": event.staleness}
        told = ("weights", "roles", "seconds", "superseded", "skipped")
        row |= {k: v for k in told if (v := getattr(event, k)) is not None}
    if event.merge:
        row["merge"] = True
    return row if event.missing is None else {**row, "missing": event.missing}


def _of_all(event: Arrival) -> Ints:
    """Local steps of every node of a graph: none of those that are away."""
    if event.there is None:
        return event.steps
    steps = np.zeros(len(event.there.nodes), dtype=np.int64)
    steps[event.clients] = event.steps
    return steps
