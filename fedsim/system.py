"""How long things take: the speed of devices and links, in seconds of simulated time.

Every law is a quantile function of one uniform number, keyed by (seed, client) for what a client keeps for good and by
(seed, client, job) for what varies from job to job, so that schedules can be made in any order.
"""

from __future__ import annotations

import math
from fractions import Fraction
from statistics import NormalDist
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, field_validator, model_validator

from fedsim import rng
from fedsim.clock import TICKS_PER_SECOND, exact, ticks
from fedsim.errors import InputError, unknown
from fedsim.types import NonNegative, Positive

_STANDARD = NormalDist()


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Law(_Section):
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


_LAWS = (
    "fixed", "linear", "table", "uniform", "truncated_normal", "half_normal", "exponential", "shifted_exponential",
    "lognormal", "pareto",
)  # fmt: skip


def _number(value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return {"model": "fixed", "value": float(value)}
    if isinstance(value, dict) and value.get("model") not in _LAWS:
        raise ValueError(unknown("law", value["model"], _LAWS) if "model" in value else _FORMS)
    if not isinstance(value, (dict, Law)):
        raise ValueError(f"found {value!r}, {_FORMS}")
    return value


_FORMS = f"allowed: a number or a law {{model: ..., ...}} with one of the models {', '.join(_LAWS)}"


_Laws = Annotated[
    Fixed | Linear | Table | Uniform | TruncatedNormal | HalfNormal | Exponential | LogNormal | Pareto,
    Discriminator("model"),
]
AnyLaw = Annotated[_Laws, BeforeValidator(_number, json_schema_input_type=NonNegative | _Laws)]


class Network(_Section):
    """A client's link to the server; each client keeps its draws.

    `latency` seconds each way; `bandwidth` bytes per second (both ways alike), none: transfers take no time.
    """

    latency: AnyLaw = Fixed(value=0.0)
    bandwidth: AnyLaw | None = None


class SystemSection(_Section):
    """The system model of a scenario.

    `compute` seconds of local work, for a whole round's work or, with ``per: step``, for each local step; `jitter`
    seconds added to each job, drawn anew; `network` latency and bandwidth of the link to the server.
    """

    compute: AnyLaw = Fixed(value=1.0)
    per: Literal["round", "step"] = "round"
    jitter: AnyLaw | None = None
    network: Network | None = None

    @field_validator("jitter")
    @classmethod
    def _varies(cls, jitter: AnyLaw | None) -> AnyLaw | None:
        if isinstance(jitter, (Linear, Table)):
            raise ValueError(f"found model {jitter.model}, allowed: a law that can be drawn anew for every job")
        return jitter


class Durations:
    """How many ticks each job takes: download, local work, upload.

    Parameters
    ----------
    section : the scenario's system model.
    n : number of clients.
    down, up : bytes a client receives and sends per job.
    """

    def __init__(self, section: SystemSection, n: int, seed: int, down: int = 0, up: int = 0) -> None:
        self.section, self.n = section, n
        self._compute = _ticks(_draws(section.compute, n, seed, "compute_speed", "compute"))
        self._link = [0] * n
        if section.network is not None:
            latency = _draws(section.network.latency, n, seed, "latency", "network.latency")
            seconds: list[Fraction | float] = [2 * v for v in latency]
            if section.network.bandwidth is not None:
                rates = _draws(section.network.bandwidth, n, seed, "bandwidth", "network.bandwidth")
                if min(rates) <= 0:
                    raise InputError(
                        "found a bandwidth of 0, allowed: above 0 bytes per second", key="network.bandwidth"
                    )
                seconds = [s + (down + up) / r for s, r in zip(seconds, rates, strict=True)]
            self._link = _ticks(seconds)
        self.links: list[npt.NDArray[np.int64]] = []
        """For gossip: ticks of one message over each link, per graph of the topology."""
        self._jitter = rng.scalar_key(seed, "jitter")

    def longest(self, clients: npt.NDArray[np.int64], job: int, steps: npt.NDArray[np.int64]) -> int:
        """Ticks until the last of `clients` has done its job; `steps` ``[n]`` are those of all clients."""
        return max(
            (self.of(c, job, k) for c, k in zip(clients.tolist(), steps[clients].tolist(), strict=True)), default=0
        )

    @property
    def constant(self) -> bool:
        """Whether all jobs of a client with equal work take equally long."""
        return self.section.jitter is None

    def of(self, client: int, job: int, steps: int) -> int:
        """Ticks that job number `job` (0, 1, ...) of `client` takes, at least one."""
        work = self._compute[client] * steps if self.section.per == "step" else self._compute[client]
        total = work + self._link[client]
        if self.section.jitter is not None:
            total += int(self.section.jitter.quantile(rng.scalar_uniform(self._jitter, client, job)) * TICKS_PER_SECOND)
        return max(total, 1)


def _draws(law: Law, n: int, seed: int, purpose: str, key: str) -> list[Fraction | float]:
    try:
        return law.per_client(n, seed, purpose)
    except InputError as error:
        raise error.under(key) from None


def _ticks(values: list[Fraction | float]) -> list[int]:
    return [ticks(v) if isinstance(v, Fraction) else int(v * TICKS_PER_SECOND + 0.5) for v in values]


def _open(u: float) -> float:
    """A probability that `inv_cdf` takes."""
    return min(max(u, 1e-300), 1.0 - 2.0**-53)
