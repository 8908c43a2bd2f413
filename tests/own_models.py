"""Models as people bring them, for tests: shared, frozen and unused parameters, outputs in objects."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

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
