"""Surrogates of clients' likelihoods: Gaussians q_s that stand for p(x_s | theta), made once, before sampling.

A client sends what its Gaussian is made of, the precision Lambda_s and ``b_s = Lambda_s mu_s``, so that
``grad log q_s(x) = b_s - Lambda_s x``, and the server returns their sums. Source: Mesquita et al., arXiv 2004.11231,
section 3.1. Any q_s leaves the mean of one step as it is; what a poor one costs is variance.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from fedsim.core import rng
from fedsim.core.arrays import Floats, Ints
from fedsim.core.errors import InputError
from fedsim.core.fields import PartOf
from fedsim.core.limits import check_room
from fedsim.core.oracle import Task
from fedsim.core.registry import Part, register
from fedsim.core.types import BatchSize, Count, NonNegative, Positive

Covariance = Literal["diagonal", "full"]
_FLOATS = 2**25  # of inputs that are gathered for the clients that are fitted together
_STRETCH = 128  # steps of a local chain that are planned together


@dataclass(frozen=True)
class Local:
    """What clients may know when they make their surrogates: the keys of the algorithm's own steps."""

    lr: float
    batch_size: BatchSize
    prior_precision: float


@dataclass(frozen=True)
class Gaussians:
    """``grad log q_s(x) = b_s - Lambda_s x`` of all clients: precisions ``[n, d]`` or ``[n, d, d]``, b ``[n, d]``."""

    precision: Tensor
    b: Tensor


@dataclass(frozen=True, kw_only=True)
class Surrogate(Part, ABC):
    """Base class of what ``algorithm.surrogate`` names."""

    @property
    def full(self) -> bool:
        """Whether it has whole precision matrices, not their diagonals alone."""
        return False

    def check(self, task: Task) -> None:
        """Raise InputError where it cannot be made of these objectives."""

    @abstractmethod
    def fit(self, task: Task, local: Local) -> Gaussians | None:
        """The Gaussians of all clients; None where there are none."""

    def gradients(self, task: Task, local: Local) -> int:
        """Sample gradients that all clients evaluate for it."""
        return 0

    def numbers(self, dim: int) -> int:
        """Numbers that a client sends of its Gaussian, and is sent of their product."""
        return dim + dim * dim if self.full else 2 * dim

    def curvature(self, task: Task, client: int) -> Tensor:
        """Of quadratic objectives the precision ``[d, d]`` that a client's Gaussian has, or estimates."""
        found = task.curvature(client, task.initial(), not self.full)
        return found if self.full else torch.diag(found)


def _named(value: Any) -> Any:
    """A name alone stands for a surrogate without keys."""
    return {"name": value} if isinstance(value, str) else value


SurrogateKey = Annotated[Surrogate, PartOf("surrogate", "surrogate"), BeforeValidator(_named)]
"""The key of an algorithm: a mapping, or a name."""


@register.surrogate("none")
@dataclass(frozen=True, kw_only=True)
class NoSurrogate(Surrogate):
    """No conducive gradients: this is DSGLD (Ahn et al., ICML 2014)."""

    def fit(self, task: Task, local: Local) -> Gaussians | None:
        return None

    def numbers(self, dim: int) -> int:
        return 0

    def curvature(self, task: Task, client: int) -> Tensor:
        return torch.zeros(task.dim, task.dim, dtype=task.dtype, device=task.device)


@register.surrogate("exact")
@dataclass(frozen=True, kw_only=True)
class Exact(Surrogate):
    """The likelihood itself, of quadratic objectives: ``Lambda_s = A_s, mu_s = b_s``; it takes no gradient."""

    @property
    def full(self) -> bool:
        return True

    def check(self, task: Task) -> None:
        if not task.quadratic:
            message = "found 'exact', but a likelihood is Gaussian for quadratic problems alone; allowed: laplace, sgld"
            raise InputError(message, key="name")

    def fit(self, task: Task, local: Local) -> Gaussians | None:
        zero = task.initial().new_zeros(task.dim)
        precision = _curvatures(task, zero.expand(task.num_clients, -1), diagonal=False)
        pull = torch.cat([_total(task, part, zero) for part in _groups(task)])  # -grad at 0 is A_s b_s
        return Gaussians(precision, -pull)


