"""Convolutional models in every kernel: ResNet blocks under several algorithms, bfloat16, and the choice of kernel."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedsim
from fedsim.core.errors import InputError
from fedsim.engine.assembly import assemble
from fedsim.models import losses
from fedsim.models.build import flatten, layout, load_flat
from fedsim.models.vision import BasicBlock, resnet18
from fedsim.objective.general import channels_last
from fedsim.objective.kernel import Kernel
from fedsim.objective.stacked import ChainKernel, RowKernel, VmapKernel, build_kernel
from fedsim.objective.supervised import SupervisedTask
from fedsim.reports.plan import plan
from fedsim.scenario.load import parse

CPU = torch.device("cpu")
MINI = """\
from torch import nn
from fedsim.models.vision import BasicBlock

def mini(input_shape, num_outputs):
    '''A stem, a plain block, a block that halves the image, the mean, the outputs: ResNet-18 in small.'''
    stem = [nn.Conv2d(input_shape[0], 4, 3, padding=1, bias=False), nn.GroupNorm(2, 4), nn.ReLU()]
    blocks = [BasicBlock(4, 4, 2), BasicBlock(4, 8, 2, stride=2)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_outputs))
"""


def mini() -> nn.Sequential:
    stem = [nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.GroupNorm(2, 4), nn.ReLU()]
    blocks = [BasicBlock(4, 4, 2), BasicBlock(4, 8, 2, stride=2)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def rows(module: nn.Module, m: int, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Parameters ``[m, d]`` near the module's own, images ``[m, 3, 3, size, size]`` and labels."""
    random = torch.Generator().manual_seed(0)
    x = flatten(module).to(dtype) + 0.01 * torch.randn(m, layout(module).total, generator=random, dtype=dtype)
    return x, torch.randn(m, 3, 3, size, size, generator=random, dtype=dtype), torch.tensor([[0, 1, 4]] * m)


# --- ResNet --------------------------------------------------------------------------------------------------------


def test_resnet18_is_the_one_of_fl_simulator() -> None:
    """torchvision's ResNet-18 with 10 outputs has 11,181,642 parameters, group normalisation as many as the batch's."""
    module = resnet18((3, 32, 32), 10, groups=2, stem="imagenet")
    assert sum(p.numel() for p in module.parameters()) == 11_181_642
    norms = [layer for layer in module.modules() if isinstance(layer, nn.GroupNorm)]
    assert (len(norms), {layer.num_groups for layer in norms}) == (20, {2})
    first = next(layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
    assert (first.kernel_size, first.stride, first.padding, first.bias) == ((7, 7), (2, 2), (3, 3), None)
    assert sum(p.numel() for p in resnet18((3, 32, 32), 10, 2, "cifar").parameters()) == 11_173_962


def test_resnet18_stacked_equals_single() -> None:
    torch.manual_seed(0)
    module = resnet18((3, 8, 8), 5, groups=2, stem="cifar").double()
    x, inputs, targets = rows(module, 2, 8, torch.float64)
    stacked = VmapKernel(module, losses.cross_entropy).grad(x, inputs, targets, 1 / 3)
    alone = RowKernel(module, losses.cross_entropy)
    for i in range(2):
        single = alone.grad(x[i : i + 1], inputs[i : i + 1], targets[i : i + 1], 1 / 3)[0]
        assert (stacked[i] - single).abs().max() < 1e-12 * single.abs().max()


@pytest.mark.parametrize(
    "algorithm", [{"name": "fedavg", "momentum": 0.9}, {"name": "scaffold"}, {"name": "fedprox", "mu": 0.5}],
    ids=lambda a: a["name"],
)  # fmt: skip
def test_a_residual_network_under_every_kernel(algorithm: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "mini_resnet.py").write_text(MINI)
    settings = {
        "data": {"dataset": "digits", "clients": 3, "limit": 60, "augment": {"flip": True, "crop": 1}},
        "model": {"name": "mini_resnet:mini"},
        "algorithm": {"lr": 0.05, "local_steps": [3, 1, 2], "batch_size": 4, **algorithm},
        "run": {"rounds": 2, "device": "cpu", "dtype": "float64", "threads": 1},
    }
    file = tmp_path / "s.yaml"
    file.write_text(fedsim.core.documents.yaml.safe_dump(settings))
    found = {}
    for kernel, chunk in (("stacked", 3), ("stacked", 1), ("rows", 3), ("rows", 2)):
        scenario = fedsim.load(file, [f"run.kernel={kernel}", f"run.chunk_rows={chunk}"])
        found[kernel, chunk] = fedsim.run(scenario, out=tmp_path / f"{kernel}-{chunk}").params
    for params in found.values():
        assert (params - found["stacked", 3]).abs().max() < 1e-12
    start = assemble(fedsim.load(file)).task.initial()
    assert (start - found["stacked", 3]).abs().max() > 1e-3


# --- the choice of kernel ------------------------------------------------------------------------------------------


class Branches(nn.Module):
    """Python control flow on the data: vmap cannot take it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.linear(x)
        return z * 2 if float(x.sum()) > 0 else torch.tanh(z)


def kind(module: nn.Module, sample: Tensor, *how: Any) -> type[Kernel]:
    return type(build_kernel(module, losses.cross_entropy, CPU, sample, *how))


def test_the_kernel_can_be_chosen() -> None:
    image, chain = torch.zeros(3, 8, 8), nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    assert [kind(mini(), image, "full", way) for way in ("auto", "stacked", "rows")] == [
        RowKernel, VmapKernel, RowKernel,
    ]  # fmt: skip
    assert [kind(chain, image, "full", way) for way in ("auto", "stacked", "rows")] == [
        ChainKernel, ChainKernel, RowKernel,
    ]  # fmt: skip
    assert kind(chain, image, "bf16") is VmapKernel  # the chain's own backward has no autocast
    assert kind(Branches(), torch.zeros(6)) is RowKernel
    with pytest.raises(
        InputError, match=r"kernel: found 'stacked', but torch.func.vmap cannot take this model \(.+\); "
    ):
        kind(Branches(), torch.zeros(6), "full", "stacked")


class Viewed(nn.Module):
    """It asks for a ``view`` that channels-last has not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4 * 6 * 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(x).view(len(x), -1))
        return out


