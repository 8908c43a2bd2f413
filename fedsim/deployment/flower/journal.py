"""``replies.jsonl``: how every job and every evaluation of a deployment ended."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from fedsim.core.append_file import AppendFile
from fedsim.deployment.flower.records import WORK, Order


class Journal:
    """Rows at the end of a file; nothing before it is known."""

    def __init__(self) -> None:
        self._file: AppendFile | None = None
        self._begun = time.monotonic()
        self.before = 0.0
        """Seconds that a resumed run has already taken."""

    def follow(self, file: Path) -> None:
        """Write to `file` from now on; a last row that an earlier process was ended in is taken away.

        Raises
        ------
        RunError
            Another of its rows is damaged.
        """
        self._file = AppendFile(file)
        self._file.unread()

    def begin(self) -> None:
        """Count the seconds of `now` from here on."""
        self._begun = time.monotonic()

    def now(self) -> float:
        """Seconds since it was made or told to begin."""
        return time.monotonic() - self._begun

    def note(
        self,
        order: Order,
        status: str,
        seconds: float,
        work: float | None = None,
        tries: int = 0,
        reason: str = "",
        what: str = WORK,
    ) -> None:
        """How `order` ended, `seconds` after it was sent, of which `work` were the client's."""
        if self._file is None:
            return
        at = round(self.before + self.now(), 3)
        row: dict[str, Any] = {
            "at": at, "client": order.client, "round": order.round, "steps": order.steps,
            "status": status, "seconds": round(seconds, 3),
        }  # fmt: skip
        row |= {"what": what} if what != WORK else {}
        row |= {"work": round(work, 6)} if work is not None else {}
        row |= {"tries": tries} if tries else {}
        row |= {"reason": reason} if reason else {}
        self._file.append(row, durable=False)
