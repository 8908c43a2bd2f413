"""What a run measures: one table that says of every column of ``metrics.jsonl`` how it is called, drawn and compared.

Everything that shows numbers (reports, figures, the terminal, sweeps) asks this table instead of knowing names. A
`Measure` adds columns of its own, and declares them in the same words; a column that nobody declared is shown as it
is, and nothing says which of its values is the best.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from fedsim.core.errors import InputError, RunError, unknown
from fedsim.core.registry import Part

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from fedsim.core.arrays import Ints
    from fedsim.core.oracle import Answers, Task

FILE = "columns.json"
"""Where a run directory keeps what its own columns mean, so that whoever reads it needs none of the run's modules."""

Brief = Literal["line", "table", ""]
Figure = Literal["progress", "optimum", "gossip", "clients", "delay", "other", ""]


@dataclass(frozen=True)
class Metric:
    """A column of ``metrics.jsonl``.

    Parameters
    ----------
    name : of the column.
    words : what pages and figures call it; default the name with blanks.
    unit : ``s``, ``B`` (bytes), ``share`` (0 to 1, shown with four decimals), ``count`` or any other; empty: none.
    larger_is_better : its direction; None: it has none, and no value of it is called the best.
    public : whether it is computed from released models and public data alone (test data is taken as public), so that
        a private run may publish it.
    log : whether figures draw it on a logarithmic axis.
    kind : ``quality``, what a run achieved, or ``cost``, what that took.
    figure : the figure of a report that draws it over the run (`delay`: has it as an axis); empty: none.
    axis : what curves are called that are drawn against it; empty: none are.
    brief : where it is shown though there is little room: in a run's ``line``, in the ``table`` of a sweep alone, or
        nowhere.
    starts : the first round in which it says something.
    """

    name: str
    words: str = ""
    unit: str = ""
    larger_is_better: bool | None = None
    public: bool = False
    log: bool = False
    kind: Literal["quality", "cost"] = "quality"
    figure: Figure = "progress"
    axis: str = ""
    brief: Brief = "line"
    starts: int = 0
    declared: bool = True

    def __post_init__(self) -> None:
        if not self.words:
            object.__setattr__(self, "words", self.name.replace("_", " "))

    @property
    def title(self) -> str:
        """Its words, and its unit where its values do not carry it."""
        return self.words if self.unit in ("", "B", "share", "count") else f"{self.words} ({self.unit})"


def _cost(name: str, words: str, unit: str = "", **others: Any) -> Metric:
    return Metric(name, words, unit, **{"public": True, "kind": "cost", "figure": "", "brief": "", **others})


TABLE: Mapping[str, Metric] = {
    m.name: m
    for m in (  # in the order in which they are shown
        _cost("round", "rounds", axis="round", brief="line"),
        Metric("test_accuracy", unit="share", larger_is_better=True, public=True),
        Metric("robust_accuracy", unit="share", larger_is_better=True, public=True),
        Metric("node_accuracy", unit="share", larger_is_better=True, public=True, figure="gossip"),
        Metric(
            "node_accuracy_min",
            "lowest node accuracy",
            "share",
            larger_is_better=True,
            public=True,
            figure="gossip",
            brief="",
        ),
        Metric("attack_success", unit="share", larger_is_better=False, public=True, figure="other"),
        Metric("test_loss", larger_is_better=False, public=True),
        Metric("perplexity", larger_is_better=False, public=True),
        Metric("robust_loss", larger_is_better=False, public=True),
        Metric("train_loss", larger_is_better=False),
        Metric("optimum_distance", "distance to the optimum", larger_is_better=False, log=True, figure="optimum"),
        Metric("consensus_distance", public=True, log=True, figure="gossip", brief="", starts=1),
        _cost("nodes_there", "nodes that are there", "count", figure="other"),
        _cost("links_there", "links that are there", "count", figure="other"),
        _cost("time", "virtual time", "s", axis="virtual time", brief="table"),
        _cost("wall", "wall clock", "s"),
        _cost("bytes_sent", "bytes sent", "B", axis="bytes sent", brief="table"),
        _cost("gradients", "sample gradients", "count", axis="sample gradients"),
        _cost("loss_evaluations", "sample losses", "count", axis="sample losses"),
        _cost("communications", "communications of two nodes", "count", axis="communications of two nodes"),
        _cost("delay_processing", "processing delay", figure="delay", axis="processing delay"),
        _cost("delay_transmission", "transmission delay", figure="delay", axis="transmission delay"),
        _cost("delay_total", "total delay", figure="delay", axis="total delay", brief="line"),
        _cost("epsilon", "epsilon", figure="other", brief="table"),
        _cost("delta", "delta"),
        _cost("staleness_mean", "mean staleness", figure="other"),
        _cost("merged", "all models merged"),
    )
}
"""The columns that runs have without asking for more."""


def undeclared(name: str) -> Metric:
    """A column of which nothing is known but its name."""
    return Metric(name, name, figure="other", brief="", declared=False)


def metric(name: str, table: Mapping[str, Metric] = TABLE) -> Metric:
    """What `table` says of a column."""
    return table.get(name) or undeclared(name)


def check_directed(name: str, columns: Mapping[str, Metric]) -> None:
    """Raise InputError (key ``metric``) where `name` is none of `columns`, or no value of it is the best."""
    known = [column for column, m in columns.items() if m.larger_is_better is not None]
    if name not in columns:
        raise InputError(unknown("metric", name, known), key="metric")
    if name not in known:
        raise InputError(f"found {name!r}, of which no value is the best; allowed: {', '.join(known)}", key="metric")


