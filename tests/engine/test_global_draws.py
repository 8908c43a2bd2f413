"""Own parts that draw from global generators are named; all others, and a model's layers, are not."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import fedsim

MODULE = """
import random
from dataclasses import dataclass

import networkx as nx
import numpy as np
import torch

import fedsim
from fedsim import *


def draw():
    {draw}


@dataclass(frozen=True)
class Rule(Aggregator):
    def __call__(self, values, weights):
        draw()
        return weights @ values


@dataclass(frozen=True)
class Divide(Partition):
    def assign(self, labels, clients, seed):
        draw()
        return [np.arange(len(labels))[c::clients] for c in range(clients)]


def graph(n, seed):
    draw()
    return nx.cycle_graph(n)


class Net(torch.nn.Linear):
    def __init__(self):
        super().__init__(64, 10)

    def forward(self, x):
        return super().forward(x.flatten(1))
"""
DRAWS = {"random": "random.random()", "numpy.random": "np.random.rand()", "torch": "torch.rand(1)"}
DATA: dict[str, Any] = {"dataset": "digits", "clients": 3, "limit": 60}
SCENARIO: dict[str, Any] = {
    "data": DATA, "model": {"name": "mine:Net"}, "algorithm": {"name": "fedavg", "lr": 0.1},
    "run": {"rounds": 2, "eval_every": 1, "device": "cpu", "threads": 1},
}  # fmt: skip
PARTS: dict[str, dict[str, Any]] = {
    "Rule": {"aggregator": {"name": "mine:Rule"}},
    "Divide": {"data": {**DATA, "partition": {"scheme": "mine:Divide"}}},
    "graph": {"algorithm": {"name": "dspodfl", "lr": 0.1}, "topology": {"graph": "mine:graph"}},
}


def run(folder: Path, draw: str, changes: dict[str, Any]) -> fedsim.Run:
    (folder / "mine.py").write_text(MODULE.replace("{draw}", draw))
    (folder / "s.yaml").write_text(yaml.safe_dump({**SCENARIO, **changes}))
    return fedsim.run(fedsim.load(str(folder / "s.yaml")), out=folder / "out")


@pytest.fixture(autouse=True)
def _paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.parametrize("generator", DRAWS)
@pytest.mark.parametrize("part", PARTS)
def test_who_draws_is_named(part: str, generator: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="fedsim"):
        made = run(tmp_path, DRAWS[generator], PARTS[part])
    said = [r.getMessage() for r in caplog.records if "drew from" in r.getMessage()]
    assert len(said) == 1
    assert f"mine:{part}" in said[0]
    assert f"drew from the global generator of {generator}, which" in said[0]
    if part == "Rule":
        assert said[0] in made.warnings


@pytest.mark.parametrize("part", PARTS)
def test_who_draws_from_keys_is_not(part: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="fedsim"):
        made = run(tmp_path, 'fedsim.rng.generator(0, "mine").random()', PARTS[part])
    assert not [r for r in caplog.records if "drew from" in r.getMessage()]
    assert made.warnings == []


ALONE = """
import logging
import fedsim
logging.basicConfig(level=logging.WARNING)
fedsim.run(fedsim.load("s.yaml"), out="out")
"""
LATE = """
import torch

def make():
    import rich.style
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(60, 10))
"""


def test_a_library_that_draws_when_it_is_imported_is_not_told_of(tmp_path: Path) -> None:
    data = {"dataset": "synthetic", "clients": 3, "iid": True}
    (tmp_path / "mine.py").write_text(LATE)
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**SCENARIO, "data": data, "model": {"name": "mine:make"}}))
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "drew from" not in done.stderr
