"""The work that all peers do, and its models in plain PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

HIDDEN, CHANNELS, CNN_HIDDEN, KERNEL = 200, (16, 32), 128, 5
LR, DEGREE = 0.01, 6


@dataclass(frozen=True)
class Work:
    """`clients` with `samples` each of shape `shape`; a cohort works on all of them once, in minibatches of `batch`.

    With a `model` "softmax" the clients are nodes of a graph instead, and a round is one step of each (D-PSGD).
    """

    words: str
    model: str
    samples: int
    shape: tuple[int, ...]
    batch: int
    cohort: int
    clients: int = 100

    @property
    def gossip(self) -> bool:
        """Whether there is a graph and no server."""
        return self.model == "softmax"

    @property
    def steps(self) -> int:
        """Local steps of a client in a round."""
        return 1 if self.gossip else self.samples // self.batch


WORKS = {
    "mlp-100": Work("MLP 784-200-10, FedAvg, all 100 clients", "mlp", 640, (784,), 32, 100),
    "mlp-10": Work("MLP 784-200-10, FedAvg, 10 of 100 clients", "mlp", 640, (784,), 32, 10),
    "cnn-100": Work("CNN, FedAvg, all 100 clients", "cnn", 64, (1, 28, 28), 32, 100),
    "cnn-10": Work("CNN, FedAvg, 10 of 100 clients", "cnn", 64, (1, 28, 28), 32, 10),
    "gossip-1": Work("softmax 784-10, D-PSGD, 100 nodes, batch 1", "softmax", 600, (784,), 1, 100),
    "gossip-16": Work("softmax 784-10, D-PSGD, 100 nodes, batch 16", "softmax", 600, (784,), 16, 100),
    "trial": Work("a trial: MLP, 4 of 8 clients with 64 samples", "mlp", 64, (784,), 32, 4, clients=8),
}


def network(model: str) -> Any:
    """The model as a ``torch.nn.Sequential``; its parameters in their order are what peers are compared by."""
    from torch import nn

    if model == "softmax":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    if model == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))
    layers: list[Any] = []
    before = 1
    for channels in CHANNELS:
        layers += [nn.Conv2d(before, channels, KERNEL, padding=KERNEL // 2), nn.ReLU(), nn.MaxPool2d(2)]
        before = channels
    size = 28 // 2 ** len(CHANNELS)
    layers += [nn.Flatten(), nn.Linear(before * size * size, CNN_HIDDEN), nn.ReLU(), nn.Linear(CNN_HIDDEN, 10)]
    return nn.Sequential(*layers)
