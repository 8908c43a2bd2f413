"""torchvision's models by name, unchanged, where torchvision is there and fits PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fitting import fitting
from torch import nn

import fedsim
from fedsim.core import rng
from fedsim.engine.assembly import assemble
from fedsim.models.draws import Keyed
from fedsim.scenario.load import parse

SMALL_VIT = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
MODELS: dict[str, dict[str, Any]] = {
    "torchvision.models:resnet18": {},
    "torchvision.models:mobilenet_v3_small": {},
    "torchvision.models.vision_transformer:VisionTransformer": {**SMALL_VIT, "dropout": 0.1},  # what vit_b_16 makes
}


@pytest.mark.parametrize("name", MODELS)
def test_a_round_is_that_of_a_plain_loop(name: str, tmp_path: Path) -> None:
    """Two clients take one step each; parameters and buffers are the mean of theirs."""
    module, _, attribute = name.partition(":")
    make = getattr(fitting(module), attribute)
    draw = np.random.default_rng(0)
    x, y = draw.random((20, 3, 32, 32), dtype=np.float32), np.arange(20) % 10
    np.savez(tmp_path / "images.npz", x_train=x[:10], y_train=y[:10], x_test=x[10:], y_test=y[10:])
    keys = {**MODELS[name], "num_classes": 10}
    scenario = {
        "data": {"dataset": "npz", "path": str(tmp_path / "images.npz"), "clients": 2},
        "model": {"name": name, **keys},
        "algorithm": {"name": "fedavg", "lr": 0.05, "local_steps": 1, "batch_size": "full"},
        "run": {"rounds": 1, "dtype": "float64"},
    }
    run = fedsim.run(scenario, out=tmp_path / "run")
    task: Any = assemble(parse(scenario)).task
    mean: dict[str, torch.Tensor] = {}
    for client in range(2):
        torch.default_generator.manual_seed(int(rng.key(0, "model")[0]))
        local: nn.Module = make(**keys).double().train()
        rows = task.indices[task.offsets[client] : task.offsets[client + 1]]
        with Keyed(int(rng.key(0, "dropout", client, 1, 0)[0])):
            loss = nn.functional.cross_entropy(local(task.inputs[rows]), task.targets[rows])
        loss.backward()
        torch.optim.SGD(local.parameters(), lr=0.05).step()
        for k, v in local.state_dict().items():
            mean[k] = mean.get(k, 0.0) + v.double() * len(rows) / 10
    found = run.state_dict()
    assert list(found) == list(mean)
    assert all(torch.allclose(v.double(), mean[k], rtol=0, atol=1e-10) for k, v in found.items())
    run.model().load_state_dict(make(**keys).state_dict())
