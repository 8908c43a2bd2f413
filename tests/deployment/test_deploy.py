"""What ``fedsim deploy`` writes, and that Flower takes it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from typer.testing import CliRunner

import fedsim
from fedsim.cli.app import app
from fedsim.core.errors import InputError
from fedsim.deployment.app import PACKAGE, deploy
from fedsim.deployment.run_config import RUN_KEYS, RunConfig
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
    assert RunConfig.read(config).out == str(folder.resolve().with_name("app-runs") / "{run}")
    assert RunConfig.read(config).policy == RunConfig.read({}).policy
    written = fedsim.load(folder / PACKAGE / "scenario.yaml")
    assert written.resolved() == parse(SCENARIO).resolved()
    readme = (folder / "README.md").read_text()
    assert "partition-id=2 num-partitions=5" in readme
    assert "num-supernodes=5" in readme


@pytest.mark.parametrize("name", ["my app", 'it\'s "mine" \\ $HOME', "größe", "a\nb\tc\x7f"], ids=ascii)
def test_a_folder_may_have_any_name(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    deploy(parse(SCENARIO), folder)
    config = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert RunConfig.read(config).out == str(tmp_path / f"{name}-runs" / "{run}")
    readme = (folder / "README.md").read_text()
    for command, place in (("flwr run ", folder), ("fedsim report ", tmp_path / f"{name}-runs")):
        typed = readme[readme.index(f"\n{command}") :].partition("```")[0]
        assert shlex.split(typed)[2] == str(place)


def test_the_app_says_which_fedsim_it_needs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`fedsim` on the public index is another project, which has no such modules."""
    deploy(parse(SCENARIO), tmp_path / "app")
    dependencies = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text())["project"]["dependencies"]
    assert dependencies == [f"fedsim-learn[flower]=={fedsim.__version__}"]
    init = tmp_path / "app" / PACKAGE / "__init__.py"
    exec(init.read_text(), {})
    assert not caplog.records
    exec(init.read_text().replace(f'made_by("{fedsim.__version__}")', 'made_by("0.0.7")'), {})
    assert f"made by fedsim-learn 0.0.7, this machine has {fedsim.__version__}" in caplog.text
    other = tmp_path / "other" / "fedsim"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("")
    command = [sys.executable, "-c", f"import {PACKAGE}.client_app"]
    paths = os.pathsep.join([str(tmp_path / "app"), str(tmp_path / "other")])
    environment = {**os.environ, "PYTHONPATH": paths}
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "the 'fedsim' here is another project or an old one: pip install 'fedsim-learn[flower]'" in ended.stderr


def test_the_wheel_is_the_fedsim_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Installed:
        version: str = fedsim.__version__
        texts: ClassVar = {
            "METADATA": "Metadata-Version: 2.4\nName: fedsim-learn\nVersion: 0.1.0\n",
            "entry_points.txt": "",
        }

        def read_text(self, name: str) -> str | None:
            return self.texts.get(name)

    monkeypatch.setattr("fedsim.deployment.wheel.distribution", lambda _: Installed())
    names = deploy(parse(SCENARIO), tmp_path / "app", wheel=True)
    (wheel,) = (name for name in names if name.startswith("wheels/"))
    assert f"pip install './{Path(wheel).name}[flower]'" in (tmp_path / "app" / "README.md").read_text()
    with zipfile.ZipFile(tmp_path / "app" / wheel) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "site")
        record = archive.read(next(n for n in archive.namelist() if n.endswith("RECORD"))).decode().splitlines()
        assert {line.split(",")[0] for line in record} == set(archive.namelist())
    command = [sys.executable, "-c", "import fedsim.deployment.client; print(fedsim.__file__)"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == str(tmp_path / "site" / "fedsim" / "__init__.py")
    monkeypatch.setattr(Installed, "version", "0.0.7")
    with pytest.raises(InputError, match=r"--wheel: fedsim-learn 0\.0\.7 is installed, but"):
        deploy(parse(SCENARIO), tmp_path / "again", wheel=True)


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


def test_the_log_of_a_deployment_has_the_telling_columns_of_clients(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not all deciles of every metric: as many as the terminal shows of a simulation."""
    from fedsim.deployment.server import LogLines

    sections = {
        "data": {"dataset": "digits", "clients": 3, "limit": 90, "local_test": 0.2},
        "model": {"name": "linear"},
        "algorithm": {"name": "fedavg", "lr": 0.1},
        "run": {"rounds": 1, "eval_every": 1, "metrics": [{"name": "macro_f1"}]},
    }
    with caplog.at_level("INFO", "fedsim"):
        row = fedsim.run(sections, out=tmp_path / "run", watchers=[LogLines()]).metrics.iloc[-1]
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("round 1 ")]
    assert len(said) == 1
    words = said[0].split()
    assert [word for word in words if word.startswith("client_")] == [
        "client_accuracy_mean", "client_accuracy_decile_1", "client_loss_mean"
    ]  # fmt: skip
    others = {name for name in row.index if not name.startswith("client_")} - {"round", "wall"}
    assert others <= set(words)
