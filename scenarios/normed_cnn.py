"""A small convolutional network with batch normalisation, for images of any number of channels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Net(nn.Module):
    """Three convolutions, each with batch normalisation and pooling, and one linear layer."""

    def __init__(self, input_shape: Sequence[int], num_outputs: int, channels: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = input_shape[0]
        for width in (channels, 2 * channels, 2 * channels):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
            before = width
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(4 * before, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out
