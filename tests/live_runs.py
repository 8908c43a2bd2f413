"""The command line as processes of their own, and runs that go on until a test ends them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fedsim.engine.checkpoint import load_checkpoint

PATIENCE = 240.0
"""Seconds that a busy machine may take for what takes one."""


def command(*argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fedsim", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def until(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for something that a process which goes on brings about."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def has_checkpoint(folder: Path) -> bool:
    """Whether a run that goes on has one of a later round than the first."""
    try:
        return int(json.loads((folder / "checkpoint" / "progress.json").read_text())["round"]) > 1
    except OSError:  # there is none, or it is being replaced
        return False


def checkpointed(folder: Path) -> int:
    """The round of the newest checkpoint of a run that is stopped or over, perhaps while it replaced another one."""
    found = load_checkpoint(folder)
    assert found is not None
    return int(found.progress["round"])
