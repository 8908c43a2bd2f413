"""Measures of a model on the test data that need classes, probabilities or numbers, and no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.core.arrays import Floats, Ints
from fedsim.core.errors import InputError
from fedsim.core.metrics import Measure, Metric, View
from fedsim.core.oracle import Task
from fedsim.core.registry import register
from fedsim.core.types import Bins, Count


def _share(name: str, words: str = "", larger_is_better: bool = True) -> Metric:
    return Metric(name, words, "share", larger_is_better, public=True)


class OfClasses(Measure):
    """Of the classes that a model takes the test samples for."""

    per_client: ClassVar[bool] = True

    def check(self, task: Task) -> None:
        if task.answers(task.untrained()).guesses is None:
            raise InputError("is of classes, found a regression; allowed: a data set with classes", key="name")

    @staticmethod
    def classes(view: View) -> tuple[Ints, Ints]:
        """The true classes and the guessed ones, each ``[N]``."""
        answers = view.answers
        assert answers.guesses is not None  # `check`
        return answers.targets.flatten().cpu().numpy(), answers.guesses.flatten().cpu().numpy()


class OfProbabilities(Measure):
    """Of the probabilities that a model gives the classes of the test samples."""

    per_client: ClassVar[bool] = True

    def check(self, task: Task) -> None:
        task.probabilities(task.untrained().unsqueeze(0))

    @staticmethod
    def probabilities(view: View) -> tuple[Ints, Tensor]:
        """The true classes ``[N]`` and all classes' probabilities ``[N, classes]``."""
        return view.answers.targets.cpu().numpy().astype(np.int64), view.task.probabilities(view.centre.unsqueeze(0))[0]


class OfNumbers(Measure):
    """Of the numbers that a regression gives."""

    per_client: ClassVar[bool] = True

    def check(self, task: Task) -> None:
        if task.answers(task.untrained()).guesses is not None:
            raise InputError("is of numbers, found classes; allowed: a data set with numbers as targets", key="name")

    @staticmethod
    def numbers(view: View) -> tuple[Floats, Floats]:
        """The true numbers and the model's, each ``[N, k]``."""
        answers = view.answers
        outputs = answers.outputs.double().flatten(1).cpu().numpy()
        return answers.targets.double().cpu().numpy().reshape(outputs.shape), outputs


def _f1(true: Ints, guessed: Ints, average: str) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(true, guessed, average=average, zero_division=0.0))


@register.metric("macro_f1")
@dataclass(frozen=True, kw_only=True)
class MacroF1(OfClasses):
    """Mean over the classes of F1, ``2 tp / (2 tp + fp + fn)``, of the (mean) model on the test data.

    Unlike the accuracy it counts every class alike, however many samples it has. A class that is neither in the test
    data nor ever guessed is left out.
    """

    metrics: ClassVar[Sequence[Metric]] = (_share("macro_f1", "macro F1"),)

    def evaluate(self, view: View) -> Mapping[str, float]:
        return {"macro_f1": _f1(*self.classes(view), "macro")}


@register.metric("f1")
@dataclass(frozen=True, kw_only=True)
class F1(OfClasses):
    """F1 of the (mean) model on the test data, over all classes.

    Parameters
    ----------
    average : ``macro``, as `macro_f1`; ``micro``, of the sums of tp, fp and fn over the classes, which is the accuracy
        where every sample has one class; ``weighted``, the mean over the classes with their numbers of samples as
        weights.
    """

    average: Literal["macro", "micro", "weighted"] = "macro"

    @property
    def metrics(self) -> Sequence[Metric]:  # type: ignore[override]
        return [_share(f"{self.average}_f1", f"{self.average} F1")]

    def evaluate(self, view: View) -> Mapping[str, float]:
        return {f"{self.average}_f1": _f1(*self.classes(view), self.average)}


@register.metric("balanced_accuracy")
@dataclass(frozen=True, kw_only=True)
class BalancedAccuracy(OfClasses):
    """Mean over the classes in the test data of the share of their samples that is recognised (recall)."""

    metrics: ClassVar[Sequence[Metric]] = (_share("balanced_accuracy"),)

    def evaluate(self, view: View) -> Mapping[str, float]:
        from sklearn.metrics import recall_score

        true, guessed = self.classes(view)
        found = recall_score(true, guessed, labels=np.unique(true), average="macro", zero_division=0.0)
        return {"balanced_accuracy": float(found)}


