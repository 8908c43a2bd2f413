"""What a data set has to be made of, found out where it is loaded: before anything is written, and before any operator
of PyTorch meets what it cannot compute with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.core.arrays import Array, Ints
from fedsim.core.errors import InputError
from fedsim.core.tokens import IGNORED
from fedsim.data.sets import Dataset, Quadratic

_SMALL = (torch.float16, torch.bfloat16)  # whose numbers float32 has all; NumPy has no bfloat16


def well_formed(data: object) -> Dataset | Quadratic:
    """The data set with tensors as runs have them: no graph of gradients behind them, no laziness, no own class,
    numbers row after row.

    Numbers do not change. A quadratic problem is as it is.

    Raises
    ------
    InputError
        It is no data set, a tensor cannot be computed with, or rows, labels and clients do not fit each other.
    """
    found = in_form(data)
    return found if isinstance(found, Quadratic) else with_owners(found)


def in_form(data: object) -> Dataset | Quadratic:
    """The same, but for whose rows they are."""
    if isinstance(data, Quadratic):
        return data
    if not isinstance(data, Dataset):
        raise _wrong(f"load gave {type(data).__name__}", "a fedsim.Dataset")
    tensors = {name: _plain(getattr(data, name), name) for name in ("train_x", "train_y", "test_x", "test_y")}
    x = tensors["train_x"]
    for side in ("train", "test"):
        rows, labels = tensors[f"{side}_x"], tensors[f"{side}_y"]
        if len(rows) != len(labels):
            both = f"{side}_x has {len(rows)} rows and {side}_y {len(labels)}"
            raise _wrong(both, "one row per sample, as many in both")
        if not len(rows):
            raise _wrong(f"{side}_x has no rows", "at least one row")
        if rows.shape[1:] != x.shape[1:]:
            shapes = f"{side} rows have shape {list(rows.shape[1:])}, training rows {list(x.shape[1:])}"
            raise _wrong(shapes, "the same shape")
        if rows.is_floating_point() != x.is_floating_point():
            raise _wrong(f"{side}_x is {_type(rows)}, train_x {_type(x)}", "numbers in both, or token ids in both")
        tensors[f"{side}_y"] = _targets(labels, data.num_classes, f"{side}_y")
    y, test_y = tensors["train_y"], tensors["test_y"]
    if y.shape[1:] != test_y.shape[1:]:
        raise _wrong(f"train_y is {list(y.shape)}, test_y {list(test_y.shape)}", "the same shape but for the rows")
    return replace(data, train_x=x, train_y=y, test_x=tensors["test_x"], test_y=test_y)


def with_owners(data: Dataset) -> Dataset:
    """The data set with clients' rows as arrays, where it comes divided."""
    if data.clients is None:
        return data
    clients = _clients(data.clients, len(data.train_x))
    _importance(data.importance, len(clients))
    return replace(data, clients=clients)


def _plain(value: object, name: str) -> Tensor:
    """A dense tensor of numbers on the CPU, ``[N, ...]``, and nothing else."""
    if not isinstance(value, Tensor):
        raise _wrong(f"{name} is a {type(value).__name__}", "a tensor, such as torch.as_tensor(...)")
    if value.is_nested or value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
        what = "nested" if value.is_nested else "quantized" if value.is_quantized else str(value.layout)
        what = "without numbers (meta)" if value.device.type == "meta" else what.removeprefix("torch.")
        raise _wrong(f"{name} is {what}", "a dense tensor of numbers")
    if value.is_complex() or (value.dtype == torch.bool and name.endswith("_x")):
        raise _wrong(f"{name} is {_type(value)}", "real numbers, or integers that are token ids")
    # Rows one after the other: some processors multiply others to other last digits.
    plain = value.detach().cpu().resolve_conj().resolve_neg().as_subclass(Tensor).contiguous()
    if plain.is_inference():
        plain = plain.clone()
    plain = plain.float() if plain.dtype in _SMALL else plain
    if not plain.dim() or not all(plain.shape[1:]):
        raise _wrong(f"{name} has shape {list(plain.shape)}", "one row of at least one number per sample")
    if plain.is_floating_point() and plain.numel():
        least, most = torch.aminmax(plain)  # in one pass, without a copy
        if not (torch.isfinite(least) and torch.isfinite(most)):
            raise _wrong(f"{name} has numbers that are not finite", "finite numbers")
    return plain


