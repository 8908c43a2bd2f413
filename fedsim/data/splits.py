"""From arrays as read to arrays to train on: labels or targets, a held-out test split, encoding and scaling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from fedsim.core.arrays import Array
from fedsim.core.errors import InputError
from fedsim.core.rng import generator
from fedsim.core.tokens import IGNORED, Tokens
from fedsim.data.labels import Classes, Value, number_labels, plain, shown

Normalize = Literal["standard", "unit", "none"]
Task = Literal["classification", "regression", "tokens"]
Action = Literal["refuse", "drop", "mean", "most_frequent"]
Stats = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Column:
    """One feature column of a table. `categories`: of a categorical one, whose numbers stand in x, -1 for unknown."""

    name: str
    categories: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Split:
    """x: images ``[N, C, H, W]``, features ``[N, k]`` or any ``[N, ...]``; y ``[N]`` or ``[N, k]``.

    Attributes
    ----------
    classes
        Number of classes if known.
    labels
        What the classes are, if known.
    ids
        ``[N]`` whose row it is, where somebody asked for it.
    columns
        The columns of a table. x has NaN where a value is missing.
    target
        Names of the target's columns, where they have names.
    notes
        What people should know about how this was read.
    tokens
        What integers stand for, where x or y are token ids.
    """

    x: Array
    y: Array
    classes: int | None = None
    labels: Classes | None = None
    ids: Array | None = None
    columns: tuple[Column, ...] = ()
    target: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    tokens: Tokens | None = None


@dataclass(frozen=True)
class Scaling:
    """``x = (x / divide - shift) / scale`` in float32; shift and scale have the shape of a sample, or spread to it."""

    divide: float | None = None
    shift: Array | None = None
    scale: Array | None = None

    def record(self) -> dict[str, Any]:
        """JSON."""
        shift, scale = (None if a is None else a[0].tolist() for a in (self.shift, self.scale))
        return {"divide": self.divide, "shift": shift, "scale": scale}

    def columns(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """JSON of a table's number columns."""
        made: list[dict[str, Any]] = [{"name": name, "kind": "number"} for name in names]
        if self.shift is not None and self.scale is not None:
            for entry, shift, scale in zip(made, self.shift[0].tolist(), self.scale[0].tolist(), strict=True):
                entry |= {"shift": shift, "scale": scale}
        return made


def targets(
    train: Split,
    test: Split | None,
    task: Task | None,
    classes: int | None,
    order: Sequence[Value] | None = None,
    ignore_index: int | None = None,
) -> tuple[Split, Split | None]:
    """Labels as int64 with the number of classes, or regression targets as float32, alike in both splits.

    Parameters
    ----------
    task
        None: all float targets are regression, others classification. ``tokens``: the targets are token ids.
    classes, order
        Number of classes, or their values in order; None: as :func:`fedsim.data.labels.number_labels` finds them.
    ignore_index
        Token targets of this value do not count.

    Raises
    ------
    InputError
        Missing or infinite targets; text, `classes` or `order` in regression; what `number_labels` refuses.
    """
    splits = [train] if test is None else [train, test]
    for s in splits:
        _finite(s.y)
    splits = [replace(s, y=plain(s.y)) for s in splits]
    ys = [s.y for s in splits]
    if task == "tokens":
        done = _token_targets(splits, classes, order, ignore_index)
        return done[0], None if test is None else done[1]
    if ignore_index is not None:
        raise InputError(f"found {ignore_index}; allowed: only with 'task: tokens'", key="ignore_index")
    if task is None:
        task = "regression" if order is None and all(y.dtype.kind == "f" for y in ys) else "classification"
    if task == "regression":
        if any(y.dtype.kind not in "iufb" for y in ys):
            raise InputError(f"targets are not numbers (first {str(ys[0][0])!r}); regression needs numbers", key="task")
        for key, found in (("num_classes", classes), ("classes", order)):
            if found is not None:
                raise InputError(f"found {found} for regression; allowed: only with classification", key=key)
        done = [replace(s, y=_float32(s.y), classes=None, labels=None) for s in splits]
    else:
        known = train.labels or (None if train.classes is None else Classes.given(train.classes))
        numbers, made = number_labels(ys, classes, known, order, train.target)
        done = [replace(s, y=y, classes=len(made), labels=made) for s, y in zip(splits, numbers, strict=True)]
    return done[0], None if test is None else done[1]


