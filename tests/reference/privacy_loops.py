"""Private runs written the slow, obvious way: numpy, one client after the other, one gradient after the other.

Each replays the rounds of a trace. Noise is drawn by the same keys; where it goes and how large it is, is written here
once more. Nothing else is imported from the package.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fedsim.privacy.noise import gaussian

Array = np.ndarray[Any, Any]
Trace = list[dict[str, Any]]


class Noise:
    """Standard normal vectors by key."""

    def __init__(self, noise_seed: int, seed: int) -> None:
        self.seeds = (noise_seed, seed)

    def __call__(self, purpose: str, *parts: int, width: int) -> Array:
        row = gaussian(self.seeds, purpose, *parts, width=width, device=torch.device("cpu"), dtype=torch.float64)
        return np.asarray(row[0].numpy())


def clip(v: Array, bound: float) -> Array:
    length = np.sqrt((v**2).sum())
    return v * (bound / length) if length > bound else v


def dp_sgd(problem: Any, trace: Trace, lr: float, z: float, bound: float, noise: Noise) -> Array:
    """FedAvg whose every gradient is clip(g) + N(0, (z C)^2): a quadratic's client is one example."""
    x = problem.x0.copy()
    for row in trace:
        step = np.zeros(problem.d)
        for i, steps, w in zip(row["clients"], row["steps"], row["weights"], strict=True):
            y = x.copy()
            for k in range(steps):
                g = clip(problem.grad(i, y), bound) + z * bound * noise(
                    "gradient", i, row["round"], k, 0, width=problem.d
                )
                y = y - lr * g
            step += w * (y - x)
        x = x + step
    return x


def dp_fedavg(
    problem: Any, trace: Trace, lr: float, z: float, bound: float, q: float, weights: Array, noise: Noise,
    adapt: dict[str, float] | None = None,
) -> tuple[Array, float]:  # fmt: skip
    """McMahan et al. 2018 with fixed weights w_p / q; Andrew et al. 2021's clip norm where `adapt` is given."""
    x, cohort = problem.x0.copy(), q * problem.n
    z_delta = z if adapt is None else 1 / np.sqrt(1 / z**2 - 1 / (2 * adapt["bit_noise"]) ** 2)
    for row in trace:
        total, within = np.zeros(problem.d), 0.0
        for i, steps in zip(row["clients"], row["steps"], strict=True):
            y = x.copy()
            for _ in range(steps):
                y = y - lr * problem.grad(i, y)
            delta = y - x
            within += 0.5 if np.sqrt((delta**2).sum()) <= bound else -0.5
            total += weights[i] / q * clip(delta, bound)
        x = x + total + z_delta * bound * weights.max() / q * noise("sum", row["round"], width=problem.d)
        if adapt is not None:
            share = (within + adapt["bit_noise"] * noise("within", row["round"], width=1)[0]) / cohort + 0.5
            bound *= np.exp(-adapt["rate"] * (min(1.0, max(0.0, share)) - adapt["quantile"]))
    return x, bound


def prefix_noise(t: int, epoch: int, noise: Noise, width: int) -> Array:
    """Sum of the noise of the tree nodes that make up rounds 1 to t, from the largest down."""
    total, start = np.zeros(width), 0
    while start < t:
        level = 0
        while start % 2 ** (level + 1) == 0 and start + 2 ** (level + 1) <= t:
            level += 1
        total += noise("ftrl", epoch, level, start // 2**level, width=width)
        start += 2**level
    return total


def dp_ftrl(
    problem: Any, trace: Trace, lr: float, std: float, bound: float, share: Array, length: int, noise: Noise
) -> Array:
    """Kairouz et al. 2021: the models are x0 + noisy prefix sums, a new tree every `length` rounds."""
    x = start = problem.x0.copy()
    total = np.zeros(problem.d)
    for row in trace:
        epoch, t = divmod(row["round"] - 1, length)
        if t == 0:
            start, total = x.copy(), np.zeros(problem.d)
        for i, steps in zip(row["clients"], row["steps"], strict=True):
            y = x.copy()
            for _ in range(steps):
                y = y - lr * problem.grad(i, y)
            total += share[i] * clip(y - x, bound)
        x = start + total + std * prefix_noise(t + 1, epoch, noise, problem.d)
    return x


def decor(
    problem: Any,
    trace: Trace,
    lr: float,
    bound: float,
    std: float,
    ratio: float,
    W: Array,
    noise: Noise,
    mixes: int = 1,
) -> Array:
    """Allouah et al. 2024: x_i = sum_j w_ij (x_j - lr (clip(g_j) + n_j + sum_k v_jk)). Muffliato: ratio 0."""
    n, d = problem.n, problem.d
    x = np.tile(problem.x0, (n, 1))
    for row in trace:
        half = x.copy()
        for i in range(n):
            g = clip(problem.grad(i, x[i]), bound) + std * noise("node", i, row["round"], 0, 0, width=d)
            for j in range(n):
                if j != i and W[i, j] > 0 and ratio > 0:
                    v = ratio * std * noise("edge", min(i, j), max(i, j), row["round"], 0, 0, width=d)
                    g = g + v if i < j else g - v
            half[i] = x[i] - lr * g
        for _ in range(mixes):
            half = W @ half
        x = half
    return x
