"""What models lose on clients' own samples: against plain PyTorch, whoever else is asked, and in shards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedsim.core.errors import InputError
from fedsim.core.wrapped import WrappedTask
from fedsim.data.sets import Quadratic
from fedsim.engine.assembly import assemble
from fedsim.objective.quadratic import QuadraticTask
from fedsim.scenario.load import parse

CPU, DOUBLE = torch.device("cpu"), torch.float64


@pytest.fixture(scope="module")
def digits() -> Any:
    return assemble(
        parse(
            {
                "data": {"dataset": "digits", "clients": 5, "partition": {"scheme": "dirichlet", "alpha": 0.5}},
                "model": {"name": "mlp", "hidden": [8]},
                "algorithm": {"name": "fedavg"},
                "run": {"dtype": "float64", "device": "cpu"},
            }
        )
    ).task


def models(task: Any, m: int) -> Any:
    generator = torch.Generator().manual_seed(1)
    return task.initial() + 0.1 * torch.randn((m, task.dim), generator=generator, dtype=DOUBLE)


def test_of_all_samples_they_are_what_pytorch_says(digits: Any) -> None:
    clients, x = np.array([3, 0]), models(digits, 2)
    found = digits.losses(x, clients, np.ones(2, dtype=np.int64), "full")
    for i, client in enumerate(clients.tolist()):
        rows = torch.as_tensor(digits.indices[digits.offsets[client] : digits.offsets[client + 1]])
        module = digits.kernel.module
        torch.nn.utils.vector_to_parameters(x[i], module.parameters())
        each = torch.nn.functional.cross_entropy(module(digits.inputs[rows]), digits.targets[rows], reduction="none")
        each = each.detach()
        assert abs(float(found.mean[i]) - float(each.mean())) < 1e-12
        assert abs(float(found.square[i]) - float((each**2).mean())) < 1e-12
    assert digits.loss_samples(clients, "full") == digits.sizes[clients].sum()


@pytest.mark.parametrize("samples", ["full", 7])
def test_nobody_depends_on_who_else_is_asked(digits: Any, samples: Any) -> None:
    everybody, rounds, x = np.arange(5), np.full(5, 4), models(digits, 5)
    whole = digits.losses(x, everybody, rounds, samples)
    part = digits.shard(np.array([1, 4])).losses(x[[4, 1]], np.array([4, 1]), rounds[:2], samples)
    for name in ("mean", "square"):
        assert torch.equal(getattr(whole, name)[[4, 1]], getattr(part, name))
    wrapped = WrappedTask(digits).losses(x, everybody, rounds, samples)
    assert torch.equal(whole.mean, wrapped.mean)
    shared = digits.losses(x[2], everybody, rounds, samples)
    assert torch.equal(shared.mean[2], whole.mean[2])
    assert len(digits.losses(x[:0], everybody[:0], rounds[:0], samples).mean) == 0


def test_a_sample_is_another_one_in_another_round(digits: Any) -> None:
    clients, x = np.array([0, 0, 0]), digits.initial()
    found = digits.losses(x, clients, np.array([1, 2, 1]), 5).mean
    assert found[0] == found[2] != found[1]
    assert digits.loss_samples(clients, 5) == 15
    every = digits.losses(x, clients, np.array([1, 2, 3]), int(digits.sizes[0])).mean
    assert torch.equal(every, digits.losses(x, clients, np.array([1, 2, 3]), "full").mean)


def test_of_a_quadratic_they_are_exact() -> None:
    A, b = torch.tensor([[2.0, 4.0], [1.0, 3.0]], dtype=DOUBLE), torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=DOUBLE)
    data = Quadratic(A, b, torch.zeros(2, dtype=DOUBLE), torch.full((2,), 0.5, dtype=DOUBLE), noise=0.5)
    task = QuadraticTask(data, 0, CPU, DOUBLE)
    found = task.losses(torch.tensor([2.0, 1.0], dtype=DOUBLE), np.array([1, 0]), np.array([1, 1]), 3)
    assert found.mean.tolist() == [[2.0], [3.0]]
    assert found.square.tolist() == [[4.0], [9.0]]
    alone = task.shard(np.array([1])).losses(
        torch.tensor([2.0, 1.0], dtype=DOUBLE), np.array([1]), np.array([1]), "full"
    )
    assert alone.mean.tolist() == [[2.0]]


def test_objectives_without_losses_say_so(digits: Any) -> None:
    class Silent(WrappedTask):
        losses = WrappedTask.__mro__[1].losses  # type: ignore[attr-defined]

    with pytest.raises(InputError, match="Silent does not say what models lose"):
        Silent(digits).losses(digits.initial(), np.array([0]), np.array([1]), "full")
