"""Whatever is refused is refused before anything is written: no run directory, no app, no half-begun folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from bad_input_makers import GOSSIP, Case, assert_answers, write
from data_makers import save_quadratic
from test_bad_input import CASES, GRAPHS, MODELS, PARTITIONS, TOGETHER

import fedsim
from fedsim.cli.app import main
from fedsim.core.errors import InputError

ON_CLOCK: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 4, "limit": 100}, "model": {"name": "linear"},
    "algorithm": {"name": "fedavg", "lr": 0.1}, "run": {"rounds": 2, "device": "cpu"},
}  # fmt: skip
PRIVATE = {
    **ON_CLOCK, "participation": {"sampling": "poisson", "fraction": 0.5},
    "privacy": {"mechanism": "dp_fedavg", "epsilon": 2.0, "clip_norm": 1.0},
}  # fmt: skip
OWN_MODE = """\
from dataclasses import dataclass
import numpy as np
from fedsim.core.errors import InputError
from fedsim.participation.base import Dispatch
from fedsim.participation.synchronous import Synchronous

@dataclass(frozen=True, kw_only=True)
class Refuses(Synchronous):
    def events(self, *given, **keys):
        for event in super().events(*given, **keys):
            yield event
            raise InputError("found a round that cannot be made", key="participation.mode")
"""


def late(name: str, values: dict[str, Any], *says: str, files: dict[str, Any] | None = None) -> Case:
    """What only the schedule, the backend or the bound mechanism shows."""
    return Case(name, ["run", "s.yaml"], says, {"s.yaml": yaml.safe_dump(values), **(files or {})})


LATE = [
    Case(
        "poisson clocks on graphs that take turns", ["run", "s.yaml"], ("topology", "allowed: one graph"),
        {
            "q.npz": save_quadratic,
            "s.yaml": GOSSIP.replace("graph: ring", "graph: sequence\n  graphs: [{graph: ring}, {graph: star}]")
            .replace("compute: 0.5", "mode: poisson"),
        },
    ),
    late(
        "a pilot too short for the slowest",
        {
            **ON_CLOCK, "participation": {"mode": "asynchronous", "weights": "estimated", "pilot": 1},
            "system": {"compute": {"model": "linear", "slowest": 5.0, "fastest": 0.1}},
        },
        "participation.pilot", "delivers in none of the first 1 combines",
    ),
    late(
        "de-biased weights without a closed form",
        {
            **ON_CLOCK, "participation": {"mode": "asynchronous"},
            "system": {"compute": 1.0, "jitter": {"model": "exponential", "mean": 1.0}},
        },
        "participation.weights", "no closed form",
    ),
    late(
        "a mode of one's own that fails in its first round",
        {**ON_CLOCK, "participation": {"mode": "own_mode_of_test_nothing:Refuses"}},
        "participation.mode", "found a round that cannot be made",
        files={"own_mode_of_test_nothing.py": OWN_MODE},
    ),
    late(
        "a robust aggregator under a mechanism made for a mean",
        {**PRIVATE, "aggregator": {"name": "median"}}, "aggregator.name", "allowed: mean",
    ),
    late(
        "cohorts for which no epsilon is known",
        {**PRIVATE, "participation": {"fraction": 0.5}}, "participation.sampling", "allowed: poisson",
    ),
    late(
        "a kernel that cannot take the model",
        {**ON_CLOCK, "model": {"name": "own_net_of_test_nothing:Net"}, "run": {"rounds": 2, "kernel": "stacked"}},
        "run.kernel", "allowed: auto, rows",
        files={
            "own_net_of_test_nothing.py": "from torch import nn\n\nclass Odd(nn.Module):\n"
            "    def __init__(self):\n        super().__init__()\n        self.inner = nn.Linear(64, 10)\n\n"
            "    def forward(self, x):\n        y = self.inner(x.flatten(1))\n"
            "        return y if y.sum().item() != 3.7 else -y\n\ndef Net():\n    return Odd()\n"
        },
    ),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if "__pycache__" not in p.parts}


def refused(case: Case, argv: list[str], folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command answers as `case` says and leaves the folder as it was."""
    write(case, folder)
    before = files(folder)
    monkeypatch.setattr(sys, "argv", ["fedsim", *argv])
    with pytest.raises(SystemExit) as ended:
        main()
    assert_answers(case, ended.value.code, *capsys.readouterr())
    assert files(folder) == before


RUNS = [case for case in [*CASES, *LATE] if case.argv[0] in ("plan", "run") and "--out" not in case.argv]


@pytest.mark.parametrize("case", RUNS, ids=lambda case: case.name.replace("\n", " ")[:70])
def test_a_run_that_is_refused_leaves_nothing(
    case: Case, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(case, ["run", *case.argv[1:]], folder, capsys, monkeypatch)


SAMPLE = [*TOGETHER[:6], *PARTITIONS[:2], *GRAPHS[:2], *MODELS[:2]]


@pytest.mark.parametrize("command", ["deploy", "audit"])
@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: case.name.replace("\n", " ")[:70])
def test_other_commands_that_refuse_leave_nothing(
    case: Case, command: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["app"] if command == "deploy" else ["--attack", "loss"]
    refused(case, [command, *case.argv[1:], *more], folder, capsys, monkeypatch)


def test_a_run_is_not_touched_by_what_cannot_continue_it(folder: Path) -> None:
    """Noise made for two rounds cannot serve three: the directory of the run stays what it was, byte for byte."""
    out = folder / "out"
    fedsim.run(PRIVATE, out=out)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    for values, key in (
        ({**PRIVATE, "run": {"rounds": 3, "device": "cpu"}}, "run.rounds"),
        (
            {**PRIVATE, "algorithm": {"name": "fedavg", "lr": 0.2}, "run": {"rounds": 3, "device": "cpu"}},
            "algorithm.lr",
        ),
        ({**PRIVATE, "run": {"rounds": 1, "device": "cpu"}}, "run.rounds"),
    ):
        with pytest.raises(InputError) as caught:
            fedsim.run(values, out=out, resume=True)
        assert key in [p.key for p in caught.value.problems]
        assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_a_run_that_cannot_begin_says_where(folder: Path) -> None:
    """What only the schedule shows has file and line like everything else."""
    write(LATE[0], folder)
    with pytest.raises(InputError) as caught:
        fedsim.run(folder / "s.yaml")
    assert (caught.value.problems[0].key, caught.value.problems[0].file) == ("topology", str(folder / "s.yaml"))
