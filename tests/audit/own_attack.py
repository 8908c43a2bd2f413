"""Somebody's own reconstruction attacks, as they plug in: a generative one searches the outputs of a generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.audit import Observed, Reconstruction
from fedsim.core.types import Count


@dataclass(frozen=True, kw_only=True)
class Catalogue(Reconstruction):
    """A toy generator: grey images of one brightness; the one whose gradient fits best is the guess."""

    levels: Count = 11

    def reconstruct(self, gradients: Observed, model: nn.Module, labels: Tensor | None = None) -> Tensor:
        assert labels is not None
        low, high = gradients.box
        names, parameters = zip(*model.named_parameters(), strict=True)

        def distance(guess: Tensor) -> float:
            loss = nn.functional.cross_entropy(model(guess), labels)
            found = torch.autograd.grad(loss, parameters)
            return sum(float((g - gradients[n]).square().sum()) for n, g in zip(names, found, strict=True))

        shades = [torch.full((gradients.images, *gradients.shape), s) for s in torch.linspace(low, high, self.levels)]
        return min((shade.double() for shade in shades), key=distance)


@dataclass(frozen=True, kw_only=True)
class WrongShape(Reconstruction):
    """Forgets that examples have a shape."""

    def reconstruct(self, gradients: Observed, model: nn.Module, labels: Tensor | None = None) -> Tensor:
        return torch.zeros(gradients.images, 3, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class NotFinite(Reconstruction):
    """Divides by nothing."""

    def reconstruct(self, gradients: Observed, model: nn.Module, labels: Tensor | None = None) -> Tensor:
        return torch.full((gradients.images, *gradients.shape), float("nan"), dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class NoTensor(Reconstruction):
    """Returns a list of examples."""

    def reconstruct(self, gradients: Observed, model: nn.Module, labels: Tensor | None = None) -> Any:
        return [torch.zeros(gradients.shape, dtype=torch.float64)] * gradients.images
