"""Reproduction files: a paper's result, the sweep that measures it, and what has to come out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fedsim.core.brought import brought
from fedsim.core.documents import Document, read_yaml
from fedsim.core.errors import InputError, unknown
from fedsim.core.fields import make_part
from fedsim.core.metrics import TABLE, Metric, merged
from fedsim.scenario.sections import NAME
from fedsim.sweeps.files import Plan, Point, read_sweep, read_sweep_file

FOLDER = "reproductions"
_Text = Annotated[str, Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Paper(_Section):
    """Where a result was published; `claim` is what the paper says, `scaled` what is smaller here, and why."""

    title: _Text
    where: Annotated[str, Field(description="conference or journal, and year")]
    arxiv: Annotated[str, Field(pattern=r"^\d{4}\.\d{4,5}$")]
    result: Annotated[str, Field(description="the table, figure or statement that is reproduced")]
    claim: _Text
    scaled: _Text


class Data(_Section):
    """One choice of data: changes of every run (`set`) or of one case of the sweep (`cases`), and how long it takes.

    `needs` says what has to be there, `path` that it may be a folder that the command line names, and `differs` where
    the result on these data differs from the paper's, and why.
    """

    title: _Text
    minutes: Annotated[float, Field(gt=0)]
    needs: str = "no download"
    path: bool = False
    set: dict[str, Any] = Field(default_factory=dict)
    cases: dict[str, dict[str, Any]] = Field(default_factory=dict)
    differs: str = ""


class Quantity(_Section):
    """A number of each run, from the column `of` of its metrics.

    `take` is ``first`` (the column `at` where `of` first reaches `target`), ``last``, ``best``, or ``mean`` and
    ``spread`` (mean and standard deviation) over the last quarter of the run, as the column `along` counts it.
    `paper` has the paper's numbers, by row; with `against`, numbers are compared after each is divided by that row's.
    """

    words: _Text
    take: Literal["first", "last", "best", "mean", "spread"]
    of: _Text
    target: float | None = None
    at: str = "round"
    along: str = "round"
    better: Literal["lower", "higher"]
    paper: dict[str, float] = Field(default_factory=dict)
    against: str | None = None

    @property
    def columns(self) -> list[str]:
        """The columns that it is made of."""
        others = {"first": [self.at], "mean": [self.along], "spread": [self.along]}
        return [self.of, *others.get(self.take, [])]


class Check(_Section):
    """A claim that has to come out, of medians over the seeds.

    Either `best`: that row is better than each of `than` (default: all others), or `near`: rows have these values, give
    or take the share `within`. `by` is the factor at least by which `best` is better; below 1: at most worse.
    """

    says: _Text
    of: Annotated[str, Field(description="the quantity")]
    best: str | None = None
    than: list[str] = Field(default_factory=list)
    by: Annotated[float, Field(gt=0)] = 1.0
    near: dict[str, float] = Field(default_factory=dict)
    within: Annotated[float, Field(gt=0)] = 0.1


class Chart(_Section):
    """The figure: a column of the metrics over another one."""

    x: str
    y: str
    log: bool = False


class Reproduction(_Section):
    """A reproduction file; `sweep` names a sweep file, or is one; `quick` makes every run a matter of seconds."""

    name: Annotated[str, Field(pattern=NAME, max_length=100)]
    paper: Paper
    sweep: str | dict[str, Any]
    data: Annotated[dict[Annotated[str, Field(pattern=NAME, max_length=100)], Data], Field(min_length=1)]
    quick: dict[str, Any]
    quantities: Annotated[dict[str, Quantity], Field(min_length=1)]
    figure: Chart
    checks: Annotated[list[Check], Field(min_length=1)]


@dataclass(frozen=True)
class Task:
    """A reproduction on one choice of data: its runs, in the order of its rows, and what was asked for."""

    file: Path
    reproduction: Reproduction
    on: str
    quick: bool
    document: Document
    plan: Plan
    columns: Mapping[str, Metric]

    @property
    def rows(self) -> list[str]:
        """What is compared: the sweep's cases and values but for seeds."""
        return list(dict.fromkeys(row(point.changes) for point in self.plan.points))


def row(changes: Mapping[str, Any]) -> str:
    """The row that a run belongs to: what is varied in it but for its seed."""
    case = [str(changes["case"])] if "case" in changes else []
    others = [f"{k.split('.')[-1]} {v}" for k, v in changes.items() if k not in ("case", "seed")]
    return ", ".join([*case, *others]) or "run"


def known() -> dict[str, Path]:
    """The reproductions that come with fedsim, by name."""
    return {file.stem: file for file in brought(FOLDER) if file.suffix == ".yaml"}


