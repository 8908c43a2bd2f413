"""Parts of somebody's own that raise, end the process or print: one sentence that names them, and JSON alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedsim.core import registry

MODULE = """
import sys
from dataclasses import dataclass

import networkx as nx
import torch

import fedsim
from fedsim import *


def wrong():
    {wrong}


@dataclass(frozen=True)
class Algorithm(ServerAlgorithm):
    lr: float = 0.1

    def combine(self, state, messages, round, aggregate):
        wrong()


@dataclass(frozen=True)
class Rule(Aggregator):
    def __call__(self, values, weights):
        wrong()


@dataclass(frozen=True)
class Smaller(Compressor):
    def __call__(self, v, u):
        wrong()

    def bits(self, d, number):
        return 8


@dataclass(frozen=True)
class Attacker(MessageTransform):
    def receive(self, *rest):
        wrong()


@dataclass(frozen=True)
class Short(MessageTransform):
    def receive(self, message):
        return message


@dataclass(frozen=True)
class Mode(Clocked):
    weights: str = "identical"

    def policy(self, n, seed):
        wrong()


@dataclass(frozen=True)
class Private(Mechanism):
    def bind(self, setting):
        wrong()


@dataclass(frozen=True)
class Measured(Measure):
    def evaluate(self, view):
        wrong()


@dataclass(frozen=True)
class Rows(DatasetPart):
    def load(self, clients, seed, base):
        wrong()


@dataclass(frozen=True)
class Divide(Partition):
    def assign(self, labels, clients, seed):
        wrong()


def graph(n, seed):
    wrong()


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        wrong()


@dataclass(frozen=True)
class Section(ReportSection):
    title = "Mine"

    def blocks(self, page):
        wrong()
"""
SCENARIO: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 3, "limit": 60},
    "model": {"name": "linear"},
    "algorithm": {"name": "fedavg", "lr": 0.1},
    "run": {"rounds": 1, "eval_every": 1, "device": "cpu", "threads": 1},
}
PARTS = {  # what is set, and the method that is named
    "algorithm": ({"algorithm": {"name": "mine:Algorithm"}}, "Algorithm.combine"),
    "aggregator": ({"aggregator": {"name": "mine:Rule"}}, "Rule.__call__"),
    "compression": ({"compression": {"name": "mine:Smaller"}}, "Smaller.__call__"),
    "attack": ({"attack": {"name": "mine:Attacker"}}, "Attacker.receive"),
    "participation": ({"participation": {"mode": "mine:Mode"}}, "Mode.policy"),
    "privacy": ({"privacy": {"mechanism": "mine:Private"}}, "Private.bind"),
    "metric": ({"run": {**SCENARIO["run"], "metrics": [{"name": "mine:Measured"}]}}, "Measured.evaluate"),
    "dataset": ({"data": {"dataset": "mine:Rows"}}, "Rows.load"),
    "partition": ({"data": {**SCENARIO["data"], "partition": {"scheme": "mine:Divide"}}}, "Divide.assign"),
}
Call = Callable[..., tuple[int, str, str]]


def write(folder: Path, wrong: str, changes: dict[str, Any]) -> None:
    (folder / "mine.py").write_text(MODULE.replace("{wrong}", wrong))
    (folder / "s.yaml").write_text(yaml.safe_dump({**SCENARIO, **changes}))


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_raises_is_named(part: str, call: Call, tmp_path: Path) -> None:
    changes, method = PARTS[part]
    write(tmp_path, 'raise KeyError("lost")', changes)
    code, out, err = call("run", "s.yaml", "--out", "out", "--json")
    line = 1 + MODULE.splitlines().index("    {wrong}")
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1, err
    assert f"mine:{method}" in err
    assert f"{tmp_path / 'mine.py'}:{line}) raised KeyError: 'lost'" in err
    assert "--traceback" in err


def test_the_traceback_is_printed_where_it_is_asked_for(call: Call, tmp_path: Path) -> None:
    write(tmp_path, 'raise KeyError("lost")', PARTS["metric"][0])
    code, _, err = call("--traceback", "run", "s.yaml", "--out", "out")
    assert code == 1
    assert "Traceback (most recent call last)" in err
    assert err.splitlines()[-1].endswith("raised KeyError: 'lost'")


def test_a_part_that_takes_other_arguments_is_named(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where somebody named a part of PyTorch, of which a module raises for a name that it does not have."""
    monkeypatch.setattr("fedsim.core.registry._named", {*registry._named, "torch"})
    write(tmp_path, "pass", {"attack": {"name": "mine:Short"}})
    code, _, err = call("run", "s.yaml", "--out", "out", "--json")
    assert code == 1
    assert err.startswith("your own mine:Short.receive (")
    assert "takes 2 positional arguments but 4 were given" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("part", ["graph", "model"])
def test_what_is_made_before_a_run_is_refused(part: str, call: Call, tmp_path: Path) -> None:
    graph = {"algorithm": {"name": "dspodfl", "lr": 0.1}, "topology": {"graph": "mine:graph"}}
    write(tmp_path, 'raise KeyError("lost")', graph if part == "graph" else {"model": {"name": "mine:Net"}})
    code, _, err = call("run", "s.yaml", "--out", "out")
    assert code == 2
    assert "mine:" in err
    assert "KeyError: 'lost'" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_section_of_reports_that_raises_is_named(call: Call, tmp_path: Path) -> None:
    write(tmp_path, 'raise KeyError("lost")', {})
    assert call("run", "s.yaml", "--out", "out", "--json")[0] == 0
    code, _, err = call("report", "out", "--section", "mine:Section")
    assert code == 1
    assert err.startswith("your own mine:Section.blocks (")
    assert len(err.splitlines()) == 1


