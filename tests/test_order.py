"""The tests' own scheduling: a worker that dies fails one test, and the others still run and end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CONFTEST = """
import order
import pytest

@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return order.scheduler(config, log)
"""


def test_a_worker_that_dies_does_not_hold_up_the_others(tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / f"test_{i}.py").write_text("def test_a(): pass\ndef test_b(): pass\n")
    fails_once = "import os, pathlib\ndef test_a():\n    once = pathlib.Path('once')\n    if not once.exists():\n"
    (tmp_path / "test_3.py").write_text(fails_once + "        once.touch()\n        os.abort()\n")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "."]
    find = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    (tmp_path / "conftest.py").write_text(find + CONFTEST)
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert "crashed" in ended.stdout
    assert "1 failed, 24 passed" in ended.stdout or "1 failed, 23 passed" in ended.stdout
