"""Convolutional networks for images ``[C, H, W]``, without batch statistics: CNN of LeNet's size, VGG-11, ResNet-18.

Every function returns a module that takes ``[b, C, H, W]`` to ``[b, outputs]``. `cnn` and `vgg11` are ``nn.Sequential``
of standard layers. Batch normalisation mixes the samples of a batch and keeps running statistics that are no
parameters, so ResNet-18 has group normalisation (Wu & He 2018) and VGG-11 none, as in its paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from fedsim.core.errors import InputError

_VGG11 = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool")
_RESNET18 = (64, 128, 256, 512)  # channels of the four stages, two blocks each


def image_shape(input_shape: Sequence[int], model: str, smallest: int = 1) -> tuple[int, int, int]:
    """`input_shape` as (channels, height, width).

    Raises
    ------
    InputError
        The inputs are not images, or are smaller than `smallest` pixels on a side.
    """
    if len(input_shape) != 3:
        raise InputError(
            f"{model} needs images [channels, height, width], found inputs of shape {list(input_shape)}; "
            "linear, svm and mlp take any shape",
            key="name",
        )
    channels, height, width = input_shape
    if min(height, width) < smallest:
        raise InputError(
            f"{model} needs images of at least {smallest}x{smallest} pixels, found {height}x{width}; "
            "resnet18 takes any size, cnn halves the image once per entry of channels",
            key="name",
        )
    return channels, height, width


def cnn(
    input_shape: Sequence[int], outputs: int, channels: Sequence[int], hidden: int, kernel: int = 5
) -> nn.Sequential:
    """Per entry of `channels` a convolution (same size), ReLU, 2x2 max-pooling; `hidden` units; the outputs."""
    c, h, w = image_shape(input_shape, "cnn", smallest=2 ** len(channels))
    layers: list[nn.Module] = []
    for width in channels:
        layers += [nn.Conv2d(c, width, kernel_size=kernel, padding=kernel // 2), nn.ReLU(), nn.MaxPool2d(2)]
        c, h, w = width, h // 2, w // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(c * h * w, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def vgg11(input_shape: Sequence[int], outputs: int, hidden: Sequence[int]) -> nn.Sequential:
    """VGG configuration A (Simonyan & Zisserman 2015): 8 convolutions 3x3, 5 poolings, `hidden`, the output layer.

    The paper's hidden layers of 4096 units after 7x7 maps suit 224x224 images; on 32x32 the maps are 1x1. Without
    normalisation torch's own initialisation shrinks the signal layer after layer, hence He's (He et al. 2015).
    """
    c, h, w = image_shape(input_shape, "vgg11", smallest=32)
    layers: list[nn.Module] = []
    for width in _VGG11:
        if isinstance(width, int):
            layers += [nn.Conv2d(c, width, kernel_size=3, padding=1), nn.ReLU()]
            c = width
        else:
            layers.append(nn.MaxPool2d(2))
            h, w = h // 2, w // 2
    layers.append(nn.Flatten())
    features = c * h * w
    for width in hidden:
        layers += [nn.Linear(features, width), nn.ReLU()]
        features = width
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            _he(layer, "fan_in")
    return nn.Sequential(*layers, nn.Linear(features, outputs))


def resnet18(
    input_shape: Sequence[int], outputs: int, groups: int, stem: Literal["cifar", "imagenet"]
) -> nn.Sequential:
    """ResNet-18 (He et al. 2016) with group normalisation in place of batch normalisation.

    `stem`: ``cifar`` is one 3x3 convolution of stride 1; ``imagenet`` a 7x7 and a 3x3 max-pooling, both of stride 2.
    """
    c, _, _ = image_shape(input_shape, "resnet18")
    if any(width % groups for width in _RESNET18):
        raise InputError(
            f"found {groups} groups, allowed: a divisor of {_RESNET18[0]} (1, 2, 4, ..., 64)", key="groups"
        )
    width = _RESNET18[0]
    if stem == "cifar":
        layers: list[nn.Module] = [_conv(c, width, 3), nn.GroupNorm(groups, width), nn.ReLU()]
    else:
        layers = [_conv(c, width, 7, stride=2), nn.GroupNorm(groups, width), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
    for stage, out in enumerate(_RESNET18):
        layers += [BasicBlock(width, out, groups, stride=1 if stage == 0 else 2), BasicBlock(out, out, groups)]
        width = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, width: int, out: int, groups: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(width, out, 3, stride),
            nn.GroupNorm(groups, out),
            nn.ReLU(),
            _conv(out, out, 3),
            nn.GroupNorm(groups, out),
        )
        same = stride == 1 and width == out
        self.shortcut = (
            nn.Sequential() if same else nn.Sequential(_conv(width, out, 1, stride), nn.GroupNorm(groups, out))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def _conv(width: int, out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias (the normalisation after it has one), initialised as in the paper."""
    layer = nn.Conv2d(width, out, kernel, stride, padding=kernel // 2, bias=False)
    _he(layer, "fan_out")
    return layer


def _he(layer: nn.Conv2d | nn.Linear, mode: Literal["fan_in", "fan_out"]) -> None:
    nn.init.kaiming_normal_(layer.weight, mode=mode, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