def test_a_sweep_names_it_and_goes_on(call: Call, tmp_path: Path) -> None:
    write(tmp_path, 'raise KeyError("lost")', {})
    sweep = {"scenario": "s.yaml", "grid": {"aggregator.name": ["mean", "mine:Rule"]}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    code, out, err = call("sweep", "sweep.yaml", "--out", "out", "--json")
    assert code == 1
    assert [row["status"] for row in json.loads(out)] == ["finished", "failed"]
    assert "your own mine:Rule.__call__ (" in err


# --- sys.exit ---------------------------------------------------------------------------------------------------------

COMMANDS = {
    "run": ("run", "s.yaml", "--out", "out", "--json"),
    "plan": ("plan", "s.yaml", "--json"),
    "schedule": ("plan", "s.yaml", "--schedule", "--json"),
    "audit": ("audit", "s.yaml", "--attack", "loss", "--out", "audited", "--json"),
    "sweep": ("sweep", "sweep.yaml", "--out", "out", "--json"),
    "deploy": ("deploy", "s.yaml", "app"),
}


@pytest.mark.parametrize("where", ["import", "method"])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_module_ends_a_command(command: str, where: str, call: Call, tmp_path: Path) -> None:
    """Exit code 0 would say that all went well."""
    write(tmp_path, "sys.exit(0)", {"data": {"dataset": "mine:Rows", "clients": 3}})
    if where == "import":
        (tmp_path / "mine.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"scenario": "s.yaml", "grid": {"seed": [0]}}))
    code, out, err = call(*COMMANDS[command])
    assert code in (1, 2)
    assert "sys.exit" in err or "SystemExit" in err
    assert "Traceback" not in err
    assert out == "" or json.loads(out)[0]["status"] == "failed"


def test_a_check_and_a_report_are_not_ended_either(call: Call, tmp_path: Path) -> None:
    write(tmp_path, "sys.exit(0)", {})
    code = call("check", "mine:Rule")[0]
    assert code == 1
    assert call("run", "s.yaml", "--out", "out", "--json")[0] == 0
    code, _, err = call("report", "out", "--section", "mine:Section")
    assert code == 1
    assert "mine:Section.blocks" in err


# --- standard output --------------------------------------------------------------------------------------------------


NOISY = ("run", "plan", "schedule", "sweep", "topology")
PROCESSES = """
import json, os, sys
import fedsim.engine.run, fedsim.sweeps.run  # what takes long is imported once
from fedsim.cli.app import main

for folder, argv in json.loads(sys.argv[1]):
    if os.fork() == 0:
        os.chdir(folder)
        for number, name in ((1, "said"), (2, "told")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
        sys.argv = ["fedsim", *argv]
        main()
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    """Each command in a process of its own: its exit code, standard output and standard error."""
    noise = 'print("noise")\n    import os; os.write(1, b"more noise\\n"); os.system("echo still more")'
    module = (
        MODULE.replace("{wrong}", noise).replace("        wrong()\n\n\n@dataclass(frozen=True)\nclass Smaller",
        "        wrong()\n        return weights @ values\n\n\n@dataclass(frozen=True)\nclass Smaller")
        .replace("def graph(n, seed):\n    wrong()", "def graph(n, seed):\n    wrong()\n    return nx.cycle_graph(n)")
        + 'print("noise")\n'
    )  # fmt: skip
    graph = {"algorithm": {"name": "dspodfl", "lr": 0.1}, "topology": {"graph": "mine:graph"}}
    folders = {command: tmp_path_factory.mktemp(command) for command in NOISY}
    for command, folder in folders.items():
        (folder / "mine.py").write_text(module)
        changes = graph if command == "topology" else {"aggregator": {"name": "mine:Rule"}}
        (folder / "s.yaml").write_text(yaml.safe_dump({**SCENARIO, **changes}))
        (folder / "sweep.yaml").write_text(yaml.safe_dump({"scenario": "s.yaml", "grid": {"seed": [0]}}))
    commands = {**COMMANDS, "topology": ("topology", "s.yaml", "--json")}
    asked = json.dumps([(str(folder), commands[command]) for command, folder in folders.items()])
    done = subprocess.run([sys.executable, "-c", PROCESSES, asked], capture_output=True, text=True, check=True)
    texts = {command: [(folder / name).read_text() for name in ("said", "told")] for command, folder in folders.items()}
    return {c: (int(code), *texts[c]) for c, code in zip(NOISY, done.stdout.split(), strict=True)}


@pytest.mark.parametrize("command", NOISY)
def test_with_json_nothing_else_is_on_standard_output(command: str, noisy: dict[str, tuple[int, str, str]]) -> None:
    """Also not what is printed by other languages, past Python's own files."""
    code, out, err = noisy[command]
    assert code == 0, err
    json.loads(out)
    assert "noise" in err


# --- outputs that are no numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "plan", "schedule", "sweep", "audit", "deploy"])
def test_a_model_whose_outputs_are_nan_is_a_sentence(command: str, call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n\nclass Net(torch.nn.Linear):\n    def __init__(self):\n        super().__init__(64, 10)\n"
        "    def forward(self, x):\n        return super().forward(x.flatten(1)) * float('nan')\n"
    )
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**SCENARIO, "model": {"name": "mine:Net"}}))
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"scenario": "s.yaml", "grid": {"seed": [0]}}))
    code, _, err = call(*COMMANDS[command])
    assert code == 2
    assert "gives outputs that are NaN before any training" in err
    assert "Traceback" not in err
