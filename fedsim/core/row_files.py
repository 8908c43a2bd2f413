"""safetensors files whose tensors are too large to be in memory at once: written and read by rows."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedsim.core.arrays import Array, Ints

_NAMES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}
_TYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8"), "I64": np.dtype("<i8")}


@dataclass(frozen=True)
class Place:
    """Where a tensor ``[n, ...]`` lies in a file: rows of `shape`, the first at byte `start`."""

    path: Path
    start: int
    shape: tuple[int, ...]
    dtype: str

    def write(self, rows: Ints, values: Array) -> None:
        """Put ``values[i]`` into row ``rows[i]``; several processes may write rows of one file at a time."""
        handle = os.open(self.path, os.O_WRONLY)
        try:
            values = np.ascontiguousarray(values)
            for first, last in _runs(rows):
                block, offset = values[first:last].data.cast("B"), self._offset(int(rows[first]))
                while len(block):
                    done = os.pwrite(handle, block, offset)
                    block, offset = block[done:], offset + done
        finally:
            os.close(handle)

    def read(self, rows: Ints) -> Array:
        """These rows."""
        result: Array = np.empty((len(rows), *self.shape), dtype=_TYPES[self.dtype])
        with self.path.open("rb") as file:
            for first, last in _runs(rows):
                file.seek(self._offset(int(rows[first])))
                file.readinto(result[first:last].data.cast("B"))
        return result

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape)) * _TYPES[self.dtype].itemsize

    def _offset(self, row: int) -> int:
        return self.start + row * self.row_bytes


@dataclass(frozen=True)
class Stored:
    """Rows of a tensor that stay in their file until somebody reads them."""

    place: Place
    rows: Ints

    def read(self) -> Array:
        return self.place.read(self.rows)


@dataclass(frozen=True)
class RowStream:
    """A tensor ``[n, d]`` that comes in parts: ``parts(place)`` gives (row numbers, rows).

    Every row comes once, or is written to its place in the file by whoever has it.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    parts: Callable[[Place], Iterator[tuple[Ints, Array]]]


@dataclass(frozen=True)
class TensorFile(Mapping[str, Tensor]):
    """The tensors of a safetensors file, read as far as they are asked for."""

    path: Path

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._header:
            raise KeyError(name)
        with safe_open(self.path, "pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor.clone()  # in memory of PyTorch's alignment, on which the last digits of matrix products depend

    def __iter__(self) -> Iterator[str]:
        return iter(self._header)

    def __len__(self) -> int:
        return len(self._header)

    def place(self, name: str) -> Place:
        """Where the rows of a tensor are."""
        entry = self._header[name]
        return Place(self.path, self._start + entry["data_offsets"][0], tuple(entry["shape"][1:]), entry["dtype"])

    def check(self) -> None:
        """Raise an exception of safetensors, or OSError, where the file is damaged."""
        with safe_open(self.path, "pt"):
            """It compares the file's length with what its header says."""

    @cached_property
    def _header(self) -> dict[str, Any]:
        with self.path.open("rb") as file:
            entries = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return {k: v for k, v in entries.items() if k != "__metadata__"}

    @cached_property
    def _start(self) -> int:
        with self.path.open("rb") as file:
            return 8 + int.from_bytes(file.read(8), "little")


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor | RowStream], metadata: dict[str, str] | None = None
) -> None:
    """A safetensors file of `tensors`; streams are written part by part."""
    if not any(isinstance(v, RowStream) for v in tensors.values()):
        whole = with_own_memory({k: v.detach().cpu() for k, v in tensors.items() if isinstance(v, Tensor)})
        path.touch()
        mode = path.stat().st_mode
        try:
            save_file(whole, path, metadata=metadata)
        except SafetensorError as error:  # it has the disk's answer as text alone
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        path.chmod(mode)  # safetensors' own is for the owner alone, unlike that of the files around it
        return
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, v in tensors.items():
        start, dtype = end, _NAMES[v.dtype]
        end += int(np.prod(v.shape)) * _TYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(v.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    written = TensorFile(path.absolute())
    for name, v in tensors.items():
        place = written.place(name)
        if isinstance(v, RowStream):
            for rows, values in v.parts(place):
                place.write(rows, values)
        else:
            place.write(np.arange(len(v)), v.detach().cpu().contiguous().numpy())


def with_own_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, contiguous and each with memory of its own, as safetensors takes them; copies where needed."""
    seen: set[int] = set()
    made: dict[str, Tensor] = {}
    for name, v in tensors.items():
        v = v.contiguous()
        memory = v.untyped_storage().data_ptr()
        made[name] = v.clone() if memory in seen else v
        seen.add(memory)
    return made


def make_readable(path: Path) -> None:
    """The mode that files have which are simply opened: safetensors and tempfile make theirs for the owner alone."""
    mask = os.umask(0o022)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def _runs(rows: Ints) -> Iterator[tuple[int, int]]:
    """Stretches of consecutive row numbers, as positions in `rows`."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    edges = [0, *breaks.tolist(), len(rows)]
    yield from ((a, b) for a, b in pairwise(edges) if b > a)
