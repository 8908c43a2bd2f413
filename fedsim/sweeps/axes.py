"""Random axes of a sweep: values drawn from laws, keyed by the sweep's seed, the axis and the sample's number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, model_validator

from fedsim.core import rng
from fedsim.core.errors import InputError
from fedsim.core.metrics import Metric, metric
from fedsim.core.one_of import Chosen, Form, OneOf
from fedsim.core.types import Positive


class _Range(Form):
    """Values between `low` and `high`."""

    older = ("low", "high")
    low: Any
    high: Any

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"found low {self.low} above high {self.high}, allowed: low <= high")
        return self


class UniformAxis(_Range):
    """Uniform on [low, high]."""

    model: Literal["uniform"]
    low: float | int
    high: float | int

    def at(self, u: float) -> Any:
        """The value below which a share `u` of the draws lies; floats with six digits, as labels show them."""
        return float(f"{self.low + u * (self.high - self.low):.6g}")


class LogUniformAxis(_Range):
    """Uniform in the logarithm."""

    model: Literal["log_uniform"]
    low: Positive
    high: Positive

    def at(self, u: float) -> Any:
        low, high = math.log(self.low), math.log(self.high)
        return float(f"{math.exp(low + u * (high - low)):.6g}")


class IntegersAxis(_Range):
    """Whole numbers from `low` to `high`, both included."""

    model: Literal["integers"]
    low: int
    high: int

    def at(self, u: float) -> Any:
        return self.low + int(u * (self.high - self.low + 1))


class ChoiceAxis(Form):
    """One of `values`."""

    older = ("values",)
    model: Literal["choice"]
    values: Annotated[list[Any], Field(min_length=1)]

    def at(self, u: float) -> Any:
        return self.values[int(u * len(self.values))]


_AXES = OneOf(allowed="allowed: {model: ..., ...} with exactly one of uniform, log_uniform, integers, choice")


class Axis(Chosen[Annotated[UniformAxis | LogUniformAxis | IntegersAxis | ChoiceAxis, Discriminator("model"), _AXES]]):
    """One value per sample: ``{model: uniform, low: 0, high: 1}``, ``{model: log_uniform, low: 0.01, high: 1}``,
    ``{model: integers, low: 1, high: 3}`` (both ends included) or ``{model: choice, values: [...]}``.
    """

    def draw(self, seed: int, key: str, sample: int) -> Any:
        """The value of sample number `sample` on the axis `key`; floats with six digits, as labels show them."""
        return self.root.at(float(rng.uniform(rng.key(seed, f"sweep {key}", sample))[0]))


class Stop(BaseModel):
    """Early stopping by successive halving (ASHA, arXiv 1810.05934): of the runs that reach a rung the best go on.

    Rungs are `grace`, grace * factor, grace * factor^2, ... rounds; 1 / `factor` of the runs goes on at each. Without a
    `mode` the metric's own direction counts.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    metric: str = "test_accuracy"
    mode: Literal["max", "min"] | None = None
    grace: Annotated[int, Field(gt=0)] = 10
    factor: Annotated[int, Field(ge=2)] = 3

    def directed(self, columns: Mapping[str, Metric]) -> Stop:
        """With the direction of its metric, where none is given.

        Raises
        ------
        InputError
            Nobody declares one.
        """
        larger = metric(self.metric, columns).larger_is_better
        if self.mode is not None:
            return self
        if larger is None:
            known = ", ".join(m.name for m in columns.values() if m.larger_is_better is not None)
            message = f"missing: nothing says whether more or less of '{self.metric}' is better; allowed: max, min, or "
            raise InputError(f"{message}metric: {known}", key="stop.mode")
        return self.model_copy(update={"mode": "max" if larger else "min"})
