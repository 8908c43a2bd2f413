"""Rows of ``metrics.jsonl`` and ``trace.jsonl``, appended as they come, and on the disk before a checkpoint is."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.core.disk import cannot_write, settle
from fedsim.core.errors import RunError
from fedsim.core.metrics import write_columns
from fedsim.engine.watch import Row, Watched, Watcher

_LOOK = 1.0
"""Seconds after which a run that writes nothing looks whether its files are still there."""


class Recorder(Watcher):
    """Appends to ``metrics.jsonl`` and, with `trace`, to ``trace.jsonl``; says what own columns mean."""

    def __init__(self, trace: bool) -> None:
        self._with_trace = trace
        self._files: dict[str, RowFile] = {}
        self._looked = 0.0

    def began(self, run: Watched) -> None:
        write_columns(run.dir, run.scenario.columns)
        for name in ("metrics", *(["trace"] if self._with_trace else [])):
            self._files[name] = RowFile(run.dir / f"{name}.jsonl")
        settle(run.dir)

    def round(self, number: int, row: Row | None) -> None:
        if row is not None:
            self._files["metrics"].add(_json(row))
            self._write()
        elif time.monotonic() > self._looked + _LOOK:
            self._write()

    def scheduled(self, row: Row) -> None:
        self._files["trace"].add(_json(row))

    def saving(self) -> None:
        for file in self._files.values():
            file.write(durable=True)

    def closed(self, error: BaseException | None) -> None:
        for file in self._files.values():
            file.close(quiet=error is not None)

    def _write(self) -> None:
        self._looked = time.monotonic()
        for file in self._files.values():
            file.write()


class RowFile:
    """Lines at the end of a file that others only read: whole ones, whatever the disk says."""

    def __init__(self, path: Path) -> None:
        self._path, self._waiting = path, bytearray()
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def add(self, line: str) -> None:
        """Have a line written with the next `write`, or earlier where there are many."""
        self._waiting += line.encode() + b"\n"
        if len(self._waiting) > 2**16:
            self.write()

    def write(self, durable: bool = False) -> None:
        """Write what waits; `durable`: return when it would outlast the machine's end.

        Raises
        ------
        RunError
            The disk is full, or the file is no longer the one that was opened.
        """
        try:
            there, mine = self._path.stat(), os.fstat(self._handle)
        except OSError as error:
            raise cannot_write(self._path, error) from None
        if (there.st_ino, there.st_dev) != (mine.st_ino, mine.st_dev):
            raise RunError(f"{self._path} was replaced by another file while the run wrote to it")
        try:
            while self._waiting:
                done = os.write(self._handle, self._waiting)
                del self._waiting[:done]
            if durable:
                os.fsync(self._handle)
        except OSError as error:
            self._waiting.clear()
            os.truncate(self._handle, mine.st_size)  # no half a line
            raise cannot_write(self._path, error) from error

    def close(self, quiet: bool) -> None:
        """Write what waits; `quiet`: what ended the run is told, not what the disk says now."""
        try:
            self.write()
        except RunError:
            if not quiet:
                raise
        finally:
            os.close(self._handle)


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
