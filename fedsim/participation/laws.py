"""Probability laws of a scenario: who computes and which link fires how often."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Discriminator, Field, model_validator

from fedsim.core import rng
from fedsim.core.arrays import Floats
from fedsim.core.errors import InputError
from fedsim.core.one_of import Chosen, Form, OneOf
from fedsim.core.types import Count, NonNegative, Positive, Probability

_FLOOR = 1e-3


class _Probabilities(Form):
    @abstractmethod
    def draw(self, count: int, seed: int, purpose: str, round: int) -> Floats:
        """`count` probabilities in force in `round` (1, 2, ...)."""

    def epoch(self, round: int) -> int:
        """Which redraw `round` falls into."""
        return 0


class FixedProbability(_Probabilities):
    """The same for all."""

    older = ("value",)
    model: Literal["fixed"]
    value: Probability

    def draw(self, count: int, seed: int, purpose: str, round: int) -> Floats:
        return np.full(count, self.value)

    def written(self) -> Any:
        return self.value


class ProbabilityTable(_Probabilities):
    """One per node or link."""

    older, older_name = ("values",), "per_item"
    model: Literal["table"]
    values: list[Probability]

    def draw(self, count: int, seed: int, purpose: str, round: int) -> Floats:
        if len(self.values) != count:
            raise InputError(f"found a list of {len(self.values)} probabilities, allowed: {count} (one per {purpose})")
        return np.asarray(self.values)

    def written(self) -> Any:
        return self.values


class _Drawn(_Probabilities):
    """Drawn once, or again every `redraw_every` rounds; drawn values are raised to at least `floor`."""

    redraw_every: Count | None = None
    floor: Annotated[float, Field(gt=0, le=1)] = _FLOOR

    @abstractmethod
    def sample(self, count: int, generator: np.random.Generator) -> Floats:
        """`count` values of the distribution."""

    def draw(self, count: int, seed: int, purpose: str, round: int) -> Floats:
        generator = rng.generator(seed, "law_" + purpose, self.epoch(round))
        return np.maximum(self.sample(count, generator), self.floor)

    def epoch(self, round: int) -> int:
        return 0 if self.redraw_every is None else (round - 1) // self.redraw_every


class BetaProbability(_Drawn):
    """Beta(a, b)."""

    older = ("a", "b")
    model: Literal["beta"]
    a: Positive
    b: Positive

    def sample(self, count: int, generator: np.random.Generator) -> Floats:
        return generator.beta(self.a, self.b, size=count)


class UniformProbability(_Drawn):
    """Uniform on (low, high]."""

    older = ("low", "high")
    model: Literal["uniform"]
    low: Probability
    high: Probability

    @model_validator(mode="after")
    def _ordered(self) -> UniformProbability:
        if self.low > self.high:
            raise ValueError(f"found low {self.low} above high {self.high}, allowed: [lo, hi] with lo <= hi")
        return self

    def sample(self, count: int, generator: np.random.Generator) -> Floats:
        return self.low + (self.high - self.low) * (1.0 - generator.random(count))


class BimodalProbability(_Drawn):
    """The DSpodFL paper's 1/2 (N[0,1](mu, std^2) + N[0,1](1 - mu, std^2)), truncated to [0, 1]."""

    older = ("mu",)
    model: Literal["bimodal"]
    mu: Probability
    std: Positive = 0.1

    def written(self) -> Any:
        return {**super().written(), "floor": self.floor}

    def sample(self, count: int, generator: np.random.Generator) -> Floats:
        return _bimodal(self.mu, self.std, count, generator)


def _plain(value: Any) -> dict[str, Any] | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return {"model": "fixed", "value": value}
    if isinstance(value, list):
        return {"model": "table", "values": value}
    return {"model": "uniform", "low": 0.0, "high": 1.0} if value == "uniform" else None


