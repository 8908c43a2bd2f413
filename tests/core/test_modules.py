"""Modules beside a scenario win over installed ones of the same name, and over nothing else."""

from __future__ import annotations

import importlib
import pickle
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import fedsim
from fedsim.core import modules
from fedsim.core.errors import InputError
from fedsim.core.modules import Places, beside
from fedsim.core.registry import load_object, spelled
from fedsim.deployment.app import deploy
from fedsim.engine.assembly import assemble
from fedsim.scenario.load import load

INSTALLED = "rich"  # a package that is there, is no part of the standard library, and is not ours
ALGORITHM = """\
from dataclasses import dataclass
from fedsim.algorithms.fedavg import FedAvg
from helper_of_test_modules import FACTOR

@dataclass(frozen=True, kw_only=True)
class Mine(FedAvg):
    factor: float = FACTOR

    def direction(self, oracle, x, received, client):
        import helper_of_test_modules  # when it is used, too, and in other processes
        return helper_of_test_modules.FACTOR * super().direction(oracle, x, received, client)
"""


@pytest.fixture(autouse=True)
def imports() -> Iterator[None]:
    """What tests import is taken back."""
    before, path = set(sys.modules), list(sys.path)
    packages, plain = dict(modules._packages), dict(modules._plain)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name.startswith("fedsim_beside_") or "of_test_modules" in name:
            del sys.modules[name]
    for found, old in ((modules._packages, packages), (modules._plain, plain)):
        found.clear()
        found.update(old)


def scenario(folder: Path, module: str, text: str = ALGORITHM, factor: float = 2.0, **sections: Any) -> Path:
    """A scenario in `folder` whose algorithm is ``module:Mine``, with a helper beside it."""
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(text)
    (folder / "helper_of_test_modules.py").write_text(f"FACTOR = {factor}\n")
    values = {
        "data": {"dataset": "digits", "clients": 4, "limit": 100}, "model": {"name": "linear"},
        "algorithm": {"name": f"{module}:Mine", "lr": 0.1}, "run": {"rounds": 2, "device": "cpu"}, **sections,
    }  # fmt: skip
    (folder / "s.yaml").write_text(yaml.safe_dump(values))
    return folder / "s.yaml"


@pytest.mark.parametrize("name", [INSTALLED, "random", "of_test_modules_alone"], ids=["installed", "standard", "alone"])
def test_a_module_beside_the_scenario_wins(name: str, tmp_path: Path) -> None:
    found = importlib.import_module(name) if name != "of_test_modules_alone" else None
    s = load(scenario(tmp_path, name))
    mine = type(s.algorithm)
    assert Path(sys.modules[mine.__module__].__file__ or "").resolve() == tmp_path / f"{name}.py"
    assert s.algorithm.factor == 2.0  # type: ignore[attr-defined]
    assert s.names["algorithm"] == f"{name}:Mine"
    if found is not None:  # for everybody else it is what it was
        assert importlib.import_module(name) is found
        assert sys.modules[name] is found
    else:
        assert mine.__module__ == name
    again = pickle.loads(pickle.dumps(s))
    assert type(again.algorithm) is mine
    assert assemble(again).task.num_clients == 4


def test_two_scenarios_with_modules_of_one_name(tmp_path: Path) -> None:
    """The second is not given the first one's, nor are their helpers mixed up."""
    first, second = (load(scenario(tmp_path / f, "own_of_test_modules", factor=k)) for f, k in (("a", 2.0), ("b", 3.0)))
    assert (first.algorithm.factor, second.algorithm.factor) == (2.0, 3.0)  # type: ignore[attr-defined]
    assert type(first.algorithm) is not type(second.algorithm)
    assert load(tmp_path / "a" / "s.yaml").algorithm.factor == 2.0  # type: ignore[attr-defined]
    runs = [fedsim.run(s, out=tmp_path / s.base.name / "run").params for s in (first, second)]
    assert not (runs[0] == runs[1]).all()


def test_siblings_come_first_for_own_modules_alone(tmp_path: Path) -> None:
    (tmp_path / "rich.py").write_text("WORD = 'mine'\n")
    (tmp_path / "statistics.py").write_text("import statistics as installed\nfrom rich import WORD\n")
    package = tmp_path / "package_of_test_modules"
    package.mkdir()
    (package / "__init__.py").write_text("import package_of_test_modules.inner\nimport rich, statistics\n")
    (package / "inner.py").write_text("from . import __name__ as outer\nimport rich.errors if False else None\n")
    (package / "inner.py").write_text("import rich\nWORD = rich.WORD\n")
    with beside(tmp_path):
        word = load_object("package_of_test_modules.inner:WORD")
        loaded = load_object("package_of_test_modules:statistics")
    assert word == loaded.WORD == "mine"
    assert loaded.installed is importlib.import_module("statistics")  # a module does not import itself
    assert hasattr(importlib.import_module("rich"), "print")
    assert random.random() < 1


