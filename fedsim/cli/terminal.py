"""How numbers look in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LATEST = ("round", "test_accuracy", "node_accuracy", "test_loss", "train_loss", "optimum_distance", "delay_total")


def cell(value: Any) -> str:
    """A value of a table: floats with four digits, nothing for None."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(cell(v) for v in value)
    return "" if value is None else str(value)


def metrics_line(row: Mapping[str, Any]) -> str:
    """The latest metrics of a run in one line."""
    return "  ".join(f"{k} {cell(row[k])}" for k in _LATEST if row.get(k) is not None)
