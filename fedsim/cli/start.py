"""Where the command line begins: signals are answered before anything is imported that takes a moment.

Until the command itself answers them (`ending`), nothing has been written and nothing need be put away.
"""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False  # the module `typing` would take longer than all the rest here
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> NoReturn:
    """Entry point: exit code 0 done, 1 the run failed, 2 the input is wrong, 130 interrupted."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    from fedsim.cli.app import main as command

    command()


def _end(*_: object) -> None:
    """End at once: an exception could be lost among those that libraries raise and catch while they are imported."""
    os.write(2, b"interrupted: nothing was begun\n")
    os._exit(130)
