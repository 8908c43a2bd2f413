"""Loggers that a scenario can name in ``run.loggers``: a table, the best model, and trackers people have."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from fedsim.core.registry import register
from fedsim.engine.best import Best
from fedsim.engine.tracking import MLflow, TensorBoard, Wandb
from fedsim.engine.watch import Logger, Watched, Watcher

__all__ = ["Best", "Csv", "MLflow", "TensorBoard", "Wandb"]


@register.logger("csv")
@dataclass(frozen=True, kw_only=True)
class Csv(Logger):
    """A table of the metrics in the run directory, one line per evaluation, for spreadsheets and other programs.

    Parameters
    ----------
    file : its name there.
    """

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.(csv|txt)$")] = "metrics.csv"

    @property
    def writes(self) -> Mapping[str, str]:
        return {self.file: "file"}

    def watcher(self) -> Watcher:
        return _Table(self.file)


class _Table(Watcher):
    """The lines of a resumed run go on after those of the rounds that are kept; a new column rewrites the file."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._file = Path()
        self._columns: list[str] = []

    def began(self, run: Watched) -> None:
        self._file = run.dir / self._name
        kept: list[dict[str, str]] = []
        if run.resumed_at and self._file.exists():
            with self._file.open(newline="", encoding="utf-8") as file:
                evaluates = run.scenario.run.evaluates
                kept = [
                    row for row in csv.DictReader(file)
                    if int(row["round"]) <= run.resumed_at and evaluates(int(row["round"]))
                ]  # fmt: skip
        self._rewrite(list(kept[0]) if kept else [], kept)

    def round(self, number: int, row: Mapping[str, Any] | None) -> None:
        if row is None:
            return
        fresh = [k for k in row if k not in self._columns]
        if fresh:
            with self._file.open(newline="", encoding="utf-8") as file:
                before = list(csv.DictReader(file))
            self._rewrite([*self._columns, *fresh], before)
        with self._file.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns, restval="").writerow(row)

    def _rewrite(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        self._columns = columns
        with self._file.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="")
            if columns:
                writer.writeheader()
            writer.writerows(rows)
