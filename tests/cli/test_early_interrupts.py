"""Ctrl-C and SIGTERM while a command has hardly begun: exit code 130, a sentence, and nothing left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCENARIO = """
data: {dataset: digits, clients: 6, limit: 300}
model: {name: linear}
algorithm: {name: fedavg, lr: 0.1}
run: {rounds: 1000000, eval_every: 1000, device: cpu, threads: 1}
"""
READY = """
import runpy, fedsim.cli.ending  # before it is imported nothing of ours can answer
print("begun", flush=True)
runpy.run_module("fedsim", run_name="__main__")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
@pytest.mark.parametrize("after", [0.15, 0.5, 1.2, 2.5])
def test_early(number: signal.Signals, after: float, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SCENARIO)
    argv = [sys.executable, "-c", READY, "run", str(tmp_path / "s.yaml"), "--json", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(after)
    process.send_signal(number)
    out, err = process.communicate(timeout=240)
    assert (process.returncode, out) == (130, ""), err
    assert "interrupted: " in err
    assert "Traceback" not in err
    assert list(tmp_path.rglob(".fedsim.lock")) == []
    assert list(tmp_path.rglob("*.new")) == []
