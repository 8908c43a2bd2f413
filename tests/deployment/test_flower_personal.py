"""Parameters that stay with clients never leave their machines, and deployed runs are those of the simulation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flower_loopback import Deployment
from safetensors.torch import load_file

import fedsim
from fedsim.core.oracle import CARRIED, PERSONAL, PERSONAL_CARRIED
from fedsim.engine.assembly import assemble
from fedsim.engine.loop import Simulation
from fedsim.scenario.load import parse

pytest.importorskip("flwr")
N = 3
SOME: dict[str, Any] = {"participation": {"mode": "synchronous", "clients_per_round": 2}}
CASES: dict[str, dict[str, Any]] = {
    "fedper": {"model": {"name": "own_models:Whole", "personal": ["head"]}, **SOME},
    "fedrep": {
        "model": {"name": "own_models:Whole", "personal": ["head"]}, **SOME,
        "algorithm": {
            "train": [{"parameters": "personal", "steps": 2}, {"parameters": "shared", "steps": 1}],
            "local_steps": None,
        },
    },
    "fedbn": {"model": {"name": "own_models:Normed", "batch_norm": "local"}, **SOME},
    "graph": {
        "model": {"name": "own_models:Normed", "batch_norm": "local"}, "algorithm": {"name": "dfedavg"},
        "topology": {"graph": "ring"}, "participation": {"mode": "gossip", "compute": 0.7},
    },
}  # fmt: skip


def sections(case: str, rounds: int = 3) -> dict[str, Any]:
    more = dict(CASES[case])
    local = {"name": "fedavg", "lr": 0.05, "batch_size": 6, "local_steps": 2, **more.pop("algorithm", {})}
    return {
        "data": {"dataset": "digits", "clients": N, "limit": 60, "local_test": 0.25},
        "algorithm": local,
        "run": {"rounds": rounds, "dtype": "float64", "eval_every": 1, "eval_samples": 30, "device": "cpu"},
        **more,
    }


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_those_of_the_simulation(case: str, tmp_path: Path) -> None:
    scenario = parse(sections(case))
    made = Simulation(scenario, assemble(scenario), tmp_path / "simulated")
    simulated = made.run()
    app = Deployment(tmp_path / "app", sections(case), N)
    deployed = app.run()
    task = made.assembly.task
    shared = task.sharing.params.common
    assert torch.equal(shared(deployed.params), shared(simulated.params))
    clocks = ["time", "wall", *(c for c in simulated.metrics if c.startswith("node_accuracy"))]
    found, wanted = (run.metrics.drop(columns=clocks, errors="ignore") for run in (deployed, simulated))
    assert found.columns.equals(wanted.columns)
    np.testing.assert_allclose(found.astype(float), wanted.astype(float), rtol=1e-12, atol=1e-12)
    assert "node_accuracy" not in deployed.metrics, "of nodes' own models a server knows nothing"
    looked_at = 0
    for client in range(N):
        files = sorted((tmp_path / "app").glob(f"**/client-{client}/round-*.safetensors"))
        own = made.home.personal(np.array([client]))
        if not files:
            continue
        kept = load_file(files[-1])
        looked_at += 1
        assert all(torch.equal(kept[name], own[name]) for name in own)
        assert set(own) == ({PERSONAL, PERSONAL_CARRIED} if "norm" in str(CASES[case]["model"]) else {PERSONAL})
    assert looked_at >= 2


@pytest.mark.parametrize("case", ["fedper", "fedbn", "graph"])
def test_what_stays_is_never_sent(case: str, tmp_path: Path) -> None:
    app = Deployment(tmp_path / "app", sections(case, rounds=1), N)
    app.run()
    task = assemble(parse(sections(case))).task
    sizes = {
        name: array.numpy().shape[-1]
        for message in app.grid.pushed
        for name, array in message.content.get("arrays", {}).items()
    }
    assert sizes == {"x": task.dim - task.sharing.params.numbers}
    assert CARRIED not in sizes


def test_a_deployment_is_continued_with_what_stayed(tmp_path: Path) -> None:
    simulated = fedsim.run(sections("fedbn"), out=tmp_path / "simulated")
    app = Deployment(tmp_path / "app", sections("fedbn"), N)
    app.run(settings="run.rounds=2")
    resumed = app.run(run="2", settings="run.rounds=3", resume=True)
    assert torch.equal(resumed.params, simulated.params)
