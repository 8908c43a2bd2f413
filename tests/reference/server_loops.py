"""The server algorithms written the slow, obvious way: numpy, one client after the other, the papers' lines.

Each replays the rounds of a trace (who took part, with how many steps and which weight) and returns the server's final
parameters. Nothing here is imported from the algorithms under test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Trace = list[dict[str, Any]]


@dataclass(frozen=True)
class Local:
    """The local solver: SGD with momentum (from zero each round), weight decay, clipping, a rate per round."""

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip: float | None = None
    decay: Callable[[int], float] = lambda t: 1.0**t

    def rate(self, number: int) -> float:
        """Learning rate of round 1, 2, ..."""
        return self.lr * self.decay(number - 1)

    def gradient(self, problem: Any, i: int, x: Array) -> Array:
        g = problem.grad(i, x)
        length = np.sqrt((g**2).sum())
        return g * (self.clip / length) if self.clip is not None and length > self.clip else g

    def train(
        self, problem: Any, i: int, x: Array, steps: int, rate: float, correct: Callable[[Array, Array], Array]
    ) -> Array:
        """`steps` steps from `x` with direction ``correct(gradient, y) + weight_decay y``."""
        y, v = x.copy(), np.zeros_like(x)
        for _ in range(steps):
            direction = correct(self.gradient(problem, i, y), y) + self.weight_decay * y
            v = self.momentum * v + direction
            y = y - rate * v
        return y


def plain(g: Array, _: Array) -> Array:
    return g


def cohort(row: dict[str, Any]) -> list[tuple[int, int, float]]:
    return list(zip(row["clients"], row["steps"], row["weights"], strict=True))


def fedavg(
    problem: Any, trace: Trace, local: Local, server_lr: float = 1.0, server_momentum: float = 0.0, mu: float = 0.0
) -> Array:
    """McMahan et al. 2017; `mu`: FedProx; `server_momentum`: FedAvgM in Hsu et al.'s sign, G = sum w (x - y)."""
    x, buffer = problem.x0.copy(), np.zeros(problem.d)
    for row in trace:
        rate, start, pseudo_gradient = local.rate(row["round"]), x.copy(), np.zeros(problem.d)
        for i, steps, w in cohort(row):
            y = local.train(problem, i, start, steps, rate, lambda g, y, start=start: g + mu * (y - start))
            pseudo_gradient += w * (start - y)
        buffer = server_momentum * buffer + pseudo_gradient
        x = x - server_lr * buffer
    return x


def scaffold(
    problem: Any, trace: Trace, local: Local, server_lr: float = 1.0, option: int = 2, p: Array | None = None
) -> Array:
    """Karimireddy et al. 2020, Algorithm 1. For p_i = 1/M, c moves by |S|/M times the cohort's mean change.

    With local momentum, K is replaced by the sum of the weights with which the directions enter y_K.
    """
    p = problem.p if p is None else p
    x, c = problem.x0.copy(), np.zeros(problem.d)
    controls = [np.zeros(problem.d) for _ in range(problem.n)]
    for row in trace:
        rate, step, change = local.rate(row["round"]), np.zeros(problem.d), np.zeros(problem.d)
        for i, steps, w in cohort(row):
            c_i = controls[i]
            y = local.train(problem, i, x, steps, rate, lambda g, _, c_i=c_i, c=c: g - c_i + c)
            if option == 1:
                new = local.gradient(problem, i, x) + local.weight_decay * x
            else:
                counter = total = 0.0
                for _ in range(steps):
                    counter = local.momentum * counter + 1
                    total += counter
                new = c_i - c + (x - y) / (total * rate)
            step += w * (y - x)
            change += p[i] * (new - c_i)
            controls[i] = new
        x, c = x + server_lr * step, c + change
    return x


def feddyn(problem: Any, trace: Trace, local: Local, alpha: float) -> Array:
    """Acar et al. 2021, Algorithm 1, with SGD on the local problem f_i(y) - <g_i, y> + alpha/2 |y - x|^2."""
    x, h = problem.x0.copy(), np.zeros(problem.d)
    duals = [np.zeros(problem.d) for _ in range(problem.n)]
    for row in trace:
        rate, mean, moved = local.rate(row["round"]), np.zeros(problem.d), np.zeros(problem.d)
        for i, steps, w in cohort(row):
            dual = duals[i]
            y = local.train(problem, i, x, steps, rate, lambda g, y, dual=dual, x=x: g - dual + alpha * (y - x))
            duals[i] = dual - alpha * (y - x)
            mean += w * y
            moved += problem.p[i] * (y - x)
        h = h - alpha * moved
        x = mean - h / alpha
    return x


def fednova(problem: Any, trace: Trace, local: Local, mu: float = 0.0, server_lr: float = 1.0) -> Array:
    """Wang et al. 2020 as in the authors' code: counters for ||a_i||_1, tau_eff with and without the proximal term."""
    x = problem.x0.copy()
    for row in trace:
        rate = local.rate(row["round"])
        tau_eff, d = 0.0, np.zeros(problem.d)
        for i, steps, w in cohort(row):
            y = local.train(problem, i, x, steps, rate, lambda g, y, x=x: g + mu * (y - x))
            counter = normaliser = 0.0
            for _ in range(steps):
                if mu > 0:
                    normaliser = normaliser * (1 - rate * mu) + 1
                else:
                    counter = local.momentum * counter + 1
                    normaliser += counter
            d += w * (x - y) / (rate * normaliser)
            tau_eff += w * (steps if mu > 0 else normaliser)
        x = x - server_lr * rate * tau_eff * d
    return x


def fedopt(
    problem: Any, trace: Trace, local: Local, kind: str, server_lr: float, beta1: float, beta2: float, tau: float,
    start: float = 0.0, bias_correction: bool = False,
) -> Array:  # fmt: skip
    """Reddi et al. 2021, Algorithm 2, coordinate by coordinate; optionally Adam's bias correction."""
    x, m, v = problem.x0.copy(), np.zeros(problem.d), np.full(problem.d, start)
    for row in trace:
        rate, delta = local.rate(row["round"]), np.zeros(problem.d)
        for i, steps, w in cohort(row):
            delta += w * (local.train(problem, i, x, steps, rate, plain) - x)
        t = row["round"]
        for j in range(problem.d):
            m[j] = beta1 * m[j] + (1 - beta1) * delta[j]
            square = delta[j] ** 2
            if kind == "fedadagrad":
                v[j] = v[j] + square
            elif kind == "fedadam":
                v[j] = beta2 * v[j] + (1 - beta2) * square
            else:
                v[j] = v[j] - (1 - beta2) * square * np.sign(v[j] - square)
            if bias_correction:
                corrected_m, corrected_v = m[j] / (1 - beta1**t), v[j] / (1 - beta2**t)
                # epsilon outside the correction, as Flower has it: lr sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + tau)
                x[j] += server_lr * corrected_m / (np.sqrt(corrected_v) + tau / np.sqrt(1 - beta2**t))
            else:
                x[j] += server_lr * m[j] / (np.sqrt(v[j]) + tau)
    return x
