"""Digits as other cameras see them, a way of each client's own, and a small network with batch normalisation.

Labels are divided evenly; what differs between clients is the inputs' distribution (feature shift), as in FedBN's
experiments on digits of five sources (arXiv 2102.07623).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fedsim import Count, Dataset, DatasetPart, NonNegative, rng


@dataclass(frozen=True, kw_only=True)
class ShiftedDigits(DatasetPart):
    """scikit-learn's 1,797 digits of 8x8 pixels; client i sees them with a contrast and a brightness of its own.

    Parameters
    ----------
    clients_in_all : into how many the rows are divided, evenly.
    shift : how far clients are apart: 0 is none. Every second client sees negatives.
    """

    clients_in_all: Count = 8
    shift: NonNegative = 1.0

    def load(self, clients, seed, base):  # type: ignore[no-untyped-def]
        digits = load_digits()
        order = rng.generator(0, "shifted digits").permutation(len(digits.target))
        x = torch.tensor(digits.images[order] / 16.0, dtype=torch.float32).unsqueeze(1)
        y = torch.tensor(digits.target[order])
        cut = 1500
        rows = [np.arange(i, cut, self.clients_in_all) for i in range(self.clients_in_all)]
        for i, own in enumerate(rows):
            x[own] = self._seen(x[own], i)
        return Dataset("shifted digits", x[:cut], y[:cut], x[cut:], y[cut:], num_classes=10, clients=rows)

    def _seen(self, x: Tensor, client: int) -> Tensor:
        drawn = rng.generator(client, "camera").uniform(-1, 1, 2)
        sign = -1.0 if client % 2 and self.shift > 0 else 1.0
        return sign * 4.0 ** (self.shift * float(drawn[0])) * x + 3.0 * self.shift * float(drawn[1])


class Net(nn.Module):
    """Two convolutions and two linear layers; the first three are followed by batch normalisation."""

    def __init__(self, num_outputs: int, channels: int = 8, hidden: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(), nn.Flatten(),
            nn.Linear(16 * channels, hidden), nn.BatchNorm1d(hidden), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(hidden, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out
