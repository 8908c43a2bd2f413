"""IFCA written the slow, obvious way: numpy, one client after the other, the paper's lines.

Nothing here is imported from the algorithm under test.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from fair_loops import loss
from server_loops import Array, Local, Trace, cohort, plain


def ifca(
    problem: Any, trace: Trace, local: Local, models: Sequence[Array], averaging: str = "models", server_lr: float = 1.0
) -> tuple[list[Array], list[dict[int, int]]]:
    """The models after Algorithm 1, and who chose which of them in every round; `models` are those at first."""
    x, choices = [v.copy() for v in models], []
    for row in trace:
        rate, groups, chosen = local.rate(row["round"]), [[] for _ in x], dict[int, int]()
        everybody = sum(w for _, _, w in cohort(row))
        for i, steps, w in cohort(row):
            losses = [loss(problem, i, v) for v in x]
            j = chosen[i] = losses.index(min(losses))
            groups[j].append((w, local.train(problem, i, x[j], steps, rate, plain) - x[j]))
        for j, group in enumerate(groups):
            if group:
                total = sum(w * change for w, change in group)
                x[j] = x[j] + server_lr * (
                    total * everybody / sum(w for w, _ in group) if averaging == "models" else total
                )
        choices.append(chosen)
    return x, choices


def option_one(problem: Any, models: Sequence[Array], lr: float, rounds: int) -> list[Array]:
    """Option I of the paper, all clients in every round: ``x_j = x_j - lr / m sum_i s_ij grad F_i(x_j)``"""
    x = [v.copy() for v in models]
    for _ in range(rounds):
        chosen = [int(np.argmin([loss(problem, i, v) for v in x])) for i in range(problem.n)]
        x = [
            v - lr / problem.n * sum((problem.grad(i, v) for i in range(problem.n) if chosen[i] == j), np.zeros_like(v))
            for j, v in enumerate(x)
        ]
    return x
