"""``fedsim export``, and runs whose clients a column names."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fedsim.cli.app import app
from fedsim.core.errors import InputError, RunError
from fedsim.data.partition_csv import read_table

WARDS = ["Élan", 'the "big", one', "Süd\nwing"]
SCENARIO = """
data:
  dataset: csv
  path: wards.csv
  target: state
  partition: {scheme: natural_id, partition_by: ward}
model: {name: linear}
algorithm: {name: fedavg, lr: 0.1, local_epochs: 1}
run: {rounds: 2, trace: true}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with (tmp_path / "wards.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["age", "ward", "state"])
        rows.writerows([20 + i, WARDS[i % 3], "ill, badly" if i % 2 else "well"] for i in range(60))
    (tmp_path / "s.yaml").write_text(SCENARIO)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_names_are_kept_and_shown(folder: Path) -> None:
    plan = json.loads(call("plan", "s.yaml", "--json"))
    assert plan["data"]["clients by ward"] == ", ".join(sorted(WARDS))
    assert plan["data"]["classes"] == "ill, badly, well"
    call("run", "s.yaml", "--out", "run")
    table = read_table(folder / "run" / "partition.csv")
    assert table.names == sorted(WARDS)
    assert table.labels == ["ill, badly", "well"]
    assert table.samples.tolist() == [16, 16, 16]
    about = json.loads((folder / "run" / "data.json").read_text(encoding="utf-8"))
    assert about["clients"]["names"] == sorted(WARDS)
    assert about["clients"]["test_samples"] == [4, 4, 4]
    call("report", "run")
    page = (folder / "run" / "report.html").read_text(encoding="utf-8")
    assert "Élan" in page
    assert "label ill, badly" in page


def test_the_command_writes_a_model_and_its_code(folder: Path) -> None:
    call("run", "s.yaml", "--out", "run")
    assert "the server's model 'linear', 2 outputs" in call("export", "run", "m.pt", "--code", "code.py")
    saved = torch.load("m.pt", weights_only=True)
    assert (folder / "code.py").read_text(encoding="utf-8") == saved["code"]
    said = json.loads(call("export", "run", "m.safetensors", "--json"))
    assert said["model"] == saved["about"]["model"]
    with pytest.raises(InputError, match="no such run directory"):
        call("export", "nowhere", "m.pt")
    with pytest.raises(InputError, match=r"--code: found 'code.txt'; allowed: a file name that ends in \.py"):
        call("export", "run", "m.pt", "--code", "code.txt")
    (folder / "run" / "params.safetensors").unlink()
    with pytest.raises(RunError, match="the run is not finished"):
        call("export", "run", "other.pt")
    assert not (folder / "other.pt").exists()


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"input": {}}'])
def test_a_damaged_record_is_said(folder: Path, damage: str) -> None:
    call("run", "s.yaml", "--out", "run")
    (folder / "run" / "data.json").write_text(damage)
    with pytest.raises(InputError, match=r"data.json: (cannot be read|found something else)"):
        call("export", "run", "m.pt")
