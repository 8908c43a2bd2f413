"""The seconds that a run takes."""

from __future__ import annotations

import time


class WallClock:
    """Seconds of the wall: of the whole run, and since the last checkpoint."""

    def __init__(self, before: float) -> None:
        self._before, self._started = before, time.monotonic()
        self._last = self._started

    def wall(self) -> float:
        return self._before + time.monotonic() - self._started

    def since_checkpoint(self) -> float:
        return time.monotonic() - self._last

    def checkpointed(self) -> None:
        self._last = time.monotonic()
