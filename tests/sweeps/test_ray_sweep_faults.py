"""What happens to sweeps on Ray: killed, interrupted, trials that fail or need actors, machines without the folder."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

import fedsim
from fedsim.core.errors import InputError, RunError
from fedsim.core.modules import Places
from fedsim.sweeps.files import read_sweep
from fedsim.sweeps.home import Home
from fedsim.sweeps.trial import Work
from fedsim.sweeps.tune import Together

SCENARIO: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 4, "limit": 100},
    "model": {"name": "linear"},
    "algorithm": {"name": "scaffold", "lr": 0.1, "batch_size": 10},
    "run": {"rounds": 4, "eval_every": 1, "device": "cpu", "dtype": "float64", "threads": 1},
}


COUNT = 9
"""Runs of the sweep that is killed and interrupted."""


def write(folder: Path, **sweep: Any) -> Path:
    (folder / "s.yaml").write_text(yaml.safe_dump(SCENARIO))
    (folder / "w.yaml").write_text(yaml.safe_dump({"name": "faults", "scenario": "s.yaml", **sweep}, sort_keys=False))
    return folder / "w.yaml"


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    environment = os.environ | {"RAY_memory_monitor_refresh_ms": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-m", "fedsim.cli.app", "sweep", "w.yaml", "--out", "out", "--parallel", "2", *more],
        cwd=folder,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, start_new_session=True,
    )  # fmt: skip


def wait_for(count: int, folder: Path, process: subprocess.Popen[str]) -> None:
    """Until `count` runs of a sweep are finished."""
    until = time.monotonic() + 300
    while len(list((folder / "out").glob("*/params.safetensors"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


def wait_for_the_end(session: int) -> None:
    """Until no process of a session lives that could compute or write.

    Two agents of Ray's outlive a cluster whose driver was killed by about a minute, in which they try to report that.
    """
    until = time.monotonic() + 180
    while left := [line for line in processes(session) if "Agent" not in line]:
        assert time.monotonic() < until, left
        time.sleep(0.1)


def processes(session: int) -> list[str]:
    """The command lines of the processes of a session."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, own = (place / "stat").read_text().rpartition(")")[2].split()[:4]
            if own == str(session) and state != "Z":
                found.append((place / "cmdline").read_text())
        except OSError:
            continue
    return found


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_and_an_interrupted_sweep_lose_and_repeat_nothing(tmp_path: Path) -> None:
    write(tmp_path, grid={"seed": list(range(COUNT))}, set={"run.rounds": 150, "run.eval_every": 50})
    out = tmp_path / "out"

    first = start(tmp_path)
    wait_for(1, tmp_path, first)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    wait_for_the_end(first.pid)
    kept = {p: p.stat().st_mtime_ns for p in out.glob("*/params.safetensors")}
    assert 1 <= len(kept) < COUNT - 3  # and the two that were under way

    second = start(tmp_path, "--resume")
    wait_for(len(kept) + 1, tmp_path, second)
    os.killpg(second.pid, signal.SIGINT)  # as Ctrl-C in a terminal: to all its processes
    _, said = second.communicate(timeout=240)
    assert second.returncode == 130, said
    assert "--resume continues" in said
    assert "Traceback" not in said
    wait_for_the_end(second.pid)
    assert not (out / ".tune").exists()
    kept |= {p: p.stat().st_mtime_ns for p in out.glob("*/params.safetensors") if p not in kept}
    assert 2 <= len(kept) < COUNT

    third = start(tmp_path, "--resume", "--json")
    printed, said = third.communicate(timeout=300)
    assert third.returncode == 0, said
    assert [row["status"] for row in json.loads(printed)] == ["finished"] * COUNT
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    for seed in (0, 3, COUNT - 1):
        swept = fedsim.engine.run_directory.Run(out / f"seed={seed}")
        alone = fedsim.run(swept.dir / "scenario.yaml", out=tmp_path / f"alone-{seed}")
        assert torch.equal(swept.params, alone.params)
        assert swept.metrics.drop(columns="wall").equals(alone.metrics.drop(columns="wall"))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_stopped_runs_stay_stopped_and_failures_harm_nobody(tmp_path: Path) -> None:
    cases = {
        "good": {"algorithm.lr": 0.3}, "bad": {"algorithm.lr": 1e-7}, "worse": {"algorithm.lr": 1e-8},
        "crowded": {"data.clients": 101},
    }  # fmt: skip
    stop = {"metric": "test_accuracy", "grace": 2, "factor": 4}
    file = write(tmp_path, cases=cases, set={"run.rounds": 20}, stop=stop)
    outcomes = fedsim.sweep(file, out=tmp_path / "out", together=Together(parallel=1))
    assert [o.status for o in outcomes] == ["finished", "stopped", "stopped", "failed"]
    assert [o.run is None for o in outcomes] == [False, True, True, True]
    seen: list[str] = []
    again = fedsim.sweep(
        file, out=tmp_path / "out", resume=True, together=Together(parallel=1),
        ended=lambda outcome: seen.append(outcome.point.label),
    )  # fmt: skip
    assert seen == ["crowded"]  # what failed is tried again, what was stopped is not
    assert [o.status for o in again] == [o.status for o in outcomes]
    assert list(pd.read_csv(tmp_path / "out" / "summary.csv")["status"]) == [o.status for o in outcomes]

    with pytest.raises(InputError, match="nothing says whether more or less of 'test_acuracy' is better"):
        fedsim.sweep(write(tmp_path, cases={"good": None}, stop={**stop, "metric": "test_acuracy"}))
    misspelt = write(tmp_path, cases={"good": None}, stop={**stop, "metric": "test_acuracy", "mode": "max"})
    (outcome,) = fedsim.sweep(misspelt, out=tmp_path / "misspelt", together=Together(parallel=1))
    assert isinstance(outcome.error, RunError)
    assert "test_acuracy; allowed: a metric of the run: round, time" in str(outcome.error)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_paths_are_of_the_folder_where_the_sweep_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs" / "g.csv").write_text("source,target\n0,1\n1,2\n2,3\n")
    monkeypatch.chdir(tmp_path)
    ring = {"algorithm": {"name": "dgd", "lr": 0.1}, "topology": {"graph": "file", "path": "graphs/g.csv"}}
    write(tmp_path, cases={"file": ring})
    (outcome,) = fedsim.sweep("w.yaml", out="out", together=Together(parallel=1))
    assert outcome.status == "finished", outcome.error


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_runs_whose_own_backend_is_ray_do_not_wait_for_each_other(tmp_path: Path) -> None:
    # Three runs with two actors each take nine of the session's ten CPUs: actors beside what is reserved find no room.
    file = write(tmp_path, cases={"ray": {"backend": {"name": "ray", "actors": 2}}}, grid={"seed": [0, 1, 2]})
    for outcome in fedsim.sweep(file, out=tmp_path / "out", together=Together(parallel=3)):
        assert outcome.run is not None, outcome.error
        alone = fedsim.run({**SCENARIO, "seed": outcome.point.changes["seed"]}, out=tmp_path / outcome.point.label)
        assert torch.allclose(outcome.run.params, alone.params, rtol=0, atol=1e-12)
    greedy = write(tmp_path, cases={"ray": {"backend": {"name": "ray", "actors": 11}, "data.clients": 20}})
    with pytest.raises(InputError, match="found 12 CPUs for a run and the actors of its own backend"):
        fedsim.sweep(greedy, out=tmp_path / "greedy", together=Together(parallel=1))


