"""Fair algorithms written the slow, obvious way: numpy, one client after the other, the papers' lines.

Each replays the rounds of a trace and returns the server's final parameters. Nothing here is imported from the
algorithms under test.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import minimize
from server_loops import Array, Local, Trace, cohort, plain


def loss(problem: Any, i: int, x: Array) -> float:
    """F_i(x) = 1/2 (x - b_i)^T A_i (x - b_i)"""
    return float(0.5 * (x - problem.b[i]) @ problem.grad(i, x))


def qffl(
    problem: Any, trace: Trace, local: Local, q: float, lipschitz: float | None = None, server_lr: float = 1.0
) -> Array:
    """Li et al., Algorithm 2, with the cohort's weights in the two sums; losses are 1e-10 larger as in their code."""
    x = problem.x0.copy()
    for row in trace:
        rate, above, below = local.rate(row["round"]), np.zeros(problem.d), 0.0
        L = 1 / rate if lipschitz is None else lipschitz
        for i, steps, w in cohort(row):
            F = loss(problem, i, x) + 1e-10
            change = L * (x - local.train(problem, i, x, steps, rate, plain))
            above += w * F**q * change
            below += w * (q * F ** (q - 1) * (change @ change) + L * F**q)
        x = x - server_lr * above / below
    return x


def nearest(v: Array) -> Array:
    """The nearest point of the simplex, found by bisection of what is taken off every coordinate."""
    low, high = v.min() - 1.0, v.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(v - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(v - high, 0)


def afl(problem: Any, trace: Trace, local: Local, lambda_lr: float, at_first: Array, server_lr: float = 1.0) -> Array:
    """Mohri et al., figure 2, with local steps and the losses of a cohort scaled by M / |S|."""
    x, weights = problem.x0.copy(), at_first.copy()
    for row in trace:
        rate, members = local.rate(row["round"]), cohort(row)
        step, gradient, total = np.zeros(problem.d), np.zeros(problem.n), sum(weights[i] for i, _, _ in members)
        for i, steps, _ in members:
            gradient[i] = problem.n / len(members) * loss(problem, i, x)
            if total > 0:
                step += weights[i] / total * (local.train(problem, i, x, steps, rate, plain) - x)
        x, weights = x + server_lr * step, nearest(weights + lambda_lr * gradient)
    return x


def minimax(problem: Any) -> Array:
    """argmin_x max_i F_i(x), by a general solver: minimise t subject to F_i(x) <= t."""
    start = np.append(problem.x0, max(loss(problem, i, problem.x0) for i in range(problem.n)))
    below = [{"type": "ineq", "fun": lambda z, i=i: z[-1] - loss(problem, i, z[:-1])} for i in range(problem.n)]
    found = minimize(lambda z: z[-1], start, method="SLSQP", constraints=below, options={"ftol": 1e-14, "maxiter": 500})
    return np.asarray(found.x[:-1])
