"""Gradients of stacked models against torch.autograd, client by client."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from fedsim.models import losses
from fedsim.models.build import layout, load_flat, views
from fedsim.models.lora import Lora, adapt
from fedsim.objective.kernel import Walk
from fedsim.objective.smoothness import convexity_of_linear, of_linear
from fedsim.objective.stacked import ChainKernel, RowKernel, VmapKernel, build_kernel

CPU = torch.device("cpu")
Loss = Callable[[Tensor, Tensor], Tensor]

# --- kernels --------------------------------------------------------------------------------------


class Residual(nn.Module):
    """A model that is no chain: a skip connection, a parameter of its own, one layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(6, 6), nn.Linear(6, 6)
        self.scale, self.last = nn.Parameter(torch.tensor(0.7)), nn.Linear(6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x.flatten(1)))
        return self.last(h + self.scale * self.again(self.again(h)))


class Branches(nn.Module):
    """Python control flow on the data: vmap cannot take it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.linear(x)
        return z * 2 if float(x.sum()) > 0 else torch.tanh(z)


def chain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


CHAINS: dict[str, Callable[[], nn.Sequential]] = {
    "softmax": lambda: chain(nn.Flatten(), nn.Linear(6, 3)),
    "no bias": lambda: chain(nn.Linear(6, 3, bias=False)),
    "two without bias": lambda: chain(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False)),
    "mixed bias": lambda: chain(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 3)),
    "linear on linear": lambda: chain(nn.Linear(6, 4), nn.Linear(4, 3)),
    "activation first": lambda: chain(nn.Tanh(), nn.Linear(6, 3)),
    "relu first": lambda: chain(nn.ReLU(), nn.Linear(6, 3)),
    "activation last": lambda: chain(nn.Linear(6, 3), nn.Softplus()),
    "relu last": lambda: chain(nn.Linear(6, 3), nn.ReLU()),
    "two activations": lambda: chain(nn.Linear(6, 5), nn.ReLU(), nn.Sigmoid(), nn.Linear(5, 3)),
    **{
        type(a).__name__: lambda a=a: chain(nn.Flatten(), nn.Linear(6, 5), a, nn.Linear(5, 3))
        for a in (
            nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.ELU(), nn.SiLU(), nn.Softplus(), nn.LeakyReLU(0.2),
            nn.Identity(), nn.Hardtanh(),
        )
    },
}  # fmt: skip
BATCHES = [(1, 1, "one"), (1, 5, "one"), (4, 1, "one"), (4, 5, "one"), (1, 5, "each"), (4, 5, "each")]


def problem(module: nn.Module, m: int, b: int, weighting: str, shape: tuple[int, ...] = (6,), k: int = 3) -> Any:
    """Parameters ``[m, d]``, inputs, targets and weights; with ``each``, rows have fewer and fewer samples."""
    random = torch.Generator().manual_seed(m * 10 + b)
    x = 0.6 * torch.randn(m, layout(module).total, generator=random, dtype=torch.float64)
    inputs = torch.randn(m, b, *shape, generator=random, dtype=torch.float64)
    targets = torch.randint(k, (m, b), generator=random)
    if weighting == "one":
        return x, inputs, targets, 1.0 / b
    counts = torch.tensor([max(1, b - i) for i in range(m)])
    valid = torch.arange(b) < counts[:, None]
    return x, inputs, targets, valid.double() / counts[:, None]


def one_by_one(module: nn.Module, loss: Loss, x: Tensor, inputs: Tensor, targets: Tensor, weights: Any) -> Tensor:
    """Every client's gradient by ordinary autograd, over the samples that count and nothing else."""
    result = torch.zeros_like(x)
    for i in range(len(x)):
        params = {n: v.clone().requires_grad_() for n, v in views(x[i], layout(module)).items()}
        total = torch.zeros((), dtype=x.dtype)
        for j in range(inputs.shape[1]):
            w = float(weights[i, j]) if isinstance(weights, Tensor) else weights
            if w > 0:
                out = functional_call(module, params, (inputs[i, j : j + 1],))
                total = total + w * loss(out, targets[i, j : j + 1]).sum()
        grads = torch.autograd.grad(total, list(params.values()))
        result[i] = torch.cat([g.reshape(-1) for g in grads])
    return result


