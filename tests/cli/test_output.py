"""Output of any width, in a terminal and in files: no number, name or path is broken, and a log file shows progress."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import fedsim
from fedsim.cli import progress
from fedsim.cli.app import main
from fedsim.cli.ending import out_of_memory
from fedsim.cli.terminal import table

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
SCENARIO: dict[str, Any] = {
    "name": "output",
    "data": {"dataset": "digits", "clients": 4, "limit": 200},
    "model": {"name": "linear"},
    "algorithm": {"name": "fedavg", "lr": 0.1, "batch_size": 10, "local_steps": 2},
    "run": {"rounds": 2, "eval_every": 1, "device": "cpu", "threads": 1},
}
ROWS = [("train_loss", "0.123456789012"), ("a long name of something", "1,234,567 to 7,654,321, median 1,500,000")]
WORDS = [word for row in ROWS for text in row for word in text.split()]

Call = Callable[..., str]


@pytest.fixture(params=["file", "terminal"])
def call(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Call:
    """``call(width, "run", "s.yaml")``: standard output of a command, as a file and as a terminal get it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(SCENARIO))
    sweep = {"name": "seeds", "scenario": "s.yaml", "grid": {"seed": [0, 1], "algorithm.lr": [0.015625]}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))

    def run(width: int, *argv: str) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        if request.param == "terminal":
            monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setattr(sys, "argv", ["fedsim", *argv])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        return ANSI.sub("", capsys.readouterr().out)

    return run


@pytest.mark.parametrize("width", [20, 40, 80])
def test_the_words_of_a_table_stay_whole(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for terminal in (False, True):
        if terminal:
            monkeypatch.setenv("FORCE_COLOR", "1")
        table("numbers", ROWS)
        table("numbers", ROWS, ["what", "found"])
        found = ANSI.sub("", capsys.readouterr().out)
        assert all(found.split().count(word) >= 2 for word in WORDS)
        if not terminal:
            assert all(any(text in line for line in found.splitlines()) for row in ROWS for text in row)


@pytest.mark.parametrize("width", [20, 80, 1000])
def test_a_title_longer_than_its_table_stays_whole(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    title = "A paper's title, which has many more words than the table of its three numbers is wide"
    for header in (None, ["a", "b"]):
        table(title, [("x", "1"), ("y", "2")], header)
        found = capsys.readouterr().out
        assert found.split()[: len(title.split())] == title.split()
        assert max(map(len, found.splitlines())) <= max(width, 100)


@pytest.mark.parametrize("width", [40, 80])
def test_the_same_numbers_at_any_width(call: Call, width: int) -> None:
    for command in (["plan", "s.yaml"], ["list", "algorithms"], ["topology", "ring", "-n", "7", "--out", "g.png"]):
        wide, narrow = call(1000, *command), call(width, *command)
        assert sorted(narrow.split()) == sorted(wide.split())


@pytest.mark.parametrize("width", [40, 80])
def test_results_of_a_run_and_a_sweep(call: Call, width: int) -> None:
    place = "a/folder/whose/name/is/much/longer/than/forty/or/eighty/characters/and/is/one/word/with-a-[bracket]"
    last = call(width, "run", "s.yaml", "--out", place).splitlines()[-1]
    metrics = fedsim.run(SCENARIO, out="again").metrics.iloc[-1]
    assert last.startswith(f"{place}: round 2  test_accuracy {metrics['test_accuracy']:.4g}")
    found = call(width, "sweep", "sweep.yaml")
    assert found.count("lr=0.015625_seed=") == 4  # when each begins, and in the summary
    assert found.count("summary.csv") <= 1
    row = next(line for line in reversed(found.splitlines()) if "seed=1" in line)
    assert row.split()[:2] == ["lr=0.015625_seed=1", "2"]


def test_the_version(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fedsim", "--version"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"fedsim {fedsim.__version__}\n"


# --- log files ------------------------------------------------------------------------------------


def written(capsys: pytest.CaptureFixture[str], count: int) -> list[str]:
    """Lines on standard error, as soon as there are so many."""
    text, deadline = "", time.monotonic() + 240
    while text.count("\n") < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
        text += capsys.readouterr().err
    return text.splitlines()


def test_a_line_whenever_nothing_was_said_for_long(capsys: pytest.CaptureFixture[str]) -> None:
    begun = time.monotonic()
    with progress.reminding(lambda: "at work", seconds=0.05):
        lines = written(capsys, 3)
    passed = time.monotonic() - begun
    assert 3 <= len(lines) <= 1 + passed / 0.05  # no sooner than that after one another
    assert all(re.fullmatch(r"at work, \d+:\d\d passed", line) for line in lines)
    assert progress.SECONDS <= 30


def test_a_line_says_the_round_and_the_latest_metrics(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.05)
    with progress.run_progress("long", 1000, quiet=False) as told:
        assert told is not None
        told(0, {"round": 0, "train_loss": 2.5})
        told(10, {"round": 10, "train_loss": 1.25})
        told(12, None)
        lines = written(capsys, 3)
    said = [re.sub(r"\d+:\d\d passed", "some time passed", line) for line in lines]
    assert said[0] == "long: round 0 of 1000, train_loss 2.5, some time passed"
    assert said[-1] == "long: round 12 of 1000, train_loss 1.25, some time passed"


def test_a_run_into_a_log_file(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(SCENARIO))
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-m", "fedsim", "run", "s.yaml", "--out", "r"]
        subprocess.run(command, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT, check=True)
    lines = (tmp_path / "log").read_text().splitlines()
    assert re.fullmatch(r"output: round 0 of 2, test_accuracy .* passed", lines[0])
    assert sum("round 2 of 2" in line for line in lines) == 1
    assert lines[-1].startswith("r: round 2  test_accuracy")


@pytest.mark.parametrize(
    "asks,wanted",
    [
        (lambda: np.empty(2**50), "8.00 PiB"), (lambda: torch.empty(2**50), "4503599627370496 bytes"),
        (lambda: bytearray(2**62), None),
    ],
    ids=["numpy", "torch", "python"],
)  # fmt: skip
def test_too_little_memory_is_a_sentence(asks: Callable[[], Any], wanted: str | None) -> None:
    with pytest.raises((MemoryError, RuntimeError)) as refused:
        asks()
    said = out_of_memory(refused.value)
    assert said is not None
    assert said.startswith("this does not fit the memory")
    assert (f"asked for {wanted} more" in said) == (wanted is not None)
    assert out_of_memory(RuntimeError("something else")) is None


READERS = [("plan", "output.yaml"), ("describe", "fedavg")]


@pytest.mark.parametrize("argv", READERS, ids=lambda argv: argv[0])
def test_a_reader_that_goes_away_is_no_error(
    argv: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "output.yaml").write_text(yaml.safe_dump(SCENARIO))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fedsim", *argv])
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as pipe, open(os.devnull, "w") as nowhere:
        monkeypatch.setattr(sys, "stdout", pipe)
        with pytest.raises(SystemExit) as ended:
            main()
        os.dup2(nowhere.fileno(), pipe.fileno())  # what is still in the buffer is for nobody
    assert ended.value.code == 1
    assert capsys.readouterr().err == ""
