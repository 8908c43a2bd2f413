"""Odd modules work as they do in PyTorch, or are refused in a sentence before anything is written."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fedsim
from fedsim.clients.worker import Worker
from fedsim.core import rng
from fedsim.core.errors import InputError
from fedsim.engine.assembly import assemble
from fedsim.models import exported
from fedsim.objective.stacked import RowKernel
from fedsim.scenario.load import parse

HERE = Path(__file__).parent


def scenario(name: str, **sections: Any) -> dict[str, Any]:
    return {
        "data": {"dataset": "digits", "clients": 3, "limit": 60},
        "model": {"name": f"odd_modules:{name}"},
        "algorithm": {"name": "fedavg", "lr": 0.1, "local_steps": 2, "batch_size": "full"},
        "run": {"rounds": 2, "dtype": "float64"},
        **sections,
    }


@pytest.fixture(autouse=True)
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))


WORKS = (
    "Otherwise", "KeepsNormFrozen", "Checkpointed", "WeightNormed", "WeightNormedByHooks", "SpectralNormed",
    "Synchronised", "Hooked", "Unsaved", "OneNumber", "OneNumberAlone", "Seen", "Queue", "Complex", "Rounds",
    "Transposed", "Pooled",
)  # fmt: skip


@pytest.mark.parametrize("name", WORKS)
def test_a_round_is_that_of_a_plain_loop(name: str, tmp_path: Path) -> None:
    """And what is measured is what PyTorch says of the model in an evaluation."""
    made = scenario(name)
    run = fedsim.run(made, out=tmp_path / "run")
    task: Any = assemble(parse(made)).task
    torch.default_generator.manual_seed(int(rng.key(0, "model")[0]))
    server = getattr(import_module("odd_modules"), name)(10)
    server._apply(lambda v: v.double() if v.is_floating_point() else v.cdouble() if v.is_complex() else v)
    weights = task.sizes / task.sizes.sum()
    for _ in range(2):
        before = {k: v.clone() for k, v in (*server.named_parameters(), *server.named_buffers())}
        mean = {
            k: torch.zeros_like(v, dtype=torch.complex128 if v.is_complex() else torch.float64)
            for k, v in before.items()
        }
        for client in range(3):
            _load(server, before)
            rows = task.indices[task.offsets[client] : task.offsets[client + 1]]
            sgd = torch.optim.SGD(server.parameters(), lr=0.1)
            for _ in range(2):
                server.train()
                sgd.zero_grad()
                nn.functional.cross_entropy(server(task.inputs[rows]).double(), task.targets[rows]).backward()
                sgd.step()
            for k, v in (*server.named_parameters(), *server.named_buffers()):
                mean[k] += weights[client] * v.detach()
        _load(server, mean)
    flat = torch.cat([p.detach().flatten() for p in server.parameters()])
    assert torch.allclose(run.params, flat, rtol=0, atol=1e-10)
    server.eval()
    with torch.no_grad():
        loss = nn.functional.cross_entropy(server(task.test_inputs).double(), task.test_targets)
    assert run.metrics["test_loss"].iloc[-1] == pytest.approx(float(loss), abs=1e-10)
    for file in ("model.pt", "model.safetensors"):
        if name == "Complex" and file.endswith(".safetensors"):
            with pytest.raises(InputError, match=r"'phase' is complex128, which .safetensors does not know"):
                run.export(tmp_path / file)
            continue
        run.export(tmp_path / file)
        with torch.no_grad():
            out = exported.load(tmp_path / file).module(task.test_inputs).double()
        assert float(nn.functional.cross_entropy(out, task.test_targets)) == pytest.approx(float(loss), abs=1e-10)
    made["model"]["init"] = str(tmp_path / "run")
    task = assemble(parse(made)).task
    first = torch.cat([task.initial(), *task.carried.values()])
    assert task.evaluate(first)["test_loss"] == pytest.approx(float(loss), abs=1e-10)


@torch.no_grad()
def _load(module: nn.Module, values: dict[str, torch.Tensor]) -> None:
    for k, v in (*module.named_parameters(), *module.named_buffers()):
        v.copy_(values[k] if v.is_floating_point() or v.is_complex() else values[k].double().round())


def test_what_vmap_cannot_differentiate_is_computed_client_by_client() -> None:
    task: Any = assemble(parse(scenario("Checkpointed"))).task
    assert isinstance(task.kernel, RowKernel)
    assert Worker(task, parse(scenario("Checkpointed")).algorithm).form.keys() == {"delta"}


@pytest.mark.parametrize(
    "name,says",
    [
        ("Overwrites", "has no gradient by its parameters: RuntimeError: one of the variables needed"),
        ("WithoutGradient", "has no gradient by its parameters: RuntimeError: element 0 of tensors"),
        ("Sparse", "parameter 'table.weight' has a sparse gradient; allowed: sparse=False"),
        ("Renormed", r"parameter 'table.weight' changes in a forward pass \(as by max_norm\)"),
        ("Locked", r"cannot be copied \(TypeError: cannot pickle '_thread.lock' object\); allowed: what copy.deepcopy"),
        ("Counts", "gives other outputs when it trains on the same again: .* keeps something between calls"),
        ("DrawsElsewhere", "gives other outputs when it trains on the same again: it draws from elsewhere than torch"),
        ("Grows", r"buffer 'last' changes its form while it trains, from \[0\] to \[4, 8\]; allowed: one form"),
        ("MakesBuffers", "buffer 'mean' is made while it trains; allowed: buffers from the start"),
        ("HiddenMean", "gives other outputs when it evaluates the same again: .* keeps something between calls"),
        ("HiddenLargest", "gives other outputs when it evaluates the same again: .* keeps something between calls"),
        ("CountsCalls", "changes its attribute 'about' whenever it computes, which all clients would share"),
        ("CountsInClass", "changes its attribute 'CountsInClass.calls' whenever it computes"),
        ("ChangesInputs", r"changes its inputs in place, which are the data; allowed: a copy of them \(x.clone"),
        ("Squeezes", r"gives a sample alone an output of shape \[10\]; allowed: \[1, 10\]"),
        ("Thaws", "parameter 'inp.weight' is frozen or thawed in a forward pass"),
        ("EditsData", "parameter 'inp.weight' changes in a forward pass"),
        ("GradientHook", "parameter 'head.weight' has a hook on its gradient"),
        ("BackwardHook", r"sub-module 'head' \(Linear\) has a backward hook; allowed: forward hooks"),
        ("Aliased", "buffer 'first' shares its memory with parameter 'weight' of sub-module 'inp'"),
        ("BuffersShared", "buffers 'inp.mean' and 'head.mean' share their memory, and change while it trains"),
        ("ComplexMean", "buffer 'mean' is complex128 and changes while it trains; allowed: real numbers"),
    ],
)
def test_refused_before_anything_is_written(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says) as caught:
        fedsim.run(scenario(name), out=tmp_path / "run")
    assert caught.value.problems[0].key == "model.name"
    assert not (tmp_path / "run").exists()
