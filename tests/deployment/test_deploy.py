"""What ``fedsim deploy`` writes, and that Flower takes it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import fedsim
from fedsim.cli.app import app
from fedsim.core.errors import InputError
from fedsim.deployment.app import PACKAGE, deploy
from fedsim.deployment.server import RUN_KEYS, RunConfig
from fedsim.scenario.load import parse

pytest.importorskip("flwr")

SCENARIO: dict[str, Any] = {
    "name": "An.App_1",
    "data": {"dataset": "digits", "clients": 5},
    "model": {"name": "linear"},
    "algorithm": {"name": "fedavg", "lr": 0.1},
    "run": {"rounds": 7},
}
OWN = """
from dataclasses import dataclass
from fedsim.algorithms.fedavg import FedAvg

@dataclass(frozen=True, kw_only=True)
class Mine(FedAvg):
    pass
"""


def test_the_app_is_thin_and_complete(tmp_path: Path) -> None:
    folder = tmp_path / "app"
    names = deploy(parse(SCENARIO), folder)
    parts = ("__init__.py", "client_app.py", "scenario.yaml", "server_app.py")
    assert names == sorted(["README.md", "pyproject.toml", *(f"{PACKAGE}/{p}" for p in parts)])
    assert sum(len((folder / PACKAGE / f"{s}_app.py").read_text().splitlines()) for s in ("server", "client")) < 20
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["name"] == "fedsim-an-app-1"
    config = project["tool"]["flwr"]["app"]["config"]
    assert set(config) == set(RUN_KEYS)
    assert RunConfig.read(config).out == str(folder.resolve() / "results")
    assert RunConfig.read(config).policy == RunConfig.read({}).policy
    written = fedsim.load(folder / PACKAGE / "scenario.yaml")
    assert written.resolved() == parse(SCENARIO).resolved()
    readme = (folder / "README.md").read_text()
    assert "partition-id=2 num-partitions=5" in readme
    assert "num-supernodes=5" in readme


@pytest.mark.slow
def test_flower_packs_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_parts.py").write_text(OWN)
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**SCENARIO, "algorithm": {"name": "own_parts:Mine", "lr": 0.1}}))
    names = deploy(fedsim.load(file), tmp_path / "app")
    assert f"{PACKAGE}/own_parts.py" in names
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    environment = {**os.environ, **quiet, "FLWR_HOME": str(tmp_path / "home")}
    flwr = [str(Path(sys.executable).parent / "flwr"), "build", "--app", str(tmp_path / "app")]
    monkeypatch.chdir(tmp_path)
    done = subprocess.run(flwr, capture_output=True, text=True, env=environment, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    (fab,) = tmp_path.rglob("*.fab")
    packed = set(zipfile.ZipFile(fab).namelist())
    assert {n for n in names if n.startswith(PACKAGE)} <= packed


def test_what_cannot_be_written(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "something").write_text("")
    with pytest.raises(InputError, match="which is there already; allowed: a new or empty folder"):
        deploy(parse(SCENARIO), full)
    with pytest.raises(InputError, match="which is there already"):
        deploy(parse(SCENARIO), full / "something")
    with pytest.raises(InputError, match="DIR: the app cannot be written to"):
        deploy(parse(SCENARIO), Path("/proc/nowhere/app"))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert deploy(parse(SCENARIO), empty)


def test_a_module_that_flower_would_leave_out(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(OWN)
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**SCENARIO, "algorithm": {"name": "test_mine:Mine", "lr": 0.1}}))
    with pytest.raises(InputError, match=r"Flower leaves test_mine\.py out of apps: give the module another name"):
        deploy(fedsim.load(file), tmp_path / "app")


def test_the_command(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump(SCENARIO))
    result = CliRunner().invoke(app, ["deploy", str(file), str(tmp_path / "app"), "--set", "data.clients=4"])
    assert result.exit_code == 0, result.output
    assert "README.md" in result.output
    assert fedsim.load(tmp_path / "app" / PACKAGE / "scenario.yaml").clients == 4
    again = CliRunner().invoke(app, ["deploy", str(file), str(tmp_path / "app")])
    assert isinstance(again.exception, InputError)
