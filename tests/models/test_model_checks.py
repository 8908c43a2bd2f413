"""What is refused as a model, and somebody's own models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim.core.errors import InputError
from fedsim.core.fields import part_from
from fedsim.models import build
from fedsim.models.build import flatten, refuse_batch_statistics
from fedsim.models.checks import try_out
from fedsim.models.losses import loss_function, predictions

F32, F64 = torch.float32, torch.float64


def build_model(section: dict[str, Any], *args: Any, **keys: Any) -> tuple[nn.Module, str]:
    return build.build_model(part_from("model", "name", section), *args, name=section["name"], **keys)


class Overlapping(nn.Module):
    """Two parameters in one memory, of which a step of one would move the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = nn.Parameter(self.a.weight.detach().T)


def holding(p: Tensor) -> nn.Module:
    module = nn.Linear(3, 2)
    module.register_parameter("extra", nn.Parameter(p, requires_grad=p.is_floating_point() or p.is_complex()))
    return module


REFUSED: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: nn.Sequential(nn.LazyLinear(3)), "'weight' of sub-module '0' \\(LazyLinear\\) is not initialised"),
    (lambda: nn.Linear(3, 2, device="meta"), "not initialised"),
    (
        lambda: nn.Sequential(nn.Linear(3, 0), nn.Linear(0, 2)),
        "'weight' of sub-module '0' \\(Linear\\) has the shape \\[0, 3",
    ),
    (Overlapping, "'weight' of sub-module 'b' .* shares its memory with parameter 'weight' of sub-module 'a'"),
    (lambda: nn.Linear(3, 2).requires_grad_(False), "Linear has no trainable parameters"),
    (lambda: nn.Sequential(nn.Flatten(), nn.ReLU()), "Sequential has no trainable parameters"),
    (lambda: holding(torch.zeros(2, dtype=torch.complex64)), "'extra' of the module \\(Linear\\) is complex64"),
    (lambda: holding(torch.zeros(2, dtype=torch.int64)), "'extra' .* is int64"),
]


@pytest.mark.parametrize("make,message", REFUSED)
def test_refused_modules(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        refuse_batch_statistics(make())
    assert caught.value.problems[0].key == "name"


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.0), nn.LayerNorm(2)),
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4)),
        lambda: nn.LSTM(3, 2, num_layers=2),
        lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0),
        lambda: (lambda layer: nn.Sequential(layer, nn.ReLU(), layer))(nn.Linear(3, 3)),  # one layer used twice
    ],
)
def test_accepted_modules(make: Callable[[], nn.Module]) -> None:
    refuse_batch_statistics(make())


def test_a_frozen_parameter_may_have_bounds_that_are_infinite() -> None:
    """Its sum is no number, which is no change of it."""
    module = holding(torch.tensor([torch.inf, -torch.inf]))
    module.get_parameter("extra").requires_grad_(False)
    try_out("bounded", module, torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), 2)


OWN = """
import torch, torch.nn.functional as F
from dataclasses import dataclass
from torch import nn
from fedsim.core.errors import InputError
from fedsim.core.fields import part_from
from fedsim.models.build import Model

def plain(width, input_shape, num_outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0], width), nn.Tanh(), nn.Linear(width, num_outputs))

def fixed(**kwargs):
    assert not kwargs, kwargs
    return nn.Linear(6, 3)

class Net(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.layer = nn.Linear(6, num_outputs)
        self.register_buffer("scale", torch.tensor([2.0]))
    def forward(self, x):
        return self.layer(x) * self.scale

@dataclass(frozen=True)
class Own(Model):
    width: int
    def build(self, input_shape, num_outputs):
        return plain(self.width, input_shape, num_outputs)

class Counting(Net):
    def forward(self, x):
        self.scale += 1
        return self.layer(x)

class Centred(Net):
    def forward(self, x):
        return self.layer(x - x.mean(0))

class Always(Net):
    def forward(self, x):
        return self.layer(F.dropout(x, 0.5, True))

class Gumbel(Net):
    def forward(self, x):
        return F.gumbel_softmax(self.layer(x)) if self.training else self.layer(x)

class Generator(Net):
    def forward(self, x):
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
        return self.layer(x + noise) if self.training else self.layer(x)

class Single(Net):
    def forward(self, x):
        return self.layer(x.float())

def squared(outputs, targets):
    return (outputs - F.one_hot(targets, outputs.shape[-1])).square().sum(-1)

def normed(): return nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))
def untracked(): return nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3, track_running_stats=False))
def number(): return 3
def broken(): raise KeyError("x")
def picky(depth): raise InputError("found 0, allowed: 1 or more", key="depth")
"""


