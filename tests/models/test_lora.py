"""Adapters of low rank: their arithmetic, what trains and travels, and the laws of all models."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedsim
from fedsim.clients.worker import Worker, default_chunk_rows
from fedsim.core.errors import InputError
from fedsim.core.fields import part_from
from fedsim.core.job import Job
from fedsim.core.tokens import Tokens
from fedsim.engine.assembly import assemble
from fedsim.models import exported
from fedsim.models.build import build_model
from fedsim.models.layout import flatten, load_flat, trainable
from fedsim.models.lora import Lora, adapt, adapters, check_used, merge
from fedsim.models.losses import cross_entropy
from fedsim.models.size import saved_bytes
from fedsim.objective.stacked import ChainKernel, RowKernel, VmapKernel, build_kernel
from fedsim.scenario.load import parse

MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp", "hidden": [6], "lora": {"targets": ["*"], "rank": 2}},
    "cnn": {"name": "cnn", "channels": [3], "hidden": 5, "kernel": 3, "lora": {"targets": ["*"], "rank": 2}},
    "head": {"name": "own_models:Whole", "lora": {"targets": ["body"], "rank": 3, "train": ["head"], "alpha": 3}},
    "frozen": {"name": "own_models:Frozen", "lora": {"targets": ["body"], "rank": 3}},
    "attention": {"name": "own_models:Attention", "lora": {"targets": ["linear1", "linear2"], "rank": 2}},
    "normed": {"name": "own_models:Normed", "lora": {"targets": ["body", "head"], "rank": 2}},
    "dropped": {"name": "own_models:Whole", "lora": {"targets": ["*"], "rank": 2, "dropout": 0.3}},
}
TOKENS: dict[str, Any] = {
    "name": "transformer", "width": 8, "heads": 2, "layers": 1, "lora": {"targets": ["*"], "rank": 2, "alpha": 4},
}  # fmt: skip


def scenario(name: str, **sections: Any) -> dict[str, Any]:
    return {
        "data": {"dataset": "digits", "clients": 4, "limit": 240, "partition": {"scheme": "dirichlet", "alpha": 1.0}},
        "model": {**MODELS[name], **sections.pop("model", {})},
        "algorithm": {"name": "fedavg", "lr": 0.1, "local_steps": 2, "batch_size": 8, **sections.pop("algorithm", {})},
        "run": {"rounds": 2, "dtype": "float64", "eval_samples": 50, **sections.pop("run", {})},
        **sections,
    }


def base_of(name: str) -> dict[str, Any]:
    """The same without adapters, where everything trains."""
    made = scenario(name)
    return {**made, "model": {k: v for k, v in made["model"].items() if k != "lora"}}


def module_of(given: dict[str, Any]) -> nn.Module:
    return assemble(parse(given)).task.kernel.module  # type: ignore[attr-defined, no-any-return]


def moved(module: nn.Module) -> nn.Module:
    """Adapters that change something."""
    load_flat(module, torch.randn(len(flatten(module)), generator=torch.Generator().manual_seed(3)) / 4)
    return module


class Layers(nn.Module):
    """One layer of each kind that can have an adapter, and one that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 6, padding_idx=0)
        self.wide = nn.Conv2d(1, 4, 3, stride=2, padding=1, dilation=2, padding_mode="circular")
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.wide(self.words(x).unsqueeze(1)).flatten(1)))


IDS = torch.arange(10).reshape(2, 5) % 9


def layers() -> nn.Module:
    torch.manual_seed(0)
    return Layers().double()


@pytest.mark.parametrize("name", MODELS)
def test_the_first_outputs_are_those_of_the_base(name: str) -> None:
    base, adapted = module_of(base_of(name)), module_of(scenario(name))
    x = assemble(parse(scenario(name))).task.inputs[:20]  # type: ignore[attr-defined]
    if name == "attention":  # PyTorch has another way of computing it where nothing trains
        assert torch.allclose(base.eval()(x), adapted.eval()(x), rtol=0, atol=1e-12)
    else:
        assert torch.equal(base.eval()(x), adapted.eval()(x))
    assert {n: v.shape for n, v in merge(copy.deepcopy(adapted)).state_dict().items()} == {
        n: v.shape for n, v in base.state_dict().items()
    }


