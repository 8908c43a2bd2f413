"""The private gradient oracle: every gradient an algorithm asks for is clipped and noised before it gets it.

``v = (1 / D) (sum_{j in S} clip_C(g_j(x)) + noise)`` with a public denominator D, whatever the sample S is. Everything
an algorithm computes from v is post-processing, so this makes any algorithm private that sees data through its oracle
alone.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms.base import Algorithm
from fedsim.core.arrays import Ints
from fedsim.core.errors import InputError, RunError
from fedsim.core.oracle import Oracle, Plan, Task
from fedsim.core.types import BatchSize, Message
from fedsim.privacy.base import WrappedTask


@dataclass(frozen=True)
class Question:
    """Whose gradient is released, and when: clients and their rounds ``[m]``, the local step, the how manieth of it."""

    clients: Ints
    rounds: Ints
    step: int
    call: int


class PrivateTask(WrappedTask):
    """A task whose oracle answers with clipped and noised gradients.

    Parameters
    ----------
    inner : the task with the clean oracle.
    calls : how many different points an algorithm may ask for in a step (see `calls_per_step`); one more is refused,
        since nobody accounted for it.
    """

    def __init__(self, inner: Task, calls: int) -> None:
        super().__init__(inner)
        self.calls = calls

    @abstractmethod
    def release(self, oracle: Oracle, x: Tensor, question: Question) -> Tensor:
        """The private gradient at `x` ``[m, d]`` from the clean `oracle`."""

    def minibatches(self, clients: Ints, rounds: Ints, steps: Ints, batch_size: BatchSize, epochs: bool) -> Plan:
        """The samples that local steps use."""
        return self.inner.plan(clients, rounds, steps, batch_size, epochs)

    def plan(self, clients: Ints, rounds: Ints, steps: Ints, batch_size: BatchSize, epochs: bool) -> Plan:
        return _PrivatePlan(self, self.minibatches(clients, rounds, steps, batch_size, epochs), clients, rounds)


class _PrivatePlan(Plan):
    def __init__(self, task: PrivateTask, inner: Plan, clients: Ints, rounds: Ints) -> None:
        self.task, self.inner, self.clients, self.rounds = task, inner, clients, rounds

    def begin(self, received: Message) -> None:
        self.inner.begin(received)

    def oracle(self, step: int, count: int, lr: Tensor) -> Oracle:
        clean = self.inner.oracle(step, count, lr)
        return PrivateOracle(self.task, clean, self.clients[:count], self.rounds[:count], step)


class PrivateOracle(Oracle):
    """One release for every point it is asked at; asked again at the point of the last answer, it repeats the answer.

    Repeating it is free: nothing new is released. The same noise at another point would be fatal, since the difference
    of two answers would then be clean; so every other point gets noise of its own.
    """

    def __init__(self, task: PrivateTask, clean: Oracle, clients: Ints, rounds: Ints, step: int) -> None:
        super().__init__(clean.lr)
        self._task, self._clean, self._who, self._step = task, clean, (clients, rounds), step
        self._used = 0
        self._point: Tensor | None = None
        self._answer: Tensor | None = None
        self._version = -1

    def grad(self, x: Tensor) -> Tensor:
        if self._answer is not None and self._point is x and self._version == x._version:
            return self._answer
        if self._used == self._task.calls:
            raise RunError(
                f"the algorithm asked for gradients at more than {self._task.calls} points in one local step, more "
                "than privacy was accounted for; nothing further was released"
            )
        question = Question(*self._who, self._step, self._used)
        self._used += 1
        self._answer = self._task.release(self._clean, x, question)
        self._point, self._version = x, x._version
        return self._answer

    def per_sample_grad(self, x: Tensor) -> Tensor:
        raise RunError("clean gradients of single samples are not available in a private run")

    @property
    def samples(self) -> Tensor:
        raise RunError("the size of a private minibatch is not public")


class _Counting(Oracle):
    """Counts the points at which a step asks for gradients."""

    def __init__(self, lr: Tensor) -> None:
        super().__init__(lr)
        self.calls = 0
        self._point: Tensor | None = None
        self._version = -1

    def grad(self, x: Tensor) -> Tensor:
        if not (self._point is x and self._version == x._version):
            self.calls += 1
            self._point, self._version = x, x._version
        return 0.1 * x + 1.0

    def per_sample_grad(self, x: Tensor) -> Tensor:
        raise InputError("the algorithm looks at gradients of single samples", key="privacy.mechanism")

    @property
    def samples(self) -> Tensor:
        raise InputError("the algorithm looks at the sizes of minibatches", key="privacy.mechanism")


def calls_per_step(algorithm: Algorithm) -> int:
    """At how many different points `algorithm` asks for gradients in a local step, found by taking three steps.

    Raises
    ------
    InputError
        It looks at single samples' gradients, which no noise protects.
    """
    if algorithm.role_of(np.arange(2), np.ones(2, dtype=np.int64), 0) is not None:
        message = (
            f"{type(algorithm).__name__} gives clients roles with minibatches of their own, which is not accounted for"
        )
        raise InputError(message, key="algorithm.name")
    params = torch.linspace(-1.0, 1.0, 3, dtype=torch.float64)
    gossip = algorithm.setting == "gossip"
    client = algorithm.fresh_client(params.unsqueeze(0))
    received = algorithm.receive(algorithm.broadcast(algorithm.init(params.unsqueeze(0) if gossip else params)), client)
    local = {k: v.expand(1, -1) for k, v in algorithm.start(received, client).items()}
    most = 1
    for _ in range(3):
        oracle = _Counting(params.new_full((1, 1), algorithm.lr))
        if algorithm.is_plain_sgd:
            x = local["x"].clone()
            oracle.descend(x)
            local = {"x": x}
        else:
            local = algorithm.local_step(oracle, local, received, client)
        most = max(most, oracle.calls)
    return most
