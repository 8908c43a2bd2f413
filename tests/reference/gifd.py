"""GIFD (arXiv 2308.04699) written the obvious way, for one example: its own Adam, and projections by bisection."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from fedsim.core.arrays import Floats

Layer = Callable[[torch.Tensor], torch.Tensor]


def onto_l1_ball(v: Floats, radius: float) -> Floats:
    """The nearest point to v ``[n]`` whose absolute values sum to at most `radius`: what shrinks all by the same."""
    if np.abs(v).sum() <= radius:
        return v
    low, high = 0.0, float(np.abs(v).max())
    for _ in range(200):
        theta = (low + high) / 2
        if sum(max(abs(value) - theta, 0.0) for value in v) > radius:
            low = theta
        else:
            high = theta
    return np.array([math.copysign(max(abs(value) - high, 0.0), value) for value in v])


def images_by_layer(
    layers: Sequence[Layer],
    z: Floats,
    matching: Callable[[torch.Tensor], torch.Tensor],
    iterations: int,
    lr: float,
    total_variation: float,
    image_norm: float,
    radius: Sequence[float],
) -> list[torch.Tensor]:
    """The image ``[1, 1, H, W]`` found at each layer, from the code z."""
    start, images = torch.as_tensor(z).unsqueeze(0), []
    for k in range(len(layers)):
        h, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
        for i in range(iterations):
            h.requires_grad_()
            x = h
            for layer in layers[k:]:
                x = layer(x)
            height, width = x.shape[-2:]
            down = sum((x[0, 0, r + 1, c] - x[0, 0, r, c]).abs() for r in range(height - 1) for c in range(width))
            right = sum((x[0, 0, r, c + 1] - x[0, 0, r, c]).abs() for r in range(height) for c in range(width - 1))
            tv = down / ((height - 1) * width) + right / (height * (width - 1))
            value = matching(x) + total_variation * tv + image_norm * x.square().sum().sqrt() / (height * width)
            (g,) = torch.autograd.grad(value, h)
            h = h.detach()
            t = i / iterations
            up = t / 0.05 if t < 0.05 else 1.0
            fall = 1.0 if t <= 0.25 else 0.5 + 0.5 * math.cos(math.pi * (t - 0.25) / 0.75)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            step = m / (1 - 0.9 ** (i + 1)) / ((v / (1 - 0.999 ** (i + 1))).sqrt() + 1e-8)
            h = h - lr * up * fall * step
            if k == 0:
                h = h * start.norm() / h.norm()
            else:
                moved = onto_l1_ball((h - start).flatten().numpy(), radius[k - 1])
                h = start + torch.as_tensor(moved).reshape(start.shape)
        x = h
        for layer in layers[k:]:
            x = layer(x)
        images.append(x)
        start = layers[k](h)
    return images
