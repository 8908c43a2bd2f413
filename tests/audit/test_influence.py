"""IHA on a problem whose Hessian is the identity: the score by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.audit.influence import influence_scores


class Point(nn.Module):
    """Its output is ``w``, whatever the input: with ``half_square`` the loss is |w - z|^2 / 2, the Hessian I."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w.expand(len(x), -1)


def half_square(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return 0.5 * (outputs - targets).square().sum(-1)


@pytest.mark.parametrize("momentum,decay", [(0.0, 0.0), (0.9, 0.01)])
def test_on_a_quadratic_it_is_the_formula(momentum: float, decay: float) -> None:
    random = np.random.default_rng(0)
    z, w, lr, damping = random.standard_normal((9, 3)), random.standard_normal(3), 0.1, 0.2
    members = np.arange(9) < 5
    found = influence_scores(
        Point(), half_square, torch.tensor(w), torch.zeros(9, 1), torch.tensor(z), torch.tensor(members),
        lr, momentum, decay, damping,
    )  # fmt: skip
    n, h = 5, 1 / (1 + damping)
    for i in range(9):
        g = w - z[i]
        others = [w - z[j] for j in range(5) if j != i]
        a = np.mean(others, axis=0)
        i1, shrink = 0.5 * g @ g / (1 + momentum), lr * decay / (1 + momentum)
        i2, i3 = h * h * g @ g / n, 2 * h * h * a @ g
        i4, i5 = h**3 * g @ g / n, 2 * h**3 * a @ g
        expected = i1 - (i2 + i3) * (1 - shrink) / lr - (i4 + i5) * (decay / 2) * (2 - shrink) / lr
        assert found[i] == pytest.approx(expected, rel=1e-10)


def test_the_module_keeps_its_type() -> None:
    module = nn.Sequential(nn.Linear(2, 3))
    flat = torch.cat([p.detach().flatten() for p in module.parameters()])
    x, y = torch.randn(6, 2), torch.arange(6) % 3
    loss = torch.nn.functional.cross_entropy
    scores = influence_scores(
        module, lambda o, t: loss(o, t, reduction="none"), flat, x, y, torch.arange(6) < 4, 0.1, 0.0, 0.0, 0.2
    )
    assert scores.shape == (6,)
    assert next(module.parameters()).dtype == torch.float32
