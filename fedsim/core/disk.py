"""What is asked of a disk, and what is said when it refuses."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedsim.core.errors import RunError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def settle(path: Path) -> None:
    """Have a file's content, or a folder's names, outlast the machine's end."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path beside `file` to write to; at the end it takes `file`'s place in one step.

    Whoever reads `file`, or ends this process, finds all of the old content or all of the new. What was begun is taken
    away where the block raises.
    """
    fresh = file.with_name(f"{file.name}.new")
    try:
        yield fresh
        fresh.replace(file)
    except BaseException:
        with suppress(OSError):
            fresh.unlink()
        raise


def write_whole(file: Path, text: str) -> None:
    """Write a text file in UTF-8: all of it is there, or the file as it was before."""
    with replacing(file) as fresh:
        fresh.write_text(text, encoding="utf-8")


def is_full(error: OSError) -> bool:
    """Whether the disk, or what one user may have of it, has no room."""
    return error.errno in _FULL


def cannot_write(path: Path, error: OSError) -> RunError:
    """The sentence for a file that could not be written, and what helps."""
    place = Path(error.filename) if isinstance(error.filename, str) else path
    reason = error.strerror or str(error)
    if is_full(error):
        return RunError(f"{place} cannot be written: {reason}; make room there, then --resume continues the run")
    if not place.parent.exists():
        return RunError(f"{place.parent} is no longer there: it was removed or renamed while the run wrote to it")
    return RunError(f"{place} cannot be written: {reason}")
