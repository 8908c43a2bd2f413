"""What clients keep between rounds: rows by client, in memory or in a file of the run directory.

Only clients that ever worked take memory or disk space; a million others cost an index. A file is read and written
with plain calls, never mapped, so what is resident is what one chunk of rows works on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from fedsim.core.arrays import Bools, Ints
from fedsim.core.errors import RunError
from fedsim.core.types import State

Choice = Literal["auto", "memory", "disk"]
Place = Literal["device", "host", "disk"]

AUTO_BYTES = 2**30
"""State of all clients up to which ``run.client_state: auto`` stays in memory: a checkpoint writes it whole."""
FILE = "clients.bin"
_GPU_SHARE = 0.25  # of the memory that is free when the run starts
_LOAD_ROWS = 64  # rows moved at a time where a checkpoint's tables go into a file


class Table(Protocol):
    """Rows by slot number."""

    def read(self, slots: Ints) -> State:
        """Rows ``[m, d]`` on the training device."""

    def write(self, slots: Ints, rows: State) -> None:
        """Overwrite the rows in `slots`, making room where there is none yet."""


class MemoryTable:
    """Tensors that grow with the slots in use, on `home`; rows are read to and written from `device`.

    On the CPU beside a GPU, rows cross in page-locked memory, so that the copy need not wait.
    """

    def __init__(self, form: State, rows: int, device: torch.device, home: torch.device) -> None:
        self._device, self._home, self._rows = device, home, rows
        self._tables: State = {k: v.new_empty((0, len(v)), device=home) for k, v in form.items()}

    def read(self, slots: Ints) -> State:
        index = torch.as_tensor(slots, device=self._home)
        return {k: _towards(t.index_select(0, index), self._device) for k, t in self._tables.items()}

    def write(self, slots: Ints, rows: State) -> None:
        self._grow(int(slots.max()) + 1)
        index = torch.as_tensor(slots, device=self._home)
        for k, v in rows.items():
            self._tables[k][index] = v.to(self._home)

    def used(self, rows: int) -> State:
        """The first `rows` rows: views, no copies."""
        return {k: table[:rows] for k, table in self._tables.items()}

    def _grow(self, needed: int) -> None:
        for k, table in self._tables.items():
            if needed > len(table):
                room = min(max(needed, 2 * len(table)), self._rows)
                bigger = table.new_empty((room, table.shape[-1]))
                bigger[: len(table)] = table
                self._tables[k] = bigger


class FileTable:
    """Records of equal length in a file, one per slot: a client's rows one after the other."""

    def __init__(self, form: State, device: torch.device, path: Path) -> None:
        self._form, self._device, self._path = form, device, path
        self._lengths = {k: v.numel() * v.element_size() for k, v in form.items()}
        self._record = sum(self._lengths.values())
        self._file: IO[bytes] | None = None

    def read(self, slots: Ints) -> State:
        pinned = self._device.type == "cuda"
        rows = {k: torch.empty((len(slots), len(v)), dtype=v.dtype, pin_memory=pinned) for k, v in self._form.items()}
        with _disk(self._path):
            file = self._open()
            for i, slot in enumerate(slots.tolist()):
                file.seek(slot * self._record)
                for v in rows.values():
                    _read(file, v[i], self._path)
        return {k: v.to(self._device, non_blocking=True) for k, v in rows.items()}

    def write(self, slots: Ints, rows: State) -> None:
        rows = {k: rows[k].detach().to("cpu").contiguous() for k in self._form}
        with _disk(self._path):
            file = self._open()
            for i, slot in enumerate(slots.tolist()):
                file.seek(slot * self._record)
                for v in rows.values():
                    _write(file, v[i])

    def length(self) -> int:
        """Slots that the file has room for."""
        return self._path.stat().st_size // self._record if self._path.exists() else 0

    def flush(self) -> None:
        """Everything written so far is on the disk when this returns."""
        if self._file is not None:
            with _disk(self._path):
                os.fsync(self._file.fileno())

    def _open(self) -> IO[bytes]:
        if self._file is None:
            self._path.touch()
            self._file = self._path.open("r+b", buffering=0)
        return self._file


