"""One round, in one place: what clients receive, and what becomes of the messages of those that took part.

The engine, the shards of a Ray run, the contract's bench, a Flower strategy and the audits all take their rounds from
here. In between stand the clients' local work (`worker`) and the pipeline of the messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms.base import Algorithm, Round
from fedsim.core.arrays import Floats, Ints
from fedsim.core.returned import same_form
from fedsim.core.types import Aggregate, Message, State
from fedsim.messages.base import Arrived


class Combined(Arrived, Protocol):
    """A round whose messages are combined; see `fedsim.core.job.Contribution`."""

    @property
    def staleness(self) -> Ints | None: ...
    @property
    def weights(self) -> Floats | None: ...


class Population(Protocol):
    """The clients there are: what `describe` needs of a `Task`."""

    @property
    def seed(self) -> int: ...
    @property
    def num_clients(self) -> int: ...
    @property
    def importance(self) -> Floats: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...


def begin(algorithm: Algorithm, state: State, rows: Tensor | None = None) -> Message:
    """What clients receive of `state`; of a graph's nodes those in `rows` (None: all)."""
    return some(algorithm.broadcast(state), rows)


def column(seconds: Floats, device: torch.device) -> Tensor:
    """Virtual seconds as a column ``[m, 1]``, float64 whatever the run's own type."""
    return torch.as_tensor(seconds, dtype=torch.float64, device=device).unsqueeze(1)


def flowed(algorithm: Algorithm, state: State, elapsed: Floats | None, rows: Tensor | None = None) -> State:
    """The nodes' states in which those in `rows` (None: all) have flowed for `elapsed` virtual seconds.

    Where they are not all, they are overwritten in place, for there may be many others.
    """
    if elapsed is None or not len(elapsed) or not algorithm.needs.flows:
        return state
    later = algorithm.flow(some(state, rows), column(elapsed, next(iter(state.values())).device))
    if rows is None:
        return later
    for k, v in later.items():
        state[k].index_copy_(0, rows, v)
    return state


def describe(algorithm: Algorithm, task: Population, event: Combined) -> Round:
    """What `combine` may know of a round."""

    def of(values: Any) -> Tensor:
        return torch.as_tensor(values, dtype=task.dtype, device=task.device).unsqueeze(1)

    stale = np.zeros(len(event.clients)) if event.staleness is None else event.staleness
    roles = algorithm.role_of(event.clients, event.rounds, task.seed)
    return Round(
        number=event.number,
        num_clients=task.num_clients,
        importance=of(task.importance[event.clients]),
        steps=of(event.steps),
        lr=of(algorithm.lr_at(event.rounds)),
        weights=None if event.weights is None else of(event.weights),
        staleness=of(stale),
        roles=None if roles is None else of(roles),
    )


def finish(
    algorithm: Algorithm,
    state: State,
    messages: Message,
    round: Round,
    aggregate: Aggregate,
    rows: Tensor | None = None,
) -> State:
    """The state after a round.

    Where only some nodes of a graph took part, `rows` says which: their states are overwritten in place, for there may
    be many others.
    """
    if rows is None:
        after = algorithm.combine(state, messages, round, aggregate)
        same_form(after, state, algorithm, "combine")
        return after
    before = some(state, rows)
    after = algorithm.combine(before, messages, round, aggregate)
    same_form(after, before, algorithm, "combine")
    for k, v in after.items():
        state[k].index_copy_(0, rows, v)
    return state


def some(state: Mapping[str, Tensor], rows: Tensor | None) -> dict[str, Tensor]:
    """The rows of some nodes; everything where `rows` is None."""
    return dict(state) if rows is None else {k: v[rows] for k, v in state.items()}