@pytest.mark.parametrize("together", [None, pytest.param(Together(parallel=1), marks=pytest.mark.ray)])
def test_what_somebodys_own_part_raises_fails_its_run_only(
    tmp_path: Path, together: Together | None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if together is not None:
        request.getfixturevalue("ray_session")
    (tmp_path / "sulky.py").write_text(
        "from fedsim.algorithms.fedavg import FedAvg\n"
        "class Sulky(FedAvg):\n"
        "    def combine(self, state, messages, round, aggregate):\n"
        "        if self.server_lr > 1 and round.number == 2:\n"
        "            raise KeyError('no such thing')\n"
        "        return super().combine(state, messages, round, aggregate)\n"
    )
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path, set={"algorithm": {"name": "sulky:Sulky"}}, grid={"algorithm.server_lr": [1.0, 2.0]})
    fine, broken = fedsim.sweep(file, out=tmp_path / "out", together=together)
    assert fine.status == "finished", fine.error
    assert isinstance(broken.error, RunError)
    assert "your own sulky:Sulky.combine" in str(broken.error)
    assert str(broken.error).endswith("raised KeyError: 'no such thing' (traceback in error.txt of its directory)")
    assert "in combine" in (broken.dir / "error.txt").read_text()
    file = write(tmp_path, set={"algorithm": {"name": "fedavg"}}, grid={"algorithm.server_lr": [1.0, 2.0]})
    for mended in fedsim.sweep(file, out=tmp_path / "out", together=together):
        assert mended.status == "finished", mended.error
        assert not (mended.dir / "error.txt").exists()


@pytest.mark.ray
def test_machines_that_do_not_see_the_folder_send_what_they_recorded(ray_session: Any, tmp_path: Path) -> None:
    diverges = {"algorithm": {"name": "fedavg", "lr": 1e38, "local_steps": 50}, "run.dtype": "float32"}
    file = write(tmp_path, cases={"fine": None, "diverges": diverges})
    points = read_sweep(file).points
    alone = fedsim.sweep(file, out=tmp_path / "alone")
    places = [tmp_path / "home" / point.label for point in points]
    places[0].mkdir(parents=True)
    (places[0] / "stale").touch()
    home = ray_session.remote(num_cpus=0)(Home).remote([str(place) for place in places])
    work = Work(
        [pickle.dumps(p.scenario) for p in points], [f"/nowhere/{p.label}" for p in points], "/no", Places.here(), home
    )

    def errors_of_both(work: Work) -> list[str | None]:
        """What the trials tell Ray Tune."""
        from unittest.mock import patch

        from fedsim.sweeps.trial import trial

        said: list[Any] = []
        with patch("ray.tune.report", said.append):
            found = []
            for number in (0, 1):
                trial({"number": number}, work)
                found.append(said[-1].get("error"))
        return found

    errors = ray_session.get(ray_session.remote(num_cpus=1)(errors_of_both).remote(work))
    assert "diverged" in errors[1]
    assert errors[0] is None
    assert fedsim.engine.run_directory.read_jsonl(places[1] / "metrics.jsonl")[0]["round"] == 0
    assert alone[0].run is not None
    assert torch.equal(fedsim.engine.run_directory.Run(places[0]).params, alone[0].run.params)
    assert sorted(p.name for p in places[0].iterdir()) == sorted(p.name for p in alone[0].dir.iterdir())
    ray_session.kill(home)
