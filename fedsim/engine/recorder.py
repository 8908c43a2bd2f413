"""Rows of ``metrics.jsonl`` and ``trace.jsonl``, appended as they come."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np


class Recorder:
    """Appends to ``metrics.jsonl`` and ``trace.jsonl`` and keeps the checkpoint."""

    def __init__(self, folder: Path, trace: bool) -> None:
        self.folder = folder
        self._metrics: IO[str] = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._trace: IO[str] | None = (folder / "trace.jsonl").open("a", encoding="utf-8") if trace else None

    def metrics(self, row: Mapping[str, Any]) -> None:
        self._metrics.write(_json(row) + "\n")
        self.flush()

    def trace(self, row: Mapping[str, Any]) -> None:
        if self._trace is not None:
            self._trace.write(_json(row) + "\n")

    def flush(self) -> None:
        for file in (self._metrics, self._trace):
            if file is not None:
                file.flush()

    def close(self) -> None:
        for file in (self._metrics, self._trace):
            if file is not None:
                file.close()


def _json(row: Mapping[str, Any]) -> str:
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
