"""A task with another oracle, for what changes the gradients that local steps see: a privacy mechanism, a sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from fedsim.core.arrays import Floats, Ints
from fedsim.core.oracle import Answers, Losses, OwnTests, Plan, Task
from fedsim.core.types import BatchSize, State


class WrappedTask(Task):
    """A task with another oracle: everything but `plan` is that of `inner`."""

    def __init__(self, inner: Task) -> None:
        self.inner = inner
        self.dim, self.num_clients = inner.dim, inner.num_clients
        self.sizes, self.importance = inner.sizes, inner.importance
        self.device, self.dtype, self.metrics = inner.device, inner.dtype, inner.metrics
        self.quadratic, self.shapes, self.passes = inner.quadratic, inner.shapes, inner.passes
        self.sharing = inner.sharing

    def initial(self) -> Tensor:
        return self.inner.initial()

    @property
    def carried(self) -> State:
        return self.inner.carried

    def plan(self, clients: Ints, rounds: Ints, steps: Ints, batch_size: BatchSize, epochs: bool) -> Plan:
        return self.inner.plan(clients, rounds, steps, batch_size, epochs)

    def poisson_plan(self, clients: Ints, rounds: Ints, steps: Ints, rates: Floats, seed: int | None = None) -> Plan:
        return self.inner.poisson_plan(clients, rounds, steps, rates, seed)

    def named(self, which: str | Sequence[str]) -> Tensor:
        return self.inner.named(which)

    @property
    def computed(self) -> str:
        return self.inner.computed

    def step_bytes(self, batch_size: BatchSize) -> int:
        return self.inner.step_bytes(batch_size)

    def activation_bytes(self, batch_size: BatchSize) -> int:
        return self.inner.activation_bytes(batch_size)

    def evaluate(self, params: Tensor) -> dict[str, float]:
        return self.inner.evaluate(params)

    def answers(
        self, params: Tensor, client: int | None = None, change: Callable[[Tensor], Tensor] | None = None
    ) -> Answers:
        return self.inner.answers(params, client, change)

    def losses(self, models: Tensor, clients: Ints, rounds: Ints, samples: BatchSize) -> Losses:
        return self.inner.losses(models, clients, rounds, samples)

    @property
    def own(self) -> OwnTests | None:
        return self.inner.own

    def correct(self, params: Tensor) -> Ints | None:
        return self.inner.correct(params)

    def curvature(self, client: int, x: Tensor, diagonal: bool) -> Tensor:
        return self.inner.curvature(client, x, diagonal)

    @property
    def curvature_calls(self) -> int:
        return self.inner.curvature_calls

    def prepare(self) -> None:
        self.inner.prepare()

    def probabilities(self, params: Tensor) -> Tensor:
        return self.inner.probabilities(params)

    @property
    def test_samples(self) -> int:
        return self.inner.test_samples

    def __getattr__(self, name: str) -> Any:
        if name == "inner" or name.startswith("__"):  # asked for while a copy is made that has nothing yet
            raise AttributeError(name)
        return getattr(self.inner, name)


def plain(task: Task) -> Task:
    """The task whose oracle gives the gradients of the samples as they are."""
    while isinstance(task, WrappedTask):
        task = task.inner
    return task