_LAWS = OneOf(
    allowed=(
        "allowed: a probability, a list of them, uniform, {model: uniform, low: ..., high: ...}, "
        "{model: beta, a: ..., b: ...} or {model: bimodal, mu: ...}"
    ),
    plain=_plain,
    plain_type=float | list[float] | Literal["uniform"],
)
_Laws = Annotated[
    FixedProbability | ProbabilityTable | BetaProbability | UniformProbability | BimodalProbability,
    Discriminator("model"),
    _LAWS,
]


class Law(Chosen[_Laws]):
    """A probability per node or link: a number, a list, or drawn once (or again every `redraw_every` rounds).

    ``0.5`` · ``[0.1, 0.9, ...]`` · ``{model: beta, a: 0.8, b: 0.8}`` · ``uniform`` = U(0, 1] · ``{model: uniform, low:
    0.2, high: 0.4}`` · ``{model: bimodal, mu: 0.3, std: 0.1}``, the DSpodFL paper's 1/2 (N[0,1](mu, 0.01) + N[0,1](1 -
    mu, 0.01)) with 0.01 read as the variance, truncated to [0, 1]. Drawn values are raised to at least `floor`: delays
    grow with 1 / probability, which draws near 0 would make meaningless.
    """

    def draw(self, count: int, seed: int, purpose: str, round: int) -> Floats:
        """`count` probabilities in force in `round` (1, 2, ...)."""
        return self.root.draw(count, seed, purpose, round)

    def epoch(self, round: int) -> int:
        """Which redraw `round` falls into."""
        return self.root.epoch(round)

    @property
    def floor(self) -> float:
        """What drawn values are raised to; delays take no probability for smaller, whoever gives it."""
        return self.root.floor if isinstance(self.root, _Drawn) else _FLOOR


class FixedRate(FixedProbability):
    """The same rate for all."""

    value: NonNegative


class RateTable(ProbabilityTable):
    """One rate per node or link."""

    values: list[NonNegative]


class UniformRate(UniformProbability):
    """Rates uniform on (low, high]."""

    low: NonNegative
    high: NonNegative


_Rates = Annotated[
    FixedRate | RateTable | BetaProbability | UniformRate | BimodalProbability, Discriminator("model"), _LAWS
]


class RateLaw(Law):
    """Ticks per virtual second of a Poisson clock, in the same forms: a number, a list, or drawn once per run."""

    root: _Rates

    @model_validator(mode="after")
    def _drawn_once(self) -> RateLaw:
        if isinstance(self.root, _Drawn) and self.root.redraw_every:
            raise ValueError("found redraw_every: the rates of a run are drawn once, remove it")
        return self


class AutoRate(_Probabilities):
    """The same rate for all: the least at which the algorithm converges on the graph, found before the run."""

    model: Literal["auto"]

    def draw(self, count: int, seed: int, purpose: str, round: int) -> Floats:
        raise InputError("found auto, which is found out when a run is assembled; allowed: a rate")

    def written(self) -> Any:
        return "auto"


_LinkRates = Annotated[
    FixedRate | RateTable | BetaProbability | UniformRate | BimodalProbability | AutoRate,
    Discriminator("model"),
    OneOf(
        allowed=f"{_LAWS.allowed}, or auto",
        plain=lambda value: {"model": "auto"} if value == "auto" else _plain(value),
        plain_type=float | list[float] | Literal["uniform", "auto"],
    ),
]


class LinkRateLaw(RateLaw):
    """Ticks per virtual second of links' Poisson clocks: a `RateLaw`, or ``auto``, the least rate that the algorithm
    needs on this graph, where it needs one."""

    root: _LinkRates  # type: ignore[assignment]

    @property
    def auto(self) -> bool:
        return isinstance(self.root, AutoRate)


def _bimodal(mu: float, std: float, count: int, generator: np.random.Generator) -> Floats:
    """An equal mixture of two normals around mu and 1 - mu, each truncated to [0, 1]."""
    from scipy.stats import truncnorm

    centre = np.where(generator.random(count) < 0.5, mu, 1.0 - mu)
    return np.asarray(
        truncnorm.ppf(generator.random(count), -centre / std, (1.0 - centre) / std, loc=centre, scale=std)
    )


ProbabilityLaw = Law
