"""Losses against torch's own, one sample at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap

from fedsim.core.errors import InputError
from fedsim.core.registry import names
from fedsim.models.losses import CLOSED_GRADIENTS, logistic, loss_function, predictions

F32, F64 = torch.float32, torch.float64


def by_hand(outputs: Tensor, targets: Tensor, name: str) -> Tensor:
    """Torch's own loss of one sample at a time."""
    pairs = list(zip(outputs, targets, strict=True))
    if name == "cross_entropy":
        return torch.stack([F.cross_entropy(o[None], t[None]) for o, t in pairs])
    if name == "multi_margin":
        return torch.stack([F.multi_margin_loss(o[None], t[None]) for o, t in pairs])
    if name == "logistic":
        return torch.stack([F.binary_cross_entropy_with_logits(o[0], t.to(o.dtype)) for o, t in pairs])
    return torch.stack([F.mse_loss(o, t.expand_as(o) if t.dim() == 0 else t) for o, t in pairs])


def loss_case(name: str, dtype: torch.dtype, rows: int = 7, targets: int = 1) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    k = {"logistic": 1, "mse": targets}.get(name, 5)
    outputs = 3 * torch.randn(rows, k, dtype=dtype, generator=draw)
    if name == "mse":
        y = torch.randn(rows, k, dtype=dtype, generator=draw)
        return outputs, y[:, 0] if k == 1 else y
    return outputs, torch.randint(0, 2 if name == "logistic" else k, (rows,), generator=draw)


LOSSES = ("cross_entropy", "multi_margin", "logistic", "mse")


def test_every_registered_loss_is_tested() -> None:
    assert set(LOSSES) == set(names("loss"))


@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_torchs_own(name: str, dtype: torch.dtype, targets: int) -> None:
    outputs, y = loss_case(name, dtype, targets=targets)
    outputs.requires_grad_()
    mine, torchs = loss_function(name)(outputs, y), by_hand(outputs, y, name)
    assert mine.shape == (7,)
    assert mine.dtype == dtype
    assert float(mine.detach().min()) >= 0
    torch.testing.assert_close(mine, torchs)
    weights = torch.arange(1, 8, dtype=dtype)
    g_mine = torch.autograd.grad((weights * mine).sum(), outputs)[0]
    g_torch = torch.autograd.grad((weights * torchs).sum(), outputs)[0]
    assert g_mine.abs().max() > 0.01
    torch.testing.assert_close(g_mine, g_torch)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("name", [n for n in LOSSES if loss_function(n) in CLOSED_GRADIENTS])
def test_closed_gradients_are_those_of_autograd(name: str, dtype: torch.dtype) -> None:
    loss, (outputs, y) = loss_function(name), loss_case(name, dtype, rows=70)
    outputs *= torch.logspace(-3, 2, 70, dtype=dtype).unsqueeze(1)
    weights = torch.linspace(0, 0.1, 70, dtype=dtype)
    leaf = outputs.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, y), leaf, weights)
    found = CLOSED_GRADIENTS[loss](outputs.clone(), y).mul_(weights.unsqueeze(1))
    torch.testing.assert_close(found, expected)
    if loss is logistic:  # a run of it has the same numbers whichever way it goes
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_under_vmap_and_grad(name: str) -> None:
    outputs, y = loss_case(name, F64, rows=6)
    loss = loss_function(name)
    whole = torch.func.grad(lambda o: loss(o, y).sum())(outputs)
    stacked = vmap(torch.func.grad(lambda o, t: loss(o, t).sum()))(outputs.view(2, 3, -1), y.view(2, 3))
    single = vmap(torch.func.grad(lambda o, t: loss(o[None], t[None]).sum()))(outputs, y)
    torch.testing.assert_close(stacked.view_as(whole), whole, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(single, whole, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("name", LOSSES)
def test_no_rows_give_no_losses(name: str) -> None:
    outputs, y = loss_case(name, F32)
    assert loss_function(name)(outputs[:0], y[:0]).shape == (0,)


def test_multi_margin_by_hand() -> None:
    # Own score 1: the others' margins are 1 - 1 + 0.5 = 0.5 and 1 - 1 - 2 < 0, over 3 classes.
    outputs = torch.tensor([[1.0, 0.5, -2.0]], dtype=F64)
    assert loss_function("multi_margin")(outputs, torch.tensor([0])).item() == pytest.approx(0.5 / 3, abs=1e-16)


def test_logistic_is_exact_far_from_the_boundary() -> None:
    z = torch.tensor([[40.0], [-1000.0], [1000.0]], dtype=F64)
    values = loss_function("logistic")(z, torch.tensor([1, 1, 0])).tolist()
    assert values[0] == pytest.approx(4.248354255291589e-18, rel=1e-12)
    assert values[1:] == [1000.0, 1000.0]


def test_predictions() -> None:
    outputs = torch.tensor([[[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]]])
    assert predictions(outputs, "cross_entropy").tolist() == [[1, 0]]
    assert predictions(torch.tensor([[-0.5], [0.5]]), "logistic").tolist() == [0, 1]
    with pytest.raises(ValueError, match="regression"):
        predictions(outputs, "mse")


def test_a_missing_loss_is_named() -> None:
    with pytest.raises(
        InputError, match="loss: unknown loss 'l1'; allowed: cross_entropy, logistic, mse, multi_margin"
    ):
        loss_function("l1")
