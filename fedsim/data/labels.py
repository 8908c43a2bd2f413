"""The one place that numbers labels: whatever a reader found becomes classes 0, 1, ... that keep their names.

Labels are numbered as found: the distinct values of all splits, sorted, are class 0, 1, ... Where the number of classes
is known (the file's own class names, a named set, ``num_classes``) labels 0, 1, ... are classes as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.core.arrays import Array, Ints
from fedsim.core.errors import InputError

Value = str | int
MOST_CLASSES = 1_000_000
FOUND = "the distinct labels found, sorted"
"""The numbering where nobody says otherwise."""
_SHOWN = 8


@dataclass(frozen=True)
class Classes:
    """What class i is: `values[i]` in the file, `names[i]` for people.

    `found`: numbered as found, which other files of the same kind may not repeat.
    """

    values: tuple[Value, ...]
    names: tuple[str, ...]
    found: bool = False

    @classmethod
    def given(cls, count: int, names: Sequence[str] | None = None) -> Classes:
        """Classes that are numbers already."""
        return cls(tuple(range(count)), tuple(names) if names is not None else tuple(map(str, range(count))))

    def __len__(self) -> int:
        return len(self.values)


def plain(values: Array) -> Array:
    """Labels or ids as an array of numbers, booleans or text; arrays of Python objects are looked into.

    Raises
    ------
    InputError
        The values are of mixed or of other types; names the first row.
    """
    values = np.asarray(values)
    if values.dtype.kind in "iufbU":
        return values
    if values.dtype.kind == "S":
        return np.char.decode(values, "utf-8", "replace")
    items = values.tolist() if values.ndim == 1 else None
    if items and all(isinstance(v, (list, tuple, np.ndarray)) for v in items):
        lengths = [len(v) for v in items]
        if len(set(lengths)) > 1:
            row = next(i for i, n in enumerate(lengths) if n != lengths[0])
            raise InputError(f"row {row} has {lengths[row]} values, row 0 has {lengths[0]}; one length is needed")
        made = np.asarray(items)
        if made.ndim == 2 and made.dtype.kind in "iufb":
            return made
    kinds: tuple[tuple[type, ...], ...] = ((str,), (bool, np.bool_), (int, np.integer), (float, int, np.number))
    if items is not None:
        for kind in kinds:
            if all(isinstance(v, kind) and (bool in kind or not isinstance(v, bool)) for v in items):
                return np.asarray([str(v) for v in items]) if str in kind else np.asarray(items)
        first = type(items[0]).__name__ if items else "nothing"
        row = next((i for i, v in enumerate(items) if type(v).__name__ != first), 0)
        raise InputError(
            f"row {row} holds {items[row]!r} ({type(items[row]).__name__}), row 0 {items[0]!r} ({first}); "
            "allowed: numbers, true and false, or text, one kind for all rows"
        )
    raise InputError(f"found values of type {values.dtype}; allowed: numbers, true and false, or text")


def number_labels(
    ys: Sequence[Array],
    num_classes: int | None = None,
    known: Classes | None = None,
    order: Sequence[Value] | None = None,
    columns: Sequence[str] = (),
) -> tuple[list[Ints], Classes]:
    """Class numbers ``[N]`` of each split, and what they stand for.

    Parameters
    ----------
    ys
        Labels of each split without missing values: numbers, booleans or text ``[N]`` or ``[N, 1]``; whole floats;
        one-hot rows ``[N, k]``.
    num_classes, order
        What the scenario says: how many classes there are, or their values in order.
    known
        What the file or the set says of its labels, which are 0, 1, ...
    columns
        Names of the columns of one-hot rows.

    Raises
    ------
    InputError
        Floats that are not whole, rows that are not one-hot, or other labels than the known ones.
    """
    arrays = [_one_column(plain(y)) for y in ys]
    widths = {a.shape[1:] for a in arrays}
    if len(widths) > 1:
        raise InputError(f"labels have shapes {' and '.join(str(list(a.shape)) for a in arrays)}; one is needed")
    if arrays[0].ndim == 2:
        arrays = [_one_hot(a) for a in arrays]
        width = next(iter(widths))[0]
        names = list(columns) if len(columns) == width else None
        return _known(arrays, Classes.given(width, names), num_classes)
    arrays = [_whole(a) for a in arrays]
    if order is not None:
        return _ordered(arrays, order, num_classes)
    if known is not None and arrays[0].dtype.kind in "iu":
        return _known(arrays, known, num_classes)
    kinds = {"text" if a.dtype.kind == "U" else "numbers" for a in arrays}
    if len(kinds) > 1:
        raise InputError("labels are numbers in one split and text in the other; one kind is needed")
    found = np.unique(np.concatenate(arrays))
    if num_classes is not None:
        if num_classes > MOST_CLASSES:
            raise InputError(f"found {num_classes}; allowed: at most {MOST_CLASSES:,}", key="num_classes")
        numbers = found.dtype.kind in "iu"
        if numbers and found[0] >= 0 and found[-1] < num_classes:
            return [a.astype(np.int64) for a in arrays], Classes.given(num_classes)
        if len(found) != num_classes:
            wrong = next(v for v in found.tolist() if v < 0 or v >= num_classes) if numbers else found[-1]
            what = f"label {wrong}" if numbers else f"{len(found)} different labels"
            raise InputError(
                f"found {what} with {num_classes} classes; allowed: 0 to {num_classes - 1}, or exactly {num_classes} "
                f"different labels (here: {shown(found.tolist())})"
            )
    if len(found) > MOST_CLASSES:
        raise InputError(f"found {len(found):,} different labels; allowed: at most {MOST_CLASSES:,}, or regression")
    values = tuple(found.tolist())
    return [np.searchsorted(found, a).astype(np.int64) for a in arrays], Classes(
        values, tuple(map(str, values)), found=True
    )


def shown(values: Sequence[object]) -> str:
    """The first few of them in words."""
    rest = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return ", ".join(map(str, values[:_SHOWN])) + rest


def _one_column(y: Array) -> Array:
    if y.ndim == 2 and y.shape[1] == 1:
        return y[:, 0]
    if y.ndim > 2 or not y.size:
        raise InputError(f"labels have shape {list(y.shape)}; allowed for classification: [N], or one-hot [N, k]")
    return y


def _one_hot(y: Array) -> Array:
    if y.dtype.kind not in "iufb":
        raise InputError("labels of several columns are not numbers; allowed for classification: [N], or one-hot rows")
    good = ((y == 0) | (y == 1)).all(axis=1) & (y.sum(axis=1) == 1)
    if not good.all():
        row = int(np.argmin(good))
        raise InputError(
            f"labels have shape {list(y.shape)}, and row {row} is {y[row].tolist()[:_SHOWN]}; allowed for "
            "classification: [N], or one-hot rows (one 1, else 0)",
            key="task",
        )
    number: Array = y.argmax(axis=1)
    return number


def _whole(y: Array) -> Array:
    """Booleans stay apart from numbers only in their names; whole floats are integers."""
    if y.dtype.kind == "b":
        return y
    if y.dtype.kind == "f":
        broken = (y != np.floor(y)) | (np.abs(y) > 2.0**53)
        if broken.any():
            row = int(np.argmax(broken))
            raise InputError(
                f"labels are {y.dtype} (first {y[row]:g}), not whole in row {row}; allowed for classification: whole "
                "numbers, true and false, text, or one-hot rows",
                key="task",
            )
        return y.astype(np.int64)
    return y


def _known(arrays: Sequence[Array], known: Classes, num_classes: int | None) -> tuple[list[Ints], Classes]:
    if num_classes is not None and num_classes != len(known):
        raise InputError(f"found {num_classes}, but the data have {len(known)} classes; leave it out", "num_classes")
    for array in arrays:
        if int(array.min()) < 0:
            raise InputError(f"found label {array.min()}; allowed: 0 to the number of classes - 1")
        if int(array.max()) >= len(known):
            raise InputError(f"found label {array.max()} with {len(known)} classes; allowed: 0 to {len(known) - 1}")
    return [a.astype(np.int64) for a in arrays], known


def _ordered(arrays: Sequence[Array], order: Sequence[Value], num_classes: int | None) -> tuple[list[Ints], Classes]:
    """Classes in the order that the scenario gives; text and numbers are compared as they are written."""
    names = [str(v) for v in order]
    if len(set(names)) != len(names):
        raise InputError(f"found a class twice in {names}; allowed: different ones", key="classes")
    if num_classes not in (None, len(names)):
        raise InputError(f"found {num_classes} with {len(names)} classes named; leave it out", key="num_classes")
    place = {name: i for i, name in enumerate(names)}
    numbered = []
    for array in arrays:
        found, inverse = np.unique(array, return_inverse=True)
        if foreign := [v for v in found.tolist() if str(v) not in place]:
            raise InputError(f"found label {foreign[0]!r}; allowed: {shown(names)}", key="classes")
        numbered.append(np.array([place[str(v)] for v in found.tolist()], dtype=np.int64)[inverse])
    return numbered, Classes(tuple(order), tuple(names))
