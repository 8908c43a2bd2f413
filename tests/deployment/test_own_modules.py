"""Modules of one's own in an app: all that they need goes along, and an app that lacks something is not written."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.core.errors import InputError
from fedsim.deployment.app import PACKAGE, deploy
from fedsim.deployment.own_modules import own_files
from fedsim.scenario.load import load

pytest.importorskip("flwr")

MINE = """
from dataclasses import dataclass
from fedsim.algorithms.fedavg import FedAvg

@dataclass(frozen=True, kw_only=True)
class Mine(FedAvg):
    def direction(self, oracle, x, received, client):
        {body}
        return self.gradient(oracle, x)
"""


def written(folder: Path, files: dict[str, str], name: str, **sections: Any) -> Path:
    """A scenario in `folder` beside `files`, whose algorithm is ``<name>:Mine``."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    told = {
        "data": {"dataset": "synthetic", "clients": 3, "iid": True},
        "model": {"name": "linear"},
        "algorithm": {"name": f"{name}:Mine", "lr": 0.1},
        "run": {"rounds": 1},
        **sections,
    }
    (folder / "mine.yaml").write_text(json.dumps(told))
    return folder / "mine.yaml"


def test_all_that_modules_need_goes_along(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beside").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "not_installed.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    net = (
        "import json\nfrom pathlib import Path\nfrom torch import nn\n"
        "from .parts import build\nimport absolute_sibling\n"
        "TABLE = json.loads((Path(__file__).parent / 'tables' / 'sizes.json').read_text())\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, num_outputs):\n"
        "        super().__init__(build(TABLE['inputs'], num_outputs))\n"
    )
    files = {
        "all_mine.py": MINE.format(body="import lazy_sibling; lazy_sibling.CONSTANTS.read_text()"),
        "lazy_sibling.py": "from pathlib import Path\nCONSTANTS = Path(__file__).with_name('constants.yaml')\n"
        "def later():\n    return open('words.txt'), 'no_such.json', 'a text\\nof two lines'\n",
        "constants.yaml": "a: 1\n",
        "words.txt": "not packed by Flower",
        "absolute_sibling.py": "import dataclasses, not_installed\n",
        "not_needed.py": "raise ValueError\n",
        "nets/__init__.py": "",
        "nets/net.py": net,
        "nets/parts.py": "from torch import nn\ndef build(a, b):\n    return nn.Linear(a, b)\n",
        "nets/tables/sizes.json": '{"inputs": 60}',
        "nets/tests/test_net.py": "raise ValueError\n",
        "nets/notes.txt": "of the package, which nothing names",
    }
    file = written(tmp_path / "beside", files, "all_mine", model={"name": "nets.net:Net"})
    with caplog.at_level(logging.WARNING, "fedsim"):
        names = deploy(load(file), tmp_path / "app")
    own = {name.removeprefix(f"{PACKAGE}/") for name in names} & set(files)
    assert own == set(files) - {"words.txt", "not_needed.py", "nets/tests/test_net.py", "nets/notes.txt"}
    assert all((tmp_path / "app" / PACKAGE / name).read_text() == files[name] for name in own)
    assert "not_installed: found on this machine's PYTHONPATH, so every machine needs them" in caplog.text
    assert "words.txt, which a module names, does not travel: Flower packs .py .toml" in caplog.text


@pytest.mark.parametrize(
    "body,found",
    [
        ("import importlib; importlib.import_module('hidden_' + 'sibling')", "No module named 'hidden_sibling'"),
        ("import os; open(os.path.dirname(__file__) + '/vocabulary' + '.txt')", "vocabulary.txt"),
    ],
)
def test_an_app_that_lacks_something_is_not_written(body: str, found: str, tmp_path: Path) -> None:
    name = f"lacking_{'sibling' in body}"
    files = {f"{name}.py": MINE.format(body=body), "hidden_sibling.py": "", "vocabulary.txt": ""}
    file = written(tmp_path, files, name)
    with pytest.raises(InputError) as refused:
        deploy(load(file), tmp_path / "app")
    message = str(refused.value)
    assert "does not work without the folders that its modules come from" in message
    assert found in message
    assert f"({name}.py, line 8); allowed: modules and data files beside those that name them" in message
    assert not (tmp_path / "app").exists()


@pytest.mark.parametrize(
    "files,message",
    [
        ({"named_mine.py": "import server_app\n", "server_app.py": ""}, "found a module server_app in "),
        ({"named_mine.py": "import fakes_test\n", "fakes_test.py": ""}, "Flower leaves fakes_test.py out of apps"),
    ],
)
def test_names_that_an_app_cannot_have(files: dict[str, str], message: str, tmp_path: Path) -> None:
    files = {k: v + (MINE.format(body="pass") if k == "named_mine.py" else "") for k, v in files.items()}
    name = f"named_mine_{'server_app.py' in files}"
    files[f"{name}.py"] = files.pop("named_mine.py")
    with pytest.raises(InputError, match=message):
        own_files(load(written(tmp_path, files, name)))


def test_a_file_beside_a_module_that_is_named_through_a_link_elsewhere(tmp_path: Path) -> None:
    """It has no place in the app under that name: whether the module needs it shows when the app is tried."""
    body = "NAME = '../by_link/sizes.json'"
    files = {"linked_mine.py": MINE.format(body=body), "sizes.json": "{}"}
    file = written(tmp_path / "beside", files, "linked_mine")
    (tmp_path / "by_link").symlink_to(tmp_path / "beside")
    assert list(own_files(load(file)).files) == ["linked_mine.py"]


def test_modules_of_the_working_directory_go_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    files = {"of_the_cwd.py": MINE.format(body="import random, cwd_sibling"), "cwd_sibling.py": ""}
    written(tmp_path / "here", files, "of_the_cwd")
    os.replace(tmp_path / "here" / "mine.yaml", tmp_path / "there" / "mine.yaml")
    monkeypatch.chdir(tmp_path / "here")
    found = own_files(load(tmp_path / "there" / "mine.yaml"))
    assert found.files == {name: tmp_path / "here" / name for name in sorted(files)}
    assert found.homes == [tmp_path / "here"]
    assert not found.left


def test_a_scenario_without_modules_of_ones_own_takes_none_along() -> None:
    sections = {
        "data": {"dataset": "synthetic", "clients": 3, "iid": True},
        "model": {"name": "linear"},
        "algorithm": {"name": "fedavg"},
        "run": {"rounds": 1},
    }
    assert own_files(fedsim.load(Path(__file__).parents[2] / "scenarios" / "quickstart.yaml")).files == {}
    assert own_files(fedsim.scenario.load.parse(sections)).files == {}


def test_a_file_does_not_take_the_place_of_the_resolved_scenario(tmp_path: Path) -> None:
    """It would have none of the settings that the app is made with."""
    body = "from pathlib import Path; Path(__file__).with_name('scenario.yaml')"
    file = written(tmp_path, {"reads_it.py": MINE.format(body=body), "scenario.yaml": "a: 1"}, "reads_it")
    with pytest.raises(InputError, match=r"scenario\.yaml, in whose place the app has the resolved scenario"):
        deploy(load(file), tmp_path / "app")
    assert not (tmp_path / "app").exists()
