"""From arrays as read to arrays to train on: labels or targets, a held-out test split, scaling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedsim.core.arrays import Array
from fedsim.core.errors import InputError
from fedsim.core.rng import generator

Normalize = Literal["standard", "unit", "none"]
Task = Literal["classification", "regression"]
Stats = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Split:
    """x: uint8 images ``[N, C, H, W]`` or features ``[N, k]``; y ``[N]`` or ``[N, k]``; number of classes if known."""

    x: Array
    y: Array
    classes: int | None = None


def targets(train: Split, test: Split | None, task: Task | None, classes: int | None) -> tuple[Split, Split | None]:
    """Labels as int64 with the number of classes, or regression targets as float32, alike in both splits.

    Parameters
    ----------
    task
        None: all float targets are regression, others classification. Text labels are numbered in sorted order.
    classes
        Number of classes; None: what the file says, else the largest label + 1.

    Raises
    ------
    InputError
        Missing or infinite targets; text or `classes` in regression; float, negative or too large labels in
        classification.
    """
    splits = [train] if test is None else [train, test]
    ys = [s.y for s in splits]
    for y in ys:
        _finite(y)
    if task is None:
        task = "regression" if all(y.dtype.kind == "f" for y in ys) else "classification"
    if task == "regression":
        if any(y.dtype.kind not in "iufb" for y in ys):
            raise InputError(f"targets are not numbers (first {ys[0][0]!r}); regression needs numbers", key="task")
        if classes is not None:
            raise InputError(f"found {classes} for regression; allowed: only with classification", key="num_classes")
        done = [Split(s.x, s.y.astype(np.float32)) for s in splits]
    else:
        labels, count = _labels(ys, classes, train.classes)
        done = [Split(s.x, y, count) for s, y in zip(splits, labels, strict=True)]
    return done[0], None if test is None else done[1]


def divide(whole: Split, fraction: float) -> tuple[Split, Split]:
    """Hold out `fraction` of the rows for testing: always the same rows, in file order; of each class its share.

    Raises
    ------
    InputError
        Too few rows for both splits to have one.
    """
    order = generator(0, "test split").permutation(len(whole.y))
    groups = [order] if whole.classes is None else [order[whole.y[order] == c] for c in np.unique(whole.y)]
    held = np.zeros(len(order), dtype=bool)
    for rows in groups:
        held[rows[: round(fraction * len(rows))]] = True
    if held.all() or not held.any():
        raise InputError(f"{len(order)} rows do not give {fraction:g} of them for testing and some for training")
    x, y = whole.x, whole.y
    return Split(x[~held], y[~held], whole.classes), Split(x[held], y[held], whole.classes)


def scaled(train: Array, test: Array, mode: Normalize, top: float | None, stats: Stats | None) -> tuple[Array, Array]:
    """Both splits as float32, scaled with the train split's statistics.

    ``none``: as they are; ``unit``: images divided by `top`, features (`top` None) mapped to [0, 1]; ``standard``: mean
    0 and standard deviation 1, of images per channel (or by the known `stats` of pixels in [0, 1]), of features per
    column.
    """
    both = [np.array(train, dtype=np.float32), np.array(test, dtype=np.float32)]
    if mode == "none":
        return both[0], both[1]
    if top is not None:
        for x in both:
            x /= np.float32(top)
        if mode == "unit":
            return both[0], both[1]
    x = both[0]
    axes = (0, *range(2, x.ndim)) if x.ndim == 4 else (0,)
    if mode == "unit":
        shift = x.min(axis=axes, keepdims=True)
        scale = x.max(axis=axes, keepdims=True) - shift
    elif stats is not None and x.ndim == 4 and x.shape[1] == len(stats[0]):
        shift, scale = (np.array(s, dtype=np.float32)[None, :, None, None] for s in stats)
    else:
        shift = x.mean(axis=axes, keepdims=True, dtype=np.float64)
        scale = x.std(axis=axes, keepdims=True, dtype=np.float64)
    scale = np.where(scale > 0, scale, 1)  # a constant feature carries nothing: it becomes 0
    for x in both:
        x -= shift.astype(np.float32)
        x /= scale.astype(np.float32)
    return both[0], both[1]


def _finite(y: Array) -> None:
    if y.dtype.kind in "iub":
        return
    if y.dtype.kind == "f":
        bad = ~np.isfinite(y)
    else:
        import pandas

        bad = np.asarray(pandas.isna(y))
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        raise InputError(f"the target of row {row} is {y[row]}; allowed: no missing or infinite values")


def _labels(ys: list[Array], classes: int | None, known: int | None) -> tuple[list[Array], int]:
    if any(y.ndim != 1 for y in ys):
        raise InputError(f"labels have shape {list(ys[0].shape)}; allowed for classification: [N]", key="task")
    if any(y.dtype.kind == "f" for y in ys):
        found = f"labels are {ys[0].dtype} (first {ys[0][0]})"
        raise InputError(f"{found}; allowed for classification: integers or text", key="task")
    if any(y.dtype.kind not in "iub" for y in ys):
        texts = [np.array([str(v) for v in y]) for y in ys]
        names = np.unique(np.concatenate(texts))
        ys = [np.searchsorted(names, y) for y in texts]
    ys = [y.astype(np.int64) for y in ys]
    declared = classes or known
    low, high = min(int(y.min()) for y in ys), max(int(y.max()) for y in ys)
    if low < 0:
        raise InputError(f"found label {low}; allowed: 0 to the number of classes - 1")
    if declared is not None and high >= declared:
        raise InputError(f"found label {high} with {declared} classes; allowed: 0 to {declared - 1}")
    if declared is None and high >= sum(len(y) for y in ys):
        few = len(np.unique(np.concatenate(ys)))
        raise InputError(f"found label {high} but {few} different labels; number them from 0, or give num_classes")
    return ys, declared or high + 1
