"""What is asked of a disk, and what is said when it refuses."""

from __future__ import annotations

import errno
import os
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
