"""The gallery's pages are what docs/gallery.py makes from the committed results, and nothing of these is left out."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import docs_pages
import pytest
from docs_pages import ROOT

GALLERY = ROOT / "docs" / "gallery"
RESULTS = sorted((GALLERY / "results").glob("*.json"))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return docs_pages.script("docs/gallery.py")


def test_pages_are_what_the_script_makes(script: ModuleType) -> None:
    made = script.pages()
    assert {file.name: file.read_text(encoding="utf-8") for file in GALLERY.glob("*.md")} == made


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_results_are_whole(file: Path) -> None:
    """Not of a quick run or of changed keys, with what they depend on, and with their figure."""
    found = json.loads(file.read_text(encoding="utf-8"))
    assert file.stem == f"{found['name']}-{found['data']}"
    assert (found["quick"], found["settings"]) == (False, [])
    assert found["environment"]["packages"]["torch"]
    assert all(run["x"] or run["error"] for run in found["runs"])
    assert (GALLERY / "images" / f"{file.stem}.png").is_file()
    assert file.stat().st_size < 300_000


def test_only_whole_results_are_taken_in(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "PLACE", tmp_path)
    (tmp_path / "results").mkdir()
    for name, changes in {"whole": {}, "quick": {"quick": True}, "changed": {"settings": ["seed=1"]}}.items():
        (tmp_path / name).mkdir()
        one = json.loads(RESULTS[0].read_text(encoding="utf-8")) | changes
        (tmp_path / name / "results.json").write_text(json.dumps(one), encoding="utf-8")
    script.take_in(tmp_path / "whole")
    assert [file.name for file in (tmp_path / "results").iterdir()] == [RESULTS[0].name]
    for name in ("quick", "changed"):
        with pytest.raises(SystemExit, match="allowed: a reproduction as its file has it"):
            script.take_in(tmp_path / name)


def test_every_result_is_of_a_reproduction(script: ModuleType) -> None:
    known = {file.stem for file in (ROOT / "reproductions").glob("*.yaml")}
    assert set(script.results()) <= known
    assert len(RESULTS) >= 2
