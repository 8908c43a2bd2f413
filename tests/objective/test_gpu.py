"""What only a GPU shows: the same numbers as the CPU up to rounding, chunks by memory, state beside the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.algorithms.scaffold import Scaffold
from fedsim.clients.store import ClientStore, MemoryTable
from fedsim.clients.worker import default_chunk_rows
from fedsim.engine.assembly import assemble
from fedsim.objective.supervised import SupervisedTask
from fedsim.scenario.load import parse

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; PyTorch sees none"),
]


def settings(model: dict[str, Any], algorithm: str = "scaffold", **run: Any) -> dict[str, Any]:
    return {
        "data": {"dataset": "digits", "clients": 5, "limit": 200, "augment": {"flip": True, "crop": 1}},
        "model": model,
        "algorithm": {"name": algorithm, "lr": 0.02, "local_steps": 3, "batch_size": 8},
        "run": {"rounds": 3, "eval_every": 3, "dtype": "float64", **run},
    }


@pytest.mark.parametrize(
    "model", [{"name": "mlp"}, {"name": "cnn"}, {"name": "resnet18"}], ids=lambda m: m["name"]
)  # fmt: skip
@pytest.mark.parametrize("kernel", ["stacked", "rows"])
def test_a_gpu_gives_the_numbers_of_the_cpu(model: dict[str, Any], kernel: str, tmp_path: Path) -> None:
    cpu = fedsim.run(settings(model, device="cpu"), out=tmp_path / "cpu")
    gpu = fedsim.run(settings(model, device="cuda", kernel=kernel), out=tmp_path / "gpu")
    assert (gpu.params - cpu.params).abs().max() < 1e-8 * cpu.params.abs().max()


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_state_beside_the_gpu(place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.clients.store._GPU_SHARE", 0.0)
    device = torch.device("cuda")
    store = ClientStore(Scaffold().fresh_client(torch.zeros(1, 1000, device=device)), device, 50, place, tmp_path)
    if isinstance(store._table, MemoryTable):
        assert store._table._home.type == "cpu"
    rows = {"c": torch.randn(20, 1000, device=device)}
    store.scatter(np.arange(20), rows)
    again = ClientStore(Scaffold().fresh_client(torch.zeros(1, 1000, device=device)), device, 50, place, tmp_path)
    again.load(store.save())
    for one in (store, again):
        found = one.gather(np.arange(15, 25))["c"]
        assert found.device.type == "cuda"
        assert torch.equal(found[:5], rows["c"][15:])
        assert not found[5:].any()


def test_a_chunk_fits_the_memory() -> None:
    task = assemble(parse(settings({"name": "resnet18"}, device="cuda", dtype="float32"))).task
    assert isinstance(task, SupervisedTask)
    assert task.activation_bytes(32) > task.activation_bytes(4) > 0
    rows = min(default_chunk_rows(task, 32), 20)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    inputs, targets = torch.stack([task.inputs[:32]] * rows), torch.stack([task.targets[:32]] * rows)
    task.kernel.grad(task.initial().expand(rows, -1).contiguous(), inputs, targets, 1 / 32)
    per_row = (torch.cuda.max_memory_allocated() - before) / rows
    assert per_row < 1.5 * task.activation_bytes(32)


@pytest.mark.parametrize("kernel", ["stacked", "rows"])
def test_bf16_learns(kernel: str, tmp_path: Path) -> None:
    wanted = settings({"name": "resnet18"}, "fedavg", dtype="float32", precision="bf16", kernel=kernel, rounds=6)
    losses = fedsim.run(wanted, out=tmp_path).metrics["train_loss"]
    assert losses.iloc[-1] < losses.iloc[0]
