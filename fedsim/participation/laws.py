"""Probability laws of a scenario: who computes and which link fires how often."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_serializer, model_validator

from fedsim.core import rng
from fedsim.core.arrays import Floats
from fedsim.core.errors import InputError
from fedsim.core.types import Count, NonNegative, Positive, Probability

_PAIR = Field(min_length=2, max_length=2)
_FORMS = "allowed: a probability, a list of them, uniform, {uniform: [lo, hi]}, {beta: [a, b]} or {bimodal: mu}"


class Law(BaseModel):
    """A probability per node or link: a number, a list, or drawn once (or again every `redraw_every` rounds).

    ``0.5`` · ``[0.1, 0.9, ...]`` · ``{beta: [a, b]}`` · ``uniform`` = U(0, 1] · ``{uniform: [lo, hi]}`` ·
    ``{bimodal: mu, std: 0.1}``, the DSpodFL paper's 1/2 (N[0,1](mu, 0.01) + N[0,1](1 - mu, 0.01)) with 0.01 read as the
    variance, truncated to [0, 1]. Drawn values are raised to at least `floor`: delays grow with 1 / probability, which
    draws near 0 would make meaningless.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    fixed: Probability | None = None
    per_item: list[Probability] | None = None
    beta: Annotated[list[Positive], _PAIR] | None = None
    uniform: Annotated[list[Probability], _PAIR] | None = None
    bimodal: Probability | None = None
    std: Positive = 0.1
    redraw_every: Count | None = None
    floor: Annotated[float, Field(gt=0, le=1)] = 1e-3

    @model_validator(mode="after")
    def _one(self) -> Law:
        kinds = ("fixed", "per_item", "beta", "uniform", "bimodal")
        if sum(getattr(self, k) is not None for k in kinds) != 1:
            raise ValueError(_FORMS)
        if self.uniform and self.uniform[0] > self.uniform[1]:
            raise ValueError(f"found uniform: {self.uniform}, allowed: [lo, hi] with lo <= hi")
        if self.redraw_every and (self.fixed is not None or self.per_item is not None):
            raise ValueError("redraw_every only makes sense for a distribution, not for given probabilities")
        return self

    @model_serializer
    def _short(self) -> Any:
        if self.fixed is not None or self.per_item is not None:
            return self.fixed if self.fixed is not None else self.per_item
        given = {
            k: getattr(self, k) for k in ("beta", "uniform", "bimodal", "redraw_every") if getattr(self, k) is not None
        }
        return {**given, **({"std": self.std} if self.bimodal is not None else {}), "floor": self.floor}

    def draw(self, count: int, seed: int, purpose: str, round: int) -> Floats:
        """`count` probabilities in force in `round` (1, 2, ...)."""
        if self.fixed is not None:
            return np.full(count, self.fixed)
        if self.per_item is not None:
            if len(self.per_item) != count:
                raise InputError(
                    f"found a list of {len(self.per_item)} probabilities, allowed: {count} (one per {purpose})"
                )
            return np.asarray(self.per_item)
        generator = rng.generator(seed, "law_" + purpose, self.epoch(round))
        if self.beta is not None:
            values = generator.beta(self.beta[0], self.beta[1], size=count)
        elif self.uniform is not None:
            values = self.uniform[0] + (self.uniform[1] - self.uniform[0]) * (1.0 - generator.random(count))
        else:
            assert self.bimodal is not None
            values = _bimodal(self.bimodal, self.std, count, generator)
        return np.maximum(values, self.floor)

    def epoch(self, round: int) -> int:
        """Which redraw `round` falls into."""
        return 0 if self.redraw_every is None else (round - 1) // self.redraw_every


class RateLaw(Law):
    """Ticks per virtual second of a Poisson clock, in the same forms: a number, a list, or drawn once per run."""

    fixed: NonNegative | None = None
    per_item: list[NonNegative] | None = None
    uniform: Annotated[list[NonNegative], _PAIR] | None = None

    @model_validator(mode="after")
    def _drawn_once(self) -> RateLaw:
        if self.redraw_every:
            raise ValueError("found redraw_every: the rates of a run are drawn once, remove it")
        return self


def _bimodal(mu: float, std: float, count: int, generator: np.random.Generator) -> Floats:
    """An equal mixture of two normals around mu and 1 - mu, each truncated to [0, 1]."""
    from scipy.stats import truncnorm

    centre = np.where(generator.random(count) < 0.5, mu, 1.0 - mu)
    return np.asarray(
        truncnorm.ppf(generator.random(count), -centre / std, (1.0 - centre) / std, loc=centre, scale=std)
    )


def _short_forms(value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return {"fixed": value}
    if isinstance(value, list):
        return {"per_item": value}
    if value == "uniform":
        return {"uniform": [0.0, 1.0]}
    if not isinstance(value, (dict, Law)):
        raise ValueError(_FORMS)
    return value


ProbabilityLaw = Annotated[Law, BeforeValidator(_short_forms, json_schema_input_type=float | list[float] | str | Law)]
Rates = Annotated[
    RateLaw, BeforeValidator(_short_forms, json_schema_input_type=NonNegative | list[NonNegative] | str | RateLaw)
]
