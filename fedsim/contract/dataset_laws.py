"""What a data set promises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedsim.contract.tools import UNSEEDED, LawBrokenError, compare, global_seed, same_from_yaml
from fedsim.core.tokens import IGNORED
from fedsim.core.types import State
from fedsim.data.sets import Dataset, DatasetPart, Quadratic

CLIENTS = 5


def dataset_laws(part: DatasetPart) -> Mapping[str, Callable[[], str]]:
    """Laws of one data set."""
    return {
        "form of rows and labels": partial(_form, part),
        "clients have rows of their own": partial(_clients, part),
        "same seed, same numbers": partial(_seed, part),
        "files do not depend on the seed": partial(_fixed, part),
        "YAML round trip": partial(same_from_yaml, part),
    }


def _load(part: DatasetPart, seed: int = 0) -> Dataset | Quadratic:
    data = part.load(CLIENTS, seed, Path.cwd())
    if not isinstance(data, (Dataset, Quadratic)):
        raise LawBrokenError(f"load gave {type(data).__name__}, allowed: a fedsim.Dataset")
    return data


def _tensors(data: Dataset | Quadratic) -> State:
    names = ("A", "b", "x0", "p") if isinstance(data, Quadratic) else ("train_x", "train_y", "test_x", "test_y")
    return {name: getattr(data, name) for name in names}


def _form(part: DatasetPart) -> str:
    data = _load(part)
    if isinstance(data, Quadratic):
        return f"{len(data.b)} quadratics of {data.b.shape[1]} parameters"
    for side in ("train", "test"):
        x, y = getattr(data, f"{side}_x"), getattr(data, f"{side}_y")
        if not (isinstance(x, Tensor) and isinstance(y, Tensor) and len(x) == len(y)):
            raise LawBrokenError(f"{side}_x and {side}_y, allowed: tensors with one row per sample, as many in both")
        if x.shape[1:] != data.train_x.shape[1:]:
            raise LawBrokenError(f"{side} rows have shape {list(x.shape[1:])}, train {list(data.train_x.shape[1:])}")
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise LawBrokenError(f"{side}_x has numbers that are not finite")
        if data.num_classes is not None:
            if y.dtype != torch.int64 or y.dim() not in (1, 2):
                allowed = "int64 [N], or [N, positions]"
                raise LawBrokenError(f"{side}_y is {y.dtype} {list(y.shape)}, allowed with classes: {allowed}")
            y = y[y != IGNORED]
            if len(y) and not 0 <= int(y.min()) <= int(y.max()) < data.num_classes:
                raise LawBrokenError(f"{side}_y is {int(y.min())} to {int(y.max())}, allowed: 0 to num_classes - 1")
        elif not y.is_floating_point():
            raise LawBrokenError(f"{side}_y is {y.dtype}, allowed without classes: float32 [N] or [N, k]")
    if not len(data.train_x):
        raise LawBrokenError("there are no training rows")
    what = "regression" if data.num_classes is None else f"{data.num_classes} classes"
    return f"{len(data.train_x)} + {len(data.test_x)} rows, {what}"


def _clients(part: DatasetPart) -> str:
    data = _load(part)
    if isinstance(data, Quadratic) or data.clients is None:
        return "not divided by the set itself"
    every = np.concatenate(data.clients) if data.clients else np.zeros(0, dtype=np.int64)
    if len(np.unique(every)) != len(every):
        raise LawBrokenError("a training row belongs to several clients, or to one twice")
    if len(every) and not 0 <= every.min() <= every.max() < len(data.train_x):
        raise LawBrokenError(f"clients have rows {every.min()} to {every.max()} of {len(data.train_x)}")
    if data.importance is not None and len(data.importance) != len(data.clients):
        raise LawBrokenError(f"importance has {len(data.importance)} numbers for {len(data.clients)} clients")
    return f"{len(data.clients)} clients"


def _seed(part: DatasetPart) -> str:
    found = []
    for seed in (1, 2):
        with global_seed(seed):
            found.append(_tensors(_load(part)))
    hint = f"{UNSEEDED}; draw from keys (fedsim.rng) and the seed that load gets"
    compare("loaded twice with one seed: ", found[0], found[1], 0.0, hint)
    return "bit for bit"


def _fixed(part: DatasetPart) -> str:
    """Rows of a set that does not come divided are the same for all seeds."""
    one, other = _load(part, 0), _load(part, 1)
    same = all(torch.equal(v, _tensors(other).get(k, v)) for k, v in _tensors(one).items())
    if not same and not isinstance(one, Quadratic) and one.clients is None:
        raise LawBrokenError(
            "another seed gives other rows, and the set does not come divided: seeds are for what a run draws, and "
            "runs of different seeds could not be compared"
        )
    return "the same rows for all seeds" if same else "made from the seed"
