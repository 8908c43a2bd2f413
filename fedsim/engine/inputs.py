"""``data.json`` and ``partition.csv`` of a run directory: what the data mean, and who holds what of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.core.arrays import Array, Floats, Ints
from fedsim.core.disk import write_whole
from fedsim.core.errors import InputError
from fedsim.data.partition_csv import write_partition

FILE = "data.json"


def write_inputs(folder: Path, about: Mapping[str, Any] | None, counts: Array | None, sizes: Array) -> None:
    """Write both files.

    Parameters
    ----------
    about : what the data mean (None: a quadratic problem, which has no ``data.json``).
    counts, sizes : see :func:`fedsim.data.partition_csv.write_partition`.
    """
    target, clients = ((about or {}).get(key, {}) for key in ("target", "clients"))
    write_partition(folder, counts, sizes, target.get("classes", ()), clients.get("names", ()))
    if about is None:
        (folder / FILE).unlink(missing_ok=True)
        return
    write_whole(folder / FILE, json.dumps(about, indent=1, ensure_ascii=False) + "\n")


def importance_of(folder: Path, samples: Ints) -> Floats:
    """p_i of a run's clients ``[clients]``: as its data prescribe them, or by their `samples`.

    Raises
    ------
    InputError
        ``data.json`` is damaged.
    """
    prescribed = read_about(folder).get("clients", {}).get("importance") if (folder / FILE).exists() else None
    if prescribed is not None:
        return np.array(prescribed, dtype=np.float64)
    return np.asarray(samples / samples.sum(), dtype=np.float64)


def read_about(folder: Path) -> dict[str, Any]:
    """``data.json`` of a run.

    Raises
    ------
    InputError
        There is none, or it is damaged.
    """
    path = folder / FILE
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            "no such file: the run was recorded by an earlier version, or its problem has no data", file=str(path)
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", file=str(path)) from None
    if not isinstance(about, dict) or not {"input", "target"} <= set(about):
        raise InputError("found something else than what a run writes there", file=str(path))
    return about
