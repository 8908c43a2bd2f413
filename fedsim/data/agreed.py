"""One machine's rows in the form that another machine's data have: its classes, its columns, its categories, by name.

In a deployment clients bring files of their own. What is the third class, or the second column, there is what it is in
the data of the machine that leads the run (its lists, as `lists_of` gives them), however their own files number and
order it. Where features are scaled by statistics, these are those of all clients' rows together: each client says what
`Moments` has, and `merged` makes of them what the pooled rows would give.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedsim.core.arrays import Array
from fedsim.core.errors import InputError
from fedsim.data.labels import Classes, number_labels, shown
from fedsim.data.rows import Rows
from fedsim.data.splits import Normalize, Scaling, Split, all_but_features, divide, rows_of, targets

Lists = Mapping[str, Any]
"""``input`` and ``target`` of `Dataset.about`: JSON's types."""


def lists_of(about: Lists) -> dict[str, Any]:
    """What rows of other machines have to be like, of what the data say of themselves; nothing of their scaling."""
    inputs, target = about["input"], about["target"]
    columns = [{k: c[k] for k in ("name", "kind", "categories", "fill") if k in c} for c in inputs.get("columns", ())]
    wanted = {k: target[k] for k in ("task", "labels", "classes") if k in target}
    return {"input": {"kind": inputs["kind"], **({"columns": columns} if columns else {})}, "target": wanted}


def categories_of(lists: Lists) -> dict[str, list[str]]:
    """The values of the categorical columns."""
    columns = lists["input"].get("columns", ())
    return {c["name"]: list(c["categories"]) for c in columns if c["kind"] == "categorical"}


@dataclass(frozen=True)
class Mine:
    """This machine's rows as the lists number and order them, not scaled yet."""

    rows: Rows
    train: Split
    test: Split


def mapped(rows: Rows, lists: Lists, fraction: float) -> Mine:
    """`rows` by the lists; of rows without a test split, `fraction` is held out (0: all of them train).

    Raises
    ------
    InputError
        They have a label, a column or a category that the lists have not, or lack a column, or a value where the lists
        say of none what stands for it.
    """
    if fraction and rows.test is not None:
        message = f"found {fraction:g}, but these data have a test split; allowed: one of the two"
        raise InputError(message, key="test-fraction")
    train, test = _numbered(rows, lists["target"])
    if test is None:
        train, test = divide(train, fraction) if fraction else (train, rows_of(train, slice(0, 0)))
    train, test = (_ordered(split, lists["input"]) for split in (train, test))
    train, test = (rows_of(split, slice(rows.limit)) for split in (train, test))
    return Mine(rows, train, test)


# --- labels -----------------------------------------------------------------------------------------------------------


def _numbered(rows: Rows, target: Lists) -> tuple[Split, Split | None]:
    if target["task"] != "classification":
        if rows.task is None and rows.train.y.dtype.kind not in "iuf":
            raise InputError(
                f"targets are not numbers (first {str(rows.train.y[0])!r}); the server's are", key="target"
            )
        return targets(rows.train, rows.test, "regression", None)
    theirs = Classes(tuple(target["labels"]), tuple(target["classes"]))
    if rows.ready or rows.task == "tokens":
        train, test = (rows.train, rows.test) if rows.ready else targets(rows.train, rows.test, "tokens", len(theirs))
        own = train.labels
        if own is None or own.values == theirs.values:
            return replace(train, classes=len(theirs), labels=theirs), test
        order = _places(own.values, theirs)
        return _by(train, order, theirs), None if test is None else _by(test, order, theirs)
    splits = [rows.train] if rows.test is None else [rows.train, rows.test]
    labels = rows.train.labels
    if labels is not None and _named(labels) and _named(theirs):  # names that files have in their own order
        order = _places(labels.names, Classes(theirs.names, theirs.names))
        numbers = [number_labels([s.y], known=labels, columns=s.target)[0][0] for s in splits]
        done = [_by(replace(s, y=y), order, theirs) for s, y in zip(splits, numbers, strict=True)]
        return done[0], done[1] if len(done) > 1 else None
    values = theirs.values if labels is None or not _named(labels) else theirs.names
    if labels is not None and _named(labels):  # text here, numbers there: by what is written
        known, _ = number_labels([s.y for s in splits], known=labels, columns=rows.train.target)
        splits = [replace(s, y=np.asarray(labels.names)[y]) for s, y in zip(splits, known, strict=True)]
    numbers, _ = number_labels([s.y for s in splits], order=values, columns=rows.train.target)
    done = [replace(s, y=y, classes=len(theirs), labels=theirs) for s, y in zip(splits, numbers, strict=True)]
    return done[0], done[1] if len(done) > 1 else None


def _named(classes: Classes) -> bool:
    return list(classes.names) != [str(v) for v in classes.values] or any(isinstance(v, str) for v in classes.values)


def _places(values: Sequence[object], theirs: Classes) -> Array:
    """The number that each of `values` has in the lists."""
    place = {str(v): i for i, v in enumerate(theirs.values)}
    if foreign := [v for v in values if str(v) not in place]:
        raise InputError(f"found label {foreign[0]!r}; allowed: {shown(theirs.values)}", key="classes")
    return np.array([place[str(v)] for v in values], dtype=np.int64)


def _by(split: Split, order: Array, theirs: Classes) -> Split:
    return replace(split, y=order[split.y], classes=len(theirs), labels=theirs)


# --- columns ----------------------------------------------------------------------------------------------------------


