"""Sections of a report that are somebody's own."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

import fedsim
from fedsim.cli.app import app
from fedsim.reports.sections import Page, ReportSection


@dataclass(frozen=True, kw_only=True)
class Extremes(ReportSection):
    """The first and the last of a column, run by run."""

    title: ClassVar[str] = "From first to last"
    column: str = "train_loss"

    def blocks(self, page: Page) -> Iterable[object]:
        rows = [[run.dir.name, run.rows[0][self.column], run.rows[-1][self.column]] for run in page.runs]
        yield page.paragraph(f"What <{self.column}> did.")
        yield page.table(["run", "first", "last"], rows)


@dataclass(frozen=True, kw_only=True)
class Text(ReportSection):
    title: ClassVar[str] = "Text"

    def blocks(self, page: Page) -> Any:
        return "hello"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fedsim.Run:
    monkeypatch.setitem(sys.modules, "own_sections", types.SimpleNamespace(Extremes=Extremes, Text=Text))
    scenario = {
        "data": {"dataset": "digits", "clients": 3},
        "model": {"name": "linear"},
        "algorithm": {"name": "fedavg", "lr": 0.1},
        "run": {"rounds": 2, "eval_every": 1},
    }
    return fedsim.run(scenario, out=tmp_path / "run")


def test_it_stands_in_the_page(run: fedsim.Run, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    section = "{name: own_sections:Extremes, column: test_loss}"
    result = CliRunner().invoke(app, ["report", str(run.dir), "--out", str(out), "--section", section])
    assert result.exit_code == 0
    page = out.read_text(encoding="utf-8")
    assert "From first to last" in page
    assert "What &lt;test_loss&gt; did." in page
    assert page.index("From first to last") < page.index(">Scenario<")


def test_from_python(run: fedsim.Run, tmp_path: Path) -> None:
    page = fedsim.report(run.dir, tmp_path / "page.html", sections=[Extremes()])
    assert "What &lt;train_loss&gt; did." in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "section,words",
    [
        ("own_sections:Text", "Text.blocks gave str"),
        ("own_sections:Extrems", "did you mean 'Extremes'"),
        ("{name: own_sections:Extremes, colum: x}", "did you mean 'column'"),
    ],
)
def test_what_is_wrong_with_it_is_said(run: fedsim.Run, tmp_path: Path, section: str, words: str) -> None:
    with pytest.raises(fedsim.InputError, match=words):
        fedsim.report([run.dir], tmp_path / "page.html", sections=[section])
    assert not (tmp_path / "page.html").exists()
