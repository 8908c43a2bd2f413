"""What a run warned of is in ``log.txt`` of its directory, whoever could see its output."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import fedsim
from fedsim.cli.app import app
from fedsim.core.errors import RunError

LOG = logging.getLogger("fedsim")
SCENARIO: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 4, "limit": 100},
    "model": {"name": "linear"},
    "algorithm": {"name": "fedavg", "lr": 0.1},
    "run": {"rounds": 12, "eval_every": 6, "device": "cpu", "threads": 1},
}
NOBODY = {"participation": {"mode": "synchronous", "sampling": "poisson", "fraction": 1e-6}}


def lines(folder: Path) -> list[str]:
    """Of the log, without the time."""
    return [line.partition(", ")[2] for line in (folder / "log.txt").read_text().splitlines()]


def test_warnings_are_kept_and_still_said(tmp_path: Path) -> None:
    fedsim.run({**SCENARIO, **NOBODY}, tmp_path / "run", progress=False)
    first, last = lines(tmp_path / "run")
    assert first.startswith("after round 10: round 10: nobody took part")
    assert last.startswith("after round 12: nobody took part in any of the 12 rounds")
    assert LOG.filters == []


def test_python_writes_warnings_to_standard_error_as_ever(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**SCENARIO, **NOBODY}))
    file, out = str(tmp_path / "s.yaml"), str(tmp_path / "run")
    command = [sys.executable, "-m", "fedsim", "run", file, "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    said = [line for line in done.stderr.splitlines() if "nobody took part" in line]
    assert len(said) == len(lines(tmp_path / "run")) == 2


def test_no_warnings_no_file(tmp_path: Path) -> None:
    fedsim.run(SCENARIO, tmp_path)
    assert not (tmp_path / "log.txt").exists()


def test_what_is_said_before_the_first_round_is_of_this_run(tmp_path: Path) -> None:
    fedsim.run({**SCENARIO, **NOBODY}, tmp_path)
    fedsim.run({**SCENARIO, "seed": 1}, tmp_path)
    (line,) = lines(tmp_path)
    assert line.startswith("at its start: ")
    assert "this run takes its place" in line


def test_a_resumed_run_goes_on_with_it(tmp_path: Path) -> None:
    fedsim.run({**SCENARIO, **NOBODY}, tmp_path)
    before = lines(tmp_path)
    longer = {**SCENARIO, **NOBODY, "run": {**SCENARIO["run"], "rounds": 14}}
    fedsim.run(longer, tmp_path, resume=True)
    assert lines(tmp_path)[: len(before)] == before
    assert len(lines(tmp_path)) > len(before)


def test_a_run_that_cannot_begin_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fedsim.engine.run

    def fails(*_: Any) -> Any:
        LOG.warning("it will not begin")
        raise RunError("it does not begin")

    monkeypatch.setattr(fedsim.engine.run, "assemble", fails)
    with pytest.raises(RunError):
        fedsim.run(SCENARIO, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert LOG.filters == []


def test_runs_of_other_threads_have_their_own(tmp_path: Path) -> None:
    """What is said in a thread without a run is of all, for nobody knows better."""

    def progress(number: int, _: Any) -> None:
        name = threading.current_thread().name
        both.wait(60)
        LOG.warning("%s is at %d", name, number)
        both.wait(60)
        if name == "a" and number == 3:
            other = threading.Thread(target=LOG.warning, args=("somebody else",), name="else")
            other.start()
            other.join()
        both.wait(60)

    both = threading.Barrier(2)
    threads = [
        threading.Thread(target=fedsim.run, args=(SCENARIO, tmp_path / name), kwargs={"progress": progress}, name=name)
        for name in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in "ab":
        said = [line.partition(": ")[2] for line in lines(tmp_path / name)]
        assert [s for s in said if s != "somebody else"] == [f"{name} is at {n}" for n in range(13)]
        assert said.count("somebody else") == 1


@pytest.mark.parametrize(
    "parallel",
    [
        pytest.param([], id="alone"),
        pytest.param(["--parallel", "2", "--address", "local"], id="on Ray", marks=[pytest.mark.ray, pytest.mark.slow]),
    ],
)
def test_a_sweep_says_which_runs_have_one(parallel: list[str], tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(SCENARIO))
    cases = {"some": {}, "nobody": NOBODY}
    (tmp_path / "w.yaml").write_text(yaml.safe_dump({"name": "w", "scenario": "s.yaml", "cases": cases}))
    out = tmp_path / "sweep"
    done = CliRunner().invoke(app, ["sweep", str(tmp_path / "w.yaml"), "--out", str(out), *parallel])
    assert done.exit_code == 0, done.output
    (said,) = [line for line in done.output.splitlines() if "have warnings" in line]
    (folder,) = [file.parent for file in out.rglob("log.txt")]
    assert said == f"1 of 2 runs have warnings, in log.txt of their folders: {folder.name}"
    assert "nobody" in folder.name
    assert lines(folder)[0].startswith("after round 10: round 10: nobody took part")
