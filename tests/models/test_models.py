"""Models by name: shapes, counts, seeds, bad sections, and the flat vector."""

from __future__ import annotations

import functools
import sys
import threading
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

from fedsim.core.errors import InputError
from fedsim.core.fields import part_from
from fedsim.core.registry import lookup, names
from fedsim.models import build
from fedsim.models.build import (
    CNN,
    MLP,
    Model,
    flatten,
    flops,
    layout,
    load_flat,
    views,
)
from fedsim.models.losses import loss_function

F32, F64 = torch.float32, torch.float64


def build_model(section: dict[str, Any], *args: Any, **keys: Any) -> tuple[nn.Module, str]:
    return build.build_model(part_from("model", "name", section), *args, name=section["name"], **keys)


def linear_count(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def resnet_count(channels: int, outputs: int, stem: int) -> int:
    """Convolutions have no bias; every normalisation has 2 numbers per channel; 3 of 8 blocks have a 1x1 shortcut."""
    total, width = channels * 64 * stem**2 + 2 * 64, 64
    for stage, out in enumerate((64, 128, 256, 512)):
        total += 9 * width * out + 3 * 9 * out * out + 4 * 2 * out
        total += width * out + 2 * out if stage else 0
        width = out
    return total + linear_count(512, outputs)


VGG_COUNT = (
    9 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 3 * 512 * 512)
    + (64 + 128 + 2 * 256 + 4 * 512)
    + 2 * linear_count(512, 512)
    + linear_count(512, 10)
)
CNN_CONVOLUTIONS = (25 * 16 + 16) + (25 * 16 * 32 + 32)
BUILT: list[tuple[dict[str, Any], tuple[int, ...], int]] = [
    ({"name": "linear"}, (1, 28, 28), 7850),
    ({"name": "linear", "bias": False}, (784,), 7840),
    ({"name": "linear", "init": "zeros"}, (5,), 60),
    ({"name": "svm"}, (1, 28, 28), 7850),
    ({"name": "mlp"}, (1, 28, 28), 159010),
    ({"name": "mlp", "hidden": [8, 6], "activation": "gelu"}, (5,), 48 + 54 + 70),
    ({"name": "mlp", "hidden": []}, (5,), 60),
    ({"name": "cnn"}, (1, 28, 28), CNN_CONVOLUTIONS + linear_count(32 * 7 * 7, 128) + linear_count(128, 10)),
    ({"name": "cnn"}, (1, 8, 8), CNN_CONVOLUTIONS + linear_count(32 * 2 * 2, 128) + linear_count(128, 10)),
    ({"name": "cnn", "channels": [4], "hidden": 6, "kernel": 3}, (2, 9, 5), 76 + linear_count(4 * 4 * 2, 6) + 70),
    ({"name": "cnn", "channels": [4], "hidden": 6}, (2, 9, 5), 204 + linear_count(4 * 4 * 2, 6) + linear_count(6, 10)),
    ({"name": "vgg11"}, (3, 32, 32), VGG_COUNT),
    ({"name": "resnet18"}, (3, 32, 32), resnet_count(3, 10, stem=3)),
    ({"name": "resnet18", "stem": "imagenet", "groups": 32}, (3, 32, 32), resnet_count(3, 10, stem=7)),
    ({"name": "resnet18"}, (1, 8, 8), resnet_count(1, 10, stem=3)),
]


def named(case: tuple[dict[str, Any], tuple[int, ...], int]) -> str:
    return ",".join(map(str, case[0].values())) + "@" + "x".join(map(str, case[1]))


@pytest.mark.parametrize("section,shape,count", BUILT, ids=map(named, BUILT))
def test_output_shape_and_parameter_count(section: dict[str, Any], shape: tuple[int, ...], count: int) -> None:
    module, _ = build_model(section, shape, 10, seed=0, dtype=F32)
    assert sum(p.numel() for p in module.parameters()) == count == layout(module).total
    with torch.no_grad():
        assert module(torch.zeros(3, *shape)).shape == (3, 10)


def test_known_parameter_counts() -> None:
    assert resnet_count(3, 10, stem=3) == 11_173_962  # CIFAR ResNet-18, the number usually quoted
    assert resnet_count(3, 1000, stem=7) == 11_689_512  # torchvision's resnet18
    assert VGG_COUNT == 9_220_480 + 525_312 + 5_130


def test_every_registered_model_is_tested() -> None:
    assert {section["name"] for section, _, _ in BUILT} == {
        n for n in names("model") if lookup("model", n).__module__ == "fedsim.models.build"
    }  # those of tokens: test_language