@register.surrogate("laplace")
@dataclass(frozen=True, kw_only=True)
class Laplace(Surrogate):
    """The likelihood's second-order expansion at a local mode: Lambda_s its generalised Gauss-Newton matrix there.

    The mode is that of the client's likelihood times the prior, found by `fit_steps` gradients of all its data with
    step lengths of Barzilai and Borwein; what is left of the gradient there enters b_s, so that the expansion holds
    wherever they end. On quadratic objectives ``covariance: full`` is the likelihood itself.

    Parameters
    ----------
    covariance : ``full``, or ``diagonal``: that of the matrix alone, which takes little memory. Where it is far from
        the matrix, conducive gradients drive chains away, S times as strongly as the two differ.
    fit_steps : gradients of a client's whole data that look for its mode.
    """

    covariance: Covariance = "full"
    fit_steps: Count = 100

    @property
    def full(self) -> bool:
        return self.covariance == "full"

    def check(self, task: Task) -> None:
        if self.full:
            size = torch.empty((), dtype=task.dtype).element_size() * task.num_clients * task.dim**2
            check_room(2 * size, f"{task.num_clients} matrices of {task.dim} x {task.dim} numbers for the surrogates")
        task.curvature(0, task.initial(), True)  # it says what is missing

    def gradients(self, task: Task, local: Local) -> int:
        return int(task.sizes.sum()) * (self.fit_steps + task.curvature_calls)

    def fit(self, task: Task, local: Local) -> Gaussians | None:
        modes = torch.cat([self._mode(task, part, local.prior_precision) for part in _groups(task)])
        precision = _curvatures(task, modes, not self.full)
        slopes = torch.cat([_total(task, part, modes[torch.as_tensor(part)]) for part in _groups(task)])
        return Gaussians(precision, _times(precision, modes) - slopes)

    def _mode(self, task: Task, clients: Ints, prior: float) -> Tensor:
        """Where the gradient of loss and prior was the smallest, ``[m, d]``, of `fit_steps` - 1 points."""
        x = task.initial().expand(len(clients), -1).clone()
        before = best = x
        least, last = x.new_full((len(x), 1), torch.inf), x
        length = x.new_zeros((len(x), 1))
        for step in range(self.fit_steps - 1):
            g = _total(task, clients, x) + prior * x
            size = torch.linalg.vector_norm(g, dim=-1, keepdim=True)
            better = size < least
            best, least = torch.where(better, x, best), torch.where(better, size, least)
            if step == 0:
                length = 1e-3 * (1 + torch.linalg.vector_norm(x, dim=-1, keepdim=True)) / size.clamp_min(1e-30)
            else:
                moved, turned = x - before, g - last
                along = (moved * turned).sum(-1, keepdim=True)
                fitting = (moved * moved).sum(-1, keepdim=True) / along.clamp_min(1e-30)
                length = torch.where(along > 0, fitting, 2 * length).nan_to_num(0.0, 0.0, 0.0)
            before, last = x, g
            x = x - length * g
        return best


