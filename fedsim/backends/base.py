"""What the simulation loop needs of a backend."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from fedsim.task import Ints
from fedsim.types import Message
from fedsim.worker import Job


class Backend(Protocol):
    """Runs local work somewhere."""

    def dispatch(self, job: Job) -> None:
        """Note that these clients started; nothing needs to be computed yet."""

    def collect(self, jobs: Ints) -> Message:
        """The messages of jobs that have been dispatched, row i belonging to job number ``jobs[i]``."""

    def save(self) -> dict[str, Tensor]:
        """What has to survive for an exact resume: the clients' state and the jobs in flight."""

    def load(self, saved: dict[str, Tensor]) -> None:
        """Continue from what `save` gave."""