def _targets(y: Tensor, classes: object, name: str) -> Tensor:
    """Classes as int64, numbers as they are."""
    if classes is None:
        if not y.is_floating_point():
            allowed = "numbers such as float32 without num_classes, or num_classes for classes"
            raise _wrong(f"{name} is {_type(y)}", allowed)
        if y.dim() > 2:
            raise _wrong(f"{name} has shape {list(y.shape)}", "[N] or [N, k] without num_classes")
        return y
    if isinstance(classes, bool) or not isinstance(classes, (int, np.integer)) or classes < 1:
        raise _wrong(f"num_classes is {classes!r}", "a whole number of at least 1, or None for regression")
    if y.is_floating_point():
        raise _wrong(f"{name} is {_type(y)}", "int64 with num_classes; without, it is a regression")
    if y.dim() > 2:
        raise _wrong(f"{name} has shape {list(y.shape)}", "[N], or [N, positions] with a class at every position")
    y = y.long()
    counted = y[y != IGNORED]
    if counted.numel():
        least, most = (int(v) for v in torch.aminmax(counted))
        if least < 0 or most >= classes:
            raise _wrong(f"{name} has the classes {least} to {most}", f"0 to {int(classes) - 1}, as num_classes says")
    return y


def _clients(clients: Any, rows: int) -> list[Array]:
    """Lists of training rows, none of which is in two of them or in one twice."""
    if not isinstance(clients, Sequence) or not len(clients):
        raise _wrong(f"clients is {_shown(clients)}", "a list of row numbers per client, or None")
    found = [_rows_of(given, client) for client, given in enumerate(clients)]
    every = np.concatenate(found)  # at once, since clients may be a million
    if every.min() < 0 or every.max() >= rows:
        client = next(c for c, own in enumerate(found) if own.min() < 0 or own.max() >= rows)
        raise _wrong(f"client {client} has the rows {found[client].min()} to {found[client].max()}", f"0 to {rows - 1}")
    twice = np.bincount(every) > 1
    if twice.any():
        row = int(twice.argmax())
        owners = [client for client, own in enumerate(found) if row in own]
        whose = f"the clients {owners[0]} and {owners[1]}" if len(owners) > 1 else f"client {owners[0]} twice"
        raise _wrong(f"row {row} belongs to {whose}", "every training row once at most")
    return found


def _rows_of(given: Any, client: int) -> Ints:
    try:
        rows: Array = np.asarray(given)
    except (TypeError, ValueError, RuntimeError):
        raise _wrong(f"the rows of client {client} are {_shown(given)}", "row numbers") from None
    if rows.ndim == 1 and not len(rows):
        raise _wrong(f"client {client} has no rows", "at least one row per client")
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise _wrong(f"the rows of client {client} are {_shown(rows)}", "row numbers [m]")
    return rows.astype(np.int64, copy=False)


def _importance(importance: Any, clients: int) -> None:
    if importance is None:
        return
    given = np.asarray(importance)
    if given.shape != (clients,) or given.dtype.kind not in "iuf":
        raise _wrong(f"importance is {_shown(given)} for {clients} clients", "one number per client")
    if not (np.isfinite(given).all() and (given >= 0).all() and given.sum() > 0):
        raise _wrong("importance has numbers below 0 or not finite, or nothing else than 0", "weights of 0 and more")


def _type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return f"empty ({type(value).__name__})" if isinstance(value, Sequence) and not value else type(value).__name__


def _wrong(found: str, allowed: str) -> InputError:
    return InputError(f"{found}; allowed: {allowed}", key="dataset")
