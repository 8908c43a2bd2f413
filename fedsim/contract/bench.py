"""What the contract's laws are checked on: six clients' quadratics, and a few rounds of an algorithm on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from fedsim.algorithms.base import Algorithm, Round, Surroundings
from fedsim.algorithms.work import Work
from fedsim.clients.round import begin, describe, finish, flowed, initial
from fedsim.clients.worker import Worker
from fedsim.core import rng
from fedsim.core.arrays import Floats, Ints
from fedsim.core.errors import InputError
from fedsim.core.job import Contribution, Job, RunFacts
from fedsim.core.oracle import Oracle
from fedsim.core.types import Aggregate, Message, State
from fedsim.data.sets import Quadratic
from fedsim.graphs.mixing_matrix import BaseMixing, MixingMatrix
from fedsim.graphs.rates import chi
from fedsim.messages.aggregators import Mean
from fedsim.messages.base import Pipeline
from fedsim.messages.compressors import TopK
from fedsim.messages.memory import OwnCompressor
from fedsim.objective.quadratic import QuadraticTask

CLIENTS, DIMENSION = 6, 5
EVERYBODY = [list(range(CLIENTS))]
START = (3.0, -3.0, 3.0, -3.0, 0.0)  # sums to 0: moving all parameters alike is no way down


class Bench:
    """The quadratics and the algorithm under test.

    Curvatures are between 0.05 and 0.2 over the local learning rate, so that a few local steps never diverge.
    """

    def __init__(self, algorithm: Algorithm) -> None:
        self.gossip = algorithm.setting == "gossip"
        self.flows = algorithm.needs.flows
        """Whether states change between events, so that rounds are those of a clock: work, then pairs that mix."""
        generator = rng.generator(0, "contract")
        scale = 0.2 / algorithm.lr
        self.A = np.empty((CLIENTS, DIMENSION, DIMENSION))
        for i in range(CLIENTS):
            q, _ = np.linalg.qr(generator.standard_normal((DIMENSION, DIMENSION)))
            self.A[i] = q @ np.diag(scale * generator.uniform(0.25, 1.0, DIMENSION)) @ q.T
        self.A = (self.A + self.A.transpose(0, 2, 1)) / 2
        self.b = 0.3 * generator.standard_normal((CLIENTS, DIMENSION))
        share = generator.uniform(1.0, 3.0, CLIENTS)
        self.p = np.full(CLIENTS, 1 / CLIENTS) if self.gossip else share / share.sum()
        self.noise = 0.1 * scale
        if self.flows:
            ring = np.sort([[i, (i + 1) % CLIENTS] for i in range(CLIENTS)])
            algorithm = algorithm.placed(Surroundings(self.task(0.0), lambda: chi(CLIENTS, ring, np.ones(CLIENTS))))
        self.algorithm = algorithm
        unequal = Work.model_validate({"model": "uniform", "low": 1, "high": 3})
        self.any_steps = _accepts(algorithm, unequal)
        sporadic = self.gossip and algorithm.needs.compute == "sporadic"
        self.idle = sporadic and self.any_steps

    @cached_property
    def mixing(self) -> MixingMatrix:
        """A ring where two neighbours weigh a quarter each."""
        ring = np.zeros((CLIENTS, CLIENTS))
        for i in range(CLIENTS):
            ring[i, [i, (i + 1) % CLIENTS, i - 1]] = 0.5, 0.25, 0.25
        return MixingMatrix(BaseMixing(ring, directed=False).matrix, torch.device("cpu"))

    @cached_property
    def pipeline(self) -> Pipeline:
        """The compression of an algorithm that is made for one: of 5 numbers the 2 largest."""
        remembers = self.algorithm.needs.compression
        own = () if remembers is None else (OwnCompressor(compressor=TopK(k=2), remembers=remembers),)
        return Pipeline(own, RunFacts(0, CLIENTS))

    def pairs(self, number: int) -> MixingMatrix:
        """Of three rounds the first has no link, and the others every second one of the ring, with the weight that the
        algorithm gives two nodes that mix."""
        weight, matrix = getattr(self.algorithm, "pair", None) or 0.5, np.eye(CLIENTS)
        for i in range(number % 3 // 2, CLIENTS if number % 3 != 1 else 0, 2):
            matrix[[i, i - 1], [i, i - 1]], matrix[[i, i - 1], [i - 1, i]] = 1 - weight, weight
        return MixingMatrix(sparse.csr_array(matrix), torch.device("cpu"))

    def elapsed(self, number: int) -> Floats | None:
        """Virtual seconds since every node's last event, where states change in between: about one a round."""
        return np.asarray(0.2 + 0.1 * ((np.arange(CLIENTS) + number) % 3)) if self.flows else None

    def task(self, noise: float) -> QuadraticTask:
        A, b, x0, p = (torch.as_tensor(v, dtype=torch.float64) for v in (self.A, self.b, START, self.p))
        return QuadraticTask(Quadratic(A, b, x0, p, noise), 0, torch.device("cpu"), torch.float64)

    def initial(self, task: QuadraticTask) -> Tensor:
        """``[d]`` for a server, ``[n, d]`` for a graph."""
        return task.initial().expand(CLIENTS, -1).clone() if self.gossip else task.initial()

    def somewhere(self) -> tuple[Message, State]:
        """What clients received and keep in the middle of some run, all rows different, ``[m, d]``."""
        a, rows = self.algorithm, self.task(0.0).initial().expand(CLIENTS, -1)
        generator = torch.Generator().manual_seed(0)

        def some(v: Tensor) -> Tensor:
            return v + torch.randn(v.shape, generator=generator, dtype=v.dtype)

        state = {k: some(v) for k, v in a.init(rows.clone()).items()}
        received = {k: v.expand(CLIENTS, -1).clone() for k, v in a.broadcast(state).items()}
        return received, {k: some(v) for k, v in a.init_client(rows.clone()).items()}

    def loss(self, received: Message) -> Tensor | None:
        """What every client loses with the model that it received, ``[m, 1]``, where the algorithm asks for it."""
        if self.algorithm.evaluates_on is None:
            return None
        everybody = np.arange(CLIENTS, dtype=np.int64)
        return self.task(0.0).losses(received["x"], everybody, everybody, "full").mean

    def cohort(self, number: int, full: bool = False) -> tuple[Ints, Ints]:
        """Clients of a round and their local steps, ``[m]`` each.

        Nodes of a graph all take part, some idle where they may be; a server's cohort changes, unless `full`.
        """

        clients = np.arange(CLIENTS, dtype=np.int64)
        if not (full or self.gossip or number == 1):
            clients = clients[(clients + number) % 3 != 0]
        if self.flows and number % 3 != 1:
            return clients, np.zeros(CLIENTS, dtype=np.int64)
        if not self.any_steps:
            return clients, self.algorithm.steps(self.task(0.0), clients, np.full(len(clients), number), 0)
        steps = 1 + (2 * clients + number) % 3
        if self.idle and not full:
            steps[(clients + number) % 4 == 0] = 0
        return clients, steps

    def round(self, number: int, clients: Ints, steps: Ints) -> tuple[Round, Aggregate]:
        """What `combine` gets besides state and messages."""
        share = self.p[clients]
        weights = None if self.gossip else share / share.sum()
        rounds = np.full(len(clients), number)
        info = describe(self.algorithm, self.task(0.0), Contribution(number, clients, rounds, steps, None, weights))
        if info.weights is None:
            return info, self.pairs(number) if self.flows else self.mixing
        return info, Mean().bind({}, info.weights.squeeze(1), {})[0]

    def simulate(
        self, shards: list[list[int]], rounds: int, noise: float, full: bool = False, chunk_rows: int | None = None
    ) -> Iterator[tuple[str, State]]:
        """Run a few rounds with one worker per shard; yields (what it is, tensors) for everything that comes out."""
        task = self.task(noise)
        workers = [Worker(task, self.algorithm, chunk_rows, pipeline=self.pipeline) for _ in shards]
        state = initial(self.algorithm, task, CLIENTS if self.gossip else None)
        for number in range(1, rounds + 1):
            clients, steps = self.cohort(number, full)
            state = flowed(self.algorithm, state, self.elapsed(number))
            received = begin(self.algorithm, state)
            messages: Message = {}
            for worker, shard in zip(workers, shards, strict=True):
                rows = np.flatnonzero(np.isin(clients, shard))
                if len(rows):
                    index = torch.as_tensor(rows)
                    mine = {k: v[index] if v.dim() > 1 else v for k, v in received.items()}
                    sent = worker.run(Job(clients[rows], np.full(len(rows), number), steps[rows], mine))
                    for k, v in sent.items():
                        messages.setdefault(k, v.new_full((len(clients), v.shape[-1]), torch.nan))[index] = v
            yield f"round {number}, message", _clone(messages)
            info, aggregate = self.round(number, clients, steps)
            state = finish(self.algorithm, state, messages, info, aggregate)
            yield f"round {number}, state", _clone(state)
        kept = [(shard, worker.store.gather(np.asarray(shard))) for worker, shard in zip(workers, shards, strict=True)]
        order = torch.as_tensor(np.argsort(np.concatenate([shard for shard, _ in kept])))
        yield "what clients keep", {k: torch.cat([rows[k] for _, rows in kept])[order] for k in kept[0][1]}


