"""DSpodFL on Poisson clocks the obvious way: one tick after the other, on one node or one pair of nodes."""

from __future__ import annotations

from typing import Any

import numpy as np


def replay(trace: list[dict[str, Any]], problem: Any, graph: Any, lr: float, half: bool) -> Any:
    """Final parameters ``[n, d]`` from the ticks of a trace, exact gradients, x0 = 0 and Metropolis weights.

    At the end of a row that merges all nodes take the mean.
    """
    x = np.zeros((len(graph), problem.d))
    for row in trace:
        steps = iter(row["steps"])
        for _, *nodes in row["events"]:
            if len(nodes) == 1:
                (i,) = nodes
                for _ in range(next(steps)):
                    x[i] = x[i] - lr * problem.grad(i, x[i])
            else:
                i, j = nodes
                r = 0.5 if half else 1.0 / (1.0 + max(graph.degree(i), graph.degree(j)))
                x[i], x[j] = x[i] + r * (x[j] - x[i]), x[j] + r * (x[i] - x[j])
        if row.get("merge"):
            x[:] = x.mean(0)
    return x
