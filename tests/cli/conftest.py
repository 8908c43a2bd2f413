"""Commands in this process, for the tests of the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsim.cli.app import main

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """The working directory of commands."""
    return tmp_path


@pytest.fixture
def call(beside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Exit code, standard output and error of a command."""
    monkeypatch.chdir(beside)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedsim", *argv])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    return run
