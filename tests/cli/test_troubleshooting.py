"""The messages of docs/troubleshooting.md are what its commands print."""

from __future__ import annotations

import io
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from docs_pages import ROOT, blocks

import fedsim
from fedsim.cli.app import main
from fedsim.core.errors import InputError
from fedsim.scenario.load import parse
from fedsim.sweeps.files import points


def test_every_message_is_what_the_command_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the page's order, each command's last line but those of progress; ``...`` stands for anything."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    tried = 0
    for block in blocks(ROOT / "docs" / "troubleshooting.md"):
        if block.file:
            Path(block.file).write_text(block.text, encoding="utf-8")
            if block.language == "python":
                runpy.run_path(block.file)
        if block.language != "console":
            continue
        for command, message in re.findall(r"^\$ (fedsim .*)\n(.*)$", block.text, re.MULTILINE):
            monkeypatch.setattr(sys, "argv", shlex.split(command))
            with pytest.raises(SystemExit) as ended:
                main()
            out, err = capsys.readouterr()
            refused = not message.startswith("runs/first: round")
            assert (ended.value.code in (1, 2)) == refused, command
            said = [line for line in (err if refused else out).splitlines() if not re.search(r"\d passed$", line)]
            wanted = ".*".join(re.escape(piece) for piece in message.split("..."))
            assert len(said) == 1, (command, said)
            assert re.fullmatch(wanted, said[0]), (command, said[0])
            tried += 1
        assert block.text.count("$ fedsim") * 2 == len(block.text.splitlines()), block.line
    assert tried > 12


def test_a_sweep_is_no_scenario_and_a_scenario_no_sweep(tmp_path: Path) -> None:
    scenario, sweep = tmp_path / "s.yaml", tmp_path / "sweep.yaml"
    scenario.write_text("data: {dataset: digits, clients: 3}\nmodel: {name: linear}\nalgorithm: {name: fedavg}\n")
    sweep.write_text("scenario: s.yaml\ngrid: {seed: [0, 1]}\n")
    with pytest.raises(InputError, match=r"^\S+sweep.yaml: found a sweep, .* fedsim sweep \S+sweep.yaml$"):
        fedsim.load(sweep)
    with pytest.raises(InputError, match=r"^\S+s.yaml: found a scenario; .* fedsim run \S+s.yaml$"):
        points(scenario)
    assert len(points(sweep)[1]) == 2


@pytest.mark.parametrize(
    "section,key,ours",
    [
        ("algorithm", "learning_rate", "lr"),
        ("algorithm", "epochs", "local_epochs"),
        ("data", "num_clients", "clients"),
        ("run", "num_rounds", "rounds"),
        ("topology", "num_nodes", "nodes"),
        ("participation", "frac", "fraction"),
    ],
)
def test_words_of_other_projects_lead_to_ours(section: str, key: str, ours: str) -> None:
    sections: dict[str, Any] = {
        "data": {"dataset": "digits", "clients": 3}, "model": {"name": "linear"}, "algorithm": {"name": "fedavg"},
        "run": {}, "participation": {"mode": "synchronous"}, "topology": {"graph": "ring"},
    }  # fmt: skip
    sections[section] = {**sections[section], key: 3}
    with pytest.raises(InputError, match=rf"{section}.{key}: unknown key \(did you mean '{ours}'\?\)"):
        parse(sections)
