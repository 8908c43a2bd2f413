"""Rows that are only ever appended, one JSON object a line, on the disk before whatever they announce happens.

A process may end at any moment, so a last line without its end is void: what it would have announced has not happened.
Any other line that cannot be read means that the file was damaged afterwards, and nothing may be concluded from it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsim.core.errors import RunError


class AppendFile:
    """One file of rows; other processes may append to it between two calls, but not during one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._end = 0
        self._waiting = False

    def unread(self, mend: bool = True) -> list[dict[str, Any]]:
        """Rows that neither were read here before nor appended here; a last line that was cut short is void.

        `mend` removes it, so that others may follow: not for who only looks, while another process may be writing it.

        Raises
        ------
        RunError
            A row is damaged.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self._end)
                text = file.read()
        except FileNotFoundError:
            if self._end:
                raise RunError(f"{self.path} is no longer there, though it was written in this run") from None
            return []
        whole = text[: text.rfind(b"\n") + 1]
        rows = [self._row(line) for line in whole.splitlines()]
        self._end += len(whole)
        if mend and len(whole) < len(text):
            os.truncate(self.path, self._end)
        return rows

    def append(self, row: Mapping[str, Any], durable: bool = True) -> None:
        """Write a row; `durable`: return only when it would outlast the machine's end, else only the process's."""
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            if os.write(handle, line) != len(line):
                raise RunError(f"{self.path} could not be written to: is the disk full?")
            if durable:
                os.fsync(handle)
        finally:
            os.close(handle)
        self._end += len(line)
        self._waiting = not durable

    def settle(self) -> None:
        """Have the rows so far outlast the machine's end, too."""
        if self._waiting:
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
            self._waiting = False

    def _row(self, line: bytes) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise RunError(f"{self.path} is damaged: found {line[:60]!r}, expected a JSON object on every line")
        return row