def best(values: Sequence[float], of: Metric) -> float | None:
    """The best of `values`; None where there is none, or the metric has no direction."""
    if of.larger_is_better is None or not values:
        return None
    return max(values) if of.larger_is_better else min(values)


class View(Protocol):
    """A run as its measures see it, between two rounds."""

    @property
    def round(self) -> int:
        """How many rounds are done."""

    @property
    def time(self) -> float:
        """Virtual seconds."""

    @property
    def task(self) -> Task:
        """The objectives: sizes and importance of clients, `evaluate`, and `outputs` on the test data."""

    @property
    def honest(self) -> Ints:
        """The clients that do not attack, ascending; nothing should be measured of the others."""

    @property
    def centre(self) -> Tensor:
        """The model ``[d]``: the server's, or the mean of a graph's honest nodes."""

    @property
    def answers(self) -> Answers:
        """What `centre` says of the test data, for all measures together: no measure may change it.

        Raises
        ------
        InputError
            There are no test data.
        """

    def state(self, name: str, nodes: Ints | None = None) -> Tensor:
        """The algorithm's state: ``[width]`` under a server, ``[m, width]`` of `nodes` (None: all) on a graph."""

    def predictive(self) -> tuple[Tensor, int]:
        """Classes' probabilities on the test data ``[N, classes]``, mean over the samples so far, and how many those
        are.

        Raises
        ------
        RunError
            The algorithm keeps no samples.
        """

    def kept(self, name: str, clients: Ints) -> Tensor:
        """What clients keep between rounds under `name`, ``[m, width]``, from wherever they are computed.

        Raises
        ------
        RunError
            They keep nothing of this name, or keep it to themselves (a deployment, a privacy mechanism).
        """


class Measure(Part, ABC):
    """Base class of what ``run.metrics`` names: a frozen dataclass whose fields are its keys in the scenario.

    `metrics` declares the columns it adds (a property, where they depend on its keys). What is not declared is shown
    without a direction, and counts as computed from protected data.
    """

    metrics: ClassVar[Sequence[Metric]] = ()
    per_client: ClassVar[bool] = False
    """Whether it can be asked about one client's rows: it looks at `View.answers`, and at `Task.probabilities`, alone.
    """
    of_samples: ClassVar[bool] = False
    """Whether it is about samples that a run keeps, so that the algorithm has to be one that does."""
    of_state: ClassVar[tuple[str, ...]] = ()
    """What the algorithm's state has to have, since it looks at it by `View.state`."""

    @classmethod
    def from_function(cls, name: str, function: Any, keys: Mapping[str, Any]) -> Measure:
        """Somebody's own ``function(targets, guesses)``; InputError where it is none, or `keys` do not fit it."""
        return measured(name, function, keys)

    @abstractmethod
    def evaluate(self, view: View) -> Mapping[str, float]:
        """Columns of ``metrics.jsonl`` and their values at this point of the run. It changes nothing."""

    def check(self, task: Task) -> None:
        """Raise InputError where it cannot be measured on these objectives; before anything is written."""


def columns(measures: Iterable[Measure]) -> dict[str, Metric]:
    """The columns that measures declare.

    Raises
    ------
    InputError
        A name is taken.
    """
    found: dict[str, Metric] = {}
    for i, measure in enumerate(measures):
        for declared in measure.metrics:
            if declared.name in TABLE or declared.name in found:
                whose = "every run has it" if declared.name in TABLE else "another measure declares it"
                raise InputError(f"declares the column '{declared.name}', but {whose}; allowed: another name", str(i))
            found[declared.name] = declared
    return found


def write_columns(folder: Path, own: Mapping[str, Metric]) -> None:
    """``columns.json``: what a run's own columns mean; no file where it has none."""
    if own:
        text = json.dumps({name: asdict(m) for name, m in own.items()}, indent=2) + "\n"
        (folder / FILE).write_text(text, encoding="utf-8")
    else:
        (folder / FILE).unlink(missing_ok=True)


def read_columns(folder: Path) -> tuple[dict[str, Metric], str | None]:
    """The table of a run directory's columns, and what is wrong with its file, if anything."""
    file = folder / FILE
    if not file.exists():
        return dict(TABLE), None
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        own = {str(name): _read(str(name), keys) for name, keys in told.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return dict(TABLE), f"{FILE} cannot be read ({error}): the run's own metrics are shown without a direction"
    return {**own, **TABLE}, None


def _read(name: str, keys: Mapping[str, Any]) -> Metric:
    found = Metric(**{**keys, "name": name})
    if found.larger_is_better not in (True, False, None):
        raise ValueError(f"larger_is_better of {name} is {found.larger_is_better!r}")
    return found


def merged(tables: Iterable[Mapping[str, Metric]]) -> tuple[dict[str, Metric], list[str]]:
    """One table of several runs', and the names of which they disagree: those have no direction."""
    found: dict[str, Metric] = {}
    disputed: list[str] = []
    for table in tables:
        for name, declared in table.items():
            if found.setdefault(name, declared).larger_is_better is not declared.larger_is_better:
                found[name] = replace(found[name], larger_is_better=None)
                disputed.append(name)
    return {**TABLE, **found}, list(dict.fromkeys(disputed))


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

    per_client: ClassVar[bool] = True

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
        self._number(task, task.untrained(), task.answers(task.untrained()), InputError)

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
            return float(found.detach() if hasattr(found, "detach") else found)
        except OverflowError:
            raise fails(f"'{self.called}' returned a whole number beyond what numbers hold") from None
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