@register.surrogate("sgld")
@dataclass(frozen=True, kw_only=True)
class LocalChain(Surrogate):
    """Mean and covariance of a local SGLD chain on the likelihood p(x_s | theta) alone, without the prior.

    Parameters
    ----------
    samples, burn_in : steps that count, and steps before them.
    covariance : ``diagonal`` or ``full``.
    lr : of the local chain (default: the algorithm's).
    min_effective_samples : how many independent samples the chain has to be worth in every direction, by its
        autocorrelation: from few of them precisions come out too large, and conducive gradients drive chains away.
    """

    samples: Annotated[int, Field(ge=2)] = 3000
    burn_in: Annotated[int, Field(ge=0)] = 1000
    covariance: Covariance = "diagonal"
    lr: Positive | None = None
    min_effective_samples: NonNegative = 10.0

    @property
    def full(self) -> bool:
        return self.covariance == "full"

    def check(self, task: Task) -> None:
        if self.full and self.samples <= task.dim:
            message = f"found {self.samples}, allowed: more than the {task.dim} parameters with covariance: full"
            raise InputError(message, key="samples")

    def gradients(self, task: Task, local: Local) -> int:
        clients = np.arange(task.num_clients, dtype=np.int64)
        steps = np.full_like(clients, self.samples + self.burn_in)
        return int(task.samples_per_step(clients, steps, local.batch_size, False).sum())

    def fit(self, task: Task, local: Local) -> Gaussians | None:
        parts = [self._moments(task, part, local) for part in _groups(task)]
        mean, spread = (torch.cat([part[i] for part in parts]) for i in (0, 1))
        precision = torch.linalg.inv(spread) if self.full else 1 / spread
        if not bool(torch.isfinite(precision).all() & torch.isfinite(mean).all()):
            message = "a local chain diverged, or did not move at all; allowed: another lr of the surrogate, or laplace"
            raise InputError(message, key="algorithm.surrogate")
        self._check_length(precision, self.lr or local.lr)
        precision, mean = precision.to(task.dtype), mean.to(task.dtype)
        return Gaussians(precision, _times(precision, mean))

    def _check_length(self, precision: Tensor, h: float) -> None:
        """Raise InputError where a chain was too short to say what its Gaussian is.

        Steps of length h along a direction of precision p have the autocorrelation 1 - h p / 2 from one to the next, so
        that 4 / (h p) - 1 of them are worth an independent one.
        """
        narrow = torch.linalg.eigvalsh(precision)[:, 0] if self.full else precision.amin(-1)
        worth = self.samples / (4 / (h * narrow.clamp_min(1e-30)) - 1).clamp_min(1.0)
        least, client = (v.item() for v in worth.min(0))
        if least < self.min_effective_samples:
            longer = self.min_effective_samples / max(least, 1e-30)
            message = (
                f"the local chain of client {int(client)}, {self.samples} samples at lr {h:.4g}, is worth {least:.2g} "
                "independent ones in its widest direction, which do not tell a Gaussian; allowed: at least "
                f"{self.min_effective_samples:g} (min_effective_samples): about {longer:.2g} times the samples, or the "
                "surrogate's lr; or laplace, also where the data leave a direction open"
            )
            raise InputError(message, key="algorithm.surrogate")

    def _moments(self, task: Task, clients: Ints, local: Local) -> tuple[Tensor, Tensor]:
        """Mean ``[m, d]`` and covariance (or variances) of the chains of some clients, in float64."""
        x, h = task.initial().expand(len(clients), -1).clone(), self.lr or local.lr
        n = torch.as_tensor(task.sizes[clients], dtype=x.dtype, device=x.device).unsqueeze(1)
        lr, key = x.new_full((len(x), 1), h), rng.key(task.seed, "surrogate", clients[:, None])
        mean, second, seen = x.double() * 0, 0.0, 0
        for first in range(0, self.samples + self.burn_in, _STRETCH):
            count = min(_STRETCH, self.samples + self.burn_in - first)
            steps = np.full_like(clients, count)
            plan = task.plan(clients, np.full_like(clients, -1 - first), steps, local.batch_size, False)
            for step in range(count):
                noise = rng.normal(rng.fold(key, first + step, np.arange(task.dim)[None, :]))
                x = x - h / 2 * n * plan.oracle(step, len(x), lr).grad(x)
                x = x + h**0.5 * torch.as_tensor(noise, dtype=x.dtype, device=x.device)
                if first + step < self.burn_in:
                    continue
                seen += 1
                away = x.double() - mean
                mean = mean + away / seen
                other = x.double() - mean
                second = second + (away.unsqueeze(-1) * other.unsqueeze(-2) if self.full else away * other)
        assert isinstance(second, Tensor)
        return mean, second / (seen - 1)


def _groups(task: Task) -> Iterator[Ints]:
    """All clients, as many at a time as their data can be gathered of."""
    clients = np.arange(task.num_clients, dtype=np.int64)
    width = getattr(task, "inputs", None)
    each = 1 if width is None else int(width[0].numel())
    start = 0
    while start < len(clients):
        widest = np.maximum.accumulate(task.sizes[start:]) * each
        fits = int((widest * np.arange(1, len(widest) + 1) <= _FLOATS).sum())
        yield clients[start : start + max(fits, 1)]
        start += max(fits, 1)


def _total(task: Task, clients: Ints, x: Tensor) -> Tensor:
    """The gradients at `x` ``[m, d]`` of the sums of clients' losses: of all their data."""
    x = x.expand(len(clients), -1)
    plan = task.plan(clients, np.zeros_like(clients), np.ones_like(clients), "full", False)
    n = torch.as_tensor(task.sizes[clients], dtype=x.dtype, device=x.device).unsqueeze(1)
    return n * plan.oracle(0, len(clients), torch.ones_like(n)).grad(x)


def _curvatures(task: Task, x: Tensor, diagonal: bool) -> Tensor:
    return torch.stack([task.curvature(client, x[client], diagonal) for client in range(task.num_clients)])


def _times(precision: Tensor, x: Tensor) -> Tensor:
    """``Lambda_s x_s`` of rows: precisions ``[m, d]`` or ``[m, d, d]``, x ``[m, d]``."""
    return precision * x if precision.dim() == 2 else torch.bmm(precision, x.unsqueeze(-1)).squeeze(-1)


def spectrum(task: Task, surrogate: Surrogate, picked: Floats, prior: float, exploration: float) -> float | None:
    """The largest eigenvalue of what multiplies x in the mean drift of a local step, of any client; None: not known."""
    if not task.quadratic:
        return None
    clients, x, largest = range(task.num_clients), task.initial(), 0.0
    total = torch.zeros(task.dim, task.dim, dtype=torch.float64, device=task.device)
    for client in clients:
        total += surrogate.curvature(task, client)
    for client, f in zip(clients, picked.tolist(), strict=True):
        own, whole = surrogate.curvature(task, client).double(), task.curvature(client, x, False).double()
        drift = whole / f + exploration * (total - own / f)
        largest = max(largest, float(torch.linalg.eigvalsh(drift)[-1]))
    return prior + largest