def test_an_adapted_layer_by_hand() -> None:
    """``W x + alpha / r B A x``, each kind of layer by its own slow formula; the merged model says the same."""
    module, base = layers(), layers()
    adapt(module, Lora(targets=["*"], rank=2, alpha=3.0), 0)
    moved(module)
    found = {name: (layer.lora_A.detach(), layer.lora_B.detach()) for name, (layer, _) in adapters(module).items()}
    assert list(found) == ["words", "wide", "head"]
    x = base.words(IDS).clone()  # type: ignore[operator]
    low, high = found["words"]
    for i in range(2):
        for j in range(5):
            if IDS[i, j] >= 0:
                x[i, j] += 1.5 * high @ low[:, IDS[i, j]]
    x = x.unsqueeze(1)
    low, high = found["wide"]
    delta = torch.stack([sum(high[o, r, 0, 0] * low[r] for r in range(2)) for o in range(4)])  # type: ignore[misc]
    with torch.no_grad():
        base.wide.weight += 1.5 * delta  # type: ignore[operator, union-attr]
    x = base.norm(base.wide(x).flatten(1))  # type: ignore[operator]
    low, high = found["head"]
    wanted = base.head(x) + 1.5 * (x @ low.mT @ high.mT)  # type: ignore[operator]
    assert torch.allclose(module(IDS), wanted, rtol=0, atol=1e-12)
    merged = merge(copy.deepcopy(module))
    assert torch.allclose(merged(IDS), wanted, rtol=0, atol=1e-12)
    assert list(merged.state_dict()) == list(layers().state_dict())
    assert not adapters(merged)


def test_first_values_and_what_trains() -> None:
    module = layers()
    adapt(module, Lora(targets=["*"], rank=4, train=["norm.weight"]), 5)
    assert list(trainable(module)) == [
        "words.lora_A", "words.lora_B", "wide.lora_A", "wide.lora_B", "norm.weight", "head.lora_A", "head.lora_B",
    ]  # fmt: skip
    named = dict(module.named_parameters())
    assert not named["words.lora_A"].any()
    assert not named["head.lora_B"].any()
    for name, inside in (("wide", 9), ("head", 16)):
        A = named[f"{name}.lora_A"]
        assert float(A.detach().abs().max()) <= 1 / math.sqrt(inside)
        assert float(A.detach().std()) == pytest.approx(1 / math.sqrt(3 * inside), rel=0.3)
    other = layers()
    adapt(other, Lora(targets=["head"], rank=4), 5)  # an adapter's values are its own, whatever others there are
    assert torch.equal(other.get_parameter("head.lora_A"), named["head.lora_A"])
    again = layers()
    adapt(again, Lora(targets=["head"], rank=4), 6)
    assert not torch.equal(again.get_parameter("head.lora_A"), named["head.lora_A"])


@pytest.mark.parametrize(
    "targets,names",
    [
        (["head"], ["head"]),
        (["w*"], ["words", "wide"]),
        (["*"], ["words", "wide", "head"]),
        (["head", "words"], ["words", "head"]),
    ],
)
def test_targets_by_name(targets: list[str], names: list[str]) -> None:
    module = nn.ModuleDict({"a": nn.ModuleDict({"b": layers()})})
    for patterns in (targets, [f"a.b.{t}" for t in targets], ["a"] if len(names) == 3 else targets):
        found = copy.deepcopy(module)
        adapt(found, Lora(targets=patterns), 0)
        assert list(adapters(found)) == [f"a.b.{n}" for n in names]


@pytest.mark.parametrize(
    "lora,key,says",
    [
        (
            {"targets": ["bodi"]},
            "lora.targets.0",
            r"found 'bodi', which matches no layer \(did you mean 'body'\?\); all",
        ),
        ({"targets": ["body", "zz"]}, "lora.targets.1", "of names of Linear, .* body, head"),
        ({"targets": []}, "lora.targets", "at least 1"),
        ({"targets": ["body"], "rank": 0}, "lora.rank", "greater than 0"),
        ({"targets": ["body"], "rank": 10**11}, "lora.rank", "an adapter of rank 100,000,000,000 of 'body' needs"),
        ({"targets": ["body"], "train": ["haed"]}, "lora.train.0", r"matches no parameter \(did you mean 'head'"),
        ({"targets": ["head"], "train": ["head"]}, "lora.targets.0", "'head' .Linear. is none that can have"),
        ({"rank": 3}, "lora.targets", "missing"),
        ({"targets": ["body"], "ranks": 3}, "lora.ranks", r"did you mean 'rank'"),
        ("body", "lora", "a mapping"),
    ],
)
def test_refused_adapters(lora: Any, key: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says) as caught:
        fedsim.run({**base_of("head"), "model": {"name": "own_models:Whole", "lora": lora}}, out=tmp_path / "run")
    assert caught.value.problems[0].key == f"model.{key}"
    assert not (tmp_path / "run").exists()


