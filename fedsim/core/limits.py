"""What fits this machine: sizes that files and scenarios claim are checked before anything is allocated."""

from __future__ import annotations

import os
from pathlib import Path

from fedsim.core.errors import InputError

MOST_PIXELS = 2**26
"""Of one image. Beyond it lie files of a few bytes that claim to be gigabytes."""


def memory() -> int:
    """Bytes of memory that this process can have at most: the machine's, or its control group's."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(file).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            limits.append(int(text))
    return min(limits)


def check_room(needed: int, what: str, key: str | None = None, file: str | None = None) -> None:
    """InputError where `needed` bytes for `what` are more than the machine has."""
    limit = memory()
    if needed > limit:
        raise InputError(f"{what} needs {size(needed)}; allowed: this machine's memory, {size(limit)}", key, file)


def size(count: int) -> str:
    """A number of bytes in words."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"
        value /= 1024
    raise AssertionError
