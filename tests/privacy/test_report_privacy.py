"""What a report says of private runs."""

from __future__ import annotations

from pathlib import Path

import diff2_makers as makers

import fedsim
from fedsim.reports.report import write_report


def test_a_report_says_what_was_spent_and_what_it_means(tmp_path: Path) -> None:
    fedsim.run(makers.scenario(tmp_path), out=tmp_path / "runs" / "tight")
    fedsim.run(makers.scenario(tmp_path, privacy={"epsilon": 8.0, "trust": "local"}), out=tmp_path / "runs" / "loose")
    text = write_report([tmp_path / "runs"]).read_text(encoding="utf-8")
    section = text[text.index("<h2>Privacy") : text.index("<h2>Partition")]
    for words in ("replace-one", "central", "local", "closed form", "difference", "train_loss", "model selection"):
        assert words in section
    assert ">4<" in section
    assert ">8<" in section


def test_a_lost_file_is_a_note_and_a_public_run_has_no_section(tmp_path: Path) -> None:
    run = fedsim.run(makers.scenario(tmp_path), out=tmp_path / "run")
    (run.dir / "privacy.json").write_text("[")
    assert "privacy.json cannot be read" in write_report([run.dir]).read_text(encoding="utf-8")
    public = fedsim.run(makers.scenario(tmp_path, privacy=None), out=tmp_path / "public")
    assert "<h2>Privacy" not in write_report([public.dir]).read_text(encoding="utf-8")
