"""What the processes of a Ray run send each other in a round, told before it runs.

The bytes are those of the arrays in calls, in what comes back and in shared memory; what Ray adds to each call (a few
hundred bytes) is not among them.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms.base import one_message
from fedsim.backends.placement import cut_edges, place, place_graph, split
from fedsim.backends.ray.clients import INLINE_BYTES
from fedsim.backends.ray.rows import Rows
from fedsim.clients.round import begin, describe, finish, initial
from fedsim.core.arrays import Floats
from fedsim.core.job import Job
from fedsim.core.types import Message, message_bytes
from fedsim.engine.assembly import Assembly
from fedsim.engine.place import ACTORS, client_load, shards_mix
from fedsim.participation.base import Arrival
from fedsim.privacy.base import Bound
from fedsim.reports.numbers import size
from fedsim.scenario.sections import Scenario

_JOB = 32
"""Bytes of a client's or a node's work in a call: its number, its round, its steps and its job, int64 each."""
_NODE = 16
"""The same of a graph's node, whose number and job its actor knows."""

_TIMED = 4
"""The same of a client in what an actor tells of the time that it took, where not all its clients were at work."""


def between_processes(s: Scenario, a: Assembly, event: Arrival) -> dict[str, Any]:
    """What actors and the calling process send each other in a round; the round of `event` as an example."""
    load = client_load(s, a)
    actors = min(s.backend.actors or ACTORS, a.task.num_clients)
    if a.network is None:
        owner = place(load, actors)
        rows = _of_a_server(s, a, event, len(np.unique(owner[event.clients])))
    else:
        matrix = a.network.mixings[0].matrix
        owner = place_graph(load, matrix, actors)
        sent = message_bytes(a.one_message(s)[1])
        crossing = sum(int(part.incoming.sum()) for part in split(matrix, owner, actors))
        times = a.mixing(s).exchanges
        rows = {"edges between actors": f"{cut_edges(owner, matrix)} of {matrix.nnz - len(owner)} (both directions)"}
        if shards_mix(s, a):
            moved = size(times * crossing * sent)
            rows["models between actors"] = f"{times * crossing}, {moved} per round in which all links fire"
            rows["to the actors"] = f"{size(_NODE * a.task.num_clients)} per round"
        else:
            each = f"{size(len(event.clients) * sent)} per round each way"
            rows["models through this process"] = f"{len(event.clients)}, {each}; all nodes' models are kept here"
    return {**rows, "work of the busiest actor": _busiest(load, owner, actors)}


def _busiest(load: Floats, owner: np.ndarray[Any, Any], actors: int) -> str:
    totals = np.bincount(owner, load, minlength=actors)
    return f"{totals.max() / max(totals.mean(), 1e-12):.3g} times the mean"


def _of_a_server(s: Scenario, a: Assembly, event: Arrival, busy: int) -> dict[str, Any]:
    down, up = server_traffic(s, a, event, busy)
    return {"to the actors": f"{size(down)} per round", "back": f"{size(up)} per round"}


def server_traffic(s: Scenario, a: Assembly, event: Arrival, busy: int) -> tuple[int, int]:
    """Bytes to the actors and back, of a round of which `busy` actors compute the clients."""
    told, m = message_bytes(a.one_message(s)[0]), len(event.clients)
    sums, whole, scalars = _asked_for(s, a, event)
    broadcast = told if told > INLINE_BYTES else busy * told  # of a large one there is one copy in shared memory
    timed = _TIMED * m if m < a.task.num_clients and s.backend.rebalance is not False else 0
    return broadcast + m * (_JOB + 8) + 8 * m * sum(sums.values()), _back(a, sums, whole, scalars, m, busy) + timed


def _back(a: Assembly, sums: Counter[int], whole: Counter[int], scalars: int, m: int, busy: int) -> int:
    item = a.task.initial().element_size()
    summed = busy * sum(width * count for width, count in sums.items())
    return item * (summed + m * (scalars + sum(width * count for width, count in whole.items())))


def _asked_for(s: Scenario, a: Assembly, event: Arrival) -> tuple[Counter[int], Counter[int], int]:
    """How many sums of messages, and how many messages row by row, a round asks for, by their width; and how many
    messages of one number.

    It is the round itself on messages of nothing, so that it is what the algorithm, the aggregator and the transforms
    do. A rule that looks at every row is taken to fetch them all, and a privacy mechanism that combines, which would
    not be left as it was, to take one sum of each.
    """
    one = event.clients[:1]
    form = one_message(s.algorithm, a.task, gossip=False)[1]
    job = Job(one, event.rounds[:1], event.steps[:1], begin(s.algorithm, initial(s.algorithm, a.task)))
    sent, _ = a.pipeline.send(form, a.pipeline.fresh(form), job)
    m, like = len(event.clients), a.task.initial()[:0]
    sums, whole = Counter[int](), Counter[int]()
    scalars = sum(v.shape[-1] == 1 for v in sent.values())
    widths = {k: int(v.shape[-1]) for k, v in sent.items() if v.shape[-1] > 1}
    if not s.aggregator.is_linear:
        return sums, Counter(widths.values()), scalars

    def kept(width: int) -> Rows:
        def reduce(_: Tensor) -> Tensor:
            sums[width] += 1
            return like.new_zeros(width)

        def fetch() -> Tensor:
            whole[width] += 1
            return like.new_zeros((1, width)).expand(m, width)

        return Rows((m, width), like, reduce, fetch)

    messages: Message = {k: like.new_ones((m, 1)) for k in sent if k not in widths}
    messages |= {k: kept(width) for k, width in widths.items()}  # type: ignore[misc]  # as backends give them
    info = describe(s.algorithm, a.task, event)
    with torch.no_grad():
        messages = a.pipeline.receive(messages, event)
        if a.privacy.claims and type(a.privacy).aggregate is not Bound.aggregate:
            sums.update(v.shape[-1] for v in messages.values() if isinstance(v, Rows))
            return sums, whole, scalars
        assert info.weights is not None
        rule = s.aggregator.fresh(form)
        aggregate, _ = s.aggregator.bind_in(messages, info.weights.squeeze(-1), rule, event, a.pipeline.run)
        finish(s.algorithm, initial(s.algorithm, a.task), messages, info, aggregate)
    return sums, whole, scalars
