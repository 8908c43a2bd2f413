"""Rows of ``metrics.jsonl`` and ``trace.jsonl``, appended as they come."""

from __future__ import annotations

import json
import math
from typing import IO, Any

import numpy as np

from fedsim.core.metrics import write_columns
from fedsim.engine.watch import Row, Watched, Watcher


class Recorder(Watcher):
    """Appends to ``metrics.jsonl`` and, with `trace`, to ``trace.jsonl``; says what own columns mean."""

    def __init__(self, trace: bool) -> None:
        self._with_trace = trace
        self._files: dict[str, IO[str]] = {}

    def began(self, run: Watched) -> None:
        write_columns(run.dir, run.scenario.columns)
        for name in ("metrics", *(["trace"] if self._with_trace else [])):
            self._files[name] = (run.dir / f"{name}.jsonl").open("a", encoding="utf-8")

    def round(self, number: int, row: Row | None) -> None:
        if row is not None:
            self._files["metrics"].write(_json(row) + "\n")
            self.saving()

    def scheduled(self, row: Row) -> None:
        self._files["trace"].write(_json(row) + "\n")

    def saving(self) -> None:
        for file in self._files.values():
            file.flush()

    def closed(self, error: BaseException | None) -> None:
        for file in self._files.values():
            file.close()


def _json(row: Row) -> str:
    return json.dumps({k: _plain(v) for k, v in row.items()}, allow_nan=False)


def _plain(value: Any) -> Any:
    """JSON's types; a number that is not finite becomes null."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