def pooled(channels: int = 3, width: int = 4) -> nn.Sequential:
    body = [nn.Conv2d(channels, width, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(width, 5, 2), nn.ReLU()]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(20, 5))


def test_images_go_channels_last_where_it_is_faster_and_the_model_can_take_it() -> None:
    def last(module: nn.Module, channels: int = 3) -> bool:
        kernel = build_kernel(module, losses.cross_entropy, CPU, torch.zeros(channels, 8, 8), way="rows")
        assert isinstance(kernel, RowKernel)
        return kernel.channels_last

    assert last(pooled())
    assert last(pooled(1), 1)
    assert not last(Viewed())
    assert not last(mini())  # group normalisation
    assert not last(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)))
    assert not last(pooled(3, 2**14))  # convolutions of many weights take longer on a CPU
    flat = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (3, 8, 8)), pooled())
    assert not build_kernel(flat, losses.cross_entropy, CPU, torch.zeros(192), way="rows").channels_last  # type: ignore[attr-defined]


@pytest.mark.parametrize("make,channels", [(mini, 3), (pooled, 3), (lambda: pooled(1), 1)])
def test_channels_last_gives_the_same_numbers(make: Any, channels: int) -> None:
    module = make().double()
    x, inputs, targets = rows(module, 2, 8, torch.float64)
    inputs = inputs[:, :, :channels]
    plain = RowKernel(module, losses.cross_entropy)
    other = RowKernel(copy.deepcopy(module), losses.cross_entropy, channels_last=True)
    difference = other.grad(x, inputs, targets, 1 / 3) - plain.grad(x, inputs, targets, 1 / 3)
    assert difference.abs().max() < 1e-12
    assert (other.outputs(x, inputs[0]) - plain.outputs(x, inputs[0])).abs().max() < 1e-12
    assert (other.input_grad(x, inputs, targets) - plain.input_grad(x, inputs, targets)).abs().max() < 1e-12


@pytest.mark.parametrize("channels", [1, 3])
def test_one_channel_is_channels_last_by_its_strides(channels: int) -> None:
    images = torch.randn(5, channels, 6, 4)
    found = channels_last(images[1:])
    assert torch.equal(found, images[1:])
    assert nn.Conv2d(channels, 3, 3)(found).is_contiguous(memory_format=torch.channels_last)


# --- bfloat16 ------------------------------------------------------------------------------------------------------


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), nn.Linear(16, 5))


@pytest.mark.parametrize("make", [mini, perceptron])
def test_bf16_is_torch_autocast(make: Any) -> None:
    torch.manual_seed(0)
    module = make()
    x, inputs, targets = rows(module, 2, 8, torch.float32)
    found = RowKernel(copy.deepcopy(module), losses.cross_entropy, "bf16").grad(x, inputs, targets, 1 / 3)
    for i in range(2):
        load_flat(module, x[i])
        with torch.autocast("cpu", torch.bfloat16):
            out = module(inputs[i])
        assert out.dtype == torch.bfloat16
        module.zero_grad()
        (nn.functional.cross_entropy(out.float(), targets[i], reduction="sum") * (1 / 3)).backward()
        expected = torch.cat([p.grad.flatten() for p in module.parameters()])  # type: ignore[union-attr]
        assert torch.equal(found[i], expected)


