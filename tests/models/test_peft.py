"""Models of Hugging Face and of PEFT, as they come: adapters alone train, and are those of ``model.lora``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.engine.assembly import assemble
from fedsim.models import exported
from fedsim.models.layout import flatten, layout, load_flat
from fedsim.models.losses import cross_entropy
from fedsim.objective.stacked import RowKernel, VmapKernel
from fedsim.scenario.load import parse

pytest.importorskip("transformers", reason="needs pip install transformers peft")
pytest.importorskip("peft", reason="needs pip install transformers peft")

VOCABULARY, POSITIONS = 30, 8
OWN = {"targets": ["c_attn", "c_proj"], "rank": 4, "alpha": 8}
MODELS: dict[str, dict[str, Any]] = {
    "peft": {"name": "hf_models:adapted"},
    "peft-dropout": {"name": "hf_models:adapted", "dropout": 0.1},
    "lora": {"name": "hf_models:gpt2", "lora": OWN},
    "lora-dropout": {"name": "hf_models:gpt2", "dropout": 0.1, "lora": {**OWN, "dropout": 0.1}},
}
ADAPTERS = 2 * 4 * ((16 + 48) + (16 + 16) + (64 + 16))
"""Numbers in the adapters of two blocks, in which two layers are called c_proj."""


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tokens") / "tokens.npz"
    x = np.random.default_rng(0).integers(0, VOCABULARY, (30, POSITIONS + 1))
    np.savez(file, x_train=x[:24, :-1], y_train=x[:24, 1:], x_test=x[24:, :-1], y_test=x[24:, 1:])
    return file


def scenario(tokens: Path, name: str, **run: Any) -> dict[str, Any]:
    return {
        "data": {"dataset": "npz", "path": str(tokens), "task": "tokens", "num_classes": VOCABULARY, "clients": 3},
        "model": MODELS[name],
        "algorithm": {"name": "fedavg", "lr": 0.1, "local_steps": 2, "batch_size": 3},
        "run": {"rounds": 2, "dtype": "float64", **run},
    }


@pytest.mark.parametrize("name", MODELS)
def test_adapters_alone_train_and_travel(tokens: Path, name: str, tmp_path: Path) -> None:
    made = assemble(parse(scenario(tokens, name)))
    assert all("lora_" in key for key in made.task.kernel.layout.names)  # type: ignore[attr-defined]
    assert made.task.dim == ADAPTERS
    assert made.stays["parameters"] == sum(p.numel() for p in made.task.kernel.module.parameters()) - made.task.dim  # type: ignore[attr-defined]
    whole = fedsim.run(scenario(tokens, name), out=tmp_path / "whole")
    assert whole.metrics["bytes_sent"].iloc[-1] == 2 * 3 * 2 * 8 * made.task.dim
    assert whole.metrics["train_loss"].iloc[-1] < whole.metrics["train_loss"].iloc[0]
    fedsim.run(scenario(tokens, name, rounds=1), out=tmp_path / "parts")
    assert torch.equal(fedsim.run(scenario(tokens, name), out=tmp_path / "parts", resume=True).params, whole.params)
    alone = fedsim.run(scenario(tokens, name, chunk_rows=1), out=tmp_path / "alone")
    assert torch.allclose(alone.params, whole.params, rtol=0, atol=1e-12)
    whole.export(tmp_path / "model.pt")
    loaded = exported.load(tmp_path / "model.pt")
    ids = torch.randint(VOCABULARY, (2, POSITIONS), generator=torch.Generator().manual_seed(1))
    module = assemble(parse(scenario(tokens, name))).task.kernel.module  # type: ignore[attr-defined]
    load_flat(module, whole.params)
    assert torch.allclose(loaded.outputs(ids), module.eval()(ids).logits, rtol=0, atol=1e-12)


def test_they_are_those_of_peft(tokens: Path) -> None:
    """The same adapters give the same outputs and gradients; many clients at once as one by one."""
    ours, theirs = (assemble(parse(scenario(tokens, name))).task.kernel for name in ("lora", "peft"))  # type: ignore[attr-defined]
    assert [n.replace(".default.weight", "") for n in theirs.layout.names] == [
        f"base_model.model.{n}" for n in ours.layout.names
    ]
    assert layout(theirs.module).shapes == ours.layout.shapes
    x = flatten(ours.module).repeat(2, 1)
    x = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    inputs = torch.randint(VOCABULARY, (2, 3, POSITIONS), generator=torch.Generator().manual_seed(3))
    outputs = [kernel.outputs(x, inputs[0]) for kernel in (ours, theirs)]
    assert torch.allclose(*outputs, rtol=0, atol=1e-12)
    grads = [kernel.grad(x, inputs, inputs.roll(-1, 2), 1 / 3) for kernel in (ours, theirs)]
    assert torch.allclose(*grads, rtol=0, atol=1e-12)
    assert isinstance(ours, VmapKernel)
    singly = RowKernel(ours.module, cross_entropy).grad(x, inputs, inputs.roll(-1, 2), 1 / 3)
    assert torch.allclose(grads[0], singly, rtol=0, atol=1e-12)


def test_first_values_have_peft_s_range(tokens: Path) -> None:
    for name in ("lora", "peft"):
        layers = dict(assemble(parse(scenario(tokens, name))).task.kernel.module.named_parameters())  # type: ignore[attr-defined]
        first = {n: p.detach() for n, p in layers.items() if "lora_" in n}
        assert all(not p.any() for n, p in first.items() if "lora_B" in n)
        for n, p in first.items():
            if "lora_A" in n:
                assert 0.6 / p.shape[1] ** 0.5 < float(p.abs().max()) <= 1 / p.shape[1] ** 0.5
