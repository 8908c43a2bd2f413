"""How an algorithm's vectors travel in the messages of somebody's own Flower app, beside the arrays of a model.

The app's arrays are a ``state_dict``: parameters, and what a model carries besides them (running statistics, counters).
Parameters in one row are the algorithm's ``x``. What an algorithm broadcasts or sends beside ``x`` and ``delta`` are
further arrays of the same record, called ``fedsim:<name>``, since Flower's strategies take one record of arrays each
way. Settings travel in the config record, the work behind an answer in one of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

PREFIX = "fedsim:"
ALGORITHM, AVERAGED, MARK, WORK = "fedsim-algorithm", "fedsim-averaged", "fedsim-strategy", "fedsim"
"""Keys of the config record (the last tells one Strategy from another), and the name of the record of an answer."""

STATISTICS = ("running_mean", "running_var")
"""How PyTorch's names of running statistics end."""

Arrays = Mapping[str, Any]


def parameters(arrays: Arrays, averaged: Sequence[str]) -> list[str]:
    """Names of the arrays that are the algorithm's: of floating point, no further vectors, and not `averaged`."""
    return [k for k, v in _model(arrays).items() if _is_float(v) and not k.endswith(tuple(averaged))]


def others(arrays: Arrays, names: Iterable[str]) -> list[str]:
    """Names of the model's other arrays: what it carries besides."""
    return [k for k in _model(arrays) if k not in set(names)]


def vectors(arrays: Arrays) -> dict[str, Tensor]:
    """The further vectors in a record of arrays, by the algorithm's names."""
    return {k.removeprefix(PREFIX): torch.from_numpy(np.array(v)) for k, v in arrays.items() if k.startswith(PREFIX)}


def _model(arrays: Arrays) -> dict[str, Any]:
    return {k: v for k, v in arrays.items() if not k.startswith(PREFIX)}


def _is_float(array: Any) -> bool:
    return bool(np.issubdtype(array.dtype, np.floating))


def flat(arrays: Arrays, names: Sequence[str]) -> Tensor:
    """The named arrays as one vector ``[d]``, in the widest type among them, at least float32."""
    if not names:
        return torch.zeros(0)
    row = np.concatenate([np.asarray(arrays[name]).ravel() for name in names])
    return torch.from_numpy(row.astype(np.result_type(row.dtype, np.float32)))


def parted(x: Tensor, like: Arrays, names: Sequence[str]) -> dict[str, Any]:
    """A vector as arrays of the shapes and types of `like`; whole numbers are rounded to."""
    ends = np.cumsum([np.asarray(like[name]).size for name in names])[:-1]
    return {n: _as(p, like[n]) for n, p in zip(names, np.split(x.numpy(), ends), strict=True)} if names else {}


def _as(piece: Any, like: Any) -> Any:
    """Some numbers in the shape and type of an array, which may have no axis."""
    rounded = piece if _is_float(like) else np.rint(piece)
    return np.asarray(rounded).reshape(like.shape).astype(like.dtype)


def record(arrays: Arrays, more: Mapping[str, Tensor]) -> Any:
    """A Flower ArrayRecord of a model's arrays and further vectors."""
    from flwr.app import Array, ArrayRecord

    made = {k: Array(np.asarray(v)) for k, v in arrays.items()}
    return ArrayRecord(made | {PREFIX + k: Array(v.numpy()) for k, v in more.items()})
