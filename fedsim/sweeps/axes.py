"""Random axes of a sweep: values drawn from laws, keyed by the sweep's seed, the axis and the sample's number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedsim.core import rng
from fedsim.core.errors import InputError
from fedsim.core.metrics import Metric, metric
from fedsim.core.types import Positive

_Pair = Annotated[list[float | int], Field(min_length=2, max_length=2)]
_KINDS = ("uniform", "log_uniform", "integers", "choice")


class Axis(BaseModel):
    """One value per sample: ``{uniform: [a, b]}``, ``{log_uniform: [a, b]}``, ``{integers: [a, b]}`` (both ends
    included) or ``{choice: [...]}``.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    uniform: _Pair | None = None
    log_uniform: Annotated[list[Positive], Field(min_length=2, max_length=2)] | None = None
    integers: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None
    choice: Annotated[list[Any], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one(self) -> Axis:
        given = [k for k in _KINDS if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"found {given or 'none'} of the laws, allowed: exactly one of {', '.join(_KINDS)}")
        bounds = getattr(self, given[0])
        if given[0] != "choice" and bounds[0] > bounds[1]:
            raise ValueError(f"found {given[0]}: {bounds}, allowed: [low, high] with low <= high")
        return self

    def draw(self, seed: int, key: str, sample: int) -> Any:
        """The value of sample number `sample` on the axis `key`; floats with six digits, as labels show them."""
        word = rng.key(seed, f"sweep {key}", sample)
        u = float(rng.uniform(word)[0])
        if self.choice is not None:
            return self.choice[int(u * len(self.choice))]
        if self.integers is not None:
            low, high = self.integers
            return low + int(u * (high - low + 1))
        if self.log_uniform is not None:
            low_log, high_log = (math.log(v) for v in self.log_uniform)
            return float(f"{math.exp(low_log + u * (high_log - low_log)):.6g}")
        assert self.uniform is not None
        return float(f"{self.uniform[0] + u * (self.uniform[1] - self.uniform[0]):.6g}")


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
