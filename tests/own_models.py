"""Models as people bring them, for tests: shared, frozen and unused parameters, outputs in objects."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class Tied(nn.Module):
    """Two layers share one weight, as embeddings and output layers of language models do."""

    def __init__(self, num_outputs: int, width: int = 12) -> None:
        super().__init__()
        self.inp, self.a, self.b = nn.Linear(64, width), nn.Linear(width, width), nn.Linear(width, width)
        self.b.weight = self.a.weight
        self.head = nn.Linear(width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(self.inp(x.flatten(1)).tanh()).tanh()))


class Frozen(nn.Module):
    """A body that does not train, as after loading pretrained weights."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(64, 12), nn.Linear(12, num_outputs)
        self.body.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.flatten(1)).tanh())


class Whole(Frozen):
    """The same in which everything trains."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.requires_grad_(True)


@dataclass
class Output:
    """What a classifier of Hugging Face returns, about."""

    logits: Tensor
    hidden_states: None = None


class InObject(Whole):
    """Logits in an object."""

    def forward(self, x: Tensor) -> Output:  # type: ignore[override]
        return Output(super().forward(x))


class InMapping(Whole):
    """Logits in a mapping."""

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:  # type: ignore[override]
        return OrderedDict(loss=x.sum(), logits=super().forward(x))


class Unused(Whole):
    """A parameter that trains and that nothing uses, as auxiliary heads do."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.spare = nn.Linear(3, 2)


class TiedConvolutions(nn.Module):
    """Convolutions with one kernel, and a frozen one: on a CPU client by client."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.inp, self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
        self.b.weight = self.a.weight
        self.inp.requires_grad_(False)
        self.head = nn.Linear(16, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, 1, 8, 8)
        return self.head(self.b(self.a(self.inp(x).tanh()).tanh()).flatten(1))


class Dropped(nn.Module):
    """Dropout as a layer and as a function."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.body, self.drop, self.head = nn.Linear(64, 12), nn.Dropout(0.5), nn.Linear(12, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.dropout(self.body(x.flatten(1)).tanh(), 0.25, self.training)
        return self.head(self.drop(h))


class DroppedConvolutions(nn.Module):
    """Dropout of channels, and in place, as MobileNet has it."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.inp, self.channels = nn.Conv2d(1, 4, 3), nn.Dropout2d(0.3)
        self.drop, self.head = nn.Dropout(0.2, inplace=True), nn.Linear(144, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.channels(self.inp(x.reshape(-1, 1, 8, 8)).relu())
        return self.head(self.drop(h.flatten(1)))


class Attention(nn.Module):
    """PyTorch's encoder layer as it comes: dropout in attention and behind it, and a class token as ViT has."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.enc = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, 8, 8)
        return self.head(self.enc(torch.cat([self.token.expand(len(x), -1, -1), x], 1))[:, 0])


class Recurrent(nn.Module):
    """An LSTM of two layers with dropout in between, time first."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(8, 5, num_layers=2, dropout=0.4), nn.Linear(5, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x.reshape(-1, 8, 8).transpose(0, 1))[0][-1])


class Stochastic(Whole):
    """Stochastic depth: a sample skips a layer."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x.flatten(1)).tanh()
        if self.training:
            h = h * torch.empty(len(x), 1, dtype=x.dtype, device=x.device).bernoulli_(0.7)
        return self.head(h)


class Normed(nn.Module):
    """Convolutions with batch normalisation and a shortcut, as every ResNet has them."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.inp, self.first = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.body, self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(4, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.first(self.inp(x.reshape(-1, 1, 8, 8))))
        h = self.relu(self.second(self.body(h)) + h)
        return self.head(h.mean((2, 3)))


class NormedDropped(nn.Module):
    """Batch normalisation of features with a cumulative average, and dropout behind it."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.body, self.norm = nn.Linear(64, 12), nn.BatchNorm1d(12, momentum=None)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(12, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(self.body(x.flatten(1))).relu()))


class Counting(Whole):
    """A buffer of its own, which it puts another one in place of: a mean of the inputs that moves along."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.register_buffer("mean", torch.zeros(64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
            self.steps += 1
        return super().forward(x - self.mean)


class Threaded(Whole):
    """Outputs are scaled by the number of PyTorch's threads within operators."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.get_num_threads() * super().forward(x)
        return out


class WithInit(Whole):
    """An argument of its own that is called as a key of every model."""

    def __init__(self, num_outputs: int, init: str = "none") -> None:
        super().__init__(num_outputs)