def check(kernel: Any, module: nn.Module, loss: Loss, case: Any) -> None:
    x, inputs, targets, weights = case
    copies = [v.clone() for v in (x, inputs, targets)]
    expected = one_by_one(module, loss, *case)
    found = kernel.grad(x, inputs, targets, weights)
    assert expected.abs().max() > 1e-4
    assert found.shape == x.shape
    assert (found - expected).abs().max() < 1e-13
    assert not found.requires_grad
    for now, before in zip((x, inputs, targets), copies, strict=True):
        assert torch.equal(now, before)


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("case", BATCHES, ids=str)
def test_the_chain_kernel(name: str, case: tuple[int, int, str]) -> None:
    module = CHAINS[name]().double()
    kernel = build_kernel(module, losses.cross_entropy, CPU, torch.zeros(6, dtype=torch.float64))
    assert isinstance(kernel, ChainKernel)
    check(kernel, module, losses.cross_entropy, problem(module, *case))


@pytest.mark.parametrize("kind", [ChainKernel, VmapKernel, RowKernel])
@pytest.mark.parametrize("case", BATCHES, ids=str)
def test_all_kernels_agree_on_a_chain(kind: Any, case: tuple[int, int, str]) -> None:
    module = CHAINS["mixed bias"]().double()
    check(kind(module, losses.cross_entropy), module, losses.cross_entropy, problem(module, *case))


@pytest.mark.parametrize("kind", [VmapKernel, RowKernel])
@pytest.mark.parametrize("case", BATCHES, ids=str)
def test_a_model_that_is_no_chain(kind: Any, case: tuple[int, int, str]) -> None:
    module = Residual().double()
    chosen = build_kernel(module, losses.cross_entropy, CPU, torch.zeros(6, dtype=torch.float64))
    assert type(chosen) is VmapKernel
    check(kind(module, losses.cross_entropy), module, losses.cross_entropy, problem(module, *case))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lines, self.head = nn.Linear(2, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.lines(x.reshape(-1, 1, 3, 2)).chunk(3, -1)
        return self.head(nn.functional.scaled_dot_product_attention(q, k, v).flatten(1))


def test_an_operator_that_vmap_takes_one_by_one_warns_of_nothing() -> None:
    module = Attending().double()
    case = problem(module, 3, 2, "one")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernel = build_kernel(module, losses.cross_entropy, CPU, torch.zeros(6, dtype=torch.float64))
        assert type(kernel) is VmapKernel
        check(kernel, module, losses.cross_entropy, case)


def test_a_model_that_vmap_cannot_take() -> None:
    module = Branches().double()
    kernel = build_kernel(module, losses.cross_entropy, CPU, torch.zeros(6, dtype=torch.float64))
    assert type(kernel) is RowKernel
    check(kernel, module, losses.cross_entropy, problem(module, 4, 1, "one"))


@pytest.mark.parametrize("case", [(1, 3, "one"), (3, 3, "each")], ids=str)
def test_convolutions(case: tuple[int, int, str]) -> None:
    module = chain(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)).double()
    kernel = build_kernel(module, losses.cross_entropy, CPU, torch.zeros(1, 6, 6, dtype=torch.float64))
    assert type(kernel) is RowKernel
    data = problem(module, *case, shape=(1, 6, 6))
    check(kernel, module, losses.cross_entropy, data)
    check(VmapKernel(module, losses.cross_entropy), module, losses.cross_entropy, data)


