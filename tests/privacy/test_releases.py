"""Releases are on the disk before they happen; a run that was killed has spent them, and uses no noise twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_runs import CASES, CHECKPOINT, KILLED, ROUNDS, killed, move, rows, scenario

import fedsim
from fedsim.core import rng
from fedsim.core.errors import RunError
from fedsim.engine.run_directory import Run, read_jsonl
from fedsim.privacy.ledger import BudgetExceeded


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Keys of all noise that is drawn."""
    drawn: list[int] = []
    honest = rng.key

    def key(seed: int, purpose: str, *parts: Any) -> Any:
        made = honest(seed, purpose, *parts)
        if purpose.startswith("privacy_"):
            drawn.extend(made.reshape(-1).tolist())
        return made

    monkeypatch.setattr(rng, "key", key)
    return drawn


@pytest.mark.parametrize("name", CASES)
def test_a_killed_run_goes_on_and_has_spent_what_it_released(name: str, tmp_path: Path, keys: list[int]) -> None:
    """The very same releases are made again, for nothing: results and epsilon are those of an unbroken run."""
    unbroken = fedsim.run(scenario(name), out=tmp_path / "whole")
    folder = tmp_path / "killed"
    killed(scenario(name), folder)
    spent = Run(folder).privacy["epsilon"]
    assert spent > 0
    known = len(rows(folder))
    keys.clear()
    seen: list[float] = []
    resumed = fedsim.run(
        scenario(name), out=folder, resume=True, progress=lambda _, row: seen.append(row["epsilon"]) if row else None
    )
    assert min(seen) >= spent * (1 - 1e-9)
    assert torch.equal(resumed.params, unbroken.params)
    assert resumed.privacy == unbroken.privacy
    assert rows(folder) == rows(unbroken.dir)
    assert len(rows(folder)) > known or name == "dp_ftrl"
    assert not any("word" in row for row in rows(folder))


@pytest.mark.parametrize("name", CASES)
def test_another_model_gets_other_noise_and_counts(name: str, tmp_path: Path, keys: list[int]) -> None:
    z = 4.0
    unbroken = fedsim.run(scenario(name, z), out=tmp_path / "whole")
    folder = tmp_path / "killed"
    killed(scenario(name, z), folder)
    first = keys.copy()
    move(folder)
    keys.clear()
    resumed = fedsim.run(scenario(name, z), out=folder, resume=True)
    again = set(first) & set(keys)
    if name == "dp_ftrl":  # the noise of sums before the checkpoint stays in the sums after it
        assert 0 < len(again) <= 3
    else:
        assert not again
    assert resumed.privacy["epsilon"] > unbroken.privacy["epsilon"]
    assert resumed.privacy["rows"] == len(rows(folder)) > len(rows(unbroken.dir))
    assert any("word" in row for row in rows(folder))


