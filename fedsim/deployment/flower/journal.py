"""``replies.jsonl``: how every job and every evaluation of a deployment ended."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from fedsim.deployment.flower.records import WORK, Order


class Journal:
    """Rows at the end of `file`; nothing where there is none."""

    def __init__(self, file: Path | None = None) -> None:
        self.file, self._begun = file, time.monotonic()
        self.before = 0.0
        """Seconds that a resumed run has already taken."""

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
        if self.file is None:
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
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
