"""A measure made of a function of targets and guesses, as scikit-learn's are: ``{name: "pkg.mod:function"}``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy.typing as npt

from fedsim.core.errors import InputError, RunError
from fedsim.core.metrics import Measure, Metric, View
from fedsim.core.oracle import Answers, Task

_COLUMN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True)
class Keys:
    """What a scenario says of such a measure; every other key goes to the function.

    Parameters
    ----------
    of : what the function gets second: the ``guesses`` ``[N]``, the ``probabilities`` ``[N, classes]`` or the model's
        ``outputs`` ``[N, k]``. Default: guesses of classes, outputs of numbers.
    column : of ``metrics.jsonl``. Default: the function's name.
    larger_is_better : its direction; without it no value of it is called the best.
    unit : as of `Metric`.
    """

    of: Literal["guesses", "probabilities", "outputs"] | None = None
    column: str = ""
    larger_is_better: bool | None = None
    unit: str = ""


@dataclass(frozen=True, kw_only=True)
class MeasuredFunction(Measure):
    """What ``function(targets, guesses, **keys)`` says of the (mean) model on the test data: one number."""

    called: str
    function: Callable[..., Any] = field(repr=False)
    said: Keys
    given_keys: Mapping[str, Any]
    """The keys as the scenario has them."""

    @property
    def column(self) -> str:
        return self.said.column or getattr(self.function, "__name__", self.called.partition(":")[2])

    @property
    def metrics(self) -> Sequence[Metric]:  # type: ignore[override]
        """It is made of a released model and of test data."""
        words = self.column.replace("_", " ")
        return [Metric(self.column, words, self.said.unit, self.said.larger_is_better, public=True)]

    def check(self, task: Task) -> None:
        self._number(task, task.initial(), task.answers(task.initial()), InputError)

    def evaluate(self, view: View) -> Mapping[str, float]:
        return {self.column: self._number(view.task, view.centre, view.answers, RunError)}

    def _number(self, task: Task, params: Any, answers: Answers, fails: type[Exception]) -> float:
        second = self._second(task, params, answers)
        others = {k: v for k, v in self.given_keys.items() if k not in Keys.__dataclass_fields__}
        try:
            found = self.function(answers.targets.cpu().numpy().copy(), second, **others)
        except Exception as error:  # somebody's own code may fail in any way
            raise fails(f"'{self.called}' failed: {type(error).__name__}: {error}") from error
        try:
            return float(found)
        except (TypeError, ValueError):
            what = f"'{self.called}' returned {type(found).__name__}, allowed: one number"
            raise fails(what) from None

    def _second(self, task: Task, params: Any, answers: Answers) -> npt.NDArray[Any]:
        of = self.said.of or ("outputs" if answers.guesses is None else "guesses")
        if of == "probabilities":
            return task.probabilities(params.unsqueeze(0))[0].cpu().numpy()
        found = answers.outputs if of == "outputs" else answers.guesses
        if found is None:
            raise InputError("found guesses, but the model gives numbers; allowed: outputs", key="of")
        array: npt.NDArray[Any] = found.cpu().numpy().copy()
        return array.reshape(tuple(answers.targets.shape)) if array.size == answers.targets.numel() else array


def measured(name: str, function: Any, keys: Mapping[str, Any]) -> Measure:
    """The measure that a scenario names; InputError where it is no function, or what it says of it is wrong."""
    from fedsim.core.fields import make_part

    if isinstance(function, type) or not callable(function):
        what = "a class" if isinstance(function, type) else type(function).__name__
        allowed = "a dataclass that inherits fedsim.core.metrics.Measure, or a function of targets and guesses"
        raise InputError(f"'{name}' is {what}, allowed: {allowed}")
    said = make_part(Keys, {k: v for k, v in keys.items() if k in Keys.__dataclass_fields__})
    made = MeasuredFunction(called=name, function=function, said=said, given_keys=dict(keys))
    if not _COLUMN.fullmatch(made.column):
        allowed = "a letter or digit, then letters, digits, '_', '.' and '-'"
        raise InputError(f"found {made.column!r}, allowed: {allowed}", key="column")
    return made
