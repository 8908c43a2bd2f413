"""One round, in one place: what clients receive, and what becomes of the messages of those that took part.

The engine, the shards of a Ray run, the contract's bench, a Flower strategy and the audits all take their rounds from
here. In between stand the clients' local work (`worker`) and the pipeline of the messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms.base import Algorithm, Round
from fedsim.core.arrays import Floats, Ints
from fedsim.core.oracle import CARRIED, Task
from fedsim.core.returned import same_form
from fedsim.core.types import Aggregate, Message, State, tensor_of
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


def initial(algorithm: Algorithm, task: Task, nodes: int | None = None) -> State:
    """The state before the first round: of a server, or of so many nodes of a graph."""

    def each(v: Tensor) -> Tensor:
        return v if nodes is None else v.expand(nodes, -1).clone()

    known: State = {}
    if nodes is None:
        importance = torch.as_tensor(task.importance, dtype=task.dtype, device=task.device).unsqueeze(1)
        known = algorithm.of_clients(importance)
    carried = {k: each(v) for k, v in task.common_carried.items()}
    return {**algorithm.init(each(task.common())), **known, **carried}


def begin(algorithm: Algorithm, state: State, rows: Tensor | None = None) -> Message:
    """What clients receive of `state`; of a graph's nodes those in `rows` (None: all)."""
    own, carried = _divided(state)
    return some({**algorithm.broadcast(own), **carried}, rows)


def model(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The model with the parameters `x` ``[..., d]`` and what it carries besides, ``[..., d + s]``; what is shared of
    it."""
    return torch.cat([x, state[CARRIED]], -1) if CARRIED in state else x


def _divided(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What is the algorithm's, and what models carry besides."""
    own = {k: v for k, v in tensors.items() if k != CARRIED}
    return own, {k: v for k, v in tensors.items() if k == CARRIED}


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

    roles = algorithm.role_of(event.clients, event.rounds, task.seed)
    known = {
        "importance": task.importance[event.clients],
        "steps": event.steps,
        "lr": algorithm.lr_at(event.rounds),
        "staleness": np.zeros(len(event.clients)) if event.staleness is None else event.staleness,
        "weights": event.weights,
        "roles": roles,
    }
    given = {name: values for name, values in known.items() if values is not None}
    columns = np.empty((len(given), len(event.clients), 1))  # all cross to the device at once
    for column_of, values in zip(columns, given.values(), strict=True):
        column_of[:, 0] = values
    rows = tensor_of(columns, task.dtype, task.device).unbind(0)
    return Round(
        number=event.number,
        num_clients=task.num_clients,
        clients=torch.as_tensor(event.clients, device=task.device),
        **dict(zip(given, rows, strict=True)),
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
    before, carried = _divided(state if rows is None else some(state, rows))
    own, sent = _divided(messages)
    after = algorithm.combine(before, own, round, aggregate)
    same_form(after, before, algorithm, "combine")
    if carried:
        mean = aggregate(sent[CARRIED])  # a server's of changes, a node's of what it hears
        after = {**after, CARRIED: carried[CARRIED] + mean if algorithm.setting == "server" else mean}
    if rows is None:
        return after
    for k, v in after.items():
        state[k].index_copy_(0, rows, v)
    return state


def some(state: Mapping[str, Tensor], rows: Tensor | None) -> dict[str, Tensor]:
    """The rows of some nodes; everything where `rows` is None."""
    return dict(state) if rows is None else {k: v[rows] for k, v in state.items()}
