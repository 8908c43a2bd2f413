"""Threads that share a process's work on a CPU, each computing with one thread of PyTorch.

PyTorch splits every operator among its threads, which meet at its end. Where another program has one of the cores, all
wait for the one that lost it, spinning, at every operator. Here threads share work in larger portions and whoever is
free takes the next one. How work falls into portions depends on sizes alone, and an operator runs in one thread, so
numbers are the same bit for bit with any number of threads.

Who asks for it has PyTorch's threads within operators instead: then there are no portions.
"""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count, pairwise
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import torch

from fedsim.core import cores

T = TypeVar("T")

PORTION = 2 * 2**20
"""Bytes that one portion of an operator touches at least: for less, waking a thread costs more than it saves."""

SHARE = 32 * 2**20
"""The same of an operator that just moves or adds up numbers, as fast as memory gives them."""

_PER_THREAD = 2  # portions of an operator: where another program slows one thread down, the others take its second one

_NAME = "fedsim-crew"


class _Crew:
    """The threads of this process; none until they are needed."""

    def __init__(self) -> None:
        self.size, self.asked = 1, False
        self.within = False  # threads are PyTorch's own, within operators
        self.here = threading.local()  # `at_work` is set in a thread while it works on a portion
        self.batches: SimpleQueue[_Batch[Any]] = SimpleQueue()
        self.helpers = 0

    def hire(self, helpers: int) -> None:
        """Have that many threads besides the caller's."""
        while self.helpers < helpers:
            ready = threading.Event()
            threading.Thread(target=self._help, args=(ready,), name=_NAME, daemon=True).start()
            ready.wait()
            self.helpers += 1

    def _help(self, ready: threading.Event) -> None:
        one_thread()
        ready.set()
        while True:
            self.batches.get().work(self.here)


class _Batch(Generic[T]):
    """Jobs that several threads take one after the other, in their order."""

    def __init__(self, jobs: Sequence[Callable[[], T]]) -> None:
        self.jobs, self.next = jobs, count()
        self.results: dict[int, T] = {}
        self.errors: dict[int, BaseException] = {}
        self.gradients = torch.is_grad_enabled()  # a setting of each thread
        self.lock, self.left, self.over = threading.Lock(), len(jobs), threading.Event()

    def work(self, here: threading.local) -> None:
        """Do what nobody has taken yet."""
        before, here.at_work = getattr(here, "at_work", False), True
        try:
            with torch.set_grad_enabled(self.gradients):
                while (i := next(self.next)) < len(self.jobs):
                    try:
                        if not self.errors:
                            self.results[i] = self.jobs[i]()
                    except BaseException as error:
                        self.errors[i] = error
                    with self.lock:
                        self.left -= 1
                    if not self.left:
                        self.over.set()
        finally:
            here.at_work = before

    def ended(self) -> list[T]:
        """What the jobs returned, once all are done; raises what the first of those raised that did."""
        self.over.wait()
        if self.errors:
            raise self.errors[min(self.errors)]
        return [self.results[i] for i in range(len(self.jobs))]


_crew = _Crew()
os.register_at_fork(after_in_child=lambda: globals().update(_crew=_Crew()))


def one_thread() -> None:
    """Let PyTorch compute with one thread in the calling thread."""
    torch.get_num_threads()  # a new thread takes over the process's number at its first question, and not later
    torch.set_num_threads(1)


def settle(threads: int, within: bool = False) -> None:
    """Compute with that many threads from now on, for a process that has nothing else to do.

    `within`: PyTorch divides each operator among them, and the calling thread does all work.
    """
    _crew.size, _crew.asked, _crew.within = threads, True, within
    one_thread()
    if within:
        torch.set_num_threads(threads)


@contextmanager
def working(threads: int | None = None, within: bool = False) -> Iterator[None]:
    """Compute with that many threads for a while, `within` operators or not; PyTorch's own number is as before
    afterwards.

    None: as many as were settled on before, else PyTorch's number, but no more than there are cores for this process.
    """
    before, size, asked, inner = torch.get_num_threads(), _crew.size, _crew.asked, _crew.within
    settle(threads or (size if asked else cores.threads(before)), within)
    try:
        yield
    finally:
        _crew.size, _crew.asked, _crew.within = size, asked, inner
        torch.set_num_threads(before)


def size() -> int:
    """Threads that compute."""
    return _crew.size if _crew.asked else torch.get_num_threads()


def each(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """What the jobs return, in their order; the free threads of the crew take part.

    Within one of several jobs there is no crew: its thread does everything itself. Where jobs raise, no further ones
    begin, and the error of the first of those that raised is raised here.
    """
    crew = _crew
    if len(jobs) < 2 or not free():
        return [job() for job in jobs]
    helpers = min(crew.size, len(jobs)) - 1
    if helpers:
        crew.hire(helpers)
    batch = _Batch(jobs)
    for _ in range(helpers):
        crew.batches.put(batch)
    batch.work(crew.here)
    return batch.ended()


def beside(job: Callable[[], T]) -> Callable[[], T]:
    """Have a free thread of the crew do a job while the caller goes on.

    What comes back gives its result; where nobody has begun by then, the caller does it.
    """
    crew = _crew
    batch = _Batch([job])
    if crew.size > 1 and free():
        crew.hire(1)
        crew.batches.put(batch)

    def result() -> T:
        batch.work(crew.here)
        return batch.ended()[0]

    return result


def free() -> bool:
    """Whether others could help the calling thread: it is not within one of several jobs, nor do threads share each
    operator already."""
    return not (_crew.within or getattr(_crew.here, "at_work", False))


class Own(Generic[T]):
    """A thing that computing changes for a while: the crew's threads use copies of it, every other thread itself.

    Parameters
    ----------
    copied : makes a copy; called with `blank`, which nobody computes with.
    """

    def __init__(self, thing: T, blank: T, copied: Callable[[T], T] = copy.deepcopy) -> None:
        self.thing, self._blank, self._copied = thing, blank, copied
        self._copies: dict[int, T] = {}

    def get(self) -> T:
        """The calling thread's."""
        if threading.current_thread().name != _NAME:
            return self.thing
        number = threading.get_ident()
        if number not in self._copies:
            self._copies[number] = self._copied(self._blank)
        return self._copies[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_copies": {}}


def even(rows: int, number: int) -> list[slice]:
    """Slices that divide `rows` rows as evenly as can be."""
    if number < 2:
        return [slice(0, rows)]
    edges = [rows * i // number for i in range(number + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]


def portions(rows: int, touched: int) -> list[slice]:
    """Even portions of `rows` rows of an operator that touches `touched` bytes: decided by sizes alone."""
    return even(rows, min(rows, touched // PORTION))


def shares(rows: int, touched: int) -> list[slice]:
    """Even portions for the threads that there are, of an operator that just moves or adds up numbers row by row.

    Its result in a row cannot depend on the portion; that of a matrix product can, in the last bits.
    """
    if touched < 2 * SHARE or _crew.size == 1 or not free():
        return [slice(0, rows)]
    return even(rows, min(rows, touched // SHARE, _PER_THREAD * _crew.size))


def apart(work: Callable[[slice], object], parts: Sequence[slice]) -> None:
    """Do `work` on portions of an operator's rows."""
    if len(parts) == 1:
        work(parts[0])
        return
    each([partial(work, part) for part in parts])