class ByItself(nn.Module):
    """It takes a layer's weight by itself while it trains, and hands another one its input by name."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        body = self.body
        h = nn.functional.linear(x, body.weight, body.bias) if self.training else body(x)
        return self.head(input=h)


def test_a_layer_that_is_called_in_evaluations_alone_is_refused() -> None:
    module = ByItself()
    adapt(module, Lora(targets=["*"]), 0)
    with pytest.raises(InputError, match="'body' is not called in a forward pass"):
        check_used(module, torch.randn(4, 6))


def test_an_adapter_is_a_part_of_its_layer() -> None:
    """Hooks of the layer's own see what it computes with its adapter, as they do once that is merged."""
    torch.manual_seed(0)
    x = torch.randn(4, 6)
    module = ByItself().eval()
    module.head.register_forward_hook(lambda _layer, _given, out: 3 * out)
    adapt(module, Lora(targets=["*"]), 0)
    moved(module)
    out = module(x)
    assert torch.allclose(merge(module)(x), out, rtol=0, atol=1e-5)


def test_a_layer_with_adapters_of_its_own_gets_none() -> None:
    module = ByItself()
    module.body.lora_A = nn.Parameter(torch.ones(2))
    adapt(module, Lora(targets=["*"]), 0)
    assert list(adapters(module)) == ["head"]


def test_layers_that_are_not_called_or_share_a_weight_are_refused() -> None:
    model = {"name": "own_models:Attention", "lora": {"targets": ["out_proj"]}}
    with pytest.raises(InputError, match=r"'enc.self_attn.out_proj' is not called in a forward pass"):
        module_of({**base_of("attention"), "model": model})
    tied = {"name": "own_models:Tied", "lora": {"targets": ["b"]}}
    with pytest.raises(InputError, match=r"'b' .Linear. is none that can have an adapter"):
        module_of({**base_of("head"), "model": tied})


@pytest.mark.parametrize("name", MODELS)
def test_stacked_is_sharded_is_single(name: str) -> None:
    made = assemble(parse(scenario(name)))
    clients, rounds, steps = np.arange(4), np.array([1, 2, 2, 5]), np.array([1, 3, 2, 2])
    received = {"x": made.task.initial(), **made.task.carried}

    def sent(groups: list[list[int]], chunk: int | None = None) -> Tensor:
        found = torch.empty(4, made.task.dim, dtype=torch.float64)
        for group in groups:
            rows = np.array(group)
            task = made.task.shard(np.sort(rows)) if len(rows) < 4 else made.task
            worker = Worker(task, parse(scenario(name)).algorithm, chunk)
            found[rows] = worker.run(Job(clients[rows], rounds[rows], steps[rows], received))["delta"]
        return found

    together = sent([[0, 1, 2, 3]])
    assert together.abs().amax(1).min() > 0
    for other in (sent([[2, 0], [3, 1]]), sent([[3], [1], [2], [0]]), sent([[0, 1, 2, 3]], chunk=1)):
        assert torch.allclose(together, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_a_run_and_its_continuation(name: str, tmp_path: Path) -> None:
    def run(where: str, rounds: int = 2, resume: bool = False) -> fedsim.Run:
        return fedsim.run(scenario(name, run={"rounds": rounds}), out=tmp_path / where, resume=resume)

    whole = run("whole")
    base = module_of(base_of(name)).state_dict()
    assert {k: v.shape for k, v in whole.state_dict().items()} == {k: v.shape for k, v in base.items()}
    adapted = [n.removesuffix(".lora_A") + ".weight" for n in module_of(scenario(name)).state_dict() if "lora_A" in n]
    for key, value in whole.state_dict().items():
        if key.startswith("head") and name == "head":
            assert not torch.equal(value, base[key])
        elif "running" not in key and "tracked" not in key:
            assert torch.equal(value, base[key]) == (key not in adapted), key
    run("parts", rounds=1)
    assert torch.equal(run("parts", resume=True).params, whole.params)
    size = whole.params.numel()
    if name != "normed":
        assert whole.metrics["bytes_sent"].iloc[-1] == 2 * 4 * 2 * 8 * size  # adapters alone travel
    again = {**base_of(name)["model"], "init": str(tmp_path / "whole")}
    assert all(
        torch.equal(v, whole.state_dict()[k])
        for k, v in module_of({**base_of(name), "model": again}).state_dict().items()
    )


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".pt2"])
def test_an_export_has_the_base_s_form(suffix: str, tmp_path: Path) -> None:
    run = fedsim.run(scenario("cnn"), out=tmp_path / "run")
    run.export(tmp_path / f"model{suffix}")
    loaded = exported.load(tmp_path / f"model{suffix}")
    adapted = module_of(scenario("cnn"))
    load_flat(adapted, run.params)
    rows = torch.rand(4, 1, 8, 8) * 16
    wanted = adapted.eval()(loaded.encoder(rows))
    assert torch.allclose(loaded.outputs(rows), wanted, rtol=0, atol=1e-12)


