"""Chunks of rows side by side: a job's chunks are independent of each other but for what clients keep.

What falls into a chunk depends on sizes alone, and so does whether chunks are shared among threads; messages and kept
state are the same bit for bit for any number of threads, and so is the order in which state is written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from fedsim.core import crew
from fedsim.core.arrays import Ints
from fedsim.core.types import Message, State

_PORTIONS = 16  # of a job that would else be fewer chunks
_LEAST_BYTES = 16 * 2**20
"""That a chunk touches in a step: in smaller ones, threads would wait for the interpreter most of the time."""
_LARGE = 2**20
"""That a step of one client touches from which on two halves of a job pay: its operators take long enough."""


def divided(rows: int, most: int, row_bytes: int, device: torch.device) -> list[slice]:
    """Chunks of at most `most` of `rows` rows, of which a step touches `row_bytes` bytes each: even ones.

    On a CPU there are enough of them for several threads, and of large models an even number, so that two threads have
    the same to do. Elsewhere chunks follow each other, and there are as few as can be.
    """
    count = -(-rows // most)
    if device.type == "cpu":
        touched = rows * row_bytes
        count = max(count, min(touched // _LEAST_BYTES, _PORTIONS))
        if row_bytes >= _LARGE and touched >= _LEAST_BYTES:  # in one chunk all threads would meet at every operator
            count = max(count, 2)
            count += count % 2
    return crew.even(rows, min(rows, count))


def share(compute: Callable[[int], None], count: int, touched: int, device: torch.device) -> None:
    """Compute chunks 0, 1, ..., which touch `touched` bytes together in a step, by all threads where it pays."""
    if device.type == "cpu" and touched >= count * _LEAST_BYTES // 4:
        crew.each([partial(compute, number) for number in range(count)])
        return
    for number in range(count):
        compute(number)


class Kept(Protocol):
    """What clients keep between rounds, as a chunk sees it."""

    def gather(self, clients: Ints) -> State:
        """Rows ``[m, d]`` of `clients`, copies."""

    def scatter(self, clients: Ints, rows: State) -> None:
        """Keep `rows` as the state of `clients`."""


class InTurn:
    """A store that several chunks use at once: one reads or writes at a time, and they write in their order."""

    def __init__(self, store: Kept) -> None:
        self._store = store
        self._next = 0
        self._broken = False
        self._changed = threading.Condition()

    @contextmanager
    def turn(self, number: int) -> Iterator[Kept]:
        """The store as chunk `number` uses it; what it keeps is written at the end, after the chunks before it."""
        own = _Own(self)
        try:
            yield own
            with self._changed:
                self._changed.wait_for(lambda: self._broken or self._next == number)
                if not self._broken:
                    for clients, rows in own.written:
                        self._store.scatter(clients, rows)
                    self._next = number + 1
        except BaseException:
            self._broken = True
            raise
        finally:
            with self._changed:
                self._changed.notify_all()

    def gather(self, clients: Ints) -> State:
        with self._changed:
            return self._store.gather(clients)


class _Own:
    """One chunk's view."""

    def __init__(self, shared: InTurn) -> None:
        self._shared = shared
        self.written: list[tuple[Ints, State]] = []

    def gather(self, clients: Ints) -> State:
        return self._shared.gather(clients)

    def scatter(self, clients: Ints, rows: State) -> None:
        self.written.append((clients, rows))


class Rows:
    """Messages ``[m, d]`` that chunks fill in."""

    def __init__(self, count: int) -> None:
        self.tensors: Message = {}
        self._count = count
        self._lock = threading.Lock()

    def put(self, rows: Ints, index: Tensor, part: Message) -> None:
        """Put a chunk's messages into their rows; `index` is `rows` on the device."""
        with self._lock:
            for k, v in part.items():
                if k not in self.tensors:
                    self.tensors[k] = v.new_empty((self._count, v.shape[-1]))
        in_order = bool((rows[1:] - rows[:-1] == 1).all())
        for k, v in part.items():
            if in_order:
                self.tensors[k][rows[0] : rows[0] + len(rows)] = v
            else:
                self.tensors[k].index_copy_(0, index, v)
