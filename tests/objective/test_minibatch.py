"""A lone client's minibatch, divided: the gradient of the whole, whatever the kernel and the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedsim.core import crew
from fedsim.models.build import ResNet18
from fedsim.models.losses import loss_function
from fedsim.objective import minibatch
from fedsim.objective.general import RowKernel
from fedsim.objective.stacked import build_kernel


class Residual(nn.Module):
    """No chain: it runs under vmap."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 9), nn.Linear(9, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.first(x))
        out: torch.Tensor = self.last(h + torch.sin(h))
        return out


MODULES = {"chain": lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)), "vmap": Residual}


@pytest.mark.parametrize("samples", [32, 50, 64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("way", ["auto", "rows"])
@pytest.mark.parametrize("module", MODULES)
def test_portions_add_up_to_the_whole(
    module: str, way: str, weighted: bool, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    loss, sample = loss_function("cross_entropy"), torch.randn(6, dtype=torch.float64)
    kernel = build_kernel(MODULES[module]().double(), loss, torch.device("cpu"), sample, way=way)  # type: ignore[arg-type]
    x = torch.randn(1, kernel.layout.total, dtype=torch.float64)
    inputs, targets = torch.randn(1, samples, 6, dtype=torch.float64), torch.randint(0, 3, (1, samples))
    weights = torch.rand(1, samples, dtype=torch.float64) if weighted else 1 / samples
    whole = kernel.grad(x, inputs, targets, weights)
    calls: list[int] = []
    pieces = kernel.pieces

    def noted(x: torch.Tensor, inputs: torch.Tensor, *rest: object) -> torch.Tensor:
        calls.append(inputs.shape[1])
        return pieces(x, inputs, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(kernel, "pieces", noted)
    monkeypatch.setattr(minibatch, "_PRODUCTS", 1)
    monkeypatch.setattr(minibatch, "_USES", 1)
    with crew.working(2):
        divided = minibatch.grad(kernel, x, inputs, targets, weights)
        assert (len(calls), sum(calls)) == ({32: 2, 50: 2, 64: 4}[samples], samples)
        torch.testing.assert_close(divided, whole, rtol=1e-12, atol=1e-14)
        moved, lr = x.clone(), torch.full((1, 1), 0.3, dtype=torch.float64)
        minibatch.descend(kernel, moved, inputs, targets, weights, lr)
        torch.testing.assert_close(moved, x - 0.3 * whole, rtol=1e-12, atol=1e-14)
        before = len(calls)
        shared = crew.each([lambda: minibatch.grad(kernel, x, inputs, targets, weights)] * 2)
        assert len(calls) == before  # clients are shared already
        assert torch.equal(shared[0], whole)
    with crew.working(2, within=True):  # PyTorch's threads share each operator
        assert torch.allclose(minibatch.grad(kernel, x, inputs, targets, weights), whole)
        assert len(calls) == before


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rows,samples", [(1, 4), (3, 4), (3, 1), (3, 16)])
@pytest.mark.parametrize("loss", ["cross_entropy", "own"])
@pytest.mark.parametrize("module", [*MODULES, "open"])
def test_prepared_steps_are_the_steps_by_themselves(
    module: str, loss: str, rows: int, samples: int, weighted: bool
) -> None:
    """Bit for bit, also from elsewhere, and close to a step along autograd's gradient; weights of steps differ."""
    torch.manual_seed(1)

    def squared(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets.unsqueeze(-1)).square().sum(-1)

    make = {**MODULES, "open": lambda: nn.Sequential(nn.GELU(), nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 3))}[module]
    own = squared if loss == "own" else loss_function(loss)
    kernel = build_kernel(make().double(), own, torch.device("cpu"), torch.randn(6, dtype=torch.float64))
    x, lr = torch.randn(rows, kernel.layout.total, dtype=torch.float64), torch.rand(rows, 1, dtype=torch.float64)
    alone, together, slowly = x.clone(), x.clone(), x.clone()
    share = 1.0 if samples <= 4 else 0.1 / samples  # steps along so many squares would go ever further
    descend = minibatch.descending(kernel, together, torch.randn(1, 6), samples, lr)
    moved = torch.full_like(x, float("nan"))
    leap = minibatch.descending(kernel, moved, torch.randn(1, 6), samples, lr, x)
    for step in range(3):
        inputs, targets = torch.randn(rows, samples, 6, dtype=torch.float64), torch.randint(0, 3, (rows, samples))
        weights = share * torch.rand(rows, samples, dtype=torch.float64) if weighted else share / (2 + step % 2)
        kernel.descend(alone, inputs, targets, weights, lr)
        descend(inputs, targets, weights)
        leap(inputs, targets, weights)
        assert torch.equal(alone, together)
        assert torch.equal(alone, moved)
        slowly = slowly - lr * kernel.grad(slowly, inputs, targets, weights)
    assert not torch.equal(together, x)
    torch.testing.assert_close(together, slowly, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("loss", ["cross_entropy", "own"])
@pytest.mark.parametrize("samples", [1, 3, 32])
def test_threads_share_the_operators_of_a_lone_client_s_large_layers(
    loss: str, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit the same with any number of threads, and close to autograd; many clients share clients instead."""
    torch.manual_seed(2)

    def squared(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets.unsqueeze(-1)).square().sum(-1)

    own = squared if loss == "own" else loss_function(loss)
    module = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 50, bias=False), nn.Tanh(), nn.Linear(50, 3))
    kernel = build_kernel(module.double(), own, torch.device("cpu"), torch.randn(6, dtype=torch.float64))
    x, lr = torch.randn(1, kernel.layout.total, dtype=torch.float64), torch.full((1, 1), 0.01, dtype=torch.float64)
    inputs, targets = torch.randn(1, samples, 6, dtype=torch.float64), torch.randint(0, 3, (1, samples))
    expected = RowKernel(module.double(), own).grad(x, inputs, targets, 1 / samples)
    assert not kernel.shares(x)
    monkeypatch.setattr(crew, "PORTION", 40 * 50 * 8 // 2)
    assert kernel.shares(x)
    assert not kernel.shares(x.expand(2, -1))
    assert not any(crew.each([lambda: kernel.shares(x)] * 2))
    with crew.working(2, within=True):
        assert not kernel.shares(x)
    assert not minibatch.walks(kernel, x, inputs[0], samples)
    found = []
    for threads in (1, 2, 3):
        with crew.working(threads):
            moved = x.clone()
            minibatch.descend(kernel, moved, inputs, targets, 1 / samples, lr)
            found.append(torch.cat([moved, minibatch.grad(kernel, x, inputs, targets, 1 / samples)]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    torch.testing.assert_close(found[0], torch.cat([x - 0.01 * expected, expected]), rtol=1e-12, atol=1e-13)


def test_a_portion_uses_every_parameter_often_enough() -> None:
    """A minibatch falls into 1, 2, 4, ... portions: fewer where a sample uses each parameter but a few times."""
    torch.manual_seed(3)
    loss, cpu = loss_function("cross_entropy"), torch.device("cpu")

    def portions(module: nn.Module, sample: torch.Tensor, b: int) -> int:
        kernel = build_kernel(module, loss, cpu, sample, way="rows")
        return len(minibatch._portions(kernel, torch.zeros(1, kernel.layout.total), sample[None], b))

    image, small = torch.randn(3, 32, 32), nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    small(image[None])
    resnet = [ResNet18(groups=2, stem=stem).build((3, 32, 32), 10) for stem in ("cifar", "imagenet")]  # type: ignore[arg-type]
    assert [portions(resnet[0], image, b) for b in (15, 31, 32, 50, 64)] == [1, 1, 2, 2, 4]
    assert [portions(resnet[1], image, b) for b in (32, 50, 64, 128)] == [1, 2, 2, 4]
    assert [portions(nn.Linear(3000, 100), torch.randn(3000), b) for b in (100, 128, 300)] == [1, 2, 4]
    assert portions(small, image, 16) == 1
