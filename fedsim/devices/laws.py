"""Laws of durations and speeds: one non-negative number per client, or per job.

Every law is a quantile function of one uniform number, keyed by (seed, client) for what a client keeps for good and by
(seed, client, job) for what varies from job to job, so that schedules can be made in any order.
"""

from __future__ import annotations

import math
from fractions import Fraction
from statistics import NormalDist
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Discriminator, Field, field_validator, model_validator

from fedsim.core import rng
from fedsim.core.clock import exact
from fedsim.core.errors import InputError
from fedsim.core.one_of import OneOf
from fedsim.core.types import NonNegative, Positive
from fedsim.devices.traces import read_devices, rows_of_clients

_STANDARD = NormalDist()


class Section(BaseModel):
    """Base of the parts of `system`: unknown keys and silent type conversions are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Law(Section):
    """A law of one non-negative number per client (or per job)."""

    def quantile(self, u: float) -> float:
        """The value below which a share `u` in [0, 1) of the draws lies."""
        raise InputError(f"'{type(self).__name__}' gives one number per client and cannot vary from job to job")

    def per_client(self, n: int, seed: int, purpose: str) -> list[Fraction | float]:
        """One value for each of `n` clients, for good."""
        return [self.quantile(u) for u in rng.uniform(rng.key(seed, purpose, np.arange(n))).tolist()]


class Fixed(Law):
    """The same for everybody."""

    model: Literal["fixed"] = "fixed"
    value: NonNegative

    def quantile(self, u: float) -> float:
        return self.value

    def per_client(self, n: int, seed: int, purpose: str) -> list[Fraction | float]:
        return [exact(self.value)] * n


class Linear(Law):
    """FedFix's "F-X": client i of n has ``slowest - (slowest - fastest) i / (n - 1)``; F-80 is 1.0 to 0.2."""

    model: Literal["linear"]
    slowest: Positive = 1.0
    fastest: Positive

    @model_validator(mode="after")
    def _ordered(self) -> Linear:
        if self.fastest > self.slowest:
            raise ValueError(f"found fastest {self.fastest} above slowest {self.slowest}, allowed: fastest <= slowest")
        return self

    def per_client(self, n: int, seed: int, purpose: str) -> list[Fraction | float]:
        slowest, fastest, last = exact(self.slowest), exact(self.fastest), max(n - 1, 1)
        common = slowest.denominator * fastest.denominator
        high, low = int(slowest * common), int(fastest * common)
        return [Fraction(high * last - (high - low) * i, common * last) for i in range(n)]


class Table(Law):
    """One number per client, as given."""

    model: Literal["table"]
    values: Annotated[list[NonNegative], Field(min_length=1)]

    def per_client(self, n: int, seed: int, purpose: str) -> list[Fraction | float]:
        if len(self.values) != n:
            raise InputError(f"found {len(self.values)} numbers, allowed: {n} (one per client)", key="values")
        return [exact(v) for v in self.values]


class Uniform(Law):
    """Uniform on [low, high]."""

    model: Literal["uniform"]
    low: NonNegative
    high: Positive

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        if self.low > self.high:
            raise ValueError(f"found low {self.low} above high {self.high}, allowed: low <= high")
        return self

    def quantile(self, u: float) -> float:
        return self.low + (self.high - self.low) * u


class TruncatedNormal(Law):
    """Normal, truncated to [low, infinity)."""

    model: Literal["truncated_normal"]
    mean: NonNegative
    std: Positive
    low: NonNegative = 0.0

    def quantile(self, u: float) -> float:
        kept = 0.5 * math.erfc((self.low - self.mean) / (self.std * math.sqrt(2)))  # upper tails stay exact when tiny
        return max(self.low, self.mean - self.std * _STANDARD.inv_cdf(_open(kept * (1.0 - u))))


class HalfNormal(Law):
    """``low + |N(0, std^2)|`` (FLSim's FedBuff experiments)."""

    model: Literal["half_normal"]
    std: Positive
    low: NonNegative = 0.0

    def quantile(self, u: float) -> float:
        return self.low + self.std * _STANDARD.inv_cdf(_open(0.5 + 0.5 * u))


class Exponential(Law):
    """``low + Exp`` whose exponential part has the given mean; with `low` it is the shifted exponential."""

    model: Literal["exponential", "shifted_exponential"]
    mean: Positive
    low: NonNegative = 0.0

    def quantile(self, u: float) -> float:
        return self.low - self.mean * math.log1p(-u)


class LogNormal(Law):
    """``scale * exp(sigma N(0, 1))``: `scale` is the median."""

    model: Literal["lognormal"]
    sigma: Positive
    scale: Positive = 1.0

    @field_validator("sigma")
    @classmethod
    def _finite(cls, sigma: float) -> float:
        if sigma > 10:
            raise ValueError("allowed: at most 10 (its extremes would no longer be numbers)")
        return sigma

    def quantile(self, u: float) -> float:
        return self.scale * math.exp(self.sigma * _STANDARD.inv_cdf(_open(u)))


class Pareto(Law):
    """``low * (1 - u)^(-1 / alpha)``, at most `cap`."""

    model: Literal["pareto"]
    alpha: Positive
    low: Positive
    cap: Positive

    def quantile(self, u: float) -> float:
        growth = -math.log1p(-u) / self.alpha  # compared as a logarithm, which cannot overflow
        return self.cap if growth >= math.log(self.cap / self.low) else self.low * math.exp(growth)


class Trace(Law):
    """Measured devices from a file with FedScale's columns (see `device_traces`).

    Under `compute` it is seconds per sample, ``factor * computation / 1000`` with FedScale's factor of 3 for a training
    step against an inference; under `bandwidth` bytes per second, ``communication * 1000 / 8``.
    """

    model: Literal["trace"]
    file: str
    factor: Positive = 3.0
    shuffle: bool = True

    def per_client(self, n: int, seed: int, purpose: str) -> list[Fraction | float]:
        columns = {"compute_speed": ("computation", self.factor / 1000), "bandwidth": ("communication", 1000 / 8)}
        if purpose not in columns:
            raise InputError(
                "found a trace, which has computation (for compute), communication (for network.bandwidth) and "
                "activity (for availability) only; allowed: another law"
            )
        column, unit = columns[purpose]
        values = read_devices(self.file, (column,))
        return [float(values[row][column]) * unit for row in rows_of_clients(n, len(values), seed, self.shuffle)]


def _plain(value: Any) -> dict[str, Any] | None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return {"model": "fixed", "value": float(value)} if number else None


AnyLaw = Annotated[
    Fixed | Linear | Table | Uniform | TruncatedNormal | HalfNormal | Exponential | LogNormal | Pareto | Trace,
    Discriminator("model"),
    OneOf(
        allowed=(
            "allowed: a number or a law {model: ..., ...} with one of the models fixed, linear, table, uniform, "
            "truncated_normal, half_normal, exponential, shifted_exponential, lognormal, pareto, trace"
        ),
        plain=_plain,
        plain_type=NonNegative,
    ),
]


def _open(u: float) -> float:
    """A probability that `inv_cdf` takes."""
    return min(max(u, 1e-300), 1.0 - 2.0**-53)
