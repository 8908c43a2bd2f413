"""When a run ends before its last round (``run.stop``): a metric no longer improves, or is as good as it has to be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedsim.core.metrics import Metric, check_directed
from fedsim.core.types import Count


class Stop(BaseModel):
    """After which evaluation a run ends early; the metric's declaration says whether larger or smaller is better."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    metric: Annotated[str, Field(min_length=1)] = Field(
        "test_accuracy", description="a column of metrics.jsonl that has a direction"
    )
    patience: Count | None = Field(
        None, description="end after that many evaluations in a row without an improvement (default: never)"
    )
    min_delta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.0, description="an improvement is larger than this"
    )
    target: Annotated[float, Field(allow_inf_nan=False)] | None = Field(
        None, description="end as soon as the metric is this good (default: never)"
    )

    @model_validator(mode="after")
    def _says_when(self) -> Self:
        if self.patience is None and self.target is None:
            raise ValueError("found neither 'patience' nor 'target', allowed: at least one of the two")
        if self.patience is None and self.min_delta > 0:
            raise ValueError("found 'min_delta' without 'patience', allowed: both")
        return self

    @property
    def said(self) -> str:
        """When a run ends early, in words."""
        ways = []
        if self.patience is not None:
            ways.append(f"after {self.patience} evaluations without an improvement of more than {self.min_delta:g}")
        if self.target is not None:
            ways.append(f"as soon as it is {self.target:g}")
        return f"by {self.metric}, {' or '.join(ways)}"

    def check(self, columns: Mapping[str, Metric]) -> None:
        """Raise InputError where the metric is none of `columns`, or has no direction."""
        check_directed(self.metric, columns)
