"""Keeping freed memory: for training on a CPU, page faults cost as much as arithmetic."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # from glibc's malloc.h
_MIB = 2**20


def keep_freed_memory() -> bool:
    """Tell glibc to reuse large freed blocks instead of handing their pages back and faulting them in again.

    A round allocates and frees the same tens of megabytes over and over; glibc gives blocks above 32 MiB, and the
    top of the heap, back to the system each time. Does nothing (and returns False) with another C library.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl, say
        return False
    settings = ((_M_MMAP_THRESHOLD, 1024 * _MIB), (_M_TRIM_THRESHOLD, 1024 * _MIB), (_M_TOP_PAD, 64 * _MIB))
    return all(mallopt(name, value) == 1 for name, value in settings)