def _token_targets(
    splits: Sequence[Split], classes: int | None, order: Sequence[Value] | None, ignore_index: int | None
) -> list[Split]:
    """Targets ``[N]`` or ``[N, positions]`` that are token ids, of the vocabulary that the inputs are of, too."""
    if order is not None:
        raise InputError("found classes with token targets; allowed: num_classes", key="classes")
    done: list[Array] = []
    most = 0
    for s in splits:
        if s.y.dtype.kind not in "iu" or s.y.ndim > 2:
            message = f"found targets of {s.y.dtype} and shape {list(s.y.shape)}; allowed with tokens: integers [N] or "
            raise InputError(f"{message}[N, positions]", key="task")
        y = s.y.astype(np.int64)
        y[y == (IGNORED if ignore_index is None else ignore_index)] = IGNORED
        if (y[y != IGNORED] < 0).any():
            row = int(np.argwhere((y < 0) & (y != IGNORED))[0][0])
            raise InputError(f"the target of row {row} has the id {y[row].min()}; allowed: 0 and more, or {IGNORED}")
        known = [a for a in (y, s.x) if a.size and a.dtype.kind in "iu" and a.dtype != np.uint8]
        most, done = max([most, *(int(a.max()) + 1 for a in known)]), [*done, y]
    count = most if classes is None else classes
    for y in done:
        if (y >= count).any():
            row = int(np.argwhere(y >= count)[0][0])
            message = f"the target of row {row} has the id {y[row].max()}; allowed: 0 to {count - 1}"
            raise InputError(message, key="num_classes")
    tokens = Tokens(
        count if splits[0].x.dtype == np.int64 else None,
        language=True,
        positions=done[0].shape[1] if done[0].ndim > 1 else None,
        ragged=any(bool((y == IGNORED).any()) for y in done),
    )
    labels = Classes.given(count)
    return [replace(s, y=y, classes=count, labels=labels, tokens=tokens) for s, y in zip(splits, done, strict=True)]


def divide(whole: Split, fraction: float) -> tuple[Split, Split]:
    """Hold out `fraction` of the rows for testing: always the same rows, in file order.

    Of each class its share; where rows have ids, of each id its share, and no id loses its last row.

    Raises
    ------
    InputError
        Too few rows for both splits to have one.
    """
    order = generator(0, "test split").permutation(len(whole.y))
    held = np.zeros(len(order), dtype=bool)
    alike = whole.classes is None or whole.y.ndim > 1
    of = whole.ids if whole.ids is not None else np.zeros(len(order)) if alike else whole.y
    _, place, counts = np.unique(of, return_inverse=True, return_counts=True)
    if whole.ids is not None:
        rows = order[np.argsort(place[order], kind="stable")]
        position = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        most = np.minimum(np.round(fraction * counts), counts - 1)
        held[rows[position < np.repeat(most, counts)]] = True
    else:
        for c in range(len(counts)):
            rows = order[place[order] == c]
            held[rows[: round(fraction * len(rows))]] = True
    if held.all() or not held.any():
        kind = "ids" if whole.ids is not None else None if alike else "classes"
        raise InputError(_undivided(fraction, held, counts, kind))
    return rows_of(whole, ~held), rows_of(whole, held)