@pytest.mark.parametrize("kind", [ChainKernel, VmapKernel, RowKernel])
@pytest.mark.parametrize("name", ["cross_entropy", "multi_margin", "logistic", "mse", "own"])
@pytest.mark.parametrize("case", BATCHES[-3:], ids=str)
def test_every_loss(kind: Any, name: str, case: tuple[int, int, str]) -> None:
    def own(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.logsumexp(-1) - 0.3 * targets).square()

    outputs = 1 if name == "logistic" else 3
    module = chain(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, outputs)).double()
    loss = own if name == "own" else getattr(losses, name)
    x, inputs, targets, weights = problem(module, *case, k=2 if name == "logistic" else 3)
    if name == "mse":
        targets = torch.randn(*targets.shape, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    check(kind(module, loss), module, loss, (x, inputs, targets, weights))


@pytest.mark.parametrize("make", [*CHAINS.values(), Residual], ids=[*CHAINS, "Residual"])
def test_per_sample_gradients_sum_to_the_gradient(make: Any) -> None:
    module = make().double()
    kernel = build_kernel(module, losses.cross_entropy, CPU, torch.zeros(6, dtype=torch.float64))
    x, inputs, targets, weights = problem(module, 3, 4, "each")
    each = kernel.per_sample_grad(x, inputs, targets)
    assert each.shape == (3, 4, x.shape[1])
    assert ((each * weights.unsqueeze(-1)).sum(1) - kernel.grad(x, inputs, targets, weights)).abs().max() < 1e-13
    alone = one_by_one(module, losses.cross_entropy, x[1:2], inputs[1:2, 2:3], targets[1:2, 2:3], 1.0)
    assert (each[1, 2] - alone[0]).abs().max() < 1e-13


@pytest.mark.parametrize("make", [*CHAINS.values(), Residual], ids=[*CHAINS, "Residual"])
@pytest.mark.parametrize("m", [1, 3])
def test_outputs(make: Any, m: int) -> None:
    module = make().double()
    x, inputs, _, _ = problem(module, m, 7, "one")
    expected = [functional_call(module, views(row, layout(module)), (inputs[0],)) for row in x]
    kinds = [VmapKernel, RowKernel] + ([ChainKernel] if make is not Residual else [])
    for kind in kinds:
        found = kind(module, losses.cross_entropy).outputs(x, inputs[0])
        assert (found - torch.stack(expected)).abs().max() < 1e-13
        assert not found.requires_grad


@pytest.mark.parametrize(
    "module",
    [
        chain(nn.Linear(6, 5), nn.Softmax(-1), nn.Linear(5, 3)),
        chain(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3)),
        chain(nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 3))),
        chain(nn.Linear(6, 5), nn.ELU(inplace=True), nn.Linear(5, 3)),
    ],
)
def test_what_looks_like_a_chain_and_is_none(module: nn.Sequential) -> None:
    module = module.double()
    kernel = build_kernel(module, losses.cross_entropy, CPU, torch.zeros(6, dtype=torch.float64))
    assert not isinstance(kernel, ChainKernel)
    check(kernel, module, losses.cross_entropy, problem(module, 3, 4, "each"))


