"""The attacks on messages that fedsim has: H are the honest messages, mean and standard deviation theirs."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsim.core import rng
from fedsim.core.arrays import Ints
from fedsim.core.job import RunFacts
from fedsim.core.registry import register
from fedsim.core.types import NonNegative, Positive, norm
from fedsim.messages import edge_attacks as edge_attacks  # registers its attacks
from fedsim.messages import poison as poison  # registers its attacks
from fedsim.messages.attack import Attack, LocalAttack
from fedsim.messages.base import Arrived

Finite = Annotated[float, Field(allow_inf_nan=False)]


@register.attack("sign_flip")
@dataclass(frozen=True, kw_only=True)
class SignFlip(Attack):
    """``-scale`` times the attacker's own message, or (`of`: mean) ``-scale`` times the mean of the honest ones."""

    scale: NonNegative = 1.0
    of: Literal["own", "mean"] = "own"

    @property
    def local(self) -> bool:
        return self.of == "own"

    def messages(self, honest: Tensor, own: Tensor, key: str, arrived: Arrived, run: RunFacts) -> Tensor:
        return -self.scale * (own if self.of == "own" else honest.mean(0).expand_as(own))

    def alone(self, own: Tensor, key: str, clients: Ints, rounds: Ints, run: RunFacts) -> Tensor:
        return -self.scale * own


@register.attack("alie")
@dataclass(frozen=True, kw_only=True)
class Alie(Attack):
    """A little is enough: ``mean(H) - z std(H)`` per coordinate (Baruch, Baruch & Goldberg, arXiv 1902.06156).

    ``z: auto`` is the largest shift that hides behind a majority of the n senders of a round, of whom b attack:
    ``Phi^-1((n - b - s) / (n - b))`` with ``s = floor(n / 2) + 1 - b``. Published codes add instead of subtracting.
    """

    z: Finite | Literal["auto"] = "auto"

    def messages(self, honest: Tensor, own: Tensor, key: str, arrived: Arrived, run: RunFacts) -> Tensor:
        z = most_hidden(len(honest) + len(own), len(own)) if self.z == "auto" else self.z
        return (honest.mean(0) - z * spread(honest)).expand_as(own)


@register.attack("ipm")
@dataclass(frozen=True, kw_only=True)
class InnerProduct(Attack):
    """Inner product manipulation: ``-eps mean(H)`` (Xie, Koyejo & Gupta, arXiv 1903.03936); also "empire"."""

    eps: NonNegative = 0.1

    def messages(self, honest: Tensor, own: Tensor, key: str, arrived: Arrived, run: RunFacts) -> Tensor:
        return (-self.eps * honest.mean(0)).expand_as(own)


@register.attack("min_max")
@dataclass(frozen=True, kw_only=True)
class MinMax(Attack):
    """``mean(H) + gamma p``, as far along p as stays within the diameter of H from every honest message.

    p is minus the standard deviation (``std``), minus the sign of the mean, or minus the mean at length 1 (``unit``)
    (Shejwalkar & Houmansadr, NDSS 2021). The largest gamma is the smallest root of one quadratic per honest message.
    """

    direction: Literal["std", "sign", "unit"] = "std"

    def messages(self, honest: Tensor, own: Tensor, key: str, arrived: Arrived, run: RunFacts) -> Tensor:
        mean = honest.mean(0)
        if self.direction == "std":
            p = -spread(honest)
        else:
            p = -mean.sign() if self.direction == "sign" else -mean / norm(mean).clamp_min(1e-30)
        return (mean + _farthest(honest - mean, p) * p).expand_as(own)


@register.attack("mimic")
@dataclass(frozen=True, kw_only=True)
class Mimic(Attack):
    """All attackers copy one honest sender, so that it counts too much (Karimireddy, He & Jaggi, arXiv 2006.09365).

    `who` is its place among the round's honest senders by number, from 0; the last one where there are fewer.
    """

    who: Annotated[int, Field(ge=0)] = 0

    def messages(self, honest: Tensor, own: Tensor, key: str, arrived: Arrived, run: RunFacts) -> Tensor:
        return honest[min(self.who, len(honest) - 1)].expand_as(own)


@register.attack("gaussian")
@dataclass(frozen=True, kw_only=True)
class GaussianNoise(LocalAttack):
    """``mu + sigma N``, drawn anew for every attacker, round and coordinate; it replaces the message."""

    mu: Finite = 0.0
    sigma: NonNegative = 1.0

    def alone(self, own: Tensor, key: str, clients: Ints, rounds: Ints, run: RunFacts) -> Tensor:
        return self.mu + self.sigma * _drawn(rng.normal(_keys(own, key, clients, rounds, run)), own)


@register.attack("random")
@dataclass(frozen=True, kw_only=True)
class RandomNumbers(LocalAttack):
    """Numbers drawn evenly from ``-scale`` to ``scale`` for every attacker, round and coordinate."""

    scale: Positive = 1.0

    def alone(self, own: Tensor, key: str, clients: Ints, rounds: Ints, run: RunFacts) -> Tensor:
        return self.scale * (2 * _drawn(rng.uniform(_keys(own, key, clients, rounds, run)), own) - 1)


@register.attack("zero")
@dataclass(frozen=True, kw_only=True)
class Zero(LocalAttack):
    """Zeros: attackers that stay silent without saying so."""

    def alone(self, own: Tensor, key: str, clients: Ints, rounds: Ints, run: RunFacts) -> Tensor:
        return torch.zeros_like(own)


@register.attack("nan")
@dataclass(frozen=True, kw_only=True)
class NotANumber(LocalAttack):
    """Messages that are not numbers, which a rule has to leave out."""

    finite: ClassVar[bool] = False

    def alone(self, own: Tensor, key: str, clients: Ints, rounds: Ints, run: RunFacts) -> Tensor:
        return torch.full_like(own, float("nan"))


# --- arithmetic -------------------------------------------------------------------------------------------------------


def most_hidden(n: int, b: int) -> float:
    """The z of ``alie`` for n senders of whom b attack; 0 where a single honest sender leaves nothing to hide behind.

    Attackers that are half of the senders or more need no other supporter: they take one all the same.
    """
    honest = n - b
    supporters = max(1, n // 2 + 1 - b)
    return NormalDist().inv_cdf((honest - supporters) / honest) if honest > supporters else 0.0


def spread(honest: Tensor) -> Tensor:
    """Standard deviation per coordinate over h - 1; 0 for a single message."""
    return honest.std(0, unbiased=True) if len(honest) > 1 else torch.zeros_like(honest[0])


def _farthest(centred: Tensor, p: Tensor) -> float:
    """The largest gamma with ``max_i |c_i - gamma p| <= max_ij |c_i - c_j|`` for the rows c of `centred` (mean 0)."""
    c, p = centred.double(), p.double()
    square = float(p @ p)
    if square == 0:
        return 0.0
    # as differences: by the Gram matrix small distances would be rounding
    limit = float(torch.cdist(c, c, compute_mode="donot_use_mm_for_euclid_dist").max()) ** 2
    along, room = c @ p, limit - (c * c).sum(-1)  # room >= 0: no row is farther from the mean than from any other
    return float(((along + (along**2 + square * room).clamp_min(0.0).sqrt()) / square).min())


def _keys(own: Tensor, key: str, clients: Ints, rounds: Ints, run: RunFacts) -> rng.Keys:
    """A key per attacker, round and coordinate of the tensor called `key`."""
    return rng.key(run.seed, f"attack {key}", clients[:, None], rounds[:, None], np.arange(own.shape[-1])[None, :])


def _drawn(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], like: Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=like.dtype, device=like.device)
