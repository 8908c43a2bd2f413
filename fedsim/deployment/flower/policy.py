"""What a run puts up with, as its run config says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Policy:
    """What happens to jobs that fail.

    Parameters
    ----------
    timeout : seconds after which a job that was not answered is given up.
    on_failure : ``retry`` sends a job again (when the client is back, at most `attempts` times if it answers wrongly)
        until the timeout; ``drop`` goes on without this client in this round; ``stop`` ends the run.
    attempts : wrong answers to one job that are put up with.
    poll : seconds between two looks for answers.
    away : seconds after which a job whose client is not connected is given up (0: `timeout`).
    """

    timeout: float = 600.0
    on_failure: Literal["retry", "drop", "stop"] = "retry"
    attempts: int = 3
    poll: float = 0.2
    away: float = 0.0

    @property
    def patience(self) -> float:
        """Seconds that are waited for a client that is not connected."""
        return self.away or self.timeout