class ExactOracle(Oracle):
    """Exact gradients of some rows, for ``[m, d]`` and for one ``[d]``."""

    def __init__(self, bench: Bench, rows: Any, lr: Tensor) -> None:
        super().__init__(lr)
        self.A, self.b = torch.as_tensor(bench.A)[rows], torch.as_tensor(bench.b)[rows]

    def grad(self, x: Tensor) -> Tensor:
        return (self.A @ (x - self.b).unsqueeze(-1)).squeeze(-1)

    def per_sample_grad(self, x: Tensor) -> Tensor:
        return self.grad(x).unsqueeze(-2)


def _accepts(algorithm: Algorithm, work: Work) -> bool:
    """Whether the algorithm can do this local work (gradient tracking, for one, takes one step per round)."""
    return with_keys(algorithm, local_steps=work, local_epochs=None) is not None


def with_keys(algorithm: Algorithm, **keys: Any) -> Algorithm | None:
    """The algorithm with other keys; None where these do not go together."""
    other = dataclasses.replace(algorithm, **keys)
    try:
        other.check_solver()
        other.check(CLIENTS)
    except InputError:
        return None
    return other


def _clone(tensors: State) -> State:
    """A copy, so that a method that works in place does not rewrite what came out before."""
    return {k: v.clone() for k, v in tensors.items()}