@register.metric("top_k_accuracy")
@dataclass(frozen=True, kw_only=True)
class TopK(OfClasses):
    """Share of the test samples whose class is among the k with the largest outputs.

    A class with an output as large as the true one's stands before it, so that a model that says the same of all
    classes is right about none.

    Parameters
    ----------
    k : fewer than there are classes.
    """

    k: Count = 5

    @property
    def metrics(self) -> Sequence[Metric]:  # type: ignore[override]
        return [_share(f"top_{self.k}_accuracy", f"top-{self.k} accuracy")]

    def check(self, task: Task) -> None:
        super().check(task)
        classes = task.answers(task.untrained()).outputs.shape[-1]
        if not self.k < classes:
            message = f"found {self.k}, allowed: fewer than the model has outputs, {classes}"
            raise InputError(message, key="k")

    def evaluate(self, view: View) -> Mapping[str, float]:
        outputs = view.answers.outputs.flatten(0, -2)
        own = outputs.gather(1, view.answers.targets.long().reshape(-1, 1))
        before = (~(outputs < own)).sum(1)  # with itself; what is not a number is before everything
        return {f"top_{self.k}_accuracy": float((before <= self.k).double().mean())}


@register.metric("auc")
@dataclass(frozen=True, kw_only=True)
class Auc(OfProbabilities):
    """Area under the receiver operating characteristic: mean over the classes of one against all others.

    That is how often a sample of the class gets a larger probability of it than a sample of another class, ties
    counting half. A class that all or none of the test samples have is left out; of two classes both are the same.
    """

    metrics: ClassVar[Sequence[Metric]] = (_share("auc", "area under the ROC curve"),)

    def evaluate(self, view: View) -> Mapping[str, float]:
        from sklearn.metrics import roc_auc_score

        true, probabilities = self.probabilities(view)
        scores = probabilities.double().cpu().numpy()
        present = [c for c in np.unique(true) if not (true == c).all()]
        if not present or not np.isfinite(scores).all():
            return {"auc": float("nan")}
        return {"auc": float(np.mean([roc_auc_score(true == c, scores[:, c]) for c in present]))}


def calibration_error(confidence: Tensor, right: Tensor, bins: int) -> float:
    """Expected calibration error (Guo et al., arXiv 1706.04599) of confidences ``[N]`` in (0, 1], right or not ``[N]``.

    Over `bins` of equal width the mean of |accuracy - confidence|, weighted by the samples in the bin.
    """
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=right.dtype, device=right.device)
    return float(gaps.index_add_(0, place, right - confidence.to(right.dtype)).abs().sum() / len(right))


@register.metric("calibration_error")
@dataclass(frozen=True, kw_only=True)
class CalibrationError(OfProbabilities):
    """How far the largest probability is from the share that is right, see `calibration_error`.

    Parameters
    ----------
    bins : of equal width.
    """

    metrics: ClassVar[Sequence[Metric]] = (_share("calibration_error", larger_is_better=False),)
    bins: Bins = 15

    def evaluate(self, view: View) -> Mapping[str, float]:
        true, probabilities = self.probabilities(view)
        confidence, guesses = probabilities.max(1)
        right = (guesses.cpu() == torch.as_tensor(true)).double()
        return {"calibration_error": calibration_error(confidence.cpu(), right, self.bins)}


@register.metric("mae")
@dataclass(frozen=True, kw_only=True)
class MeanAbsoluteError(OfNumbers):
    """Mean of |output - target| on the test data, in the unit in which targets are trained on."""

    metrics: ClassVar[Sequence[Metric]] = (Metric("mae", "mean absolute error", larger_is_better=False, public=True),)

    def evaluate(self, view: View) -> Mapping[str, float]:
        true, found = self.numbers(view)
        return {"mae": float(np.abs(found - true).mean())}


@register.metric("r2")
@dataclass(frozen=True, kw_only=True)
class Determination(OfNumbers):
    """Coefficient of determination on the test data: 1 - squared error / that of the targets' own mean.

    The mean over the outputs where there are several. Null where all test targets are the same.
    """

    metrics: ClassVar[Sequence[Metric]] = (Metric("r2", "R squared", larger_is_better=True, public=True),)

    def evaluate(self, view: View) -> Mapping[str, float]:
        true, found = self.numbers(view)
        spread = ((true - true.mean(0)) ** 2).sum(0)
        if not (spread > 0).all():
            return {"r2": float("nan")}
        return {"r2": float((1 - ((found - true) ** 2).sum(0) / spread).mean())}
