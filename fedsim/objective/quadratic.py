"""What is minimised: per-client objectives behind one gradient oracle. The only place that knows models have layers.

A task turns (clients, rounds, steps) into a `Plan` of minibatches; ``plan.oracle(k, count)`` is the stochastic
first-order oracle of local step `k` for the plan's first `count` rows. Which samples a minibatch holds depends on
(seed, client, round, step) alone, so it is the same for one client, a shard or all of them.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedsim.core import rng
from fedsim.core.errors import InputError
from fedsim.core.types import BatchSize, clip_norm
from fedsim.data.sets import Quadratic

Ints = npt.NDArray[np.int64]


class Oracle(ABC):
    """A stochastic first-order oracle: one minibatch per row, and the learning rate each row uses at this step."""

    def __init__(self, lr: Tensor) -> None:
        self.lr = lr
        """Learning rate per row, ``[m, 1]``."""

    @abstractmethod
    def grad(self, x: Tensor) -> Tensor:
        """Mean gradient over each row's minibatch, ``[m, d] -> [m, d]``; calling it again uses the same samples."""

    def descend(self, x: Tensor) -> None:
        """``x -= lr * grad(x)`` in place, ``[m, d]``, for stretches of plain SGD steps."""
        x.addcmul_(self.grad(x), self.lr, value=-1.0)

    @abstractmethod
    def per_sample_grad(self, x: Tensor) -> Tensor:
        """Gradient of every sample, ``[m, d] -> [m, b, d]``; rows with fewer than `b` samples end in zeros."""

    @property
    def samples(self) -> Tensor:
        """Samples in each row's minibatch, ``[m, 1]``."""
        return torch.ones_like(self.lr)

    def clipped_sum(
        self, x: Tensor, bound: Tensor | float, minus: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """``sum_j clip_bound(g_j(x_i))`` over each row's samples, ``[m, d]``.

        With `minus` ``[m, d]`` each sample's difference ``g_j(x_i) - g_j(minus_i)`` is clipped instead. `bound` is a
        number or ``[m, 1]``; inf clips nothing. `dtype` is the precision to compute in (default: that of x).
        """
        grads = self.per_sample_grad(x)
        if minus is not None:
            grads = grads - self.per_sample_grad(minus)
        return clip_norm(grads, bound.unsqueeze(-1) if isinstance(bound, Tensor) else bound).sum(-2)


class Plan(ABC):
    """The minibatches of some clients for one stretch of local work; rows are sorted by falling number of steps."""

    @abstractmethod
    def oracle(self, step: int, count: int, lr: Tensor) -> Oracle:
        """The oracle of local step `step` for the first `count` rows."""


class Task(ABC):
    """Per-client objectives f_i over parameters ``[d]``, with data on `device`."""

    dim: int
    num_clients: int
    seed: int
    """What draws of this run are keyed with."""
    sizes: Ints
    """Samples per client, ``[n]`` (1 where a client's gradient is exact)."""
    importance: npt.NDArray[np.float64]
    """p_i, ``[n]``, sums to 1: what the global objective sum_i p_i f_i weighs clients with (default: sample share)."""
    device: torch.device
    dtype: torch.dtype
    metrics: tuple[str, ...]
    """Names that `evaluate` returns."""

    @abstractmethod
    def initial(self) -> Tensor:
        """Initial parameters ``[d]``."""

    @abstractmethod
    def plan(self, clients: Ints, rounds: Ints, steps: Ints, batch_size: BatchSize, epochs: bool) -> Plan:
        """Minibatches for ``steps[i]`` local steps of ``clients[i]`` in its round ``rounds[i]``.

        All are ``[m]``, steps falling.

        With `epochs` a client walks through its shuffled samples, epoch after epoch, the last minibatch of an epoch
        being what is left; without, every step draws a fresh minibatch without replacement.
        """

    def poisson_plan(self, clients: Ints, rounds: Ints, steps: Ints, rates: npt.NDArray[np.float64]) -> Plan:
        """Minibatches that hold each of client i's samples with probability ``rates[i]``, independently (all ``[m]``).

        Gradients are sums divided by the public number ``rates[i] * n_i``, never by how many were drawn, which may be
        none. InputError where there are no samples to draw from.
        """
        raise InputError("a quadratic problem has no samples to draw from; allowed: a data set of samples")

    @abstractmethod
    def evaluate(self, params: Tensor) -> dict[str, float]:
        """Metrics of one model ``[d]``: ``train_loss`` and, with test data, ``test_loss`` (and ``test_accuracy``)."""

    def shard(self, clients: Ints) -> Self:
        """The same objectives with the training data of `clients` only; clients keep their numbers and draws.

        A task that wraps another one shards what it wraps.
        """
        return self._copied(lambda task: task.shard(clients))

    def to(self, device: torch.device) -> Self:
        """The same task with its data on `device`."""
        part = self._copied(lambda task: task.to(device))
        for name, value in vars(part).items():
            if isinstance(value, Tensor):
                setattr(part, name, value.to(device))
        part.device = device
        return part

    def _copied(self, inner: Callable[[Task], Task]) -> Self:
        """A shallow copy in which the tasks that this one wraps are replaced."""
        part = copy.copy(self)
        for name, value in vars(part).items():
            if isinstance(value, Task):
                setattr(part, name, inner(value))
        return part

    @cached_property
    def cumulative_importance(self) -> npt.NDArray[np.float64]:
        """Running sums of `importance`, for drawing clients in proportion to it."""
        return np.cumsum(self.importance)

    def node_accuracy(self, params: Tensor) -> float | None:
        """Mean over the rows of ``[n, d]`` of each model's own test accuracy; None where there is no accuracy."""
        return None

    def steps_per_epoch(self, clients: Ints, batch_size: BatchSize) -> Ints:
        """Minibatches in one pass over each client's samples, ``[m]``."""
        if batch_size == "full":
            return np.ones(len(clients), dtype=np.int64)
        return -(-self.sizes[clients] // batch_size)

    def activation_bytes(self, batch_size: BatchSize) -> int:
        """GPU memory that one more row's gradient takes, parameters apart, measured; 0 where it does not count."""
        return 0

    def samples_per_step(self, clients: Ints, steps: Ints, batch_size: BatchSize, epochs: bool) -> Ints:
        """Sample gradients that ``steps[i]`` steps evaluate, ``[m]``."""
        size = self.sizes[clients]
        if batch_size == "full":
            return steps * size
        if not epochs:
            return steps * np.minimum(size, batch_size)
        per_epoch = self.steps_per_epoch(clients, batch_size)
        whole, rest = steps // per_epoch, steps % per_epoch
        return whole * size + rest * np.minimum(size, batch_size)


class QuadraticTask(Task):
    """f_i(x) = 1/2 (x - b_i)^T A_i (x - b_i): exact gradients, or with Gaussian noise of a given std per coordinate."""

    metrics = ("train_loss", "optimum_distance")

    def __init__(self, data: Quadratic, seed: int, device: torch.device, dtype: torch.dtype) -> None:
        self.A = torch.as_tensor(data.A, dtype=dtype, device=device)
        self.b = torch.as_tensor(data.b, dtype=dtype, device=device)
        self.num_clients, self.dim = self.b.shape
        self.sizes = np.ones(self.num_clients, dtype=np.int64)
        self.importance = np.asarray(data.p, dtype=np.float64)
        self.seed, self.noise, self.device, self.dtype = seed, data.noise, device, dtype
        self._x0 = torch.as_tensor(data.x0, dtype=dtype, device=device)
        self._p = torch.as_tensor(self.importance, dtype=dtype, device=device)
        self._optimum = self._minimiser()
        self._places: Ints | None = None  # where a shard's clients are in A and b; None: client i is row i

    def shard(self, clients: Ints) -> Self:
        part = copy.copy(self)
        rows = self.rows(clients)
        part.A, part.b = self.A[rows], self.b[rows]
        part._places = np.full(self.num_clients, -1, dtype=np.int64)
        part._places[clients] = np.arange(len(clients))
        return part

    def rows(self, clients: Ints) -> Tensor:
        """Rows of A and b that belong to `clients`."""
        return torch.as_tensor(clients if self._places is None else self._places[clients], device=self.device)

    def initial(self) -> Tensor:
        return self._x0.clone()

    def plan(self, clients: Ints, rounds: Ints, steps: Ints, batch_size: BatchSize, epochs: bool) -> Plan:
        return _QuadraticPlan(self, clients, rounds)

    def gradient(self, x: Tensor, rows: Tensor) -> Tensor:
        """A_i (x_i - b_i), ``[m, d]``."""
        return self._times(self.A[rows], x - self.b[rows])

    def evaluate(self, params: Tensor) -> dict[str, float]:
        gap = params - self.b
        losses = 0.5 * (gap * self._times(self.A, gap)).sum(-1)
        result = {"train_loss": float(self._p @ losses)}
        if self._optimum is not None:
            result["optimum_distance"] = float(torch.linalg.vector_norm(params - self._optimum))
        return result

    def _times(self, A: Tensor, v: Tensor) -> Tensor:
        return A * v if A.dim() == 2 else torch.einsum("mij,mj->mi", A, v)

    def _minimiser(self) -> Tensor | None:
        """argmin sum_i p_i f_i, where the mean of the A_i is invertible."""
        p = self._p.view(-1, *[1] * (self.A.dim() - 1))
        mean_A, mean_Ab = (p * self.A).sum(0), (self._p.unsqueeze(1) * self._times(self.A, self.b)).sum(0)
        if mean_A.dim() == 1:
            return mean_Ab / mean_A if bool((mean_A > 0).all()) else None
        solution, info = torch.linalg.solve_ex(mean_A, mean_Ab)
        return solution if int(info) == 0 and bool(torch.isfinite(solution).all()) else None


class _QuadraticPlan(Plan):
    def __init__(self, task: QuadraticTask, clients: Ints, rounds: Ints) -> None:
        self.task, self.clients, self.rounds = task, clients, rounds
        self.rows = task.rows(clients)

    def oracle(self, step: int, count: int, lr: Tensor) -> Oracle:
        noise = None
        if self.task.noise > 0:
            keys = rng.key(self.task.seed, "noise", self.clients[:count, None], self.rounds[:count, None], step)
            draws = rng.normal(rng.fold(keys, np.arange(self.task.dim)[None, :]))
            noise = torch.as_tensor(self.task.noise * draws, dtype=self.task.dtype, device=self.task.device)
        return _QuadraticOracle(self.task, self.rows[:count], noise, lr)


class _QuadraticOracle(Oracle):
    def __init__(self, task: QuadraticTask, rows: Tensor, noise: Tensor | None, lr: Tensor) -> None:
        super().__init__(lr)
        self.task, self.rows, self.noise = task, rows, noise

    def grad(self, x: Tensor) -> Tensor:
        g = self.task.gradient(x, self.rows)
        return g if self.noise is None else g + self.noise

    def per_sample_grad(self, x: Tensor) -> Tensor:
        return self.grad(x).unsqueeze(1)


def index_lists(rows: Sequence[Ints]) -> tuple[Ints, Ints]:
    """Clients' row lists as one array and its offsets ``[n + 1]``: client i has ``flat[offsets[i]:offsets[i + 1]]``."""
    lengths = np.fromiter((len(r) for r in rows), dtype=np.int64, count=len(rows))
    return np.concatenate(rows).astype(np.int64), np.concatenate([[0], np.cumsum(lengths)])
