"""Nodes whose states flow between their events, in shards: the same vectors as in one process, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_ray_contract import ray_backend

import fedsim
from fedsim.core.row_files import TensorFile

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

Make = Callable[..., Any]
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dadao": ({"name": "dadao"}, {}),
    "acid": ({"name": "acid", "lr": 0.05, "momentum": 0.9}, {"links": 0.5}),
    "acid, merged": (
        {"name": "acid", "lr": 0.05, "momentum": 0.9},
        {"links": 0.5, "merge": {"every": 4}, "schedule": [{"from": 2, "until": 5, "links": 2.5}]},
    ),
}


def scenario(problem: Any, case: str, rounds: int = 10) -> dict[str, Any]:
    algorithm, keys = CASES[case]
    return {
        "data": problem.section(noise=0.1), "algorithm": algorithm, "topology": {"graph": "ring"},
        "participation": {"mode": "poisson", "compute": {"model": "uniform", "low": 0.3, "high": 2.0}, "window": 0.7,
                          **keys},
        "run": {"rounds": rounds, "eval_every": 1, "dtype": "float64", "device": "cpu", "trace": True},
    }  # fmt: skip


def kept(run: Any) -> dict[str, torch.Tensor]:
    """The states of a checkpoint: as after every node's last event."""
    file = TensorFile(run.dir / "checkpoint" / "state.safetensors")
    return {name: file[name] for name in file}


def same(alone: Any, other: Any, tolerance: float) -> None:
    assert (alone.params - other.params).abs().max() <= tolerance
    assert alone.trace == other.trace
    states = kept(alone), kept(other)
    assert states[0].keys() == states[1].keys()
    assert all((rows - states[1][name]).abs().max() <= tolerance for name, rows in states[0].items())
    assert not torch.equal(alone.params, states[0]["x"])  # what is reported has flowed to the window's end
    for name in alone.metrics:
        if name != "wall":
            assert alone.metrics[name].to_numpy() == pytest.approx(other.metrics[name].to_numpy(), abs=1e-12), name


@pytest.mark.parametrize("case", CASES)
def test_shards_change_nothing(quadratic: Make, tmp_path: Path, ray_cluster: Any, case: str) -> None:
    from test_ray_faults import run_and_kill

    settings = scenario(quadratic(n=9), case)
    off = 1e-13 if "merged" in case else 0.0  # a mean of shards' sums is another one's by rounding
    alone = fedsim.run(settings, tmp_path / "alone")
    for actors in (2, 3):
        same(alone, fedsim.run({**settings, "backend": ray_backend(actors)}, tmp_path / str(actors)), off)
    on_ray = {**settings, "backend": ray_backend(2)}
    same(alone, run_and_kill(ray_cluster, on_ray, tmp_path / "killed", (4,)), off)
    fedsim.run({**on_ray, "run": {**settings["run"], "rounds": 5}}, tmp_path / "parts")
    same(alone, fedsim.run({**settings, "backend": ray_backend(3)}, tmp_path / "parts", resume=True), off)
