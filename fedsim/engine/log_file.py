"""``log.txt`` of a run directory: the warnings of a run, where nobody may see what its process writes.

A run of a sweep on Ray has its process on another machine, or one whose output nobody reads.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedsim.engine.watch import Watched, Watcher

FILE = "log.txt"
LOG = logging.getLogger("fedsim")
_threads: set[int] = set()
"""Those that have a run each: what is said there is of no other run."""


class LogFile(Watcher, logging.Filter):
    """Appends what the logger ``fedsim`` says of a run in this thread, or in one that has no run of its own.

    It is a filter that lets everything pass: a handler would keep Python from writing warnings to standard error.
    Before the run begins nothing is written.
    """

    def __init__(self) -> None:
        super().__init__()
        self._path: Path | None = None
        self._round = 0
        self._waiting = ""
        self._mine = threading.get_ident()

    def began(self, run: Watched) -> None:
        self._path, self._round = run.dir / FILE, run.resumed_at
        self._write()

    def combined(self, number: int) -> None:
        self._round = number

    def filter(self, record: logging.LogRecord) -> bool:
        if record.thread == self._mine or record.thread not in _threads:
            time = logging.Formatter().formatTime(record, "%Y-%m-%d %H:%M:%S")
            at = "at its start" if self._path is None else f"after round {self._round}"
            self._waiting += f"{time}, {at}: {' '.join(record.getMessage().split())}\n"
            self._write()
        return True

    def _write(self) -> None:
        if self._path is not None and self._waiting:
            with suppress(OSError), self._path.open("a", encoding="utf-8") as file:  # what is recorded says so, too
                file.write(self._waiting)
                self._waiting = ""


@contextmanager
def kept_log() -> Iterator[LogFile]:
    """The log of a run of this thread while it lasts; it has to be among the run's watchers."""
    file, first = LogFile(), threading.get_ident() not in _threads
    _threads.add(threading.get_ident())
    LOG.addFilter(file)
    try:
        yield file
    finally:
        LOG.removeFilter(file)
        if first:
            _threads.discard(threading.get_ident())