def test_freezing_a_keeps_its_first_values(tmp_path: Path) -> None:
    """Adapters of which B alone trains (FFA-LoRA, arXiv 2403.12313) are those with ``freeze: ["*.lora_A"]``."""
    made = scenario("mlp", model={"freeze": ["*.lora_A"]})
    run = fedsim.run(made, out=tmp_path / "run")
    assert run.params.numel() == 2 * 6 + 2 * 10
    assert fedsim.plan(made)["data"]["parameters"] == "32 that train and travel"


@pytest.mark.parametrize("name", ["mlp", "head"])
def test_graphs_and_private_clients(name: str, tmp_path: Path) -> None:
    graph = {"topology": {"graph": "ring"}, "algorithm": {"name": "dspodfl"}}
    noise = {"clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-5}
    private = {"privacy": {"mechanism": "dp_sgd", "sampling_rate": 0.1, **noise}}
    for kind, sections in {"graph": graph, "private": private}.items():
        made = scenario(name, **sections)
        made["algorithm"].pop("batch_size") if kind == "private" else None
        run = fedsim.run(made, out=tmp_path / kind)
        assert run.params.isfinite().all()
        assert run.params.shape[-1] == assemble(parse(made)).task.dim


def test_a_plan_counts_adapters() -> None:
    found = fedsim.plan(scenario("mlp"))
    assert found["data"]["parameters"] == f"{2 * (64 + 6) + 2 * (6 + 10)} that train and travel"
    assert found["data"]["frozen parameters"].startswith(f"{65 * 6 + 7 * 10}: ")
    assert found["memory"]["one model"] == f"{172 * 8 / 1024:.4g} KiB"
    assert found["memory"]["what does not train"].startswith(f"{460 * 8 / 1024:.4g} KiB")


def test_many_clients_are_computed_together_and_the_base_is_there_once() -> None:
    made: Any = assemble(parse(scenario("mlp"))).task
    assert isinstance(made.kernel, VmapKernel)
    assert not isinstance(made.kernel, ChainKernel)
    assert made.dim == 172
    frozen = [p for p in made.kernel.module.parameters() if not p.requires_grad]
    copied = made.kernel.own._copied(made.kernel.own._blank)  # what a thread computes with
    assert {id(p) for p in frozen} == {id(p) for p in copied.parameters() if not p.requires_grad}


def test_chunks_go_by_what_is_computed_with_adapters() -> None:
    """Beside small rows of adapters a chunk's activations are what fills the memory."""
    big = scenario("mlp", model={"hidden": [3000, 3000], "lora": {"targets": ["3"], "rank": 1}})
    task: Any = assemble(parse(big)).task
    each = 50 * saved_bytes(task.kernel.module, task.inputs[:1])
    assert each >= 50 * 8 * 6000
    assert default_chunk_rows(task, 50) == 64 * 2**20 // each
    assert default_chunk_rows(task, 50) < 16 * 2**20 // (3 * 8 * task.dim)


def test_tokens() -> None:
    """Adapters of a transformer's layers and of its embedding; many clients at once as one by one."""
    rows = torch.arange(12).reshape(2, 6) % 9
    made, _ = build_model(
        part_from("model", "name", TOKENS), (6,), 9, 0, torch.float64, rows=rows, tokens=Tokens(9, positions=6)
    )
    assert list(adapters(made))[:2] == ["0.tokens", "0.positions"]
    x = flatten(made).repeat(3, 1) + 0.1 * torch.randn(3, len(flatten(made)), dtype=torch.float64)
    inputs, targets = torch.randint(9, (3, 2, 6)), torch.randint(9, (3, 2, 6))
    singly = RowKernel(made, cross_entropy).grad(x, inputs, targets, 0.5)
    kernel = build_kernel(made, cross_entropy, torch.device("cpu"), rows[0])
    assert isinstance(kernel, VmapKernel)
    assert torch.allclose(kernel.grad(x, inputs, targets, 0.5), singly, rtol=0, atol=1e-12)


def test_the_word_of_others_for_the_rank_is_known() -> None:
    section = {"name": "linear", "lora": {"targets": ["*"], "r": 4}}
    with pytest.raises(InputError, match=r"model\.lora\.r: unknown key \(did you mean 'rank'\?\)"):
        parse({"data": {"dataset": "digits", "clients": 2}, "model": section, "algorithm": {"name": "fedavg"}})
