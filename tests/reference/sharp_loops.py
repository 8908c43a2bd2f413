"""FedSpeed, its family and FedAMD the slow, obvious way: numpy, one client after the other, from papers and codes.

The dual methods are written with the server's table of h_i, as FL-Simulator has it (FedSpeed also as the paper has it),
not with the g_i and the one h that fedsim keeps. Nothing here is imported from the algorithms under test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from server_loops import Array, Local, Trace, cohort


def length(v: Array) -> float:
    return float(np.sqrt((v**2).sum()))


def shortened(v: Array, bound: float | None) -> Array:
    return v if bound is None or length(v) <= bound else v * (bound / length(v))


@dataclass(frozen=True)
class Sharp:
    """A problem whose gradients are taken after an ascent step; every loop over clients works on it as it is."""

    problem: Any
    rho: float
    alpha: float = 1.0
    normalize: bool = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.problem, name)

    def grad(self, i: int, x: Array) -> Array:
        g = self.problem.grad(i, x)
        e = self.rho * g / (length(g) + 1e-7) if self.normalize else self.rho * g
        return (1 - self.alpha) * g + self.alpha * self.problem.grad(i, x + e)


def fedcm(problem: Any, trace: Trace, local: Local, alpha: float, server_lr: float = 1.0) -> Array:
    """Xu et al., arXiv 2106.10874, every client's delta over its own number of steps."""
    x, d = problem.x0.copy(), np.zeros(problem.d)
    for row in trace:
        rate, step, direction = local.rate(row["round"]), np.zeros(problem.d), np.zeros(problem.d)
        for i, steps, w in cohort(row):
            y = local.train(problem, i, x, steps, rate, lambda g, _, d=d: alpha * g + (1 - alpha) * d)
            counter = total = 0.0
            for _ in range(steps):
                counter = local.momentum * counter + 1
                total += counter
            step += w * (y - x)
            direction -= w * (y - x) / (total * rate)
        x, d = x + server_lr * step, direction
    return x


def fedavg_relaxed(problem: Any, trace: Trace, local: Local, beta: float) -> Array:
    """FL-Simulator's FedAvg with relaxed initialisation: a table of all clients' last models, deltas from the start."""
    x, last = problem.x0.copy(), [problem.x0.copy() for _ in range(problem.n)]
    for row in trace:
        rate, step = local.rate(row["round"]), np.zeros(problem.d)
        for i, steps, w in cohort(row):
            start = x + beta * (x - last[i])
            last[i] = local.train(problem, i, start, steps, rate, lambda g, _: g)
            step += w * (last[i] - start)
        x = x + step
    return x


def dual_table(
    problem: Any,
    trace: Trace,
    local: Local,
    lamb: float,
    clipping: str = "gradient",
    beta: float = 0.0,
    rho: Any = None,
) -> Array:
    """FL-Simulator's FedDyn and FedSpeed (on a `Sharp` problem), and with `rho` FedSMOO: x = mean(w) + mean(all h).

    `lamb` multiplies (w - x). `beta`: relaxed initialisation, whose start replaces x; the means are of updates.
    """
    h, mu = np.zeros((problem.n, problem.d)), np.zeros((problem.n, problem.d))
    x, s, last = problem.x0.copy(), np.zeros(problem.d), [problem.x0.copy() for _ in range(problem.n)]
    for row in trace:
        rate, step, mean_mu = local.rate(row["round"]), np.zeros(problem.d), np.zeros(problem.d)
        for i, steps, w in cohort(row):
            start = x + beta * (x - last[i])
            y, v = start.copy(), np.zeros(problem.d)
            for _ in range(steps):
                if rho is None:
                    g = problem.grad(i, y)
                else:
                    u = problem.grad(i, y) - mu[i] - s
                    e = rho * u / (length(u) + 1e-7)
                    mu[i] = mu[i] + e - s
                    g = problem.grad(i, y + e)
                if clipping == "official":
                    g = shortened(g + lamb * (h[i] - start), local.clip) + lamb * y
                elif clipping == "corrected":
                    g = shortened(g + lamb * (h[i] - start) + lamb * y, local.clip)
                else:
                    g = shortened(g, local.clip) + lamb * (h[i] - start) + lamb * y
                v = local.momentum * v + g + local.weight_decay * y
                y = y - rate * v
            h[i] += y - start
            last[i] = y
            step += w * (y - start)
            mean_mu += w * mu[i]
        x = x + step + problem.p @ h
        s = np.zeros(problem.d) if rho is None else rho * mean_mu / (length(mean_mu) + 1e-7)
    return x


def fedspeed_paper(problem: Any, trace: Trace, local: Local, lam: float) -> Array:
    """arXiv 2302.10429, Algorithm 1, on a `Sharp` problem: only the round's clients' amended models are averaged."""
    x, duals = problem.x0.copy(), np.zeros((problem.n, problem.d))
    for row in trace:
        rate, mean = local.rate(row["round"]), np.zeros(problem.d)
        for i, steps, w in cohort(row):
            dual = duals[i].copy()
            y = local.train(problem, i, x, steps, rate, lambda g, y, dual=dual, x=x: g - dual + (y - x) / lam)
            duals[i] = dual - (y - x) / lam
            mean += w * (y - lam * duals[i])
        x = mean
    return x


def fedamd(problem: Any, trace: Trace, local: Local, server_lr: float = 1.0) -> Array:
    """arXiv 2206.05891 as its code has it: the server's cache of all v_i; role 1 is an anchor, all are in round 1."""

    def grad(i: int, x: Array) -> Array:
        return shortened(problem.grad(i, x), local.clip) + local.weight_decay * x

    x, cache = problem.x0.copy(), np.zeros((problem.n, problem.d))
    for row in trace:
        vbar, moves, share = problem.p @ cache, np.zeros(problem.d), 0.0
        rate = local.rate(row["round"])
        for (i, steps, w), role in zip(cohort(row), row["roles"], strict=True):
            if role == 1:
                cache[i] = grad(i, x)
                continue
            y, previous, g = x.copy(), x.copy(), vbar.copy()
            for _ in range(steps):
                g = g - grad(i, previous) + grad(i, y)
                previous, y = y, y - rate * g
            moves += w * (x - y)
            share += w
        if share > 0:
            x = x - server_lr * moves / share
    return x
