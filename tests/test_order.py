"""The tests' own scheduling: a worker that dies fails one test, and the others still run and end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import order
import pytest

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
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert "crashed" in ended.stdout
    assert "1 failed, 24 passed" in ended.stdout or "1 failed, 23 passed" in ended.stdout


class Worker:
    """What the scheduler sees of a worker: which tests it was sent, and whether it knows that no more come."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.shutting_down = False

    def send_runtest_some(self, tests: list[int]) -> None:
        self.sent += tests

    def shutdown(self) -> None:
        self.shutting_down = True

    def runs(self) -> list[int]:
        """What it begins: a worker keeps its last test until it has another one or knows that none comes."""
        return self.sent if self.shutting_down else self.sent[:-1]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("files", range(1, 7))
def test_a_worker_in_place_of_one_that_died_never_waits_with_its_last_test(size: int, files: int) -> None:
    pytest.importorskip("xdist")
    tests = [f"test_{i}.py::test_{j}" for i in range(files) for j in range(size)]
    config: Any = SimpleNamespace(getvalue=lambda _: ["popen"], option=SimpleNamespace(loadscopereorder=False))
    plan = order.scheduler(config, None)
    first, second = Worker(), Worker()
    plan.add_node(first)
    plan.add_node_collection(first, tests)
    plan.schedule()
    crashed = plan.remove_node(first)
    assert crashed == tests[0]
    plan.add_node(second)
    plan.add_node_collection(second, tests)
    plan.schedule()
    done: list[int] = []
    while begun := [test for test in second.runs() if test not in done]:
        done.append(begun[0])
        plan.mark_test_complete(second, begun[0])
    assert sorted(done) == list(range(len(tests)))
    assert second.shutting_down
