"""Modules as people write them that are odd in one way each, for ``test_odd_modules``."""

from __future__ import annotations

import random
import threading
import warnings
from typing import Any, ClassVar

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


class OneNumber(Plain):
    """A parameter without an axis."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.scale * self.body(x))


class OneNumberAlone(OneNumber):
    """Which vmap cannot take."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return self.head(self.scale * h if float(h.sum()) < 1e9 else h)


class Seen(Plain):
    """A buffer of truth values that training changes as such."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.register_buffer("seen", torch.zeros(8, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        if self.training:
            self.seen |= (h.detach() > 0.3).any(0)
        return self.head(torch.where(self.seen, 2 * h, h))


class Queue(Plain):
    """A place in a table, which is a whole number: an index."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.register_buffer("table", torch.zeros(5, 8))
        self.register_buffer("place", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        if self.training:
            self.table[self.place] = h.detach().mean(0)
            self.place.copy_((self.place + 1) % 5)
        return self.head(h - self.table.mean(0))


class Complex(Plain):
    """Constants with an imaginary part, as in layers of state spaces."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.register_buffer("phase", torch.polar(torch.ones(8), torch.arange(8.0)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.body(x) * self.phase).imag)


class Rounds(Plain):
    """Outputs of another type than its parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)).float()


class Transposed(Plain):
    """A parameter that is not contiguous, and a `train` that returns nothing."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.inp.weight = nn.Parameter(self.inp.weight.detach().clone().T.contiguous().T)

    def train(self, mode: bool = True) -> None:
        super().train(mode)


def Pooled(num_outputs: int) -> nn.Module:
    """Layers with arguments that are not the usual ones."""
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.AvgPool2d(4, padding=1, ceil_mode=True, count_include_pad=False),
        nn.MaxPool2d(2, stride=1, ceil_mode=True), nn.Flatten(), nn.LayerNorm(2, bias=False),
        nn.Linear(2, num_outputs),
    )  # fmt: skip


class HiddenMean(Plain):
    """Batch normalisation of one's own, whose mean is in no buffer; only evaluations use it."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.mean = torch.zeros(8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0).to(self.mean)
            return self.head(h)
        return self.head(h - self.mean.to(h))


class HiddenLargest(Plain):
    """The largest number that it has seen in training."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.largest = 0.0

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel():
            self.largest = torch.as_tensor(self.largest).maximum(x.detach().abs().max()).to(x)
        return self.head(self.body(x) / (1 + self.largest))


class CountsCalls(Plain):
    """Of which outputs depend only later."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.about = {"calls": 0}

    def forward(self, x: Tensor) -> Tensor:
        self.about["calls"] += 1
        return self.head(self.body(x) * (1 if self.about["calls"] < 1000 else 2))


class CountsInClass(Plain):
    calls: ClassVar[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return self.head(self.body(x) * (1 if len(self.calls) < 1000 else 2))


class ChangesInputs(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.flatten(1).clamp_(0, 0.5)))


class Squeezes(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).squeeze())


class Thaws(Plain):
    def forward(self, x: Tensor) -> Tensor:
        self.inp.requires_grad_(False)
        return self.head(self.body(x))


class EditsData(Plain):
    def forward(self, x: Tensor) -> Tensor:
        self.inp.weight.data.clamp_(-0.01, 0.01)
        return self.head(self.body(x))


class GradientHook(Plain):
    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.head.weight.register_hook(lambda g: 0 * g)


class BackwardHook(Plain):
    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.head.register_full_backward_hook(lambda _module, given, _out: (2 * given[0],))


class Aliased(Plain):
    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.register_buffer("first", self.inp.weight.data)


class BuffersShared(Plain):
    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        for layer in (self.inp, self.head):
            layer.register_buffer("mean", getattr(self.inp, "mean", torch.zeros(8)))

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        if self.training:
            self.inp.mean.lerp_(h.detach().mean(0), 0.1)
        return self.head(h - self.head.mean)


class ComplexMean(Plain):
    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.register_buffer("mean", torch.zeros(8, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1j * h.detach().mean(0)
        return self.head(h - self.mean.imag)
