"""safetensors files whose tensors are too large to be in memory at once: written and read by rows."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor

Ints = npt.NDArray[np.int64]
Array = np.ndarray[Any, Any]
_NAMES = {torch.float32: "F32", torch.float64: "F64"}
_TYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}


@dataclass(frozen=True)
class RowStream:
    """A tensor ``[n, d]`` that comes in parts: ``parts()`` gives (row numbers, rows), every row once."""

    shape: tuple[int, int]
    dtype: torch.dtype
    parts: Callable[[], Iterator[tuple[Ints, Array]]]


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor | RowStream], metadata: dict[str, str] | None = None
) -> None:
    """A safetensors file of `tensors`; streams are written part by part."""
    if not any(isinstance(v, RowStream) for v in tensors.values()):
        whole = {k: v.detach().cpu().contiguous() for k, v in tensors.items() if isinstance(v, Tensor)}
        save_file(whole, path, metadata=metadata)
        return
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offsets, end = {}, 0
    for name, v in tensors.items():
        dtype = _NAMES[v.dtype]
        offsets[name] = end
        end += int(np.prod(v.shape)) * _TYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(v.shape), "data_offsets": [offsets[name], end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
        for name, v in tensors.items():
            stream = v if isinstance(v, RowStream) else _one_part(v)
            width = int(np.prod(stream.shape[1:])) * _TYPES[_NAMES[v.dtype]].itemsize
            for rows, values in stream.parts():
                _write(file.fileno(), 8 + len(text) + offsets[name], width, rows, values)


def read_rows(path: Path, name: str, rows: Ints) -> Array:
    """Rows of a tensor ``[n, d]`` in a safetensors file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
        width = int(np.prod(entry["shape"][1:]))
        result: Array = np.empty((len(rows), *entry["shape"][1:]), dtype=_TYPES[entry["dtype"]])
        start = 8 + length + entry["data_offsets"][0]
        for first, last in _runs(rows):
            offset = start + int(rows[first]) * width * result.itemsize
            file.seek(offset)
            result[first:last] = np.frombuffer(
                file.read((last - first) * width * result.itemsize), dtype=result.dtype
            ).reshape(last - first, *entry["shape"][1:])
    return result


def tensor_names(path: Path) -> list[str]:
    """Names of the tensors in a safetensors file."""
    with path.open("rb") as file:
        return [k for k in json.loads(file.read(int.from_bytes(file.read(8), "little"))) if k != "__metadata__"]


def _one_part(tensor: Tensor) -> RowStream:
    rows = tensor.detach().cpu().contiguous().reshape(len(tensor), -1)
    return RowStream((rows.shape[0], rows.shape[1]), tensor.dtype, lambda: iter([(np.arange(len(rows)), rows.numpy())]))


def _write(handle: int, start: int, width: int, rows: Ints, values: Array) -> None:
    values = np.ascontiguousarray(values)
    for first, last in _runs(rows):
        block = values[first:last].data.cast("B")
        offset = start + int(rows[first]) * width
        while len(block):
            done = os.pwrite(handle, block, offset)
            block, offset = block[done:], offset + done


def _runs(rows: Ints) -> Iterator[tuple[int, int]]:
    """Stretches of consecutive row numbers, as positions in `rows`."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    edges = [0, *breaks.tolist(), len(rows)]
    yield from ((a, b) for a, b in pairwise(edges) if b > a)
