"""A folder that is written to has one owner; a second is told who it is, and a dead one is followed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from live_runs import PATIENCE, checkpointed, command, has_checkpoint, until

import fedsim
from fedsim.cli.app import main
from fedsim.core.errors import InputError
from fedsim.core.lock import FILE, owned
from fedsim.engine.run_directory import read_jsonl

SCENARIO: dict[str, Any] = {
    "name": "owner",
    "data": {"dataset": "digits", "clients": 6, "limit": 300},
    "model": {"name": "linear"},
    "algorithm": {"name": "fedavg", "lr": 0.1, "local_steps": 1},
    "run": {"rounds": 3, "eval_every": 1, "device": "cpu", "threads": 1},
}
LONG: dict[str, Any] = {**SCENARIO, "run": {**SCENARIO["run"], "rounds": 10**6, "checkpoint_seconds": 0.1}}


def write(folder: Path, scenario: Mapping[str, Any]) -> str:
    (folder / "s.yaml").write_text(yaml.safe_dump(dict(scenario)))
    (folder / "sweep.yaml").write_text("{scenario: s.yaml, name: two, grid: {seed: [1, 2]}}")
    return str(folder / "s.yaml")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[object, str, str]]:
    """``here(*argv)``: the command line in this process; its exit code, standard output and standard error."""

    def call(*argv: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedsim", *argv])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return call


@pytest.mark.parametrize("how", ["run", "resume", "sweep"])
def test_the_second_of_two_is_refused_and_the_first_is_as_it_would_be_alone(
    how: str, tmp_path: Path, here: Callable[..., tuple[object, str, str]]
) -> None:
    file, out = write(tmp_path, LONG), tmp_path / "out"
    argv = {"run": ("run", file), "resume": ("run", file, "--resume"), "sweep": ("sweep", str(tmp_path / "sweep.yaml"))}
    inner = out / "seed=1" if how == "sweep" else out
    first = command(*argv[how], "--out", str(out))
    try:
        until(lambda: has_checkpoint(inner), first)
        first.send_signal(signal.SIGSTOP)  # it is the owner all the same, and leaves the processor to the others
        until(lambda: "T" in Path(f"/proc/{first.pid}/stat").read_text().rpartition(")")[2].split()[0], first)
        stopped = checkpointed(inner)
        kept = {name: (inner / name).read_bytes() for name in ("scenario.yaml", "environment.json", "partition.csv")}
        refused = [(*argv[how], "--out", str(out)), ("run", file, "--out", str(inner), "--resume")]
        for second in refused:
            code, said, err = here(*second)
            assert (code, said) == (2, "")
            assert (
                f"out{'' if second is refused[0] or how != 'sweep' else '/seed=1'}: belongs to process {first.pid} on"
                in err
            )
            assert "Traceback" not in err
        assert {name: (inner / name).read_bytes() for name in kept} == kept
        assert first.poll() is None
        assert here("report", str(inner), "--out", str(tmp_path / "report.html"))[0] == 0
        before = (inner / "checkpoint").stat().st_ino if (inner / "checkpoint").exists() else None
        first.send_signal(signal.SIGCONT)
        until(lambda: (inner / "checkpoint").exists() and (inner / "checkpoint").stat().st_ino != before, first)
    finally:
        first.send_signal(signal.SIGCONT)
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=PATIENCE)
    assert first.returncode == 130
    assert checkpointed(inner) > stopped
    assert list(out.rglob(FILE)) == []
    rounds = [row["round"] for row in read_jsonl(inner / "metrics.jsonl")]
    assert rounds == list(range(len(rounds)))


def test_of_two_started_together_one_runs(tmp_path: Path) -> None:
    file, out = write(tmp_path, LONG), tmp_path / "out"
    both = [command("run", file, "--out", str(out), "--set", f"seed={seed}") for seed in (1, 2)]
    deadline = time.monotonic() + PATIENCE
    while all(process.poll() is None for process in both):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    goes_on = 1 if both[0].poll() is not None else 0
    until(lambda: has_checkpoint(out), both[goes_on])
    both[goes_on].send_signal(signal.SIGINT)
    ended = [(p.communicate(timeout=PATIENCE)[1], p.returncode) for p in both]
    assert [ended[goes_on][1], ended[1 - goes_on][1]] == [130, 2], ended
    rounds = [row["round"] for row in read_jsonl(out / "metrics.jsonl")]
    assert rounds == list(range(len(rounds)))
    assert yaml.safe_load((out / "scenario.yaml").read_text())["seed"] == 1 + goes_on


def test_a_killed_owner_is_followed_and_its_run_resumed(tmp_path: Path) -> None:
    file, out = write(tmp_path, LONG), tmp_path / "out"
    first = command("run", file, "--out", str(out))
    until(lambda: has_checkpoint(out), first)
    first.kill()
    first.communicate(timeout=PATIENCE)
    assert json.loads((out / FILE).read_text())["pid"] == first.pid
    done = checkpointed(out)
    rounds = done + 3
    settings = {**LONG, "run": {**LONG["run"], "rounds": rounds}}
    with pytest.raises(InputError, match=r"run\.rounds: found"):  # refused for another reason: it has no owner then
        fedsim.run({**LONG, "run": {**LONG["run"], "rounds": 1}}, out=out, resume=True)
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**settings, "run": {**settings["run"], "rounds": rounds}}))
    resumed = fedsim.run(settings, out=out, resume=True)
    assert resumed.resumed_at == done
    assert not (out / FILE).exists()


def dead() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def pretend(folder: Path, **other: Any) -> None:
    """A lock as this process would make it, but for some keys."""
    with owned(folder):
        lock = json.loads((folder / FILE).read_text())
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_text(json.dumps({**lock, "name": "theirs", **other}))


@pytest.mark.parametrize(
    "other", [{"pid": 0}, {"start": "1"}, {"boot": "an earlier one"}], ids=["gone", "number used again", "restarted"]
)
def test_dead_owners_are_followed(other: dict[str, Any], tmp_path: Path) -> None:
    pretend(tmp_path / "out", **({"pid": dead()} if "pid" in other else other))
    with owned(tmp_path / "out"):
        assert json.loads((tmp_path / "out" / FILE).read_text())["pid"] == os.getpid()
    assert not (tmp_path / "out" / FILE).exists()


@pytest.mark.parametrize("other", [{"host": "elsewhere"}, {"pids": 1}], ids=["machine", "container"])
def test_an_owner_that_cannot_be_seen_is_a_person_s_to_judge(other: dict[str, Any], tmp_path: Path) -> None:
    pretend(tmp_path / "out", **other, pid=dead())
    before = (tmp_path / "out" / FILE).read_bytes()
    with pytest.raises(
        InputError, match=r"out: belongs to process \d+ on .* cannot be seen .* if it has ended, rm .*lock"
    ):
        fedsim.run(SCENARIO, out=tmp_path / "out")
    assert [(p.name, p.read_bytes()) for p in (tmp_path / "out").iterdir()] == [(FILE, before)]
    (tmp_path / "out" / FILE).unlink()
    fedsim.run(SCENARIO, out=tmp_path / "out")


def test_an_empty_lock_file_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).touch()
    with (
        pytest.raises(InputError, match=r"is locked, and its lock file says not by whom; allowed: .* rm"),
        owned(tmp_path),
    ):
        pass


def test_of_a_group_one_follows_the_other(tmp_path: Path) -> None:
    pretend(tmp_path, host="elsewhere", group="trials of one sweep")
    with pytest.raises(InputError), owned(tmp_path, "trials of another"):
        pass
    with owned(tmp_path, "trials of one sweep"), owned(tmp_path):
        assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_threads_are_owners_too_and_each_has_its_turn(tmp_path: Path) -> None:
    pretend(tmp_path / "out", pid=dead())  # many find the same dead owner
    inside, most, turns, refused = 0, 0, [], []
    lock, begun = threading.Lock(), threading.Barrier(8)

    def attempt() -> None:
        nonlocal inside, most
        begun.wait()
        for _ in range(200):
            try:
                with owned(tmp_path / "out"):
                    with lock:
                        inside += 1
                        most = max(most, inside)
                    turns.append(1)
                    with lock:
                        inside -= 1
            except InputError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert len(turns) + len(refused) == 1600
    assert not (tmp_path / "out" / FILE).exists()
    assert all("belongs to process" in text for text in refused), set(refused)


def test_nothing_is_left_of_a_run_that_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        fedsim.run({**SCENARIO, "model": {"name": "linear"}, "data": {"dataset": "digits", "clients": 10**6}},
                   out=tmp_path / "a" / "b")  # fmt: skip
    assert list(tmp_path.iterdir()) == []
