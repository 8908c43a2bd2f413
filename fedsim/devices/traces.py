"""Traces of real devices in FedScale's schema (arXiv 2105.11367): speeds, bandwidths, and when a device is on.

A file has one record per device:

* ``computation``: milliseconds per sample; ``communication``: kbit/s (1 kbit = 1000 bit);
* ``active``, ``inactive``: lists of seconds at which the device comes on and goes off, in turns; ``finish_time``:
  seconds after which they begin again.

JSON: a list of such objects, or one object whose keys are the devices' names, as FedScale's pickles are. CSV: a header
and one line per device, the items of a list with semicolons between them. FedScale's further keys are ignored.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.core import rng
from fedsim.core.errors import InputError

_NUMBERS, _LISTS = ("computation", "communication", "finish_time"), ("active", "inactive")
_IGNORED = ("duration", "model")
_LEAST = {"computation": "above 0 ms", "communication": "above 0 kbit/s", "finish_time": "above 0 s"}
Device = dict[str, Any]


def read_devices(file: str, columns: Sequence[str]) -> list[Device]:
    """The records of a trace file, checked in the `columns` that are asked for.

    Raises
    ------
    InputError
        The file cannot be read, is a pickle, or a record lacks a column or has a value that makes no sense.
    """
    path = Path(file)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", key="file") from None
    if path.suffix in (".pkl", ".pickle") or raw[:1] == b"\x80":
        raise InputError(
            f"{path} is a pickle, and loading one runs whatever code is in it; allowed: JSON or CSV (docs/time.md says "
            "how to convert one that you trust)",
            key="file",
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text, allowed: JSON or CSV in UTF-8", key="file") from None
    found = _csv(text, path) if path.suffix == ".csv" else _json(text, path)
    if not found:
        raise InputError(f"{path} has no devices", key="file")
    return [_checked(record, columns, f"{path}: device {name}") for name, record in found]


def rows_of_clients(n: int, rows: int, seed: int, shuffle: bool) -> list[int]:
    """Which record each of `n` clients has, for good: in file order, or shuffled by the seed.

    Every record is used before any comes again. Files of equal length give a client the same device.
    """
    clients = np.arange(n, dtype=np.int64)
    if shuffle:
        return [int(r) for r in rng.permute(rng.key(seed, "device_trace", clients // rows), clients % rows, rows)]
    return [int(r) for r in clients % rows]


def _json(text: str, path: Path) -> list[tuple[str, Any]]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}", key="file") from None
    if isinstance(data, dict):
        return [(repr(k), v) for k, v in data.items()]
    if isinstance(data, list):
        return [(str(i), v) for i, v in enumerate(data)]
    raise InputError(f"{path} holds {type(data).__name__}, allowed: a list or an object of devices", key="file")


def _csv(text: str, path: Path) -> list[tuple[str, Any]]:
    known = (*_NUMBERS, *_LISTS)
    reader = csv.DictReader(text.splitlines(), strict=True)
    if not set(reader.fieldnames or ()) & set(known):
        raise InputError(f"{path} has no header with any of the columns {', '.join(known)}", key="file")
    found: list[tuple[str, Any]] = []
    for number, line in enumerate(reader):
        where = f"{path}: device {number}"
        if None in line or None in line.values():
            raise InputError(f"{where} has not as many columns as the header", key="file")
        numbers = {k: _parsed(line[k], f"{where}: {k}") for k in _NUMBERS if k in line}
        lists = {k: [_parsed(v, f"{where}: {k}") for v in line[k].split(";") if v] for k in _LISTS if k in line}
        found.append((str(number), {**numbers, **lists}))
    return found


def _parsed(cell: str, where: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise InputError(f"{where}: found {cell!r}, allowed: a number", key="file") from None


def _checked(record: Any, columns: Sequence[str], where: str) -> Device:
    if not isinstance(record, dict):
        raise InputError(f"{where}: found {record!r}, allowed: an object with {', '.join(columns)}", key="file")
    for column in columns:
        if column not in record:
            present = ", ".join(sorted(k for k in record if k not in _IGNORED)) or "nothing"
            raise InputError(f"{where}: '{column}' is missing; it has {present}", key="file")
        value = record[column]
        if column in _LISTS:
            if not isinstance(value, list) or not all(_is_number(v) and v >= 0 for v in value):
                raise InputError(f"{where}: found {column} {_short(value)}, allowed: a list of seconds", key="file")
        elif not _is_number(value) or value <= 0:
            raise InputError(f"{where}: found {column} {_short(value)}, allowed: {_LEAST[column]}", key="file")
    if "active" in columns:
        _check_activity(record, where)
    return record


def _check_activity(record: Device, where: str) -> None:
    on, off, end = record["active"], record["inactive"], record["finish_time"]
    if len(on) != len(off):
        message = f"{where}: found {len(on)} times of coming on and {len(off)} of going off, allowed: as many"
        raise InputError(message, key="file")
    moments = [t for pair in zip(on, off, strict=True) for t in pair]
    if any(a > b for a, b in pairwise([*moments, end])):
        raise InputError(
            f"{where}: times do not ascend, allowed: active[0] <= inactive[0] <= active[1] <= ... <= finish_time",
            key="file",
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