def _undivided(fraction: float, held: Array, counts: Array, kind: str | None) -> str:
    """Why `fraction` holds out none or all of the rows, of whose `kind` there are `counts`, and what would do."""
    most = int(counts.max(initial=0))
    what = "leaves none for training" if held.any() else "is none of them"
    found = f"found {fraction:g} of {len(held)} rows for testing, which {what}"
    if kind is not None:
        share = "its share, rounded" if kind == "classes" else "its share, rounded, but for one row"
        rows = "row" if most == 1 else "rows"
        found += f": each of the {len(counts)} {kind} gives {share}, and none has more than {most} {rows}"
    allowed = []
    if most > 1:
        step = 10.0 ** (math.floor(math.log10(0.5 / most)) - 2)
        low = math.ceil(0.5 / most / step) * step
        high = 1.0 if kind == "ids" else math.floor((1 - 0.5 / most) * 1000) / 1000
        allowed.append(f"more than {low:g} and less than {high:g}")
    else:
        allowed.append("more rows" if kind is None else f"more rows of one of the {kind}")
    allowed.append("a test split of its own")
    if kind == "classes":
        allowed.append("task: regression, where the target is a number and not a class")
    return f"{found}; allowed: {', or '.join(allowed)}"


def rows_of(split: Split, rows: Any) -> Split:
    """Some rows of a split."""
    ids = None if split.ids is None else split.ids[rows]
    return replace(split, x=split.x[rows], y=split.y[rows], ids=ids)


def scaled(
    train: Array,
    test: Array,
    mode: Normalize,
    top: float | None,
    stats: Stats | None,
    given: Scaling | None = None,
) -> tuple[Array, Array, Scaling]:
    """Both splits as float32, scaled with the train split's statistics, and how.

    ``none``: as they are; ``unit``: images divided by `top`, features (`top` None) mapped to [0, 1]; ``standard``: mean
    0 and standard deviation 1, of images per channel (or by the known `stats` of pixels in [0, 1]), of features per
    column. `given` has shift and scale where other rows than these decide them.
    """
    both = [np.array(train, dtype=np.float32), np.array(test, dtype=np.float32)]
    if mode == "none":
        return both[0], both[1], Scaling()
    if top is not None:
        for x in both:
            x /= np.float32(top)
        if mode == "unit":
            return both[0], both[1], Scaling(top)
    x = both[0]
    axes = all_but_features(x)
    if given is not None and given.shift is not None and given.scale is not None:
        shift, scale = given.shift, given.scale
    elif mode == "unit":
        shift = x.min(axis=axes, keepdims=True)
        scale = x.max(axis=axes, keepdims=True) - shift
    elif stats is not None and x.ndim == 4 and x.shape[1] == len(stats[0]):
        shift, scale = (np.array(s, dtype=np.float32)[None, :, None, None] for s in stats)
    else:
        shift = x.mean(axis=axes, keepdims=True, dtype=np.float64)
        scale = x.std(axis=axes, keepdims=True, dtype=np.float64)
    scale = np.where(scale > 0, scale, 1)  # a constant feature carries nothing: it becomes 0
    how = Scaling(top, shift.astype(np.float32), scale.astype(np.float32))
    for x in both:
        x -= shift.astype(np.float32)
        x /= scale.astype(np.float32)
    return both[0], both[1], how


def all_but_features(x: Array) -> tuple[int, ...]:
    """The axes over which statistics are taken: of images all but the channels, else the rows."""
    return (0, *range(2, x.ndim)) if x.ndim == 4 else (0,)


def encoded(
    train: Split, test: Split, mode: Normalize, action: Action, given: Scaling | None = None
) -> tuple[Array, Array, list[dict[str, Any]]]:
    """A table's features as float32: missing values filled, categories one-hot, numbers scaled; and how, for JSON.

    One-hot columns stay 0 and 1; a category of a test row that the training file has not is all zeros. Fills and
    scales are the train split's, or `given`. ``mean`` fills numbers; missing categories become the most frequent one.
    """
    columns = train.columns
    both = [np.array(s.x, dtype=np.float32) for s in (train, test)]
    fills = [_fill(both, j, column, action) for j, column in enumerate(columns)]
    numbers = [j for j, column in enumerate(columns) if column.categories is None]
    plain_table = len(numbers) == len(columns)
    parts: list[Array] = both if plain_table else [np.ascontiguousarray(x[:, numbers]) for x in both]
    how = Scaling()
    if numbers:
        *parts, how = scaled(parts[0], parts[1], mode, None, None, given)
    shift, scale = (None if a is None else a[0].tolist() for a in (how.shift, how.scale))
    record = []
    for j, column in enumerate(columns):
        entry: dict[str, Any] = {"name": column.name, "kind": "number"}
        if column.categories is not None:
            entry = {"name": column.name, "kind": "categorical", "categories": list(column.categories)}
        elif shift is not None and scale is not None:
            at = numbers.index(j)
            entry |= {"shift": shift[at], "scale": scale[at]}
        fill = fills[j]
        if fill is not None:
            entry["fill"] = fill if column.categories is None else column.categories[int(fill)]
        record.append(entry)
    if not plain_table:
        parts = [_spread(x, part, columns) for x, part in zip(both, parts, strict=True)]
    return parts[0], parts[1], record


