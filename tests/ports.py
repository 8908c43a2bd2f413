"""Ports for processes that tests start.

They lie below those that the system gives away by itself, and above those of Ray's workers: nobody else takes one
between here and the process that will listen there.
"""

from __future__ import annotations

import os
import socket
from itertools import count

_FIRST, _COUNT = 20_000, 12_000
_steps = count(os.getpid() * 97)


def free_port() -> int:
    """A port of the loopback interface at which nobody listens; another one at every call."""
    for step in _steps:
        port = _FIRST + step % _COUNT
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("unreachable")