def _ordered(split: Split, inputs: Lists) -> Split:
    """The columns in the lists' order, missing values filled as there."""
    wanted = inputs.get("columns")
    if wanted is None or not split.columns:
        if bool(wanted) != bool(split.columns):
            have = "named columns" if split.columns else "rows without names of columns"
            message = f"found {have}, which the server's data have not; allowed: data of one kind"
            raise InputError(message, key="features")
        return split
    mine = [c.name for c in split.columns]
    names = [c["name"] for c in wanted]
    if lacking := [n for n in names if n not in mine]:
        raise InputError(
            f"found the columns {shown(mine)} and no {lacking[0]!r}; allowed: {shown(names)}", key="features"
        )
    if extra := [n for n in mine if n not in names]:
        message = f"found the column {extra[0]!r}, which the server's data have not; allowed: {shown(names)}"
        raise InputError(f"{message} (or the scenario's data.features lists those to use)", key="features")
    at = [mine.index(n) for n in names]
    x = np.array(split.x[:, at])
    for j, column in enumerate(wanted):
        lack = np.isnan(x[:, j])
        if not lack.any():
            continue
        if "fill" not in column:
            raise InputError(
                f"column {column['name']!r} has no value in row {int(np.argmax(lack))}, and the server's data, which "
                "lack none there, say nothing that could stand for it; allowed: missing: drop, or no missing values",
                key="missing",
            )
        fill = column["fill"]
        x[lack, j] = column["categories"].index(fill) if column["kind"] == "categorical" else fill
    return replace(split, x=x, columns=tuple(split.columns[i] for i in at))


# --- statistics -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moments:
    """What the rows of one client, or of several, say of each feature (of images: of each channel), ``[k]`` float64.

    `squares` are the squared distances to the mean, summed: of them and of the means follow the sums of squares, but
    numbers that are far from 0 lose no digits. `low` and `high` are the smallest and the largest value.
    """

    count: int
    mean: Array
    squares: Array
    low: Array
    high: Array

    @classmethod
    def of(cls, mine: Mine) -> Moments:
        """Of training rows, before they are scaled."""
        x = np.asarray(mine.train.x, dtype=np.float32)
        if mine.train.columns:
            x = x[:, [j for j, c in enumerate(mine.train.columns) if c.categories is None]]
        if mine.rows.top is not None:
            x = x / np.float32(mine.rows.top)
        axes = all_but_features(x)
        mean = x.mean(axis=axes, dtype=np.float64, keepdims=True)
        squares = ((x.astype(np.float64) - mean) ** 2).sum(axis=axes)
        count = math.prod(x.shape[a] for a in axes)
        low, high = (f(axis=axes).astype(np.float64) for f in (x.min, x.max))
        return cls(count, mean.ravel(), squares.ravel(), low.ravel(), high.ravel())

    def arrays(self) -> dict[str, Array]:
        """As arrays, to travel."""
        return {k: np.atleast_1d(np.asarray(v, dtype=np.float64)) for k, v in vars(self).items()}

    @classmethod
    def read(cls, arrays: Mapping[str, Array]) -> Moments:
        """From what `arrays` gave.

        Raises
        ------
        ValueError
            No rows give such numbers.
        """
        names = ("count", "mean", "squares", "low", "high")
        if set(arrays) != set(names) or any(a.ndim != 1 or a.dtype != np.float64 for a in arrays.values()):
            raise ValueError(f"found the statistics {sorted(arrays)}; allowed: {', '.join(names)}, of float64")
        count, mean, squares, low, high = (arrays[n] for n in names)
        if len({len(a) for a in (mean, squares, low, high)}) != 1 or len(count) != 1:
            raise ValueError("found statistics of different lengths; allowed: one number for each feature")
        if not all(bool(np.isfinite(a).all()) for a in arrays.values()) or count[0] < 1 or count[0] % 1:
            raise ValueError("found statistics that are not finite, or of no rows; allowed: finite numbers")
        slack = 1e-9 * np.maximum(np.abs(low), np.abs(high))  # of a mean of equal numbers, rounding
        if (squares < 0).any() or (low > mean + slack).any() or (high < mean - slack).any():
            raise ValueError("found statistics that no rows have; allowed: squares >= 0, low <= mean <= high")
        return cls(int(count[0]), mean, squares, low, high)


def merged(parts: Sequence[Moments]) -> Moments:
    """The moments of all rows together (Chan, Golub and LeVeque 1983).

    Raises
    ------
    ValueError
        They are of different numbers of features.
    """
    if len({len(p.mean) for p in parts}) != 1:
        raise ValueError("the clients' rows have different numbers of features")
    whole = parts[0]
    for part in parts[1:]:
        count = whole.count + part.count
        apart = part.mean - whole.mean
        whole = Moments(
            count,
            whole.mean + apart * (part.count / count),
            whole.squares + part.squares + apart**2 * (whole.count / count * part.count),
            np.minimum(whole.low, part.low),
            np.maximum(whole.high, part.high),
        )
    return whole


def features_of(inputs: Lists, sample: Sequence[int]) -> tuple[int, ...]:
    """The shape of one statistic of rows ``[N, *sample]``: of tables the number columns, of images the channels."""
    if columns := inputs.get("columns"):
        return (sum(c["kind"] != "categorical" for c in columns),)
    return (sample[0], 1, 1) if len(sample) == 3 else tuple(sample)


def scaling_of(whole: Moments, mode: Normalize, features: Sequence[int]) -> Scaling:
    """The scaling that the pooled rows give; `features` is the shape of one statistic."""
    shift, scale = (
        (whole.low, whole.high - whole.low) if mode == "unit" else (whole.mean, np.sqrt(whole.squares / whole.count))
    )
    scale = np.where(scale > 0, scale, 1.0)
    return Scaling(None, shift.reshape(1, *features), scale.reshape(1, *features))