@pytest.fixture(name="own")
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "fedsim_test_own_models.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return "fedsim_test_own_models"


@pytest.mark.parametrize("factory,keys", [("plain", {"width": 5}), ("fixed", {}), ("Net", {}), ("Own", {"width": 5})])
def test_somebodys_own_model(own: str, factory: str, keys: dict[str, Any]) -> None:
    section = {"name": f"{own}:{factory}", **keys}
    module, loss = build_model(section, (6,), 3, 0, F64)
    assert loss == "cross_entropy"
    assert module(torch.zeros(2, 6, dtype=F64)).shape == (2, 3)
    assert torch.equal(flatten(module), flatten(build_model(section, (6,), 3, 0, F64)[0]))
    assert not torch.equal(flatten(module), flatten(build_model(section, (6,), 3, 1, F64)[0]))


def test_somebodys_own_loss(own: str) -> None:
    _, name = build_model({"name": f"{own}:Net", "loss": f"{own}:squared"}, (6,), 3, 0, F32)
    assert name == f"{own}:squared"
    outputs, targets = torch.tensor([[0.0, 2.0, 0.0]]), torch.tensor([1])
    assert loss_function(name)(outputs, targets).tolist() == [1.0]
    assert predictions(outputs, name).tolist() == [1]


@pytest.mark.parametrize(
    "factory,keys,key,message",
    [
        ("plain", {"widht": 5}, "widht", "unknown key of '.*plain' 'widht' .did you mean 'width'"),
        ("plain", {}, "width", "missing; '.*:plain' needs this key"),
        ("Own", {"width": "5"}, "width", "found '5'"),
        ("Own", {}, "width", "missing"),
        ("number", {}, "name", "must return a torch.nn.Module, found int"),
        ("broken", {}, "name", "failed: KeyError: 'x'"),
        ("picky", {"depth": 0}, "depth", "^depth: found 0"),
        ("normed", {"batch_norm": "both"}, "batch_norm", "found 'both', allowed: .*group"),
        ("Net", {"batch_norm": "group"}, "batch_norm", "no layer of Net normalises with statistics of a batch"),
        (
            "untracked",
            {},
            "batch_norm",
            "missing, so statistics would be averaged, but sub-module '1' .* no running statistics .* allowed: group",
        ),
        ("untracked", {"batch_norm": "frozen"}, "batch_norm", "found frozen, but sub-module '1' .BatchNorm1d"),
        ("Counting", {}, "name", "buffer 'scale' changes"),
        ("Centred", {}, "name", "another output alone than in a batch"),
        ("Always", {}, "name", "another output alone than in a batch"),
        ("Gumbel", {}, "name", "the module draws with aten.exponential_"),
        ("Generator", {}, "name", "without a generator of its own"),
        ("Single", {}, "name", "cannot take inputs \\[b, 6\\]: RuntimeError"),
    ],
)
def test_somebodys_own_mistake(own: str, factory: str, keys: dict[str, Any], key: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build_model({"name": f"{own}:{factory}", **keys}, (6,), 3, 0, F64)
    assert caught.value.problems[0].key == key


def test_somebodys_own_model_must_fit_the_data(own: str) -> None:
    with pytest.raises(InputError, match="must give outputs \\[4, 7\\] for 4 samples, found \\[4, 3\\]"):
        build_model({"name": f"{own}:fixed"}, (6,), 7, 0, F32)
    with pytest.raises(InputError, match="cannot take inputs \\[b, 5\\]"):
        build_model({"name": f"{own}:fixed"}, (5,), 3, 0, F32)
