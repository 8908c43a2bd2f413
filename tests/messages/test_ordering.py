"""Columns in order, as PyTorch's stable sort has them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.messages.ordering import ordered, ranked

Make = Callable[[np.random.Generator], np.ndarray[tuple[int, ...], np.dtype[np.float64]]]
KINDS: dict[str, Make] = {
    "different": lambda random: random.standard_normal((37, 50)),
    "equal": lambda random: random.integers(-3, 3, (37, 50)).astype(float),
    "zeros of both signs": lambda random: random.choice([0.0, -0.0, 1.0, -1.0], (40, 50)),
    "not finite": lambda random: random.choice([np.nan, -np.nan, np.inf, -np.inf, 0.0, 2.0, -2.0], (41, 50)),
    "small": lambda random: random.choice([1e-45, -1e-45, 1e-40, -1e-38, 0.0], (20, 50)),
    "one row": lambda random: random.standard_normal((1, 50)),
    "many rows": lambda random: random.integers(-9, 9, (3000, 2)).astype(float),
}


@pytest.fixture(params=KINDS)
def table(request: pytest.FixtureRequest) -> Tensor:
    return torch.as_tensor(KINDS[request.param](np.random.default_rng(0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_columns_are_those_of_pytorch(table: Tensor, dtype: torch.dtype) -> None:
    values = table.to(dtype)
    before = values.clone()
    torch.testing.assert_close(ordered(values), values.sort(dim=0).values, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(ranked(values), values.sort(dim=0, stable=True).indices)
    torch.testing.assert_close(values, before, rtol=0, atol=0, equal_nan=True)  # and it is left as it was
    wide = torch.stack([values, -values], 2)[:, :, 1]  # with gaps between its numbers
    assert torch.equal(ranked(wide), wide.sort(dim=0, stable=True).indices)


def test_along_another_dimension() -> None:
    values = torch.as_tensor(np.random.default_rng(1).standard_normal((3, 7, 5)), dtype=torch.float32)
    assert torch.equal(ordered(values, dim=1), values.sort(dim=1).values)
