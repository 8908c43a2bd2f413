"""Adversarial training against the same written as loops over clients, samples and steps, in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from adversary_loops import Attack, fal
from torch import nn

from fedsim.engine.assembly import assemble
from fedsim.models.losses import cross_entropy
from fedsim.objective.supervised import SupervisedTask
from fedsim.scenario.load import parse

Make = Callable[..., Any]


@pytest.mark.parametrize("norm,on", [("linf", "local"), ("linf", "received"), ("l2", "local"), ("l2", "received")])
@pytest.mark.parametrize("hidden", [[], [6]], ids=["linear", "mlp"])
def test_fal(run_scenario: Make, hidden: list[int], norm: Literal["linf", "l2"], on: str) -> None:
    eps = 0.15 if norm == "linf" else 1.2
    scenario = {
        "data": {"dataset": "digits", "clients": 3, "limit": 24, "normalize": "standard"},
        "model": {"name": "mlp", "hidden": hidden} if hidden else {"name": "linear"},
        "algorithm": {"name": "fal", "lr": 0.1, "local_steps": 2, "batch_size": "full", "weighting": "uniform"},
        "adversary": {"eps": eps, "step": eps / 2, "steps": 3, "norm": norm, "attack_on": on},
    }
    run = run_scenario(**scenario, run={"rounds": 3})
    task = assemble(parse({**scenario, "run": {"dtype": "float64", "device": "cpu"}})).task
    assert isinstance(task, SupervisedTask)
    assert task.pixels is not None
    widths = [64, *hidden, 10]
    layers = [nn.Linear(a, b).double() for a, b in itertools.pairwise(widths)]
    model = nn.Sequential(nn.Flatten(), *(m for layer in layers for m in (layer, nn.ReLU())))[:-1]
    nn.utils.vector_to_parameters(task.initial(), model.parameters())
    rows = [task.indices[a:b] for a, b in zip(task.offsets, task.offsets[1:], strict=False)]
    clients = [(task.inputs[torch.as_tensor(r)], task.targets[torch.as_tensor(r)]) for r in rows]
    low, high = float(task.pixels.low.flatten()[0]), float(task.pixels.high.flatten()[0])
    expected = fal(model, cross_entropy, clients, Attack(eps, eps / 2, 3, norm, low, high), 0.1, 2, 3, on)
    found = nn.utils.parameters_to_vector(expected.parameters()).detach()
    assert (found - task.initial()).abs().max() > 1e-2
    assert (found - run.params).abs().max() < 1e-10
