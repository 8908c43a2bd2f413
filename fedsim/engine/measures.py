"""Measures that a scenario can ask for in ``run.metrics``, beside those that every run has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedsim.core.errors import InputError
from fedsim.core.metrics import Measure, Metric, View
from fedsim.core.oracle import Task
from fedsim.core.registry import register
from fedsim.engine.ensemble import Ensemble

__all__ = ["Ensemble", "MacroF1"]


@register.metric("macro_f1")
@dataclass(frozen=True, kw_only=True)
class MacroF1(Measure):
    """Mean over the classes of F1, ``2 tp / (2 tp + fp + fn)``, of the (mean) model on the test data.

    Unlike the accuracy it counts every class alike, however many samples it has. A class that is neither in the test
    data nor ever guessed is left out.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("macro_f1", "macro F1", unit="share", larger_is_better=True, public=True),
    )

    def check(self, task: Task) -> None:
        if task.answers(task.initial()).guesses is None:
            raise InputError("is of classes, found a regression; allowed: a data set with classes", key="name")

    def evaluate(self, view: View) -> Mapping[str, float]:
        answers = view.task.answers(view.centre)
        assert answers.guesses is not None  # `check`
        right = answers.targets[answers.guesses == answers.targets]
        hits, true, guessed = (torch.bincount(v, minlength=int(answers.outputs.shape[-1]) + 1).double() for v in (
            right, answers.targets, answers.guesses))  # fmt: skip
        both = true + guessed
        return {"macro_f1": float((2 * hits[both > 0] / both[both > 0]).mean())}