@pytest.mark.parametrize("kernel", [RowKernel, VmapKernel])
@pytest.mark.parametrize("make, bound", [(mini, 0.3), (perceptron, 0.02)])
def test_bf16_is_rounded_but_close(kernel: Any, make: Any, bound: float) -> None:
    """About 8 bits in the model's arithmetic (normalisation of few pixels magnifies it); gradients are float32."""
    torch.manual_seed(0)
    module = make()
    x, inputs, targets = rows(module, 2, 8, torch.float32)
    full, bf16 = (kernel(module, losses.cross_entropy, precision) for precision in ("full", "bf16"))
    for name in ("grad", "per_sample_grad"):
        arguments = (x, inputs, targets, 1 / 3) if name == "grad" else (x, inputs, targets)
        exact, rounded = getattr(full, name)(*arguments), getattr(bf16, name)(*arguments)
        assert rounded.dtype == torch.float32
        error = float((rounded - exact).norm() / exact.norm())
        assert 1e-4 < error < bound, name
    assert torch.equal(bf16.outputs(x, inputs[0]), full.outputs(x, inputs[0]))  # evaluations are in full precision


def settings(**run: Any) -> dict[str, Any]:
    return {
        "data": {"dataset": "digits", "clients": 3, "limit": 300},
        "model": {"name": "cnn", "channels": [4], "hidden": 8},
        "algorithm": {"name": "scaffold", "lr": 0.2, "local_steps": 5, "batch_size": 8},
        "run": {"rounds": 25, "eval_every": 25, "device": "cpu", "threads": 1, **run},
    }


def test_a_run_in_bf16_learns_as_well_and_does_not_depend_on_chunks(tmp_path: Path) -> None:
    full = fedsim.run(settings(), out=tmp_path / "full")
    bf16 = fedsim.run(settings(precision="bf16"), out=tmp_path / "bf16")
    alone = fedsim.run(settings(precision="bf16", chunk_rows=1), out=tmp_path / "alone")
    assert bf16.params.dtype == torch.float32
    assert torch.equal(alone.params, bf16.params)  # row by row
    assert 0 < (bf16.params - full.params).norm() / full.params.norm() < 0.1
    first, last = bf16.metrics["train_loss"].iloc[[0, -1]]
    assert last < 0.7 * first
    assert abs(last - full.metrics["train_loss"].iloc[-1]) < 0.1 * (first - last)
    assert plan(parse(settings(precision="bf16")))["work"]["device"] == "cpu, float32, bf16 autocast"


def test_what_does_not_go_with_bf16(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run.precision: found 'bf16' with dtype float64, allowed: full"):
        parse(settings(precision="bf16", dtype="float64"))
    np.savez(tmp_path / "q.npz", A=np.ones((2, 3)), b=np.ones((2, 3)))
    quadratic = {"data": {"dataset": "quadratic", "file": str(tmp_path / "q.npz")}, "algorithm": {"name": "fedavg"}}
    with pytest.raises(InputError) as caught:
        parse({**quadratic, "run": {"precision": "bf16", "kernel": "rows"}})
    assert [p.key for p in caught.value.problems] == ["run.precision", "run.kernel"]
    assert "a quadratic problem has no model; allowed: full" in caught.value.problems[0].message


def test_a_model_that_vmap_cannot_take_is_refused_where_stacked_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "branching.py").write_text(
        "from torch import nn\n\nclass Net(nn.Module):\n    def __init__(self, input_shape, num_outputs):\n"
        "        super().__init__()\n        self.linear = nn.Linear(64, num_outputs)\n\n    def forward(self, x):\n"
        "        z = self.linear(x.flatten(1))\n        return z if float(self.linear.bias.sum()) > 0 else 2 * z\n"
    )
    file = tmp_path / "s.yaml"
    wanted = {**settings(kernel="stacked"), "model": {"name": "branching:Net"}}
    file.write_text(fedsim.core.documents.yaml.safe_dump(wanted))
    with pytest.raises(InputError, match=r"s.yaml:\d+: run.kernel: found 'stacked', but torch.func.vmap cannot"):
        assemble(fedsim.load(file))
    task = assemble(fedsim.load(file, ["run.kernel=auto"])).task
    assert isinstance(task, SupervisedTask)
    assert isinstance(task.kernel, RowKernel)
