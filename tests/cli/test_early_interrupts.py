"""Ctrl-C and SIGTERM while a command has hardly begun: exit code 130, a sentence, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedsim.cli.ending import interruptible

SCENARIO = """
data: {dataset: digits, clients: 6, limit: 300}
model: {name: linear}
algorithm: {name: fedavg, lr: 0.1}
run: {rounds: 1000000, eval_every: 1000, device: cpu, threads: 1}
"""
READY = """
import runpy, sys

class Tell:  # what comes before is Python's own
    def find_spec(self, name, path=None, target=None):
        if name == "fedsim.cli.app":
            print("begun", flush=True)

sys.meta_path.insert(0, Tell())
"""
ENTRIES = {
    "module": 'runpy.run_module("fedsim", run_name="__main__")',
    "console script": "from fedsim.cli.start import main; sys.exit(main())",
}


MOMENTS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.3, 0.5, 1.2, 2.5)
PAIRS = [(signal.SIGINT, "module"), (signal.SIGTERM, "console script"), (signal.SIGTERM, "module"),
         (signal.SIGINT, "console script")]  # fmt: skip
# At every moment both signals and both entries; each signal at each entry at every second moment.
CASES = [(moment, *PAIRS[2 * (i % 2) + j]) for i, moment in enumerate(MOMENTS) for j in (0, 1)]


@pytest.mark.parametrize("after,number,entry", CASES, ids=lambda v: v.name if isinstance(v, signal.Signals) else str(v))
def test_early(after: float, number: signal.Signals, entry: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SCENARIO)
    argv = [
        sys.executable,
        "-c",
        READY + ENTRIES[entry],
        "run",
        str(tmp_path / "s.yaml"),
        "--json",
        "--out",
        str(tmp_path / "out"),
    ]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(after)
    process.send_signal(number)
    out, err = process.communicate(timeout=240)
    assert (process.returncode, out) == (130, ""), err
    assert err.startswith("interrupted: ")
    assert len(err.splitlines()) == 1
    assert list(tmp_path.rglob(".fedsim.lock")) == []
    assert list(tmp_path.rglob("*.new")) == []


class Doomed:
    """Python ignores what is raised while an object is destroyed, and in the callbacks that importing has."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)


def test_an_interrupt_that_python_ignores_is_sent_again(capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()

    def work() -> None:
        with interruptible():
            Doomed()
            time.sleep(600)

    with pytest.raises(SystemExit) as ended:
        work()
    assert ended.value.code == 130
    assert time.monotonic() - began < 300
    assert capsys.readouterr().err == "interrupted: nothing more is written\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_in_executed_text_ends_a_module_with_the_exit_code(number: signal.Signals, tmp_path: Path) -> None:
    """Classes are made by such text while modules are imported; Python remembers an interrupt there to its end."""
    (tmp_path / "struck_in_text.py").write_text(
        f"""
import os
from fedsim.cli.ending import interruptible

with interruptible():
    exec("os.kill(os.getpid(), {int(number)})\\nfor _ in range(10**8): pass")
"""
    )
    ended = subprocess.run(
        [sys.executable, "-m", "struck_in_text"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (130, "interrupted: nothing more is written\n")
