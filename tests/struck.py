"""A command that gets a signal at a certain moment: when a function of fedsim, or of a library, is called."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import importlib, os, sys

place, count, number, sys.argv[1:] = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
module, _, name = place.partition(":")
*path, last = name.split(".")
owner = importlib.import_module(module)
for part in path:
    owner = getattr(owner, part)
real, calls = getattr(owner, last), 0

def struck(*arguments, **keywords):
    global calls
    calls += 1
    if calls == count:
        print("struck", file=sys.stderr, flush=True)
        os.kill(os.getpid(), number)
    return real(*arguments, **keywords)

setattr(owner, last, struck)
from fedsim.cli.start import main
main()
"""


def struck(
    place: str, number: signal.Signals, *argv: str, count: int = 1, **variables: str
) -> tuple[int, str, list[str]]:
    """Run ``fedsim ARGV``, which gets a signal at the `count`-th call of `place` (``module:function``).

    Returns
    -------
    Exit status, standard output, and the lines of standard error after the signal; `variables` are of its environment.
    """
    command = [sys.executable, "-c", SCRIPT, place, str(count), str(int(number)), *argv]
    done = subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=300, check=False
    )
    before, was, after = done.stderr.partition("struck\n")
    assert was, f"{place} was not called {count} times: {done.stdout}{before}"
    return done.returncode, done.stdout, after.splitlines()


def recorded(folder: Path) -> list[str]:
    """Lines of a run's metrics."""
    file = folder / "metrics.jsonl"
    return file.read_text().splitlines() if file.exists() else []
