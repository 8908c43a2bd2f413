"""What a participation mode may ask about clients while a run goes on, and what that costs.

This is the one place where losses are asked for to choose clients: whose model it is (the server's, as it is before the
round), which clients, how many samples, and the bytes and evaluations of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsim.core.arrays import Array, Ints
from fedsim.core.oracle import Task
from fedsim.core.types import BatchSize
from fedsim.messages.base import SEPARATOR
from fedsim.participation.selection import ClientLosses

_MODE = f"participation{SEPARATOR}"
"""Before the names of what a participation mode keeps, among the tensors of a checkpoint."""


@dataclass(frozen=True)
class Cost:
    """What the inquiries of a round took: bytes that crossed the network, and losses of single samples."""

    bytes: int = 0
    evaluations: int = 0


class ServerInquiry:
    """Of a run with a server; `centre` gives its model.

    What a round asks and notes counts when the round is combined: one that is cut off leaves nothing behind.
    """

    def __init__(self, task: Task, centre: Callable[[], Tensor]) -> None:
        self.task, self.centre = task, centre
        self.kept: Mapping[str, Array] = {}
        self._noted: dict[int, Mapping[str, Array]] = {}
        self._asked: dict[int, list[Ints]] = {}
        self._cost: dict[int, Cost] = {}

    def losses(self, clients: Ints, number: int, samples: BatchSize, working: bool) -> ClientLosses:
        """See `fedsim.participation.selection.Inquiry`. The data are in this process, whoever else has them."""
        found = self.task.losses(self.centre(), clients, np.full(len(clients), number, dtype=np.int64), samples)
        cost = self._cost.get(number, Cost())
        sent = len(clients) * found.mean.element_size()
        evaluated = self.task.loss_samples(clients, samples)
        self._cost[number] = Cost(cost.bytes + sent, cost.evaluations + evaluated)
        if not working:
            self._asked.setdefault(number, []).append(clients)
        mean, square = (v.squeeze(-1).double().cpu().numpy() for v in (found.mean, found.square))
        return ClientLosses(mean, square)

    def note(self, number: int, kept: Mapping[str, Array], cohort: Ints) -> None:
        self._noted[number] = kept
        asked = self._asked.pop(number, [])
        others = np.setdiff1d(np.concatenate(asked), cohort) if asked else cohort[:0]  # the cohort is sent it anyway
        cost, model = self._cost.get(number, Cost()), self.centre()
        self._cost[number] = Cost(cost.bytes + len(others) * model.numel() * model.element_size(), cost.evaluations)

    def close(self, number: int) -> Cost:
        """Keep what was noted for round `number`, which was combined; what its inquiries took."""
        self.kept = self._noted.pop(number, self.kept)
        return self._cost.pop(number, Cost())

    def save(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {_MODE + name: torch.as_tensor(values) for name, values in self.kept.items()}

    def load(self, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Continue from what `save` gave; the rest of what was saved with it."""
        self.kept = {k.removeprefix(_MODE): v.cpu().numpy() for k, v in saved.items() if k.startswith(_MODE)}
        return {k: v for k, v in saved.items() if not k.startswith(_MODE)}