def told(train: Split, test: Split) -> list[str]:
    """What happened to missing and unknown values, in words, before they were encoded."""
    said = list(dict.fromkeys([*train.notes, *test.notes]))
    for j, column in enumerate(train.columns):
        missing = sum(int(np.isnan(s.x[:, j]).sum()) for s in (train, test))
        if missing:
            said.append(f"column '{column.name}': {missing} missing values are filled in")
    return said


def lost_classes(whole: Split, kept: Split) -> list[str]:
    """What a limit has left of the classes, in words, where rows that were sorted by class have lost some."""
    if whole.classes is None or whole.tokens is not None or len(kept.y) == len(whole.y):
        return []
    had, has = (len(np.unique(split.y)) for split in (whole, kept))
    return [f"limit keeps training rows of {has} of the {had} classes that they have"] if has < had else []


def _fill(both: Sequence[Array], j: int, column: Column, action: Action) -> float | None:
    """Put the train split's mean or most frequent value where a value is missing; that value."""
    lacks = [np.isnan(x[:, j]) for x in both]
    if not any(a.any() for a in lacks):
        return None
    there = both[0][~lacks[0], j]
    if not len(there):
        raise InputError(f"column '{column.name}' has no value in the training rows; leave it out", key="features")
    if action == "mean" and column.categories is None:
        fill = np.float32(there.mean(dtype=np.float64))
    else:
        values, counts = np.unique(there, return_counts=True)
        fill = np.float32(values[counts.argmax()])
    for x, lack in zip(both, lacks, strict=True):
        x[lack, j] = fill
    return float(fill)


def _spread(x: Array, numbers: Array, columns: Sequence[Column]) -> Array:
    """Number columns and, in the places of categorical ones, their one-hot columns, in the columns' order."""
    parts, at = [], 0
    for j, column in enumerate(columns):
        if column.categories is None:
            parts.append(numbers[:, at : at + 1])
            at += 1
        else:
            parts.append((x[:, j : j + 1] == np.arange(len(column.categories))).astype(np.float32))
    return np.concatenate(parts, axis=1)


def unknown_categories(name: str, values: Array, count: int) -> str:
    """The note on test values that the training file has not."""
    return (
        f"column '{name}': {count} test rows have values that the training file has not ({shown(values.tolist())}); "
        "they are all zeros there"
    )


def _finite(y: Array) -> None:
    if y.dtype.kind in "iubUS":
        return
    if y.dtype.kind == "f":
        bad = ~np.isfinite(y)
    else:
        import pandas

        bad = np.asarray([np.ndim(v) == 0 and bool(pandas.isna(v)) for v in y.tolist()])
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        raise InputError(f"the target of row {row} is {y[row]}; allowed: no missing or infinite values")


def _float32(y: Array) -> Array:
    """Targets that are numbers, none too large for that."""
    with np.errstate(over="ignore"):
        found: Array = y.astype(np.float32)
    bad = ~np.isfinite(found)
    if bad.any():
        row, most = int(np.argwhere(bad)[0][0]), np.finfo(np.float32).max
        raise InputError(f"the target of row {row} is {y[row]}; allowed: at most {most:.2g} either way, as in float32")
    return found
