"""Generators of 8 x 8 images as somebody brings them: one that does, and many that cannot be used."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Given(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, h: Tensor) -> Tensor:
        made: Tensor = self.function(h)
        return made


def fitting(shape: tuple[int, ...], num_classes: int | None) -> nn.Sequential:
    """Knows from its arguments what it has to make; random weights."""
    assert num_classes == 10
    head = nn.Sequential(nn.Linear(6, 64), nn.Sigmoid(), nn.Unflatten(-1, shape))
    return _with(4, nn.Sequential(nn.Linear(4, 6), nn.SiLU()), head)


def whole(last: nn.Module | None = None, latent: Any = 4, first: nn.Module | None = None) -> nn.Sequential:
    """A generator of which a part is something else."""
    made = [first or nn.Linear(4, 64), nn.Sigmoid(), nn.Unflatten(-1, (1, 8, 8)), *([] if last is None else [last])]
    return _with(latent, *made)


def _with(latent: Any, *layers: nn.Module) -> nn.Sequential:
    made = nn.Sequential(*layers)
    if latent is not None:
        made.latent = latent
    return made


def raises() -> nn.Module:
    raise RuntimeError("no weights")


def wants_more(path: str) -> nn.Module:
    raise NotImplementedError(path)


def no_module() -> int:
    return 3


def no_layers() -> nn.Module:
    return nn.Linear(4, 64)


def nothing() -> nn.Module:
    return _with(4)


def no_latent() -> nn.Module:
    return whole(latent=None)


def wrong_latent() -> nn.Module:
    return whole(latent=(4, 0))


def other_latent() -> nn.Module:
    return whole(latent=5)


def wrong_shape() -> nn.Module:
    return whole(nn.Flatten())


def other_batch() -> nn.Module:
    return whole(Given(lambda h: h[:1]))


def no_tensor() -> nn.Module:
    return whole(Given(lambda h: [h]))


def is_nan() -> nn.Module:
    return whole(Given(lambda h: h * float("nan")))


def tanh_like() -> nn.Module:
    return whole(Given(lambda h: 2 * h - 1))


def layer_raises() -> nn.Module:
    return whole(Given(lambda h: h[:, 5]))


def no_slopes() -> nn.Module:
    return whole(Given(lambda h: h.detach()))


def steep() -> nn.Module:
    return whole(first=Given(lambda h: torch.sqrt(torch.zeros_like(h) * h).repeat(1, 16)))


def noisy() -> nn.Module:
    return whole(Given(lambda h: (h + 0.1 * torch.rand_like(h)).clamp(0, 1)))


def few_classes() -> nn.Module:
    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classes = nn.Embedding(9, 64)

        def forward(self, h: Tensor, labels: Tensor) -> Tensor:
            made: Tensor = self.classes(labels) + h.sum()
            return made

    return whole(first=Told())


A_NUMBER = 3
