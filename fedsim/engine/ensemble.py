"""What all samples of a run say together of the test data: the ensemble's predictive distribution, and its quality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fedsim.core.metrics import Measure, Metric, View
from fedsim.core.oracle import Task
from fedsim.core.registry import register
from fedsim.core.types import Bins
from fedsim.engine.quality import calibration_error


@register.metric("ensemble")
@dataclass(frozen=True, kw_only=True)
class Ensemble(Measure):
    """The mean of the probabilities that all samples kept so far give each class, on the test data.

    ``ensemble_log_likelihood`` is the mean of the log probability of the true class, ``ensemble_calibration_error`` the
    expected calibration error: over bins of the largest probability the mean of |accuracy - confidence|, weighted by
    samples in the bin (Guo et al., arXiv 1706.04599). They are null while there is no sample.

    Parameters
    ----------
    bins : of equal width, of the calibration error.
    """

    of_samples: ClassVar[bool] = True
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("ensemble_log_likelihood", larger_is_better=True, public=True),
        Metric("ensemble_accuracy", unit="share", larger_is_better=True, public=True),
        Metric("ensemble_calibration_error", unit="share", larger_is_better=False, public=True),
        Metric("ensemble_size", "samples in the ensemble", "count", public=True, kind="cost", figure="", brief=""),
    )
    bins: Bins = 15

    def check(self, task: Task) -> None:
        task.probabilities(task.untrained().unsqueeze(0))

    def evaluate(self, view: View) -> Mapping[str, float]:
        probabilities, count = view.predictive()
        if not count:
            names = [metric.name for metric in self.metrics]
            return {**dict.fromkeys(names, float("nan")), "ensemble_size": 0.0}
        targets = view.task.answers(view.centre).targets.long()
        likely = probabilities.gather(1, targets.unsqueeze(1)).log().mean()
        confidence, guesses = probabilities.max(1)
        right = (guesses == targets).double()
        return {
            "ensemble_log_likelihood": float(likely),
            "ensemble_accuracy": float(right.mean()),
            "ensemble_calibration_error": calibration_error(confidence, right, self.bins),
            "ensemble_size": float(count),
        }
