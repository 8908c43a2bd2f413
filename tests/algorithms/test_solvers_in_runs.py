"""Every solver, reset or kept, over several clients: PyTorch's own optimisers, one per client, in whatever shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.algorithms.work import LrDecay
from fedsim.core.registry import names

Make = Callable[..., Any]
LR, STEPS, ROUNDS, CLIENTS = 0.05, 3, 4, 3
SCHEDULE = {"model": "step", "factor": 0.5, "every": 2, "warm_up": 2}
RATES = [LR / 2, LR, LR, LR / 2]  # of the rounds, by hand
Torch = Callable[[list[torch.Tensor]], torch.optim.Optimizer]

SOLVERS: dict[str, tuple[dict[str, Any], Torch]] = {
    "sgd": ({"name": "sgd", "momentum": 0.9, "weight_decay": 0.1},
            lambda p: torch.optim.SGD(p, LR, momentum=0.9, weight_decay=0.1)),
    "nesterov": ({"name": "nesterov", "momentum": 0.8, "weight_decay": 0.1},
                 lambda p: torch.optim.SGD(p, LR, momentum=0.8, weight_decay=0.1, nesterov=True)),
    "adam": ({"name": "adam", "weight_decay": 0.1, "eps": 1e-3},
             lambda p: torch.optim.Adam(p, LR, weight_decay=0.1, eps=1e-3)),
    "adam-amsgrad": ({"name": "adam", "beta2": 0.5, "amsgrad": True},
                     lambda p: torch.optim.Adam(p, LR, betas=(0.9, 0.5), amsgrad=True)),
    "adamw": ({"name": "adamw", "weight_decay": 0.2}, lambda p: torch.optim.AdamW(p, LR, weight_decay=0.2)),
    "adamw-amsgrad": ({"name": "adamw", "beta2": 0.5, "amsgrad": True},
                      lambda p: torch.optim.AdamW(p, LR, betas=(0.9, 0.5), weight_decay=0.01, amsgrad=True)),
    "adagrad": ({"name": "adagrad", "initial_accumulator": 0.2, "weight_decay": 0.1, "eps": 1e-3},
                lambda p: torch.optim.Adagrad(p, LR, initial_accumulator_value=0.2, weight_decay=0.1, eps=1e-3)),
}  # fmt: skip


def test_every_solver_is_here() -> None:
    assert {keys["name"] for keys, _ in SOLVERS.values()} == set(names("solver"))


def by_pytorch(problem: Any, make: Torch, kept: bool) -> torch.Tensor:
    """FedAvg as a loop over clients, each with its own optimiser."""
    x = torch.tensor(problem.x0)
    locals_ = [x.clone().requires_grad_() for _ in range(CLIENTS)]
    optimisers = [make([v]) for v in locals_]
    for rate in RATES:
        for i, v in enumerate(locals_):
            v.data.copy_(x)
            if not kept:
                optimisers[i] = make([v])
            optimisers[i].param_groups[0]["lr"] = rate
            for _ in range(STEPS):
                v.grad = torch.tensor(problem.grad(i, v.detach().numpy()))
                optimisers[i].step()
        x = sum(float(problem.p[i]) * v.detach() for i, v in enumerate(locals_))  # type: ignore[assignment]
    return x


@pytest.mark.parametrize("state", ["round", "kept"])
@pytest.mark.parametrize("name", SOLVERS)
def test_clients_do_what_pytorch_does(name: str, state: str, quadratic: Make, tmp_path: Path) -> None:
    """Stacked, one by one, and resumed after a round in which every solver remembers something."""
    keys, make = SOLVERS[name]
    problem = quadratic(n=CLIENTS, d=4, importance=True)
    expected = by_pytorch(problem, make, state == "kept")
    scenario: dict[str, Any] = {
        "data": problem.section(),
        "algorithm": {"name": "fedavg", "lr": LR, "lr_decay": SCHEDULE, "local_steps": STEPS,
                      "solver": {**keys, "state": state}},
        "run": {"rounds": ROUNDS, "dtype": "float64", "device": "cpu", "threads": 1},
    }  # fmt: skip

    def with_run(**run: Any) -> dict[str, Any]:
        return {**scenario, "run": {**scenario["run"], **run}}

    stacked = fedsim.run(scenario, out=tmp_path / "stacked")
    one_by_one = fedsim.run(with_run(chunk_rows=1), out=tmp_path / "apart")
    fedsim.run(with_run(rounds=2), out=tmp_path / "parts")
    resumed = fedsim.run(scenario, out=tmp_path / "parts", resume=True)
    assert resumed.resumed_at == 2
    for run in (stacked, one_by_one, resumed):
        assert float((run.params - expected).abs().max()) < 1e-12
    assert float((expected - torch.tensor(problem.x0)).abs().max()) > 1e-2
    other = by_pytorch(problem, make, state != "kept")
    assert float((expected - other).abs().max()) > 1e-6


@pytest.mark.parametrize(
    "schedule", [{"model": "exponential", "factor": 0.9}, {"model": "step", "factor": 0.1, "every": 3},
                 {"model": "inverse", "rate": 0.3}, {"model": "inverse_sqrt", "rate": 0.3},
                 {"model": "cosine", "rounds": 6, "floor": 0.1}], ids=lambda s: s["model"],
)  # fmt: skip
def test_a_warm_up_comes_before_any_schedule(schedule: dict[str, Any]) -> None:
    plain, t = LrDecay.model_validate(schedule), np.arange(12)
    warm = LrDecay.model_validate({**schedule, "warm_up": 4})
    assert warm.factor(t)[:4].tolist() == [0.25, 0.5, 0.75, 1.0]
    assert warm.factor(t)[3:].tolist() == plain.factor(t)[:9].tolist()
    assert LrDecay.model_validate({**schedule, "warm_up": 1}).factor(t).tolist() == plain.factor(t).tolist()
    again = LrDecay.model_validate(warm.model_dump())
    assert again == warm
    assert "warm_up" not in str(plain.model_dump())