def find(name: str) -> Path:
    """The file of a reproduction, by its name or its path.

    Raises
    ------
    InputError
        There is none.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    found = known()
    if name not in found:
        message = f"{unknown('reproduction', name, list(found))}; or a file that ends in .yaml"
        raise InputError(message, file="NAME")
    return found[name]


def read(file: Path) -> tuple[Reproduction, Document]:
    """A reproduction file, checked but for its runs.

    Raises
    ------
    InputError
        The file is wrong; the message says what is allowed, and where.
    """
    document = read_yaml(file)
    try:
        made = make_part(Reproduction, document.values)
        for name, quantity in made.quantities.items():
            _check_quantity(f"quantities.{name}", quantity)
        for i, check in enumerate(made.checks):
            if check.of not in made.quantities:
                raise InputError(unknown("quantity", check.of, list(made.quantities)), key=f"checks.{i}.of")
            _check_claim(f"checks.{i}", check)
    except InputError as error:
        raise document.locate(error) from None
    return made, document


def _check_quantity(where: str, quantity: Quantity) -> None:
    """Raise InputError where `take` misses a key, or has no use for one."""
    if (quantity.take == "first") != (quantity.target is not None):
        told = "without a target" if quantity.target is None else f"target {quantity.target:g}"
        message = f"found take: {quantity.take} {told}; allowed: a target for first, and for no other"
        raise InputError(message, key=f"{where}.target")
    for key, takes in {"at": ("first",), "along": ("mean", "spread")}.items():
        if key in quantity.model_fields_set and quantity.take not in takes:
            message = f"found with take: {quantity.take}; allowed: with {' and '.join(takes)}"
            raise InputError(message, key=f"{where}.{key}")


def _check_claim(where: str, check: Check) -> None:
    """Raise InputError where a claim is none, can never hold, or has keys of the other kind of claims."""
    if (check.best is None) == (not check.near):
        found = "best and near" if check.near else "neither best nor near"
        raise InputError(f"found {found}; allowed: one of the two", key=where)
    kind, others = ("near", ("than", "by")) if check.best is None else ("best", ("within",))
    for key in others:
        if key in check.model_fields_set:
            allowed = "with best" if kind == "near" else "with near"
            raise InputError(f"found with {kind}; allowed: {allowed}", key=f"{where}.{key}")
    if check.best in check.than:
        raise InputError(f"found {check.best}, which is `best` itself; allowed: other rows", key=f"{where}.than")
    if zero := [name for name, value in check.near.items() if value == 0]:
        message = "found 0, of which every share is 0; allowed: other numbers"
        raise InputError(message, key=f"{where}.near.{zero[0]}")


def task(
    file: Path, on: str | None = None, data: Path | None = None, quick: bool = False, settings: list[str] | None = None
) -> Task:
    """What a reproduction runs, all of it checked.

    Parameters
    ----------
    on : a choice of the file's `data`; default: the first, or, where `data` is given, the first that may be.
    data : the folder of the data.
    quick : with one seed and the file's `quick` changes.
    settings : ``key=value`` for every run.

    Raises
    ------
    InputError
        The file, one of its runs, or a choice is wrong.
    """
    made, document = read(file)
    able = (name for name, choice in made.data.items() if choice.path or data is None)
    chosen = on if on is not None else next(able, None)
    if chosen is None:
        allowed = "a reproduction of which a choice of data is read from a folder"
        raise InputError(f"found {data}, but {made.name} reads no folder; allowed: {allowed}", file="--data")
    if chosen not in made.data:
        raise InputError(unknown("choice of data", chosen, list(made.data)), file="--on")
    choice = made.data[chosen]
    if data is not None and not choice.path:
        raise InputError(f"found {data}, but '{chosen}' is not read from a folder; allowed: without it", file="--data")
    if data is not None and not data.exists():
        raise InputError(f"found no file or folder {data}; allowed: the folder of the data", file="--data")
    changes = {**choice.set, **({"data.path": str(data.resolve())} if data else {}), **(made.quick if quick else {})}
    cases = {label: {**own, **made.quick} if quick else own for label, own in choice.cases.items()}
    sweep = _sweep(document, made)
    try:
        read_sweep_file(sweep)
        plan = read_sweep(_varied(sweep, changes, cases, quick), settings)
    except InputError as error:
        raise document.locate(error) from None
    plan = replace(plan, name=made.name)
    found = Task(file, made, chosen, quick, document, plan, _columns(plan.points))
    _check_seeds(found)
    _check_names(found)
    return found


def _sweep(document: Document, made: Reproduction) -> Document:
    if isinstance(made.sweep, str):
        file = document.base / made.sweep
        if not file.is_file():
            raise document.locate(InputError(f"found no file {file}; allowed: a sweep file", key="sweep"))
        return read_yaml(file)
    lines = {k.removeprefix("sweep."): n for k, n in document.lines.items() if k.startswith("sweep.")}
    return Document({"name": made.name, **made.sweep}, document.file, lines)


def _varied(sweep: Document, changes: Mapping[str, Any], cases: Mapping[str, dict[str, Any]], quick: bool) -> Document:
    """The sweep with `changes` in every run, and those of `cases`, after all that its file says; `quick`: one seed."""
    values = dict(sweep.values)
    own = values.get("cases") or {}
    if missing := [label for label in cases if label not in own]:
        raise InputError(unknown("case", missing[0], list(own)), key="data")
    values["set"] = {**(values.get("set") or {}), **changes}
    if own:
        values["cases"] = {k: _after(v or {}, {**changes, **cases.get(k, {})}, changes) for k, v in own.items()}
    if quick and isinstance(values.get("grid"), dict) and "seed" in values["grid"]:
        values["grid"] = {k: v[:1] if k == "seed" else v for k, v in values["grid"].items()}
    return replace(sweep, values=values)


def _after(case: Mapping[str, Any], changes: Mapping[str, Any], every: Mapping[str, Any]) -> dict[str, Any]:
    """A case's changes with later ones: those that its own would undo, and those that are the case's alone."""
    kept = {k: v for k, v in case.items() if not any(_within(k, key) for key in changes)}
    again = {
        k: v for k, v in changes.items() if k not in every or any(_within(k, key) or _within(key, k) for key in case)
    }
    return {**kept, **again}


def _within(key: str, of: str) -> bool:
    return f"{key}.".startswith(f"{of}.")


def _columns(points: Iterable[Point]) -> Mapping[str, Metric]:
    return merged({**TABLE, **point.scenario.columns} for point in points)[0]


def _check_seeds(of: Task) -> None:
    """Raise InputError where rows have different seeds: a missing one would count as the worst."""
    seeds: dict[str, set[int]] = {}
    for point in of.plan.points:
        seeds.setdefault(row(point.changes), set()).add(point.scenario.seed)
    first, *others = seeds
    for label in others:
        if seeds[label] != seeds[first]:
            told = [f"'{name}' with {', '.join(map(str, sorted(seeds[name])))}" for name in (first, label)]
            message = f"found rows of different seeds, {told[0]} and {told[1]}; allowed: the same for all"
            raise of.document.locate(InputError(message, key="sweep"))


def _check_names(of: Task) -> None:
    """Raise InputError where a quantity names no column, or a check or a paper's number no row."""
    made, rows = of.reproduction, of.rows
    named: list[tuple[str, str, str, list[str]]] = []
    columns = list(of.columns)
    for name, quantity in made.quantities.items():
        where = f"quantities.{name}"
        named += [("metric", getattr(quantity, k), f"{where}.{k}", columns) for k in ("of", "at", "along")]
        named += [("row", label, f"{where}.paper.{label}", rows) for label in quantity.paper]
        named += [("row", quantity.against, f"{where}.against", rows)] if quantity.against else []
    for i, check in enumerate(made.checks):
        labels = [*([check.best] if check.best else []), *check.than, *check.near]
        named += [("row", label, f"checks.{i}", rows) for label in labels]
    named += [("metric", getattr(made.figure, k), f"figure.{k}", columns) for k in ("x", "y")]
    wrong = [
        InputError(unknown(kind, name, allowed), key=key) for kind, name, key, allowed in named if name not in allowed
    ]
    for name, quantity in made.quantities.items():
        column = of.columns.get(quantity.of)
        if column is None or quantity.take not in ("first", "best"):
            continue
        better = "higher" if column.larger_is_better else "lower"
        if column.larger_is_better is None:
            known = ", ".join(k for k, m in of.columns.items() if m.larger_is_better is not None)
            message = f"found {quantity.of!r} with take: {quantity.take}, of which no value is the best"
            wrong.append(InputError(f"{message}; allowed: {known}", key=f"quantities.{name}.of"))
        elif quantity.take == "best" and quantity.better != better:
            message = f"found {quantity.better} with take: best, of {quantity.of!r}; allowed: {better}"
            wrong.append(InputError(message, key=f"quantities.{name}.better"))
    if len(rows) == 1:
        wrong += [
            InputError(f"found one row, '{rows[0]}', with nothing to be better than; allowed: near", key=f"checks.{i}")
            for i, check in enumerate(made.checks) if check.best
        ]  # fmt: skip
    if wrong:
        raise of.document.locate(InputError(p for error in wrong for p in error.problems))