SMALLEST = {"linear": (5,), "svm": (5,), "mlp": (5,), "cnn": (1, 8, 8), "vgg11": (1, 32, 32), "resnet18": (1, 8, 8)}


@pytest.mark.parametrize("name", SMALLEST)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    module, loss_name = build_model({"name": name}, SMALLEST[name], 3, seed=1, dtype=F32)
    x, y = torch.randn(4, *SMALLEST[name], generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 1])
    loss_function(loss_name)(module(x), y).sum().backward()
    for parameter_name, p in module.named_parameters():
        assert p.grad is not None, parameter_name
        assert torch.isfinite(p.grad).all(), parameter_name
        assert p.grad.norm() > 1e-6, parameter_name


@pytest.mark.parametrize("name", SMALLEST)
def test_stacked_models_are_the_models_one_by_one(name: str) -> None:
    shape = SMALLEST[name]
    built = [build_model({"name": name}, shape, 3, seed=s, dtype=F64) for s in (0, 1)]
    module, where, loss = built[0][0], layout(built[0][0]), loss_function(built[0][1])
    flat = torch.stack([flatten(m) for m, _ in built])
    x = torch.randn(2, 2, *shape, dtype=F64, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([[0, 1], [2, 2]])
    flat.requires_grad_()
    outputs = vmap(lambda row, batch: functional_call(module, views(row, where), (batch,)))(flat, x)
    stacked = torch.autograd.grad(loss(outputs.flatten(0, 1), y.flatten()).sum(), flat)[0]
    for i, (own, _) in enumerate(built):
        plain = torch.autograd.grad(loss(own(x[i]), y[i]).sum(), list(own.parameters()))
        alone = torch.cat([g.reshape(-1) for g in plain])
        assert alone.norm() > 1e-3
        torch.testing.assert_close(outputs[i], own(x[i]), rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(stacked[i], alone, rtol=0, atol=1e-11 * float(alone.abs().max()))


def test_first_hidden_layers_of_vgg_keep_the_signal() -> None:
    """He's initialisation: the outputs of the body have the size of its input, not 1e-3 of it."""
    module, _ = build_model({"name": "vgg11"}, (3, 32, 32), 10, seed=0, dtype=F32)
    assert isinstance(module, nn.Sequential)
    with torch.no_grad():
        hidden = module[:-1](torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert 0.2 < float(hidden.square().mean()) < 20


def test_zero_init_is_zero_and_only_for_linear_models() -> None:
    for name in ("linear", "svm"):
        assert not flatten(build_model({"name": name, "init": "zeros"}, (4,), 3, 0, F32)[0]).any()
    for name in ("mlp", "cnn", "vgg11", "resnet18"):
        with pytest.raises(InputError, match="cannot learn") as caught:
            build_model({"name": name, "init": "zeros"}, (3, 32, 32), 3, 0, F32)
        assert caught.value.problems[0].key == "init"
    with pytest.raises(InputError, match="cannot learn"):
        MLP(init="zeros")


def test_seed_decides_the_parameters_and_no_global_state_moves() -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    a, b, c = (flatten(build_model({"name": "cnn"}, (1, 8, 8), 10, s, F32)[0]) for s in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    again = flatten(build_model({"name": "cnn"}, (1, 8, 8), 10, 7, F32)[0])
    assert torch.equal(a, b)
    assert torch.equal(a, again)
    assert not torch.equal(a, c)
    double = flatten(build_model({"name": "cnn"}, (1, 8, 8), 10, 7, F64)[0])
    assert double.dtype == F64
    assert torch.equal(double, a.double())


@pytest.mark.parametrize(
    "section,classes,targets,loss,outputs",
    [
        ({"name": "linear"}, 10, 1, "cross_entropy", 10),
        ({"name": "linear", "loss": None}, 10, 1, "cross_entropy", 10),
        ({"name": "linear"}, None, 1, "mse", 1),
        ({"name": "mlp"}, None, 4, "mse", 4),
        ({"name": "svm"}, 10, 1, "multi_margin", 10),
        ({"name": "svm", "loss": "cross_entropy"}, 2, 1, "cross_entropy", 2),
        ({"name": "svm", "loss": "mse"}, None, 1, "mse", 1),
        ({"name": "linear", "loss": "logistic"}, 2, 1, "logistic", 1),
    ],
)
def test_loss_and_outputs_follow_the_task(
    section: dict[str, Any], classes: int | None, targets: int, loss: str, outputs: int
) -> None:
    module, found = build_model(section, (6,), classes, 0, F32, num_targets=targets)
    assert found == loss
    assert module(torch.zeros(2, 6)).shape == (2, outputs)


BAD: list[tuple[dict[str, Any], tuple[int, ...], int | None, str, str]] = [
    ({}, (4,), 3, "name", "missing; allowed: char_lstm, cnn, linear"),
    ({"name": "mpl"}, (4,), 3, "name", "did you mean 'mlp'"),
    ({"name": 3}, (4,), 3, "name", "found 3"),
    ({"name": None}, (4,), 3, "name", "found None"),
    ({"name": "no_such_package:f"}, (4,), 3, "name", "cannot import 'no_such_package'"),
    ({"name": "math:no_such"}, (4,), 3, "name", "unknown attribute"),
    ({"name": "math:pi"}, (4,), 3, "name", "is float, not a callable"),
    ({"name": "mlp", "hiden": [3]}, (4,), 3, "hiden", "did you mean 'hidden'"),
    ({"name": "mlp", "hidden": 3}, (4,), 3, "hidden", "found 3, allowed: a list"),
    ({"name": "mlp", "hidden": [3, 0]}, (4,), 3, "hidden.1", "found 0, allowed: greater than 0"),
    ({"name": "mlp", "hidden": [True]}, (4,), 3, "hidden.0", "found True"),
    ({"name": "mlp", "hidden": ["8"]}, (4,), 3, "hidden.0", "found '8'"),
    ({"name": "mlp", "activation": "step"}, (4,), 3, "activation", "'relu', 'tanh'"),
    ({"name": "linear", "bias": 1}, (4,), 3, "bias", "found 1"),
    ({"name": "linear", "init": "ones"}, (4,), 3, "init", "'default' or 'zeros'"),
    ({"name": "linear", "loss": "hinge"}, (4,), 3, "loss", "unknown loss 'hinge'"),
    ({"name": "linear", "loss": "cross_entropie"}, (4,), 3, "loss", "did you mean 'cross_entropy'"),
    ({"name": "linear", "loss": 1}, (4,), 3, "loss", "found 1"),
    ({"name": "linear", "loss": "math:pi"}, (4,), 3, "loss", "not a function"),
    ({"name": "linear", "loss": "math:sqrt"}, (4,), 3, "loss", "'math:sqrt' failed: TypeError"),
    ({"name": "linear", "loss": "torch.nn.functional:cross_entropy"}, (4,), 3, "loss", "one loss per sample"),
    ({"name": "linear", "loss": "cross_entropy"}, (4,), None, "loss", "for regression; use mse"),
    ({"name": "linear", "loss": "mse"}, (4,), 3, "loss", "use cross_entropy"),
    ({"name": "linear", "loss": "logistic"}, (4,), 10, "loss", "needs 2 classes, found 10"),
    ({"name": "linear", "loss": "logistic"}, (4,), None, "loss", "for regression"),
    ({"name": "svm"}, (4,), None, "name", "multi_margin needs classes"),
    ({"name": "cnn"}, (784,), 10, "name", "needs images .* found inputs of shape \\[784\\]"),
    ({"name": "cnn"}, (1, 3, 8), 10, "name", "at least 4x4 pixels, found 3x8"),
    ({"name": "cnn", "channels": []}, (1, 8, 8), 10, "channels", "at least 1 item"),
    ({"name": "vgg11"}, (1, 28, 28), 10, "name", "at least 32x32 pixels, found 28x28"),
    ({"name": "resnet18"}, (28, 28), 10, "name", "needs images"),
    ({"name": "resnet18", "groups": 3}, (3, 32, 32), 10, "groups", "found 3 groups, allowed: a divisor of 64"),
    ({"name": "resnet18", "groups": 128}, (3, 32, 32), 10, "groups", "found 128"),
    ({"name": "resnet18", "stem": "lenet"}, (3, 32, 32), 10, "stem", "'cifar' or 'imagenet'"),
    (
        {"name": "mlp", "hidden": [10**15]},
        (784,),
        10,
        "name",
        "a model of 795,.* parameters needs .* allowed: this machine's memory",
    ),
]


@pytest.mark.parametrize("section,shape,classes,key,message", BAD)
def test_bad_sections_are_answered(
    section: dict[str, Any], shape: tuple[int, ...], classes: int | None, key: str, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build_model(section, shape, classes, 0, F32)
    assert [p.key for p in caught.value.problems] == [key]


def test_all_bad_keys_are_reported_at_once() -> None:
    with pytest.raises(InputError) as caught:
        build_model({"name": "mlp", "hidden": [0, -1], "width": 3}, (4,), 3, 0, F32)
    assert {p.key for p in caught.value.problems} == {"hidden.0", "hidden.1", "width"}


def test_classification_needs_two_classes() -> None:
    with pytest.raises(InputError, match="have 1 class"):
        build_model({"name": "linear"}, (4,), 1, 0, F32)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
@pytest.mark.parametrize("strided", [False, True])
def test_views_share_memory_and_round_trip(lead: tuple[int, ...], strided: bool) -> None:
    module, _ = build_model({"name": "cnn"}, (1, 8, 8), 10, 0, F32)
    where = layout(module)
    flat = torch.randn(*lead, where.total * 2 if strided else where.total)[..., :: 2 if strided else 1]
    parts = views(flat, where)
    assert list(parts) == [n for n, _ in module.named_parameters()] == list(where.names)
    for name, p in module.named_parameters():
        assert parts[name].shape == (*lead, *p.shape)
    assert torch.equal(torch.cat([v.reshape(*lead, -1) for v in parts.values()], dim=-1), flat)
    for v in parts.values():
        v.fill_(1.5)
    assert bool((flat == 1.5).all())


def test_views_of_scalar_parameters_and_wrong_length() -> None:
    module = nn.Linear(2, 1, bias=False)
    module.register_parameter("scale", nn.Parameter(torch.tensor(3.0)))
    where = layout(module)
    assert (where.names, where.sizes, where.offsets, where.total) == (("weight", "scale"), (2, 1), (0, 2), 3)
    assert where.shapes == ((1, 2), ())
    assert views(torch.arange(6.0).view(2, 3), where)["scale"].tolist() == [2.0, 5.0]
    with pytest.raises(ValueError, match="found 4 parameters, the model has 3"):
        views(torch.zeros(4), where)


def test_flatten_and_load_flat() -> None:
    module, _ = build_model({"name": "mlp", "hidden": [4]}, (3,), 2, 0, F32)
    other, _ = build_model({"name": "mlp", "hidden": [4]}, (3,), 2, 1, F64)
    kept = flatten(other)
    load_flat(other, flatten(module))
    assert torch.equal(flatten(other), flatten(module).double())
    assert not torch.equal(kept, flatten(other))  # flatten copies
    x = torch.randn(5, 3)
    torch.testing.assert_close(other(x.double()).float(), module(x))
    with pytest.raises(ValueError, match="the model has"):
        load_flat(module, torch.zeros(3))


def test_flops_count_two_per_multiply_add() -> None:
    assert flops(build_model({"name": "linear"}, (1, 28, 28), 10, 0, F64)[0], (1, 28, 28)) == 2 * 7840
    assert flops(build_model({"name": "mlp"}, (784,), 10, 0, F32)[0], (784,)) == 2 * (784 * 200 + 200 * 10)
    cnn, _ = build_model({"name": "cnn"}, (1, 28, 28), 10, 0, F32)
    maps = 28 * 28 * 16 * 25 + 14 * 14 * 32 * 16 * 25
    assert flops(cnn, (1, 28, 28)) == 2 * (maps + 32 * 7 * 7 * 128 + 128 * 10)
    assert flops(nn.Conv2d(4, 6, 3, groups=2, bias=False), (4, 5, 5)) == 2 * (3 * 3 * 6) * (2 * 9)
    assert not any(m._forward_hooks for m in cnn.modules())


def test_resnet_flops_are_the_published_ones() -> None:
    module, _ = build_model({"name": "resnet18"}, (3, 32, 32), 10, 0, F32)
    assert flops(module, (3, 32, 32)) == 2 * (
        1024 * 27 * 64  # stem
        + 4 * 1024 * 9 * 64 * 64
        + sum(s * (9 * c // 2 * c + 3 * 9 * c * c + c // 2 * c) for s, c in ((256, 128), (64, 256), (16, 512)))
        + 5120
    )
    assert round(flops(module, (3, 32, 32)) / 2e9, 2) == 0.56


def test_models_are_plain_frozen_dataclasses() -> None:
    assert CNN() == CNN(channels=[16, 32], hidden=128)
    assert isinstance(CNN(), Model)
    with pytest.raises(AttributeError):
        CNN().hidden = 3  # type: ignore[misc]
    assert isinstance(CNN().build((1, 8, 8), 4), nn.Sequential)


def test_threads_that_build_models_do_not_draw_from_each_others_seeds() -> None:
    """They share PyTorch's global generator, as two runs in one process do."""
    make = functools.partial(build_model, {"name": "mlp", "hidden": [30, 30]}, (50,), 10, 7, F32)
    wanted, others = flatten(make()[0]), []

    def several() -> None:
        others.extend(flatten(make()[0]) for _ in range(60))

    before, threads = sys.getswitchinterval(), [threading.Thread(target=several) for _ in range(3)]
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert len(others) == 180
    assert all(torch.equal(x, wanted) for x in others)
