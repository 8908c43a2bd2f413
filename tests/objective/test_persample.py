"""Sums of clipped per-sample gradients against a loop over samples, for every kernel, ragged rows and any parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim.core.oracle import Oracle
from fedsim.data.sets import Dataset
from fedsim.models.build import views
from fedsim.models.losses import loss_function
from fedsim.objective import persample
from fedsim.objective.supervised import SupervisedTask

SIZES = [5, 80, 1, 20]


class Skip(nn.Module):
    """No chain: the ordinary per-sample path."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.two(x + torch.tanh(self.one(x)))
        return result


def conv() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(4, 3))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Linear(6, 3)),
    "chain": lambda: nn.Sequential(nn.Linear(6, 5), nn.Softplus(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)),
    "chain-no-bias": lambda: nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 3)),
    "skip": Skip,
    "conv": conv,
}


def make(model: str, dtype: torch.dtype = torch.float64, loss: str = "cross_entropy") -> SupervisedTask:
    torch.manual_seed(0)
    module, n = MODELS[model]().to(dtype), sum(SIZES)
    x, y = torch.randn(n, 6), torch.randint(0, 3, (n,))
    y = torch.randn(n, 3) if loss == "mse" else y
    rows = [np.asarray(r) for r in np.split(np.random.default_rng(0).permutation(n), np.cumsum(SIZES)[:-1])]
    dataset = Dataset("random", x, y, x[:5], y[:5], num_classes=None if loss == "mse" else 3)
    return SupervisedTask(dataset, rows, module, loss, loss_function(loss), 0, torch.device("cpu"), dtype)


def full_oracle(task: SupervisedTask) -> Oracle:
    clients, ones = np.array([1, 3, 0, 2]), np.ones(4, dtype=np.int64)
    return task.plan(clients, ones, ones, "full", False).oracle(0, 4, torch.ones(4, 1, dtype=task.dtype))


def loop(task: SupervisedTask, oracle: Any, x: Tensor, bound: float, minus: Tensor | None = None) -> Tensor:
    """One sample after the other through torch.autograd."""

    def gradient(flat: Tensor, i: int) -> Tensor:
        leaf = flat.detach().clone().requires_grad_()
        out = torch.func.functional_call(task.kernel.module, views(leaf, task.kernel.layout), (task.inputs[i : i + 1],))
        (found,) = torch.autograd.grad(task.loss(out, task.targets[i : i + 1]).sum(), leaf)
        return found

    result = torch.zeros_like(x)
    for row, (index, count) in enumerate(zip(oracle.batch.index, oracle.batch.counts, strict=True)):
        for i in index[:count].tolist():
            g = gradient(x[row], i) - (gradient(minus[row], i) if minus is not None else 0)
            result[row] += g * min(1.0, bound / max(float(g.norm()), 1e-300))
    return result


