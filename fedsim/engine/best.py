"""The best model of a run, kept as it goes: of the evaluation at which a metric was the best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from safetensors import safe_open
from torch import Tensor

from fedsim.core.disk import replacing
from fedsim.core.errors import InputError, RunError, unknown
from fedsim.core.metrics import Metric, check_directed
from fedsim.core.registry import register
from fedsim.core.row_files import write_tensors
from fedsim.engine.watch import Logger, Row, Watched, Watcher

FILE = "best.safetensors"


@register.logger("best")
@dataclass(frozen=True, kw_only=True)
class Best(Logger):
    """Keeps ``best.safetensors``, the server's model or the mean of the honest nodes', where `metric` was the best.

    The first of several evaluations with the same value counts. A resumed run goes on with the file that is there.

    Parameters
    ----------
    metric : a column of ``metrics.jsonl`` that has a direction.
    """

    metric: Annotated[str, Field(min_length=1)] = "test_accuracy"

    def check(self, columns: Mapping[str, Metric]) -> None:
        check_directed(self.metric, columns)

    @property
    def writes(self) -> Mapping[str, str]:
        return {FILE: "name"}

    def watcher(self) -> Watcher:
        return _Keeper(self.metric)


class _Keeper(Watcher):
    def __init__(self, metric: str) -> None:
        self._metric = metric
        self._value: float | None = None

    def began(self, run: Watched) -> None:
        self._run, self._larger = run, run.columns[self._metric].larger_is_better
        file = run.dir / FILE
        if not run.resumed_at:
            file.unlink(missing_ok=True)
        elif file.exists():
            told = read_best(run.dir)[1]
            self._value = float(told["value"]) if told.get("metric") == self._metric else None

    def round(self, number: int, row: Row | None) -> None:
        if row is None:
            return
        if self._metric not in row:
            raise InputError(unknown("column of this run", self._metric, list(row)), key="metric")
        value = row[self._metric]
        if not isinstance(value, int | float) or not math.isfinite(value):
            return
        if self._value is None or (value > self._value if self._larger else value < self._value):
            self._value = float(value)
            about = {"round": str(number), "metric": self._metric, "value": repr(self._value), **self._run.layout}
            now = self._run.now()
            params, buffers = now.centre[: now.task.dim], now.centre[now.task.dim :]
            with replacing(self._run.dir / FILE) as fresh:
                write_tensors(fresh, {"params": params, **({"buffers": buffers} if len(buffers) else {})}, about)


def read_best(folder: Path) -> tuple[Tensor, dict[str, Any]]:
    """The best model ``[d]`` that a run kept, and the `round`, `metric` and `value` that it had.

    Raises
    ------
    RunError
        The run kept none.
    """
    file = folder / FILE
    if not file.exists():
        raise RunError(f"{folder} has no {FILE}: a run keeps its best model with run.loggers: [{{name: best}}]")
    try:
        with safe_open(file, "pt") as opened:
            params: Tensor = opened.get_tensor("params")
            return params, dict(opened.metadata() or {})
    except Exception as error:  # safetensors has errors of its own
        raise RunError(f"{file} is damaged: {error}") from None