@pytest.mark.parametrize("name", ["gaussian", "dp_fedavg", "muffliato"])
def test_a_run_that_goes_another_way_does_not_pass_its_budget(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    killed(scenario(name), folder)
    move(folder)
    with pytest.raises(BudgetExceeded):
        fedsim.run(scenario(name), out=folder, resume=True)
    spent = Run(folder).privacy
    assert spent["epsilon"] <= spent["budget"] * (1 + 1e-6)


def test_killed_twice_on_two_ways(tmp_path: Path, keys: list[int]) -> None:
    """What the second life drew is not drawn again by the third, although its checkpoint knows neither."""
    folder = tmp_path / "killed"
    killed(scenario("gaussian", 4.0), folder)
    move(folder)
    shutil.copytree(folder / "checkpoint", tmp_path / "checkpoint")
    lives = [set(keys)]
    for _ in range(2):
        keys.clear()
        fedsim.run(scenario("gaussian", 4.0), out=folder, resume=True)
        lives.append(set(keys))
        shutil.rmtree(folder / "checkpoint")
        shutil.copytree(tmp_path / "checkpoint", folder / "checkpoint")
    assert not lives[0] & lives[1]
    assert not (lives[0] | lives[1]) & lives[2]


def test_a_sum_of_others_gets_other_noise(tmp_path: Path, keys: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same jobs from the same model, but what comes back differs in its last bits."""
    from fedsim.clients.worker import Worker

    folder = tmp_path / "killed"
    killed(scenario("gaussian", 4.0), folder)
    first = set(keys)
    keys.clear()
    honest = Worker.run
    monkeypatch.setattr(Worker, "run", lambda w, job: {k: v * (1 + 1e-6) for k, v in honest(w, job).items()})
    resumed = fedsim.run(scenario("gaussian", 4.0), out=folder, resume=True)
    assert not first & set(keys)
    assert any(row["charged"] for row in rows(folder) if "sum" in row)
    releases = {r["kind"]: r["count"] for r in resumed.privacy["releases"]}
    assert sum(releases.values()) == ROUNDS + KILLED - CHECKPOINT


def test_a_run_killed_before_any_checkpoint_counts_too(tmp_path: Path) -> None:
    """By SIGKILL, in a process of its own."""
    code = (
        "import json, os, signal, sys, fedsim\n"
        "def stop(number, row):\n"
        "    if number == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "fedsim.run(json.loads(sys.argv[1]), out=sys.argv[2], progress=stop)\n"
    )
    sections = scenario("gaussian")
    sections["run"] |= {"checkpoint_seconds": 1e6, "eval_every": 100}
    folder = tmp_path / "killed"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(sections), str(folder)], timeout=300, env=dict(os.environ), check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert not (folder / "checkpoint").exists()
    assert [row["round"] for row in rows(folder) if "sum" in row] == [1, 2, 3, 4, 5]
    assert json.loads((folder / "privacy.json").read_text())["rows"] == 0
    spent = Run(folder).privacy
    assert sum(r["count"] for r in spent["releases"]) == 5
    assert 0 < spent["epsilon"] < spent["budget"]
    resumed = fedsim.run(sections, out=folder, resume=True)
    unbroken = fedsim.run(sections, out=tmp_path / "whole")
    assert torch.equal(resumed.params, unbroken.params)
    assert resumed.privacy == unbroken.privacy
    assert read_jsonl(resumed.dir / "releases.jsonl") == read_jsonl(unbroken.dir / "releases.jsonl")


def test_a_new_run_in_the_same_folder_begins_at_nothing(tmp_path: Path) -> None:
    killed(scenario("gaussian"), tmp_path)
    before = len(rows(tmp_path))
    fedsim.run(scenario("gaussian"), out=tmp_path)
    assert len(rows(tmp_path)) == 2 * ROUNDS > before


def test_missing_and_damaged_rows_are_told(tmp_path: Path) -> None:
    sections = scenario("gaussian")
    killed(sections, tmp_path)
    file = tmp_path / "releases.jsonl"
    whole = file.read_text()
    file.write_text("".join(whole.splitlines(keepends=True)[:2]))
    with pytest.raises(RunError, match=r"has 2 rows, but the checkpoint was written after 6: releases are missing"):
        fedsim.run(sections, out=tmp_path, resume=True)
    for bad in ("[]", "{}", '{"job": "a", "charged": [{"kind": 1}]}', "nothing"):
        file.write_text(whole + bad + "\n")
        with pytest.raises(RunError, match=r"releases\.jsonl is damaged"):
            fedsim.run(sections, out=tmp_path, resume=True)
    file.write_text(whole + '{"job": "cut sho')
    assert fedsim.run(sections, out=tmp_path, resume=True).privacy["epsilon"] == pytest.approx(3.0)


def test_every_row_is_written_before_the_work_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedsim.clients.worker import Worker

    honest, counts = Worker.run, list[int]()

    def run(worker: Worker, job: Any) -> Any:
        counts.append(len(rows(tmp_path)))
        return honest(worker, job)

    monkeypatch.setattr(Worker, "run", run)
    fedsim.run(scenario("local_dp"), out=tmp_path)
    assert counts == list(range(1, ROUNDS + 1))
