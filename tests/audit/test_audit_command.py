"""The command: what is chosen, what is written, exit codes, and errors that say where."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from fedsim.audit.command import plain, rows
from fedsim.cli.app import app
from fedsim.core.errors import InputError
from fedsim.scenario.load import load

sys.path.append(str(Path(__file__).parent))  # broken_mechanisms

VALUES: dict[str, Any] = {
    "name": "small",
    "data": {"dataset": "digits", "clients": 4, "limit": 400},
    "model": {"name": "linear"},
    "algorithm": {"name": "diff2", "lr": 0.1, "restart_every": 1, "clip_norm": 1.0},
    "privacy": {"mechanism": "gaussian", "epsilon": 1.0},
    "run": {"rounds": 3, "device": "cpu", "threads": 1},
    "audit": {"canaries": {"canaries": 200}, "first_layer": None},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    place = tmp_path / "small.yaml"
    place.write_text(yaml.safe_dump(VALUES))
    return place


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["audit", *map(str, arguments)])


def test_results_go_to_files_and_to_the_screen(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(file, "--out", out)
    assert result.exit_code == 0, result.output
    assert "claimed epsilon" in result.output
    report = json.loads((out / "audit.json").read_text())
    assert [a["audit"] for a in report["audits"]] == ["canaries", "first_layer"]
    assert report["claim"]["epsilon"] == pytest.approx(1.0, abs=1e-3)
    assert report["claim"]["adjacency"] == "replace-one"
    assert report["alarms"] == []
    assert all(a["threat_model"].startswith("The attacker") for a in report["audits"])
    for a in report["audits"]:
        for figure in a["figures"]:
            assert (out / "figures" / figure).stat().st_size > 3000
    page = (out / "audit.html").read_text()
    assert "Threat model" in page
    first = page[page.index('<p class="found">') :].partition("</p>")[0]
    assert "No audit shows the claimed epsilon of 1 to be false (the largest lower bound, of canaries, is " in first
    assert "the best reconstruction, by first_layer, has a median PSNR of " in first
    table, _, rest = page.partition("</table>")
    assert [row.count("<td") for row in table.split("<tr>")[2:]] == [4, 4]  # a row for each audit, the others folded
    assert "<table" not in re.sub("<details>.*?</details>", "", rest, flags=re.S)
    assert page.count("data:image/png;base64,") == 3
    assert load(out / "scenario.yaml").hash() == load(file).hash() == report["hash"]


def test_a_false_claim_ends_with_exit_code_1(file: Path, tmp_path: Path) -> None:
    result = run(
        file, "--attack", "canaries", "--set", "privacy.mechanism=broken_mechanisms:Broken", "--json", "--out", tmp_path
    )
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert len(report["alarms"]) == 1
    assert "the claim is false" in report["alarms"][0]
    assert '<p class="found">Alarm: what is claimed was shown to be false' in (tmp_path / "audit.html").read_text()


def test_repeated_runs_find_noise_that_is_hardly_there(file: Path, tmp_path: Path) -> None:
    keys = ["--attack", "repeated", "--set", "run.rounds=1", "--set", "data.limit=60", "--out", tmp_path]
    missing = "privacy={mechanism: 'broken_mechanisms:Broken', epsilon: 0.4, divided_by: 100.0}"
    assert run(file, *keys, "--set", "audit.repeated.runs=44", "--set", missing).exit_code == 1
    found = json.loads((tmp_path / "audit.json").read_text())["audits"][0]["results"]
    assert (found["runs"], found["tested_runs"], found["canaries"]) == (44, 22, 1)
    assert 0.4 < found["lower_bound"] <= found["most_it_could_show"] < 1.2
    assert run(file, *keys, "--set", "audit.repeated.runs=12").exit_code == 0


def test_a_run_takes_no_notice_of_the_section(file: Path) -> None:
    without = load(file, ["audit={}"])
    assert without.hash() == load(file).hash()
    assert "audit" not in load(file).resolved()


@pytest.mark.parametrize(
    "settings,attacks,message",
    [
        (["audit.cannaries={}"], [], "unknown audit 'cannaries' (did you mean 'canaries'?)"),
        (["audit.canaries.count=3"], [], "audit.canaries.count: unknown key; allowed: canaries, significance"),
        (["audit.canaries.canaries=3"], [], "audit.canaries.canaries: found 3, allowed: greater than or equal to 20"),
        (["audit.canaries=7"], [], "audit.canaries: found 7, allowed: a mapping"),
        (["audit=7"], [], "audit: found 7, allowed: a mapping"),
        ([], ["liar"], "unknown audit 'liar'"),
        (["audit={}"], [], "audit: missing; allowed: a mapping from audits to their keys, or --attack NAME"),
        ([], ["audit_nowhere:Attack"], "cannot import 'audit_nowhere'"),
        ([], ["broken_mechanisms:Broken"], "allowed: a dataclass that inherits fedsim.audit.base.Audit"),
    ],
)
def test_wrong_input_is_answered(file: Path, settings: list[str], attacks: list[str], message: str) -> None:
    words = [w for s in settings for w in ("--set", s)] + [w for a in attacks for w in ("--attack", a)]
    result = run(file, *words)
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)


def test_a_folder_that_is_a_file_is_refused(file: Path) -> None:
    result = run(file, "--attack", "first_layer", "--out", file)
    assert isinstance(result.exception, InputError)


def test_numbers_in_tables() -> None:
    found = rows({"a": {"mean": 0.5, "std": None, "best": 2}, "b_c": {"d": None, "e": [1, 2.5]}, "f": True})
    assert found == [("a", "0.5, 2 best"), ("b c: d", "\N{EN DASH}"), ("b c: e", "1, 2.5"), ("f", "yes")]
    assert plain({"x": float("inf"), "y": (1, 2.0)}) == {"x": None, "y": [1, 2.0]}
