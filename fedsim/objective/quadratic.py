"""What is minimised: per-client objectives behind one gradient oracle. The only place that knows models have layers.

A task turns (clients, rounds, steps) into a `Plan` of minibatches; ``plan.oracle(k, count)`` is the stochastic
first-order oracle of local step `k` for the plan's first `count` rows. Which samples a minibatch holds depends on
(seed, client, round, step) alone, so it is the same for one client, a shard or all of them.
"""

from __future__ import annotations

import copy
from typing import Self

import numpy as np
import torch
from torch import Tensor

from fedsim.core import rng
from fedsim.core.arrays import Array, Floats, Ints
from fedsim.core.errors import InputError
from fedsim.core.oracle import Answers, Losses, Oracle, OwnTests, Plan, Task
from fedsim.core.own_tests import OwnAnswers
from fedsim.core.types import BatchSize
from fedsim.data.sets import Quadratic


class QuadraticTask(Task):
    """f_i(x) = 1/2 (x - b_i)^T A_i (x - b_i): exact gradients, or with Gaussian noise of a given std per coordinate."""

    metrics = ("train_loss", "optimum_distance")
    quadratic = True

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

    def pooled(self) -> Self:
        """``sum_i p_i f_i`` in the place of f_0, up to a constant."""
        if self._optimum is None:
            message = "the clients' quadratics have no single minimum together"
            raise InputError(f"{message}; allowed: another algorithm", key="algorithm.name")
        part = copy.copy(self)
        p = self._p.view(-1, *[1] * (self.A.dim() - 1))
        part.A = torch.cat([(p * self.A).sum(0, keepdim=True), self.A[1:]])
        part.b = torch.cat([self._optimum.unsqueeze(0), self.b[1:]])
        return part

    def judged_by(self, clients: Ints) -> Self:
        part = copy.copy(self)
        share = np.zeros(self.num_clients)
        share[clients] = self.importance[clients]
        if not share.sum() > 0:
            raise InputError(
                "all honest clients have importance 0, so that there is nothing to measure", key="data.file"
            )
        part._p = torch.as_tensor(share / share.sum(), dtype=self.dtype, device=self.device)
        part._optimum = part._minimiser()
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

    def losses(self, models: Tensor, clients: Ints, rounds: Ints, samples: BatchSize) -> Losses:
        """f_i of the models; there are no samples, so that they are exact."""
        rows = self.rows(clients)
        gap = models - self.b[rows]
        mean = 0.5 * (gap * self._times(self.A[rows], gap)).sum(-1, keepdim=True)
        return Losses(mean, mean.square())

    def evaluate(self, params: Tensor) -> dict[str, float]:
        gap = params - self.b
        losses = 0.5 * (gap * self._times(self.A, gap)).sum(-1)
        result = {"train_loss": float(self._p @ losses)}
        if self._optimum is not None:
            result["optimum_distance"] = float(torch.linalg.vector_norm(params - self._optimum))
        return result

    @property
    def own(self) -> OwnTests:
        """A client is tested on its own objective: a quadratic problem has no rows that could be held out."""
        return _OwnObjectives(self)

    def smoothness(self, weights: Floats) -> tuple[Floats, float]:
        """The largest eigenvalues of the A_i, and of their mean."""
        w = torch.as_tensor(weights, dtype=self.dtype, device=self.device).view(-1, *[1] * (self.A.dim() - 1))
        curvatures = torch.cat([self.A, (w * self.A).sum(0, keepdim=True)])
        largest = curvatures.amax(-1) if self.A.dim() == 2 else torch.linalg.eigvalsh(curvatures)[:, -1]
        found = largest.double().cpu().numpy()
        return found[:-1], float(found[-1])

    def convexity(self) -> Floats:
        """The smallest eigenvalues of the A_i."""
        lowest = self.A.amin(-1) if self.A.dim() == 2 else torch.linalg.eigvalsh(self.A)[:, 0]
        return lowest.double().cpu().numpy()

    def curvature(self, client: int, x: Tensor, diagonal: bool) -> Tensor:
        A = self.A[int(self.rows(np.array([client], dtype=np.int64)))]
        if A.dim() == 1:
            return A if diagonal else torch.diag(A)
        return A.diagonal() if diagonal else A

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


class _OwnObjectives(OwnTests):
    """Each client's own objective in the place of test rows: one per client."""

    shared = False

    def __init__(self, task: QuadraticTask) -> None:
        self.task = task

    @property
    def sizes(self) -> Ints:
        return np.ones(self.task.num_clients, dtype=np.int64)

    def targets_of(self, clients: Ints) -> Ints:
        return np.ones(len(clients), dtype=np.int64)

    def answers(self, models: Tensor, clients: Ints, whole: bool = False) -> OwnAnswers:
        rows = self.task.rows(clients)
        gap = models - self.task.b[rows]
        losses = 0.5 * (gap * self.task.gradient(models, rows)).sum(-1)
        return OwnAnswers(losses.double().cpu().numpy(), None)

    def said(self, client: int, outputs: Array) -> tuple[Answers, Tensor | None]:
        raise InputError("a quadratic problem has no outputs")


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