def test_what_cannot_be_imported_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "rich.py").write_text("raise ValueError('half done')\n")
    with beside(tmp_path), pytest.raises(InputError, match="cannot import 'rich' of 'rich:X': ValueError: half done"):
        load_object("rich:X")
    (tmp_path / "rich.py").write_text("X = 5\n")
    with beside(tmp_path):
        assert load_object("rich:X") == 5


def test_fedsim_and_main_are_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fedsim").mkdir()
    (tmp_path / "fedsim" / "__init__.py").write_text("raise SystemExit\n")
    (tmp_path / "__main__.py").write_text("raise SystemExit\n")
    monkeypatch.chdir(tmp_path)
    with beside(tmp_path):
        assert load_object("fedsim.core.errors:InputError") is InputError
        assert load_object("__main__:__name__") == "__main__"


def test_what_another_program_defined_is_told_of() -> None:
    with pytest.raises(InputError, match=r"'__main__:Gone' is of the script .* allowed: the name of a module"):
        load_object("__main__:Gone")


class Mine:
    class Inner:
        pass


def test_classes_and_functions_are_spelled_by_name() -> None:
    given = {"a": {"name": Mine, "of": [spelled, "as it is", 3]}, "b": None}
    names = [f"{spelled.__module__}:spelled", "as it is", 3]
    assert spelled(given) == {"a": {"name": f"{__name__}:Mine", "of": names}, "b": None}
    assert load_object(spelled(spelled)) is spelled


@pytest.mark.parametrize("odd", [lambda: 0, Mine.Inner])
def test_what_has_no_name_of_its_own_is_refused(odd: Any) -> None:
    with pytest.raises(InputError, match="cannot be found again by its name; allowed") as caught:
        spelled({"a": [{"b": odd}]})
    assert caught.value.problems[0].key == "a.0.b"


def test_a_folder_without_init_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "rich").mkdir()
    with beside(tmp_path):
        assert load_object("rich:print") is importlib.import_module("rich").print


def test_another_process_finds_them_by_what_it_is_told(tmp_path: Path) -> None:
    s = load(scenario(tmp_path, INSTALLED))
    (tmp_path / "s.pickle").write_bytes(pickle.dumps((Places.here(), pickle.dumps(s))))
    code = (
        "import pickle, sys, rich\nplaces, s = pickle.load(open(sys.argv[1], 'rb'))\nplaces.adopt()\n"
        "s = pickle.loads(s)\nprint(s.algorithm.factor, hasattr(rich, 'print'), hasattr(rich, 'Mine'))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "s.pickle")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2.0", "True", "False"]


def test_a_deployment_takes_the_module_along(tmp_path: Path) -> None:
    deploy(load(scenario(tmp_path / "s", INSTALLED)), tmp_path / "app")
    package = tmp_path / "app" / "fedsim_deployment"
    assert (package / f"{INSTALLED}.py").read_text() == ALGORITHM
    assert (package / "helper_of_test_modules.py").exists()  # what it imports from beside itself, too
    deployed = load(package / "scenario.yaml")
    assert Path(sys.modules[type(deployed.algorithm).__module__].__file__ or "").parent == package


@pytest.mark.ray
@pytest.mark.slow
def test_ray_actors_and_sweeps_find_them(tmp_path: Path) -> None:
    """The real commands, in processes of their own: actors, and the trials of a sweep."""
    file = scenario(tmp_path, INSTALLED)
    here = fedsim.run(load(file), out=tmp_path / "here").params
    command = [sys.executable, "-m", "fedsim"]
    ray = ["--set", "backend={name: ray, actors: 2, cpus_per_actor: 0.5}", "--out", str(tmp_path / "there")]
    done = subprocess.run([*command, "run", str(file), *ray], capture_output=True, text=True, cwd=tmp_path.parent)
    assert done.returncode == 0, done.stderr
    assert (fedsim.engine.run_directory.Run(tmp_path / "there").params - here).abs().max() < 1e-6
    (tmp_path / "w.yaml").write_text("scenario: s.yaml\ngrid:\n  seed: [0, 1]\n")
    sweep = ["sweep", str(tmp_path / "w.yaml"), "--parallel", "1", "--out", str(tmp_path / "sweep"), "--json"]
    done = subprocess.run([*command, *sweep], capture_output=True, text=True, cwd=tmp_path.parent)
    assert done.returncode == 0, done.stderr
    assert (fedsim.engine.run_directory.Run(tmp_path / "sweep" / "seed=0").params == here).all()
