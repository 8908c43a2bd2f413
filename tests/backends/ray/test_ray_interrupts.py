"""`fedsim run` with the Ray backend, interrupted or killed: what is left, and that it goes on from there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from struck import recorded, struck

import fedsim
from fedsim.engine.checkpoint import load_checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SCENARIO: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 6, "limit": 200},
    "model": {"name": "linear"},
    "algorithm": {"name": "scaffold", "lr": 0.05, "local_steps": 3},
    "run": {"rounds": 100_000, "eval_every": 10, "dtype": "float64", "device": "cpu"},
    "backend": {"name": "ray", "actors": 2},
}
NODES = {"algorithm": {"name": "gradient_tracking", "lr": 0.01}, "topology": {"graph": "ring"}}
MARK = "FEDSIM_TEST_MARK"


def begin(folder: Path, **sections: Any) -> tuple[subprocess.Popen[str], str]:
    """`fedsim run` in a process group of its own, as a terminal would start it, and a mark that its children carry."""
    (folder / "s.yaml").write_text(yaml.safe_dump({**SCENARIO, **sections}))
    mark = uuid.uuid4().hex
    command = [sys.executable, "-m", "fedsim.cli.app", "run", str(folder / "s.yaml"), "--out", str(folder / "run")]
    process = subprocess.Popen(
        command, env={**os.environ, MARK: mark, "RAY_memory_monitor_refresh_ms": "0"}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    return process, mark


def evaluated(folder: Path, process: subprocess.Popen[str], rows: int) -> None:
    """Wait until the run has recorded so many evaluations."""
    for _ in range(3000):
        metrics = folder / "run" / "metrics.jsonl"
        if metrics.exists() and len(metrics.read_text().splitlines()) >= rows:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    raise AssertionError("the run does not get on")


def alive(mark: str) -> list[str]:
    """Commands of processes with the mark in their environment that are not zombies."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (place / "environ").read_bytes():
                found.append((place / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:120])
        except OSError:
            continue
    return found


def gone_within(mark: str, seconds: float) -> list[str]:
    """What is still alive after that time."""
    deadline = time.monotonic() + seconds
    while (left := alive(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


@pytest.mark.parametrize(("kind", "how"), [("server", "ctrl-c"), ("nodes", "sigterm")])
def test_interrupted_it_writes_a_checkpoint_and_leaves_nothing_running(tmp_path: Path, how: str, kind: str) -> None:
    sections: dict[str, Any] = NODES if kind == "nodes" else {}
    process, mark = begin(tmp_path, **sections)
    try:
        evaluated(tmp_path, process, 3)
        if how == "ctrl-c":  # a terminal sends it to all processes of the group
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert gone_within(mark, 180) == []
    # Some rounds more, here or on Ray, are those of an unbroken run.
    found = load_checkpoint(tmp_path / "run")
    assert found is not None
    at = found.progress["round"]
    shorter = {**SCENARIO, **sections, "run": {**SCENARIO["run"], "rounds": at + 10}, "backend": {"name": "vectorized"}}
    resumed = fedsim.run(shorter, tmp_path / "run", resume=True)
    assert resumed.resumed_at == at
    whole = fedsim.run(shorter, tmp_path / "whole")
    assert float((whole.params - resumed.params).abs().max()) < 1e-9 * float(whole.params.abs().max())
    assert torch.isfinite(whole.params).all()


def test_while_it_starts(tmp_path: Path) -> None:
    """Ctrl-C before the first round, wherever the start is."""
    for seconds in (2.0, 3.5, 5.0, 9.0):
        process, mark = begin(tmp_path)
        try:
            time.sleep(seconds)
            os.killpg(process.pid, signal.SIGINT)
            said, _ = process.communicate(timeout=240)
        finally:
            process.kill()
        # Struck in its imports, Python may itself end by the signal, which a shell calls 130, too.
        assert process.returncode in (130, -signal.SIGINT), said
        assert "Traceback" not in said
        assert gone_within(mark, 180) == []


PHASES = [  # whoever answers a signal there, the command ends as ever
    ("ray._private.node:Node.__init__", signal.SIGTERM, "--resume continues from the last checkpoint"),
    ("ray._private.node:Node.start_ray_processes", signal.SIGINT, "--resume continues from the last checkpoint"),
    ("ray._private.worker:connect", signal.SIGTERM, "--resume continues from the last checkpoint"),
    ("fedsim.backends.ray.cluster:Cluster.start", signal.SIGTERM, "--resume continues from the last checkpoint"),
    ("fedsim.backends.ray.calls:Shards._adopt", signal.SIGTERM, "--resume continues from the last checkpoint"),
    ("fedsim.engine.loop:open_directory", signal.SIGTERM, "--resume continues from the last checkpoint"),
    ("fedsim.engine.evaluate:Evaluation.row", signal.SIGTERM, "a checkpoint of round 1 is in "),
    ("fedsim.engine.loop:save_params", signal.SIGTERM, " is finished"),
    ("fedsim.backends.ray.cluster:Cluster.close", signal.SIGTERM, "--resume continues from the last checkpoint"),
]


@pytest.mark.parametrize(("place", "number", "sentence"), PHASES)
def test_in_every_phase(place: str, number: signal.Signals, sentence: str, tmp_path: Path) -> None:
    scenario = {**SCENARIO, "run": {**SCENARIO["run"], "rounds": 3, "eval_every": 1}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(scenario))
    mark, out = uuid.uuid4().hex, tmp_path / "run"
    code, said, err = struck(place, number, "run", str(tmp_path / "s.yaml"), "--out", str(out), **{MARK: mark})
    assert (code, said) == (130, ""), err
    assert err[-1].startswith("interrupted: ")
    assert sentence in err[-1]
    assert "Traceback" not in "".join(err)
    assert gone_within(mark, 180) == []
    before = recorded(out)
    here = {**scenario, "backend": {"name": "vectorized"}}
    resumed, whole = fedsim.run(here, out, resume=True), fedsim.run(here, tmp_path / "whole")
    assert recorded(out)[: len(before)] == before
    assert float((whole.params - resumed.params).abs().max()) < 1e-9 * float(whole.params.abs().max())


def test_a_killed_run_takes_its_cluster_along(tmp_path: Path) -> None:
    """SIGKILL leaves no time to clean up: Ray's processes notice by themselves, its two agents after a minute."""
    process, mark = begin(tmp_path)
    evaluated(tmp_path, process, 3)
    process.kill()
    process.wait(timeout=240)
    assert gone_within(mark, 180) == []


@pytest.mark.parametrize("kind", ["server", "nodes"])
def test_a_killed_raylet_ends_the_run_with_a_sentence(tmp_path: Path, kind: str) -> None:
    process, mark = begin(tmp_path, **(NODES if kind == "nodes" else {}))
    try:
        evaluated(tmp_path, process, 3)
        raylet = next(
            int(place.name)
            for place in Path("/proc").glob("[0-9]*")
            if (place / "cmdline").exists() and b"raylet/raylet\0" in (place / "cmdline").read_bytes()
            and f"{MARK}={mark}".encode() in (place / "environ").read_bytes()
        )  # fmt: skip
        os.kill(raylet, signal.SIGKILL)
        said, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 1, said
    assert f"Ray's own raylet (process {raylet}) on this machine ended while the run went on" in said
    assert "Traceback" not in said
    assert gone_within(mark, 180) == []