class ClientStore:
    """Rows by client.

    In a file, a row that the last checkpoint refers to is never overwritten: the client's next row goes to another
    slot, and the old one becomes free with the next checkpoint. So a checkpoint costs the index alone, and a process
    that is killed at any moment leaves the rows of its last checkpoint as they were.
    """

    def __init__(
        self,
        fresh: State,
        device: torch.device,
        num_clients: int,
        choice: Choice = "memory",
        folder: Path | None = None,
    ) -> None:
        self._fresh = {k: v[0] for k, v in fresh.items()}
        self._device = device
        self._slots = np.full(num_clients if self._fresh else 0, -1, dtype=np.int64)
        self._used = 0  # slots from here on were never used
        self._free: list[int] = []
        self._held: Bools = np.zeros(0, dtype=bool)  # slots that the last checkpoint refers to
        self._file = None if folder is None else folder / FILE
        self._table: Table
        place = state_place(choice, state_bytes(self._fresh) * num_clients, device)
        if place == "disk" and self._fresh and self._file is not None:
            self._table = FileTable(self._fresh, self._device, self._file)
        else:
            home = self._device if place == "device" else torch.device("cpu")
            self._table = MemoryTable(self._fresh, num_clients, self._device, home)

    @property
    def empty(self) -> bool:
        """Whether clients keep nothing."""
        return not self._fresh

    def gather(self, clients: Ints) -> State:
        """Rows ``[m, d]`` of `clients`, copies."""
        if not self._fresh:
            return {}
        slots = self._slots[clients]
        known = slots >= 0
        if known.all():
            return self._table.read(slots)
        rows = {k: v.expand(len(clients), -1).clone() for k, v in self._fresh.items()}
        if known.any():
            index = torch.as_tensor(np.flatnonzero(known), device=self._device)
            for k, v in self._table.read(slots[known]).items():
                rows[k].index_copy_(0, index, v)
        return rows

    def scatter(self, clients: Ints, rows: State) -> None:
        """Keep `rows` as the state of `clients`."""
        if self._fresh and len(clients):
            self._table.write(self._claim(clients), rows)

    def save(self) -> dict[str, Tensor]:
        """What a checkpoint needs, as named tensors: views of the tables, or where in the file each client's row is.

        To be written to disk before the next `scatter`, which may use the slots that this frees.
        """
        clients = np.flatnonzero(self._slots >= 0)
        slots = self._slots[clients]
        if isinstance(self._table, FileTable):
            self._table.flush()
            self._hold(slots)
            return {"clients": torch.as_tensor(clients), "slots": torch.as_tensor(slots)}
        in_table = clients[np.argsort(slots)]  # in memory nothing is ever freed: slots are 0, 1, ..., used - 1
        tables = self._table.used(self._used) if isinstance(self._table, MemoryTable) else {}
        return {**{f"table.{k}": v for k, v in tables.items()}, "clients": torch.as_tensor(in_table)}

    def load(self, saved: dict[str, Tensor]) -> None:
        """Continue from what `save` gave; rows that are in a file stay there, whatever the machine would choose."""
        clients = saved["clients"].numpy()
        if "slots" not in saved:
            for start in range(0, len(clients) if self._fresh else 0, _LOAD_ROWS):
                part = slice(start, start + _LOAD_ROWS)
                rows = {k: saved[f"table.{k}"][part].to(self._device) for k in self._fresh}
                self.scatter(clients[part], rows)
            return
        assert self._file is not None
        table = FileTable(self._fresh, self._device, self._file)
        slots = saved["slots"].numpy()
        self._slots[clients], self._used, self._table = slots, table.length(), table
        if slots.max(initial=-1) >= self._used:
            raise RunError(
                f"{self._file} lacks rows that the checkpoint refers to; delete the checkpoint to start over"
            )
        self._hold(slots)

    def _claim(self, clients: Ints) -> Ints:
        """Where to write the rows of `clients`: their slots, or other ones where theirs may not be overwritten."""
        slots = self._slots[clients]
        other = slots < 0
        other[~other] = self._held[slots[~other]] if len(self._held) else False
        slots[other] = [self._free.pop() if self._free else self._next() for _ in range(int(other.sum()))]
        self._slots[clients] = slots
        return slots

    def _next(self) -> int:
        self._used += 1
        if isinstance(self._table, FileTable) and self._used > len(self._held):
            self._held = np.append(self._held, np.zeros(max(64, len(self._held)), dtype=bool))
        return self._used - 1

    def _hold(self, slots: Ints) -> None:
        """`slots` belong to a checkpoint now; all others are free."""
        self._held = np.zeros(self._used, dtype=bool)
        self._held[slots] = True
        self._free = np.flatnonzero(~self._held)[::-1].tolist()


def state_bytes(form: State) -> int:
    """Bytes of one client's rows."""
    return sum(v.shape[-1] * v.element_size() for v in form.values())


def state_place(choice: Choice, size: int, device: torch.device) -> Place:
    """Where `size` bytes, the state of all clients, are kept: on the device, in the machine's memory or in a file.

    ``memory`` and ``auto`` take a GPU's memory while a quarter of what is free suffices; ``auto`` goes to disk where
    the machine's memory would have to hold more than `AUTO_BYTES`.
    """
    if choice == "disk":
        return "disk"
    if device.type == "cuda" and size <= _GPU_SHARE * torch.cuda.mem_get_info(device)[0]:
        return "device"
    if choice == "auto" and size > AUTO_BYTES:
        return "disk"
    return "device" if device.type == "cpu" else "host"


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """What the disk refuses (no room, no rights, a fault) ends the run with a sentence."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot keep clients' state in {path}: {error.strerror}") from error


def _towards(rows: Tensor, device: torch.device) -> Tensor:
    if rows.device == device:
        return rows
    return rows.pin_memory().to(device, non_blocking=True)


def _bytes(row: Tensor) -> memoryview:
    return row.view(torch.uint8).numpy().data


def _read(file: IO[bytes], row: Tensor, path: Path) -> None:
    left = _bytes(row)
    while left:
        count = file.readinto(left)  # type: ignore[attr-defined]  # a raw file has it, typeshed's IO has not
        if not count:
            raise RunError(f"{path} is shorter than its index says; delete the checkpoint to start over")
        left = left[count:]


def _write(file: IO[bytes], row: Tensor) -> None:
    left = _bytes(row)
    while left:
        left = left[file.write(left) :]
