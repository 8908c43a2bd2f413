"""Keys that name files: written out absolute, so that the scenario of a run directory works from anywhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

import fedsim
from fedsim.core.registry import lookup, names
from fedsim.scenario.table import PATHS, absolute

SCENARIO = """
data:
  dataset: csv
  path: train.csv
  test_path: test.csv
  target: state
  partition: {scheme: iid}
  clients: 2
model: {name: linear}
algorithm: {name: fedavg, lr: 0.1}
run: {rounds: 1}
"""


@pytest.mark.parametrize("dataset", names("dataset"))
def test_every_key_of_data_that_names_a_file_is_written_out_absolute(dataset: str, tmp_path: Path) -> None:
    fields = {field.name for field in dataclasses.fields(lookup("dataset", dataset))}
    named = {name for name in fields if name.split("_")[-1] in ("path", "file", "folder")}
    assert named <= set(PATHS)
    section = absolute(dict.fromkeys(sorted(named), "deep/rows"), tmp_path)
    assert section == dict.fromkeys(sorted(named), str(tmp_path / "deep" / "rows"))


def test_the_scenario_of_a_run_with_a_file_of_test_rows_runs_again_and_goes_on(tmp_path: Path) -> None:
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text("a,b,state\n" + "".join(f"{i},{i % 3},{i % 2}\n" for i in range(8)))
    (tmp_path / "s.yaml").write_text(SCENARIO)
    first = fedsim.run(tmp_path / "s.yaml", out=tmp_path / "first")
    again = fedsim.run(first.dir / "scenario.yaml", out=tmp_path / "again")
    assert (again.params == first.params).all()
    recorded = first.dir / "scenario.yaml"
    recorded.write_text(recorded.read_text().replace(str(tmp_path / "test.csv"), "test.csv"))  # as it was once
    longer = fedsim.run(fedsim.load(tmp_path / "s.yaml", ["run.rounds=2"]), out=first.dir, resume=True)
    assert longer.resumed_at == 1
    assert yaml.safe_load(recorded.read_text())["data"]["test_path"] == str(tmp_path / "test.csv")
