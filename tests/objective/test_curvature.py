"""Bounds on the curvature of linear models' losses, against the Hessian itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.engine.assembly import assemble
from fedsim.scenario.load import parse


def task_of(tmp_path: Path, model: dict[str, Any], regression: bool = False, classes: int = 3) -> Any:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4)) + 1.0
    y = rng.normal(size=60) if regression else rng.integers(0, classes, 60)
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x[:5], y_test=y[:5])
    s = parse({
        "data": {"dataset": "npz", "path": str(tmp_path / "d.npz"), "clients": 3}, "model": model,
        "algorithm": {"name": "fedavg"}, "run": {"dtype": "float64", "device": "cpu"},
    })  # fmt: skip
    return assemble(s).task


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["cross_entropy", "logistic", "mse"])
def test_it_bounds_every_clients_hessian(tmp_path: Path, bias: bool, kind: str) -> None:
    task = task_of(
        tmp_path, {"name": "linear", "bias": bias, "loss": kind}, kind == "mse", 2 if kind == "logistic" else 3
    )
    low, (high, _) = task.convexity(), task.smoothness(np.full(3, 1 / 3))
    generator, tightest = torch.Generator().manual_seed(0), np.zeros(3)
    for c in range(3):
        rows = torch.as_tensor(task.indices[task.offsets[c] : task.offsets[c + 1]])

        def loss(x: Any, rows: Any = rows) -> Any:
            inputs = task.inputs[rows]
            weights, rest = x[: len(x) // (4 + bias) * 4].reshape(-1, 4), x[len(x) // (4 + bias) * 4 :]
            outputs = inputs @ weights.T + (rest if bias else 0.0)
            return task.loss(outputs, task.targets[rows]).mean()

        for size in (0.0, 1.0):
            x = size * torch.randn(task.dim, generator=generator, dtype=torch.float64)
            values = np.linalg.eigvalsh(torch.autograd.functional.hessian(loss, x).numpy())
            assert values[0] >= low[c] - 1e-9
            assert values[-1] <= high[c] + 1e-9
            tightest[c] = max(tightest[c], values[-1] / high[c])
    assert tightest.min() > (0.6 if kind == "cross_entropy" else 0.99)
    assert (low > 0).all() == (kind == "mse")


@pytest.mark.parametrize("model", [{"name": "mlp"}, {"name": "svm"}], ids=str)
def test_of_other_models_none_is_known(tmp_path: Path, model: dict[str, Any]) -> None:
    assert task_of(tmp_path, model).convexity() is None
