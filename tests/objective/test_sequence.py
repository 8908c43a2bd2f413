"""Sequences of layers of many clients at once against torch.autograd, client by client."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.core import crew
from fedsim.core.tokens import IGNORED
from fedsim.models import exported, language, losses
from fedsim.models.build import flatten, layout, views
from fedsim.models.lora import Lora, adapt
from fedsim.objective import sequence
from fedsim.objective.layers import Flat, Params
from fedsim.objective.sequence import SequenceKernel, rules_of
from fedsim.objective.stacked import RowKernel, build_kernel

CPU, F64, CROSS = torch.device("cpu"), torch.float64, losses.cross_entropy
IDS, POSITIONS, SAMPLES = 9, 5, 4
Make = Callable[[], nn.Sequential]


def net(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


def encoder(first: bool, activation: str) -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 12, 0.0, activation, batch_first=True, norm_first=first)


def block() -> nn.Module:
    return exported.Block(8, 2, 12, 0.0)


TOKENS: dict[str, Make] = {
    "lstm": lambda: net(nn.Embedding(IDS, 3), language.Recurrent(3, 4, 1), nn.Linear(4, IDS)),
    "lstm, last": lambda: net(nn.Embedding(IDS, 3), language.Recurrent(3, 4, 1), exported.Last(), nn.Linear(4, IDS)),
    "lstm of two layers": lambda: net(nn.Embedding(IDS, 3), language.Recurrent(3, 4, 2), nn.Linear(4, IDS)),
    "lstm with an activation": lambda: net(
        nn.Embedding(IDS, 3), language.Recurrent(3, 4, 2), exported.Last(), nn.Tanh(), nn.Linear(4, IDS)
    ),
    "lstm, encoder, last": lambda: net(
        nn.Embedding(IDS, 3), language.Recurrent(3, 8, 1), encoder(False, "relu"), exported.Last(), nn.Linear(8, IDS)
    ),
    "transformer": lambda: net(
        exported.Places(IDS, POSITIONS + 1, 8), block(), block(), nn.LayerNorm(8), nn.Linear(8, IDS)
    ),
    "transformer, last": lambda: net(
        exported.Places(IDS, POSITIONS, 8), block(), block(), nn.LayerNorm(8), exported.Last(), nn.Linear(8, IDS)
    ),
    "padding": lambda: net(nn.Embedding(IDS, 8, padding_idx=2), nn.Sequential(block(), nn.Linear(8, IDS))),
    **{
        f"encoder {first} {activation}": lambda first=first, activation=activation: net(
            nn.Embedding(IDS, 8), encoder(first, activation), encoder(first, activation), nn.Flatten(),
            nn.Linear(8 * POSITIONS, IDS),
        )
        for first in (True, False) for activation in ("relu", "gelu")
    },
    "encoder, last": lambda: net(
        nn.Embedding(IDS, 8), encoder(False, "gelu"), exported.Last(), nn.Linear(8, IDS, bias=False)
    ),
}  # fmt: skip
NUMBERS: dict[str, Make] = {
    "norm": lambda: net(nn.Flatten(), nn.Linear(POSITIONS * 3, 6), nn.LayerNorm(6), nn.ELU(), nn.Linear(6, IDS)),
    "norm without shift": lambda: net(nn.Flatten(), nn.LayerNorm(POSITIONS * 3, bias=False), nn.Linear(15, IDS)),
    "norm without scale": lambda: net(
        nn.Linear(3, 4), nn.GELU(), nn.LayerNorm(4, elementwise_affine=False), nn.Flatten(), nn.Linear(20, IDS)
    ),
    "lstm of numbers": lambda: net(language.Recurrent(3, 4, 2), exported.Last(), nn.Linear(4, IDS)),
    "encoder of numbers": lambda: net(nn.Linear(3, 8), encoder(True, "relu"), nn.Flatten(), nn.Linear(40, IDS)),
}
EVERY = {**TOKENS, **NUMBERS}


def case(name: str, m: int, each: bool) -> tuple[nn.Sequential, Tensor, Tensor, Tensor, Any]:
    """A module, parameters ``[m, d]``, inputs, targets and weights, one number for all or another for `each`."""
    torch.manual_seed(len(name) + m)
    module = EVERY[name]().double()
    x = flatten(module) + 0.3 * torch.randn(m, layout(module).total, dtype=F64)
    if name in TOKENS:
        inputs = torch.randint(IDS, (m, SAMPLES, POSITIONS))
    else:
        inputs = torch.randn(m, SAMPLES, POSITIONS, 3, dtype=F64)
    out = functional_call(module, views(x[0], layout(module)), (inputs[0],))
    targets = torch.randint(IDS, (m, *out.shape[:-1]))
    if targets.dim() > 2:
        targets[:, 0, 2:] = targets[:, 1] = IGNORED
    weights = torch.rand(m, SAMPLES, dtype=F64) if each else 0.25
    return module, x, inputs, targets, weights


def by_autograd(
    module: nn.Module, loss: losses.Loss, x: Tensor, inputs: Tensor, targets: Tensor, weights: Any
) -> Tensor:
    found = []
    for i, row in enumerate(x):
        params = {n: v.clone().requires_grad_() for n, v in views(row, layout(module)).items()}
        each = loss(functional_call(module, params, (inputs[i],)), targets[i])
        total = (each * (weights[i] if isinstance(weights, Tensor) else weights)).sum()
        grads = torch.autograd.grad(total, list(params.values()))
        for (name, p), g in zip(module.named_parameters(), grads, strict=True):
            owner = module.get_submodule(name.rpartition(".")[0])
            if isinstance(owner, nn.Embedding) and owner.padding_idx is not None:
                assert p.shape == g.shape
                g[owner.padding_idx] = 0
        found.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(found)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("m,each", [(1, True), (5, True), (5, False)])
def test_gradients_are_those_of_autograd(name: str, m: int, each: bool) -> None:
    module, x, inputs, targets, weights = case(name, m, each)
    kernel = build_kernel(module, CROSS, CPU, inputs[0, 0], others=inputs[0])
    assert type(kernel) is SequenceKernel
    copies = [v.clone() for v in (x, inputs, targets)]
    expected = by_autograd(module, CROSS, x, inputs, targets, weights)
    bound = 1e-12 * max(1.0, float(expected.abs().max()))
    assert expected.norm(dim=1).min() > 1e-3
    for few in (kernel.few, None):
        kernel.few = few
        found = kernel.grad(x, inputs, targets, weights)
        assert (found - expected).abs().max() <= bound
        assert not found.requires_grad
    stepped, lr = x.clone(), torch.full((m, 1), 0.1, dtype=F64)
    kernel.descend(stepped, inputs, targets, weights, lr)
    assert (stepped - (x - 0.1 * expected)).abs().max() <= bound
    for now, before in zip((x, inputs, targets), copies, strict=True):
        assert torch.equal(now, before)


@pytest.mark.parametrize("name", EVERY)
def test_outputs_and_gradients_of_samples(name: str) -> None:
    module, x, inputs, targets, weights = case(name, 3, True)
    kernel, rows = SequenceKernel(module, CROSS, rules_of(module) or []), RowKernel(module, CROSS)
    expected = torch.stack([functional_call(module, views(r, layout(module)), (inputs[0],)) for r in x])
    assert (kernel.outputs(x, inputs[0]) - expected).abs().max() <= 1e-12
    own = torch.stack([functional_call(module, views(r, layout(module)), (i,)) for r, i in zip(x, inputs, strict=True)])
    assert (kernel.own_outputs(x, inputs) - own).abs().max() <= 1e-12
    bound = torch.full((3, 1), 0.5, dtype=F64)
    clipped = [k.clipped_sum(x, inputs, targets, None, bound, None) for k in (kernel, rows)]
    assert (clipped[0] - clipped[1]).abs().max() <= 1e-12
    each = (kernel.per_sample_grad(x, inputs, targets) * weights.unsqueeze(-1)).sum(1)
    assert (each - kernel.grad(x, inputs, targets, weights)).abs().max() <= 1e-12


def test_evaluations_keep_nothing_for_a_backward() -> None:
    class Kept:
        pass

    class Watched(Flat):
        def forward(self, p: Params, x: Tensor) -> tuple[Tensor, Any]:
            made = Kept()
            alive.add(made)
            most.append(len(alive))
            return x, made

    alive: weakref.WeakSet[Kept] = weakref.WeakSet()
    most: list[int] = []
    module, x, inputs, _, _ = case("norm", 2, True)
    kernel = SequenceKernel(module, CROSS, [Watched() for _ in range(5)])
    assert torch.equal(kernel.own_outputs(x, inputs), inputs)
    assert len(most) == 5
    assert max(most) == 2  # one layer's while the next one computes


@pytest.mark.parametrize("name", NUMBERS)
def test_gradients_of_inputs(name: str) -> None:
    module, x, inputs, targets, _ = case(name, 3, True)
    kernel, rows = build_kernel(module, CROSS, CPU, inputs[0, 0], others=inputs[0]), RowKernel(module, CROSS)
    found, expected = (k.input_grad(x, inputs, targets) for k in (kernel, rows))
    assert (found - expected).abs().max() <= 1e-12


@pytest.mark.parametrize("name", ["lstm, last", "transformer", "encoder False gelu"])
def test_portions_and_threads_make_no_difference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x, inputs, targets, weights = case(name, 6, True)
    kernel = build_kernel(module, CROSS, CPU, inputs[0, 0], others=inputs[0])
    assert isinstance(kernel, SequenceKernel)
    whole = kernel.grad(x, inputs, targets, weights)
    monkeypatch.setattr(sequence, "_PORTION", 2 * kernel._row_bytes(x, inputs))
    assert len(kernel._portions(x, inputs)) == 3
    found = []
    for threads in (1, 3):
        with crew.working(threads):
            found.append(kernel.grad(x, inputs, targets, weights))
    assert torch.equal(*found)
    assert (found[0] - whole).abs().max() <= 1e-12


@pytest.mark.parametrize("name", ["multi_margin", "mse", "own"])
def test_every_loss(name: str) -> None:
    def own(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.logsumexp(-1) - 0.3 * targets).square()

    module, x, inputs, targets, weights = case("lstm, last", 5, True)
    loss = own if name == "own" else getattr(losses, name)
    targets = torch.randn(5, SAMPLES, IDS, dtype=F64) if name == "mse" else targets
    kernel = build_kernel(module, loss, CPU, inputs[0, 0], others=inputs[0])
    assert type(kernel) is SequenceKernel
    expected = by_autograd(module, loss, x, inputs, targets, weights)
    assert (kernel.grad(x, inputs, targets, weights) - expected).abs().max() <= 1e-12


def frozen() -> nn.Sequential:
    module = TOKENS["transformer"]()
    module[0].requires_grad_(False)
    return module


def tied() -> nn.Sequential:
    module = net(nn.Embedding(IDS, 8), block(), nn.Linear(8, IDS, bias=False))
    module[2].weight = module[0].weight
    return module


def twice() -> nn.Sequential:
    again = block()
    return net(nn.Embedding(IDS, 8), again, again, nn.Linear(8, IDS))


def adapted() -> nn.Sequential:
    module = TOKENS["transformer"]()
    adapt(module, Lora(targets=["*"], rank=2), 0)
    return module


OTHERS: dict[str, Make] = {
    "frozen": frozen,
    "tied": tied,
    "twice": twice,
    "adapted": adapted,
    "dropout": lambda: net(nn.Embedding(IDS, 8), exported.Block(8, 2, 12, 0.1), nn.Linear(8, IDS)),
    "dropout in a layer": lambda: net(
        nn.Embedding(IDS, 8), nn.TransformerEncoderLayer(8, 2, 12, 0.1, batch_first=True), nn.Linear(8, IDS)
    ),
    "an unknown layer": lambda: net(nn.Embedding(IDS, 8), nn.RMSNorm(8), nn.Linear(8, IDS)),
    "an activation of one's own": lambda: net(
        nn.Embedding(IDS, 8), nn.TransformerEncoderLayer(8, 2, 12, 0.0, torch.tanh, batch_first=True), nn.Linear(8, IDS)
    ),
    "positions first": lambda: net(nn.Embedding(IDS, 8), nn.TransformerEncoderLayer(8, 2, 12, 0.0), nn.Linear(8, IDS)),
    "no sequence": lambda: exported.Residual(nn.Embedding(IDS, 8), nn.Embedding(IDS, 8)),  # type: ignore[dict-item,return-value]
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_goes_the_general_way(name: str) -> None:
    module = OTHERS[name]().double()
    assert rules_of(module) is None
    ids = torch.randint(IDS, (2, POSITIONS))
    assert not isinstance(build_kernel(module, CROSS, CPU, ids[0], others=ids), SequenceKernel)


def test_rules_that_do_not_agree_with_the_module_are_left() -> None:
    """A row of numbers without positions is another thing to PyTorch's LSTM."""
    module, row = net(language.Recurrent(3, 4, 1), nn.Linear(4, 2)).double(), torch.randn(2, 3, dtype=F64)
    assert rules_of(module) is not None
    assert type(build_kernel(module, CROSS, CPU, row[0], others=row)) is RowKernel


@pytest.mark.parametrize("hidden,way,kind", [(49, "auto", RowKernel), (49, "stacked", SequenceKernel)])
def test_large_recurrent_nets_go_one_by_one_unless_told(hidden: int, way: Any, kind: type) -> None:
    module = net(nn.Embedding(IDS, 3), language.Recurrent(3, hidden, 1), nn.Linear(hidden, IDS))
    ids = torch.randint(IDS, (2, POSITIONS))
    assert type(build_kernel(module, CROSS, CPU, ids[0], way=way, others=ids)) is kind


def test_bfloat16_goes_the_general_way() -> None:
    module = TOKENS["transformer"]()
    ids = torch.randint(IDS, (2, POSITIONS))
    assert not isinstance(build_kernel(module, CROSS, CPU, ids[0], "bf16", others=ids), SequenceKernel)
