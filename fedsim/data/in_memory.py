"""Arrays that a program has: the section ``data`` of a scenario, for `fedsim.run`.

They are kept in an npz file that is named by its content, so that the run's recorded scenario still has them: it runs
again to the same numbers, in another process, on Ray's actors and in deployments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from fedsim.core.arrays import Array
from fedsim.core.errors import InputError

_WHOSE = "client"
"""The array of the file that says whose row it is."""


def from_arrays(
    x: Any,
    y: Any,
    clients: int | Any = 10,
    x_test: Any = None,
    y_test: Any = None,
    test_clients: Any = None,
    folder: str | Path = "runs/arrays",
    **keys: Any,
) -> dict[str, Any]:
    """The section ``data`` of a scenario whose rows are these arrays: ``{"data": from_arrays(x, y), ...}``.

    Parameters
    ----------
    x : ``[N, ...]`` inputs, a numpy array, a tensor or lists; images are ``[N, C, H, W]``.
    y : ``[N]`` targets: classes (whole numbers or words), or numbers with a fraction for regression; ``[N, k]``.
    clients : how many clients share the rows (`partition` says how, all alike if it is left out), or ``[N]`` whose each
        row is: one client per value.
    x_test, y_test : test rows; left out, a fifth of the rows is held out (`test_fraction`).
    test_clients : whose the test rows are, where `clients` says it of rows.
    folder : where the file of the arrays goes, ``HASH.npz``; the same arrays are one file.
    **keys : other keys of ``data: {dataset: npz}``, and of the section: `partition`, `local_test`, `normalize`, ...

    Returns
    -------
    The section, with the absolute path of the file.

    Raises
    ------
    InputError
        The arrays do not fit each other, or the file cannot be written.
    """
    by_row = not isinstance(clients, (int, np.integer)) or isinstance(clients, bool)
    if (x_test is None) != (y_test is None):
        raise InputError("found one of x_test and y_test; allowed: both or neither")
    divided = x_test is not None
    end = "_train" if divided else ""
    arrays = {f"x{end}": _array(x, "x"), f"y{end}": _array(y, "y")}
    if divided:
        arrays |= {"x_test": _array(x_test, "x_test"), "y_test": _array(y_test, "y_test")}
    if by_row:
        if "partition" in keys:
            raise InputError("found partition, but `clients` says whose each row is; allowed: one of the two")
        arrays[f"{_WHOSE}{end}"] = _array(clients, "clients")
        if divided and test_clients is None:
            raise InputError("test_clients: missing; allowed: whose each test row is, as `clients` says it of rows")
    if test_clients is not None:
        if not (by_row and divided):
            raise InputError("found test_clients; allowed: with x_test, and with `clients` that says whose each row is")
        arrays[f"{_WHOSE}_test"] = _array(test_clients, "test_clients")
    _check(arrays)
    file = _saved(arrays, Path(folder))
    whose = {"partition": {"scheme": "natural_id", "partition_by": _WHOSE}} if by_row else {"clients": int(clients)}
    return {"dataset": "npz", "path": str(file.resolve()), **whose, **keys}


def _array(value: Any, name: str) -> Array:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        try:  # NumPy has no bfloat16, whose numbers float32 has all
            value = (value.float() if value.dtype == torch.bfloat16 else value).resolve_conj().resolve_neg().numpy()
        except (TypeError, RuntimeError):
            message = f"{name}: found a tensor of type {value.dtype}, {value.layout}; allowed: dense, of numbers"
            raise InputError(message.replace("torch.", "")) from None
    if isinstance(value, np.ma.MaskedArray) and (masked := int(np.ma.getmaskarray(value).sum())):
        message = f"{name}: found {masked} masked value(s); allowed: arrays without, such as value.filled(0)"
        raise InputError(message)
    try:
        found = np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise InputError(f"{name}: cannot be made an array: {error}") from None
    if found.dtype.kind == "O":
        found = found.astype(str) if all(isinstance(v, str) for v in found.ravel()) else found
    if found.dtype.kind not in "iufbUS":
        raise InputError(
            f"{name}: found values of type {found.dtype}; allowed: numbers, or words for classes and clients"
        )
    if name.startswith("x") and found.dtype.kind in "US":
        raise InputError(f"{name}: found words; allowed: numbers")
    if not found.size or not found.ndim:
        raise InputError(f"{name}: found shape {list(found.shape)}; allowed: at least one row")
    if found.dtype.kind == "f" and not (finite := np.isfinite(found)).all():
        at = [int(i) for i in np.argwhere(~finite)[0]]
        raise InputError(f"{name}: found {found[tuple(at)]} at {at}; allowed: finite numbers")
    return np.ascontiguousarray(found)


def _check(arrays: Mapping[str, Array]) -> None:
    for end in ("", "_train", "_test"):
        of = {
            name: len(a) if a.ndim else 0
            for name, a in arrays.items()
            if name in (f"x{end}", f"y{end}", f"{_WHOSE}{end}")
        }
        if len(set(of.values())) > 1:
            found = ", ".join(f"{name} {n}" for name, n in of.items())
            raise InputError(f"found different numbers of rows: {found}; allowed: as many in each")


def _saved(arrays: Mapping[str, Array], folder: Path) -> Path:
    """The file with these arrays; it is written where it is not there yet."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(array.tobytes())
    file = folder / f"{digest.hexdigest()[:16]}.npz"
    if not file.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            fresh = file.with_name(f".{file.name}.{uuid4().hex}")  # others may write the same arrays at this moment
            with fresh.open("wb") as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]
            fresh.replace(file)
        except OSError as error:
            raise InputError(f"cannot be written: {error.strerror}", file=str(file)) from None
    return file
