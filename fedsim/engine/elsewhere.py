"""Data that are not where the run is: what a machine of a deployment holds of them, and what its server is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedsim.core.arrays import Floats, Ints
from fedsim.core.errors import InputError
from fedsim.data.division import column_of
from fedsim.data.form import well_formed
from fedsim.data.sets import Dataset, Quadratic, made_of
from fedsim.data.splits import Scaling
from fedsim.objective.supervised import SupervisedTask
from fedsim.scenario.sections import Scenario

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Held:
    """What one machine of a deployment holds of the data: all rows of `data` are client `client`'s, to train and test.

    `sizes` ``[n]`` are the samples of all clients, its own among them; those of clients it knows nothing about are 0.
    `importance` ``[n]`` is what clients count where that is not by their samples.
    """

    data: Dataset
    client: int
    sizes: Ints
    importance: Floats | None = None

    @property
    def rows(self) -> list[Ints]:
        """Rows of `data` per client."""
        return [np.arange(n if c == self.client else 0, dtype=np.int64) for c, n in enumerate(self.sizes.tolist())]

    @property
    def tests(self) -> list[Ints]:
        """Rows of its test rows per client."""
        tested = len(self.data.test_x)
        return [np.arange(tested if c == self.client else 0, dtype=np.int64) for c in range(len(self.sizes))]


@dataclass(frozen=True)
class Told:
    """What clients that bring data of their own have said of them, at the server, which sees none of these data.

    `sizes` ``[n]`` are the samples of all clients; `scaling` is that of their pooled rows, where statistics scale.
    """

    sizes: Sequence[int]
    scaling: Scaling | None = None

    def tell(self, task: SupervisedTask) -> None:
        """Have the clients' weights follow from what they said; where nobody has a sample yet, none has a weight."""
        total = sum(self.sizes) or 1  # of Python's numbers, which do not overflow
        task.sizes = np.array(self.sizes, dtype=np.int64)
        task.importance = np.array([size / total for size in self.sizes])
        task.sees_training_data = False


def load_data(s: Scenario, given: Scaling | None = None) -> Dataset | Quadratic:
    """The scenario's data, with the ids of their rows where a column divides them.

    `given` is the scaling, where it follows from other rows.
    """
    column = column_of(s.partition)
    if given is not None:
        rows = s.dataset.rows(s.base, column)
        if rows is None:
            message = f"'{type(s.dataset).__name__}' scales itself; allowed: data sets that give their rows"
            raise InputError(message, key="dataset")
        return made_of(rows, given)
    if column is None:
        return well_formed(s.dataset.load(s.clients, s.seed, s.base))
    return well_formed(s.dataset.load_by(column, s.clients, s.seed, s.base))