@pytest.mark.parametrize("where", ["", "0", "1", "2"])
@pytest.mark.parametrize("before", [True, False])
def test_what_is_called_before_and_after_layers_is_computed(where: str, before: bool) -> None:
    module = chain(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    part = module.get_submodule(where)
    if before:
        part.register_forward_pre_hook(lambda _, given: (3 * given[0],))
    else:
        part.register_forward_hook(lambda _module, _given, out: 3 * out)
    kernel = build_kernel(module, losses.cross_entropy, CPU, torch.zeros(6, dtype=torch.float64))
    check(kernel, module, losses.cross_entropy, problem(module, 3, 4, "each"))


def changed(how: str) -> nn.Sequential:
    """A chain whose first layer, activation, or whole is not what its type and its numbers say."""
    module = chain(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    first, middle = module[0], module[1]
    assert isinstance(first, nn.Linear)
    if how in ("fewer inputs", "fewer outputs"):
        first = nn.Linear(9, 5).double() if how == "fewer inputs" else nn.Linear(6, 9).double()
        first.weight, first.bias = nn.Parameter(first.weight[:5, :6]), nn.Parameter(first.bias[:5])
        module[0] = first
    elif how == "bias before weight":
        weight = first.weight
        del first.weight
        first.weight = weight
    elif how == "one bias for all":
        first.bias = nn.Parameter(first.bias[:1].detach())
    elif how == "one number more":
        first.more = nn.Parameter(torch.ones(1).double())
        first.forward = lambda x: functional.linear(x, first.weight, first.bias) + first.more
    else:
        part = {"layer": first, "activation": middle, "whole": module}[how]
        own = part.forward
        part.forward = lambda x: 2 * own(x).square()
    return module


FORMS = ("fewer inputs", "fewer outputs", "bias before weight", "one bias for all", "one number more")


@pytest.mark.parametrize("m", [1, 2, 5])
@pytest.mark.parametrize("how", [*FORMS, "layer", "activation", "whole"])
def test_what_people_put_in_the_place_of_a_layers_own_is_computed(how: str, m: int) -> None:
    module = changed(how)
    kernel = build_kernel(module, losses.cross_entropy, CPU, torch.zeros(6, dtype=torch.float64))
    case = problem(module, m, 4, "each")
    check(kernel, module, losses.cross_entropy, case)
    x, inputs, targets, weights = case
    lr, moved = torch.full((m, 1), 0.3, dtype=torch.float64), x.clone()
    path = Walk(torch.arange(m * 4).view(m, 1, 4), targets.unsqueeze(1), weights.unsqueeze(1))
    if kernel.walks(moved, inputs.flatten(0, 1), 4):
        kernel.walk(moved, inputs.flatten(0, 1), path, lr)
    else:
        kernel.descend(moved, inputs, targets, weights, lr)
    expected = x - lr * one_by_one(module, losses.cross_entropy, *case)
    torch.testing.assert_close(moved, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("how", ["layer", "whole", "subclass", "hook"])
def test_how_smooth_a_changed_layer_is_is_not_known(how: str) -> None:
    class Louder(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    module = chain(Louder(6, 3) if how == "subclass" else nn.Linear(6, 3))
    x, rows = torch.ones(4, 6), [np.arange(4)]
    if how != "subclass":
        assert of_linear(module, "mse", x, rows, np.ones(1)) is not None
    if how == "hook":
        module[0].register_forward_hook(lambda _module, _given, out: 3 * out)
    elif how != "subclass":
        part = module[0] if how == "layer" else module
        part.forward = torch.square
    assert of_linear(module, "mse", x, rows, np.ones(1)) is None
    assert convexity_of_linear(module, "mse", x, rows) is None


def test_a_flatten_that_keeps_an_axis_is_no_chain() -> None:
    module = chain(nn.Flatten(1, 2), nn.Linear(2, 3), nn.Flatten(), nn.Linear(12, 3)).double()
    kernel = build_kernel(module, losses.cross_entropy, CPU, torch.zeros(2, 2, 2, dtype=torch.float64))
    assert not isinstance(kernel, ChainKernel)
    check(kernel, module, losses.cross_entropy, problem(module, 3, 4, "each", shape=(2, 2, 2)))


def test_relu_may_work_in_place() -> None:
    module = chain(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)).double()
    kernel = build_kernel(module, losses.cross_entropy, CPU, torch.zeros(6, dtype=torch.float64))
    assert isinstance(kernel, ChainKernel)
    check(kernel, module, losses.cross_entropy, problem(module, 3, 4, "each"))


def test_a_layer_used_twice_is_no_chain() -> None:
    layer = nn.Linear(6, 6)
    module = chain(layer, nn.ReLU(), layer, nn.Linear(6, 3)).double()
    kernel = build_kernel(module, losses.cross_entropy, CPU, torch.zeros(6, dtype=torch.float64))
    assert not isinstance(kernel, ChainKernel)
    check(kernel, module, losses.cross_entropy, problem(module, 3, 4, "one"))


class Words(nn.Module):
    """An embedding with an id for padding, by itself, as a head too, with an adapter, or by a function."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.head = how, nn.Linear(4, 7, bias=False)
        self.words = nn.Embedding(7, 4, padding_idx=None if how == "function" else 2)
        if how == "tied":
            self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        h = functional.embedding(x, self.words.weight, 2) if self.how == "function" else self.words(x)
        return self.head(h.mean(1).tanh())


@pytest.mark.parametrize("way", ["auto", "rows"])
@pytest.mark.parametrize("how", ["alone", "tied", "adapted", "function"])
def test_the_row_of_an_embedding_for_padding_has_no_gradient_of_any_client(how: str, way: Any) -> None:
    torch.manual_seed(3)
    module = Words(how)
    if how == "adapted":
        adapt(module, Lora(targets=["words"], rank=2), 0)
    module = module.double()
    ids, y = torch.randint(0, 7, (3, 5, 4)), torch.randint(0, 7, (3, 5))
    assert (ids == 2).any(-1).any(-1).all()
    kernel = build_kernel(copy.deepcopy(module), losses.cross_entropy, CPU, ids[0, 0], way=way, others=ids[0])
    assert isinstance(kernel, RowKernel if way == "rows" or how == "function" else VmapKernel)
    x = torch.randn(3, kernel.layout.total, dtype=torch.float64)
    found = kernel.grad(x, ids, y, 0.2)
    each = kernel.per_sample_grad(x, ids, y).mean(1) if how != "function" else found
    for i, flat in enumerate(x):
        load_flat(module, flat)
        module.zero_grad()
        losses.cross_entropy(module(ids[i]), y[i]).mean().backward()
        wanted = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
        assert torch.allclose(found[i], wanted, rtol=0, atol=1e-14)
        assert torch.allclose(each[i], wanted, rtol=0, atol=1e-14)
