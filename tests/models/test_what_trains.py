"""What of a model trains: frozen and shared parameters, and outputs that are objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import own_models
import pytest
import torch
from torch import Tensor, nn

import fedsim
from fedsim.core.errors import InputError
from fedsim.engine.assembly import assemble
from fedsim.models import exported
from fedsim.models.layout import flatten, freeze, layout, load_flat, trainable, views
from fedsim.models.losses import cross_entropy
from fedsim.objective.stacked import Way, build_kernel
from fedsim.scenario.load import parse

MODELS = ("Tied", "Frozen", "InObject", "InMapping", "Unused", "TiedConvolutions")
INPUTS = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
TARGETS = torch.arange(10).reshape(2, 5) % 3


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return getattr(own_models, name)(3).double()  # type: ignore[no-any-return]


def scenario(name: str, **sections: Any) -> dict[str, Any]:
    return {
        "data": {"dataset": "digits", "clients": 3},
        "model": {"name": name if name == "mlp" else f"own_models:{name}", **sections.pop("model", {})},
        "algorithm": {"name": "fedavg", "lr": 0.1, "local_steps": 2, "batch_size": 8, **sections.pop("algorithm", {})},
        "run": {"rounds": 2, "dtype": "float64", "eval_samples": 50},
        **sections,
    }


@pytest.mark.parametrize("way", ["auto", "rows", "stacked"])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_autograd(name: str, way: Way) -> None:
    module, reference = made(name), made(name)
    kernel = build_kernel(module, cross_entropy, torch.device("cpu"), INPUTS[0, 0], way=way)
    x = torch.stack([flatten(reference), flatten(reference) * 0.5 + 0.1])
    wanted, answers, singly = [], [], []
    for i, row in enumerate(x):
        load_flat(reference, row)
        params = list(trainable(reference).values())

        def loss(inputs: Tensor, targets: Tensor) -> Tensor:
            out = reference(inputs)
            out = out if isinstance(out, Tensor) else out.logits if hasattr(out, "logits") else out["logits"]
            answers.append(out.detach())
            return nn.functional.cross_entropy(out, targets)

        def gradient(value: Tensor, params: list[nn.Parameter] = params) -> Tensor:
            return torch.cat([g.flatten() for g in torch.autograd.grad(value, params, materialize_grads=True)])

        wanted.append(gradient(loss(INPUTS[i], TARGETS[i])))
        singly.append(torch.stack([gradient(loss(INPUTS[i, j : j + 1], TARGETS[i, j : j + 1])) for j in range(5)]))
    assert torch.allclose(kernel.grad(x, INPUTS, TARGETS, 0.2), torch.stack(wanted), rtol=0, atol=1e-12)
    assert torch.allclose(kernel.per_sample_grad(x, INPUTS, TARGETS), torch.stack(singly), rtol=0, atol=1e-12)
    assert torch.allclose(kernel.outputs(x, INPUTS[0])[0], answers[0], rtol=0, atol=1e-12)


def test_the_vector_has_each_parameter_that_trains_once() -> None:
    assert layout(made("Tied")).total == 64 * 12 + 12 + 12 * 12 + 2 * 12 + 12 * 3 + 3
    assert layout(made("Frozen")).names == ("head.weight", "head.bias")
    names = [name for name, _ in made("Tied").named_parameters()]
    assert layout(made("Tied")).names == tuple(names)
    assert "b.weight" not in names


@pytest.mark.parametrize("way", ["auto", "stacked", "rows"])
def test_computing_leaves_a_layer_that_is_used_twice_as_it_was(way: Way) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 64)
    module = nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(64, 3)).double()
    before = [(name, p.shape, p.requires_grad) for name, p in module.named_parameters()]
    kernel = build_kernel(module, cross_entropy, torch.device("cpu"), INPUTS[0, 0], way=way)
    x = flatten(module).expand(2, -1).contiguous()
    kernel.outputs(x, INPUTS[0])
    kernel.grad(x, INPUTS, TARGETS, 0.2)
    assert [(name, p.shape, p.requires_grad) for name, p in module.named_parameters()] == before


def test_threads_share_what_does_not_train() -> None:
    kernel = build_kernel(made("Frozen"), cross_entropy, torch.device("cpu"), INPUTS[0, 0])
    copied = kernel.own._copied(kernel.own._blank)  # what a thread of the crew computes with
    assert copied.get_parameter("body.weight") is kernel.module.get_parameter("body.weight")
    assert copied.get_parameter("head.weight").numel() == 0


@pytest.mark.parametrize(
    "patterns,left",
    [
        (["body"], ("head.weight", "head.bias")),
        (["b*y"], ("head.weight", "head.bias")),
        (["*.bias"], ("body.weight", "head.weight")),
        (["head.weight", "body.bias"], ("body.weight", "head.bias")),
        ([], ("body.weight", "body.bias", "head.weight", "head.bias")),
    ],
)
def test_freezing_by_name(patterns: list[str], left: tuple[str, ...]) -> None:
    module = made("Whole")
    freeze(module, patterns)
    assert layout(module).names == left
    flat = torch.arange(layout(module).total, dtype=torch.float64)
    load_flat(module, flat)
    assert torch.equal(torch.cat([v.flatten() for v in views(flat, layout(module)).values()]), flatten(module))


def test_a_shared_parameter_is_frozen_by_any_of_its_names() -> None:
    module = made("Tied")
    freeze(module, ["b.weight"])
    assert "a.weight" not in layout(module).names


@pytest.mark.parametrize(
    "patterns,key,says",
    [
        (["head", "bodi"], "model.freeze.1", r"found 'bodi', which matches no parameter \(did you mean 'body'\?\)"),
        (["layer9.*"], "model.freeze.0", "allowed: patterns of names: body.weight, body.bias, head.weight"),
        (["*"], "model.freeze", "every parameter is frozen"),
        ("body", "model.freeze", "a list"),
    ],
)
def test_refused_patterns(patterns: Any, key: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says) as caught:
        fedsim.run(scenario("Whole", model={"freeze": patterns}), out=tmp_path / "run")
    assert caught.value.problems[0].key == key
    assert not (tmp_path / "run").exists()


def test_frozen_by_a_key_as_by_the_module(tmp_path: Path) -> None:
    by_key = fedsim.run(scenario("Whole", model={"freeze": ["body"]}), out=tmp_path / "key")
    by_module = fedsim.run(scenario("Frozen"), out=tmp_path / "module")
    assert by_key.params.shape == (12 * 10 + 10,)
    assert torch.equal(by_key.params, by_module.params)
    assert list(by_key.metrics["test_loss"]) == list(by_module.metrics["test_loss"])
    assert by_key.metrics["bytes_sent"].iloc[-1] == 2 * 3 * 2 * 8 * 130  # what is frozen does not travel


def test_a_built_in_model_freezes_layers(tmp_path: Path) -> None:
    run = fedsim.run(scenario("mlp", model={"hidden": [6], "freeze": ["1.*"]}), out=tmp_path / "run")
    before = assemble(parse(scenario("mlp", model={"hidden": [6]}))).task.initial()
    after = run.state_dict()
    assert torch.equal(after["1.weight"].flatten(), before[: 6 * 64])
    assert not torch.equal(after["3.weight"].flatten(), before[6 * 65 : 6 * 65 + 60])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_an_export_has_all_that_the_model_needs(name: str, suffix: str, tmp_path: Path) -> None:
    run = fedsim.run(scenario(name), out=tmp_path / "run")
    run.export(tmp_path / f"model{suffix}")
    loaded = exported.load(tmp_path / f"model{suffix}")
    x = torch.rand(4, 64, dtype=torch.float64)
    rows = x.reshape(4, *loaded.about["data"]["input"]["shape"]) * 16
    out = run.model()(loaded.encoder(rows))
    out = out if isinstance(out, Tensor) else out.logits if hasattr(out, "logits") else out["logits"]
    assert torch.equal(loaded.outputs(rows), out)
    assert {k: v.shape for k, v in loaded.module.state_dict().items()} == {
        k: v.shape for k, v in made(name).state_dict().items() if not k.startswith("head")
    } | {"head.weight": loaded.module.head.weight.shape, "head.bias": (10,)}


def test_a_plan_says_what_trains_and_what_stays() -> None:
    found = fedsim.plan(scenario("Frozen"))
    assert found["data"]["parameters"] == "130 that train and travel"
    assert found["data"]["frozen parameters"].startswith(f"{65 * 12}: ")
    assert found["memory"]["what does not train"].startswith("6.094 KiB")
    assert fedsim.plan(scenario("Whole"))["data"]["parameters"] == 130 + 65 * 12


@pytest.mark.parametrize("name", ["Tied", "Frozen", "TiedConvolutions"])
def test_nodes_of_a_graph_and_private_clients_train_them(name: str, tmp_path: Path) -> None:
    graph = {"topology": {"graph": "ring"}, "algorithm": {"name": "dspodfl"}}
    noise = {"clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-5}
    private = {"privacy": {"mechanism": "dp_sgd", "sampling_rate": 0.1, **noise}}
    for kind, sections in {"graph": graph, "private": private}.items():
        base = scenario(name, **sections)
        base["algorithm"].pop("batch_size") if kind == "private" else None
        run = fedsim.run(base, out=tmp_path / kind)
        assert run.params.isfinite().all()
        assert run.params.shape[-1] == assemble(parse(base)).task.dim