@pytest.mark.parametrize("model,loss,shared", [
    ("linear", "cross_entropy", False), ("chain", "cross_entropy", True), ("chain", "mse", False),
    ("chain-no-bias", "mse", True), ("skip", "cross_entropy", True), ("conv", "cross_entropy", False),
])  # fmt: skip
@pytest.mark.parametrize("difference", [False, True])
def test_sums_are_those_of_a_loop_over_samples(
    model: str, loss: str, difference: bool, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make(model, loss=loss)
    oracle = full_oracle(task)
    x = task.initial().expand(4, -1) if shared else task.initial() + 0.1 * torch.randn(4, task.dim, dtype=task.dtype)
    minus = x + 0.01 * torch.randn(1, task.dim, dtype=task.dtype) if difference else None
    every = task.kernel.per_sample_grad(x, oracle.inputs, oracle.batch.targets)
    every = every if minus is None else every - task.kernel.per_sample_grad(minus, oracle.inputs, oracle.batch.targets)
    bound = float(every.norm(dim=-1).median())  # clips about half of the samples
    expected = loop(task, oracle, x, bound, minus)
    for limit in (10**9, 400, 1):
        monkeypatch.setattr(persample, "_CPU_FLOATS", limit)
        found = oracle.clipped_sum(x, bound, minus)
        assert (found - expected).norm() <= 1e-12 * expected.norm(), limit
    unclipped = oracle.clipped_sum(x, float("inf"))
    assert (unclipped / oracle.samples - oracle.grad(x)).norm() <= 1e-12 * unclipped.norm()


@pytest.mark.parametrize("model", ["chain", "skip"])
def test_single_precision_agrees_to_rounding(model: str) -> None:
    task = make(model, torch.float32)
    oracle, x = full_oracle(task), task.initial().expand(4, -1)
    found, expected = oracle.clipped_sum(x, 0.3), loop(task, oracle, x, 0.3)
    assert (found - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("model", MODELS)
def test_a_short_step_is_computed_in_double_precision(model: str) -> None:
    """At a step of 1e-5 float32 differences are mostly rounding; with dtype they are right to float32."""
    task = make(model, torch.float32)
    oracle, x = full_oracle(task), task.initial().expand(4, -1)
    minus = x + 1e-6 * torch.randn(1, task.dim)
    double = make(model)
    expected = loop(double, full_oracle(double), x.double(), 1e3, minus.double())
    exact = oracle.clipped_sum(x, 1e3, minus, torch.float64)
    assert exact.dtype == torch.float32
    assert (exact - expected).norm() <= 1e-6 * expected.norm()
    assert (oracle.clipped_sum(x, 1e3, minus) - expected).norm() > 1e-3 * expected.norm()


@pytest.mark.parametrize("model", ["chain", "skip"])
def test_no_clipped_vector_is_longer_than_the_bound(model: str) -> None:
    """Also where rounding is all there is: the vector that is summed is the one whose norm is taken."""
    task = make(model, torch.float32)
    one = np.array([0]), np.ones(1, dtype=np.int64), np.ones(1, dtype=np.int64)
    x = task.initial().expand(1, -1)
    for step in (1e-3, 1e-5, 1e-7):
        minus = x + step * torch.randn(1, task.dim)
        for seed in range(20):
            oracle = task.plan(one[0], one[1] + seed, one[2], 1, False).oracle(0, 1, torch.ones(1, 1))
            for bound in (1e-9, 1e-6):
                assert float(oracle.clipped_sum(x, bound, minus).norm()) <= bound * (1 + 1e-5)


def test_poisson_batches_hold_each_sample_with_the_rate() -> None:
    task = make("linear")
    clients, rate = np.array([1, 3, 2]), np.array([0.1, 0.5, 1.0])
    steps = 400
    plan: Any = task.poisson_plan(clients, np.ones(3, dtype=np.int64), np.full(3, steps), rate)
    sizes = task.sizes[clients]
    expected = sizes * rate
    spread = np.sqrt(sizes * rate * (1 - rate) / steps)
    assert (np.abs(plan.batches.counts.mean(1) - expected) <= 4 * spread).all()
    assert np.abs(plan.batches.counts[:2].var(1) / (sizes * rate * (1 - rate))[:2] - 1).max() < 0.25
    taken = np.zeros(len(task.inputs))
    for step in range(steps):
        index = plan.batches.index[0, step, : plan.batches.counts[0, step]].numpy()
        assert len(set(index.tolist())) == len(index)
        taken[index] += 1
    own = taken[task.indices[task.offsets[1] : task.offsets[2]]]
    assert taken.sum() == own.sum()
    assert np.abs(own / steps - 0.1).max() < 5 * np.sqrt(0.09 / steps)
    assert (plan.batches.counts[2] == 1).all()


def test_poisson_gradients_divide_by_a_public_number() -> None:
    task = make("chain")
    clients, rounds, steps, rate = np.array([1, 2]), np.array([1, 1]), np.array([5, 5]), np.array([0.05, 0.3])
    plan: Any = task.poisson_plan(clients, rounds, steps, rate)
    x = task.initial().expand(2, -1)
    empty = False
    for step in range(5):
        oracle = plan.oracle(step, 2, torch.ones(2, 1, dtype=task.dtype))
        public = torch.as_tensor(rate * task.sizes[clients]).unsqueeze(1)
        assert torch.allclose(oracle.grad(x), oracle.clipped_sum(x, float("inf")) / public, rtol=1e-12, atol=1e-15)
        empty |= bool((oracle.samples == 0).any())
        assert (oracle.grad(x)[(oracle.samples == 0).squeeze(1)] == 0).all()
    assert empty
    alone: Any = task.poisson_plan(clients[1:], rounds[1:], steps[1:], rate[1:])
    assert (alone.batches.counts[0] == plan.batches.counts[1]).all()
    width = int(alone.batches.counts[0].max())
    assert torch.equal(alone.batches.index[0, :, :width], plan.batches.index[1, :, :width])


def test_parts_cover_every_sample_once_and_stay_small() -> None:
    counts = np.array([500, 450, 300, 3, 2, 0, 0, 9, 1000])
    for limit in (10, 100, 1000, 10**6):
        seen = np.zeros((len(counts), counts.max()), dtype=int)
        for rows, columns in persample.parts(counts, 1, limit):
            seen[rows, columns] += 1
            assert (rows.stop - rows.start) * (columns.stop - columns.start) <= max(limit, 1)
        inside = np.arange(counts.max()) < counts[:, None]
        assert (seen[inside] == 1).all()
        assert seen.sum() <= 2 * counts.sum() + len(counts) * 64
