"""Base of algorithms whose clients say what the model that they received loses on their data.

The loss is that of the model before local work, of the samples as they are. It is evaluated where the data are, in
every backend by the same code (`Task.losses`), and the run's column ``loss_evaluations`` counts it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedsim.algorithms.base import Effort, ServerAlgorithm
from fedsim.core.errors import RunError
from fedsim.core.types import BatchSize


@dataclass(frozen=True, kw_only=True)
class ReportsLoss(ServerAlgorithm):
    """A client's message depends on the mean loss F_i(x) of the model that it received.

    Parameters
    ----------
    loss_samples : samples of a client that the loss is estimated on, drawn anew in every round, or ``full``.
    """

    loss_samples: BatchSize = "full"

    @property
    def evaluates_on(self) -> BatchSize | None:
        return self.loss_samples

    def loss_of(self, effort: Effort) -> Tensor:
        """F_i(x) ``[m, 1]``.

        Raises
        ------
        RunError
            Whoever called `message` did not evaluate it.
        """
        if effort.loss is None:
            raise RunError(
                f"{type(self).__name__} needs the loss of the model that clients received, and was told none"
            )
        return effort.loss
