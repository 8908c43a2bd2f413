"""Modules as people write them that are odd in one way each, for ``test_odd_modules``."""

from __future__ import annotations

import random
import threading
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint


class Plain(nn.Module):
    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.inp, self.head = nn.Linear(64, 8), nn.Linear(8, num_outputs)

    def body(self, x: Tensor) -> Tensor:
        return self.inp(x.flatten(1)).tanh()

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x))


class Otherwise(Plain):
    """It evaluates otherwise than it trains, without drawing or counting."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return self.head(3 * h if self.training else h)


class KeepsNormFrozen(Plain):
    """Its own `train` leaves batch normalisation as it was."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.norm = nn.BatchNorm1d(8)
        self.norm.running_mean.fill_(0.5)

    def train(self, mode: bool = True) -> KeepsNormFrozen:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(x)))


class Checkpointed(Plain):
    """Of which vmap can take the forward and not the backward."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, x, use_reentrant=False))


class WeightNormed(Plain):
    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.inp = weight_norm(self.inp)


class WeightNormedByHooks(Plain):
    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.inp = nn.utils.weight_norm(self.inp)


class SpectralNormed(Plain):
    """Whose buffers are what power iteration has found so far."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.inp = spectral_norm(self.inp)


class Synchronised(Plain):
    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.norm = nn.SyncBatchNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(x)))


class Hooked(Plain):
    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.inp.register_forward_hook(lambda _module, _given, out: 2 * out)


class Unsaved(Plain):
    """A buffer that training changes and that no state_dict has."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.register_buffer("mean", torch.zeros(8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        if self.training:
            self.mean.lerp_(h.detach().mean(0), 0.1)
        return self.head(h - self.mean)


class Overwrites(Plain):
    """In place what its own gradient needs."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        h[:, 0] = 0
        return self.head(h)


class WithoutGradient(Plain):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.head(self.body(x))


class Ids(nn.Module):
    def __init__(self, num_outputs: int, **how: Any) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(17, 4, **how), nn.Linear(4, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table((x.flatten(1) * 16).long().clamp(0, 16)).mean(1))


class Sparse(Ids):
    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs, sparse=True)


class Renormed(Ids):
    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs, max_norm=1.0)


class Locked(Plain):
    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.lock = threading.Lock()


class Counts(Plain):
    """Beside dropout, in a number of Python's."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.calls, self.drop = 0, nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return self.head(self.drop(self.body(x)) * (1 + 0.1 * self.calls * self.training))


class DrawsElsewhere(Plain):
    """Beside dropout, from Python's generator."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.body(x))
        return self.head(h * random.random() if self.training else h)


class Grows(Plain):
    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.register_buffer("last", torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        if self.training:
            self.last = h.detach()
        return self.head(h)


class MakesBuffers(Plain):
    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.register_buffer("mean", None)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        if self.training:
            self.mean = h.detach().mean(0)
        return self.head(h)
