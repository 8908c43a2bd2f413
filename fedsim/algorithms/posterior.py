"""Clients' objectives as a sampler sees them: parts of a posterior, with a surrogate for all that others hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms.surrogates import Gaussians, Local, Surrogate
from fedsim.core import rng
from fedsim.core.arrays import Floats, Ints
from fedsim.core.job import VISIT
from fedsim.core.oracle import Oracle, Plan, Task
from fedsim.core.types import BatchSize
from fedsim.core.wrapped import WrappedTask


@dataclass(frozen=True)
class Conducive:
    """``g_s(x) = offset_s - slope_s x`` of some clients: offsets ``[k, d]``, slopes ``[k, d]`` or ``[k, d, d]``.

    ``g_s = grad log q - (1 / f_s) grad log q_s``, q the product of all q_s.
    """

    offset: Tensor
    slope: Tensor

    @classmethod
    def of(cls, found: Gaussians, picked: Floats) -> Self:
        """From the clients' surrogates, in float64, for large numbers cancel."""
        precision, b = found.precision.double(), found.b.double()
        f = torch.as_tensor(picked, dtype=torch.float64, device=b.device)
        slope = precision.sum(0) - precision / f.view(-1, *[1] * (precision.dim() - 1))
        offset = b.sum(0) - b / f.unsqueeze(1)
        return cls(offset.to(found.b.dtype), slope.to(found.b.dtype))

    def rows(self, index: Tensor) -> Self:
        return type(self)(self.offset[index], self.slope[index])

    def to(self, device: torch.device) -> Self:
        return type(self)(self.offset.to(device), self.slope.to(device))

    def __call__(self, x: Tensor) -> Tensor:
        if self.slope.dim() == 2:
            return torch.addcmul(self.offset, self.slope, x, value=-1.0)
        # As a row times a matrix: several times as fast as a matrix times a column.
        return self.offset - torch.bmm(x.unsqueeze(1), self.slope.mT).squeeze(1)


class PosteriorTask(WrappedTask):
    """The same objectives whose oracle also has the scale of the likelihood, conducive gradients and keyed noise.

    Parameters
    ----------
    picked : f_s, how likely a chain goes to each client, ``[n]``.
    noisy : whether noise is asked for.
    """

    def __init__(self, inner: Task, surrogate: Surrogate, picked: Floats, local: Local, noisy: bool) -> None:
        super().__init__(inner)
        self.surrogate, self.picked, self.local, self.noisy = surrogate, picked, local, noisy
        self._conducive: Conducive | None = None
        self._fitted = False
        self._places: Ints | None = None  # where a shard's clients are in `_conducive`; None: client s is row s

    @property
    def conducive(self) -> Conducive | None:
        """The conducive gradients, fitted when they are first asked for; None where there are none."""
        if not self._fitted:
            found = self.surrogate.fit(self.inner, self.local)
            self._conducive = None if found is None else Conducive.of(found, self.picked)
            self._fitted = True
        return self._conducive

    def prepare(self) -> None:
        self.conducive  # noqa: B018 - it is kept

    def shard(self, clients: Ints) -> Self:
        whole = self.conducive  # of all clients, before any is left out
        part = super().shard(clients)
        if whole is not None:
            places = clients if self._places is None else self._places[clients]
            part._conducive = whole.rows(torch.as_tensor(places, device=whole.offset.device))
            part._places = np.full(self.num_clients, -1, dtype=np.int64)
            part._places[clients] = np.arange(len(clients))
        return part

    def to(self, device: torch.device) -> Self:
        part = super().to(device)
        part._conducive = None if self._conducive is None else self._conducive.to(device)
        return part

    def plan(self, clients: Ints, rounds: Ints, steps: Ints, batch_size: BatchSize, epochs: bool) -> Plan:
        inner = self.inner.plan(clients, rounds, steps, batch_size, epochs)
        return _PosteriorPlan(self, inner, clients, rounds, int(steps.max()))


class _PosteriorPlan(Plan):
    _FLOATS = 2**20  # of noise that is drawn at a time

    def __init__(self, task: PosteriorTask, inner: Plan, clients: Ints, rounds: Ints, steps: int) -> None:
        self.task, self.inner, self.steps = task, inner, steps
        self.keys = rng.key(task.seed, "langevin", rounds // VISIT, rounds % VISIT)
        scale = task.sizes[clients] / task.picked[clients]
        self.scale = torch.as_tensor(scale, dtype=task.dtype, device=task.device).unsqueeze(1)
        self.conducive: Conducive | None = None
        if (of := task.conducive) is not None:
            places = clients if task._places is None else task._places[clients]
            self.conducive = of.rows(torch.as_tensor(places, device=task.device))
        self._drawn = range(0)
        self._noise = self.scale

    def oracle(self, step: int, count: int, lr: Tensor) -> Oracle:
        clean = self.inner.oracle(step, count, lr)
        conducive = None if self.conducive is None else self.conducive.rows(slice(0, count))  # type: ignore[arg-type]
        return PosteriorOracle(clean, self.scale[:count], conducive, self._of(step, count) if self.task.noisy else None)

    def _of(self, step: int, count: int) -> Tensor:
        """Standard normal numbers ``[count, d]`` of a step; some steps are drawn together."""
        if step not in self._drawn:
            together = max(1, min(self.steps - step, self._FLOATS // (count * self.task.dim)))
            self._drawn = range(step, step + together)
            steps, coordinates = np.array(self._drawn)[:, None, None], np.arange(self.task.dim)
            drawn = rng.normal(rng.fold(self.keys[:count, None], steps, coordinates))
            self._noise = torch.as_tensor(drawn, dtype=self.task.dtype, device=self.task.device)
        return self._noise[step - self._drawn.start][:count]


class PosteriorOracle(Oracle):
    """What a client knows of the posterior at a step.

    Parameters
    ----------
    clean : the oracle of its losses, which are negative log likelihoods.
    scale : ``N_s / f_s``, ``[m, 1]``.
    noise : standard normal numbers ``[m, d]`` (None: none are needed).
    """

    def __init__(self, clean: Oracle, scale: Tensor, conducive: Conducive | None, noise: Tensor | None) -> None:
        super().__init__(clean.lr)
        self.clean, self.scale, self.noise, self._conducive = clean, scale, noise, conducive

    @classmethod
    def of(cls, oracle: Oracle) -> PosteriorOracle:
        """`oracle`, or where it is of plain objectives, the one client that there is, without noise."""
        if isinstance(oracle, PosteriorOracle):
            return oracle
        return cls(oracle, torch.ones_like(oracle.lr), None, None)

    def grad(self, x: Tensor) -> Tensor:
        return self.clean.grad(x)

    def per_sample_grad(self, x: Tensor) -> Tensor:
        return self.clean.per_sample_grad(x)

    @property
    def samples(self) -> Tensor:
        return self.clean.samples

    def likelihood(self, x: Tensor) -> Tensor:
        """``N_s / (f_s m) sum_j grad log p(x_j | x)`` over the minibatch: whoever is drawn, its mean is the whole's."""
        return -self.scale * self.clean.grad(x)

    def conducive(self, x: Tensor) -> Tensor | None:
        """``g_s(x)``; None where there is no surrogate."""
        return None if self._conducive is None else self._conducive(x)
