"""Ditto, pFedMe and APFL the slow, obvious way: numpy, one client after the other, from the papers' algorithms.

Each replays a trace and returns the common parameters and all clients' own. Under a server that is ``[d]`` and
``[n, d]``, on a graph ``[n, d]`` twice; `Setting` says which. Nothing here is imported from the algorithms under test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gossip_loops import Edges, metropolis, mix
from server_loops import Array, Local, cohort, plain

Own = dict[str, Array]
Client = Callable[[int, Array, Own, int, float], Array]
"""Client i from the received model: its row of what is its own changes in place, and its common model is returned."""


@dataclass(frozen=True)
class Setting:
    """Where clients' models meet: at a server, or, with the `edges` of a graph, at its nodes."""

    edges: Edges | None = None

    def replay(self, problem: Any, run: Any, local: Local, own: Own, client: Client) -> Array:
        x = problem.x0.copy() if self.edges is None else np.tile(problem.x0, (problem.n, 1))
        for row in run.trace:
            rate = local.rate(row["round"])
            if self.edges is None:
                step = np.zeros(problem.d)
                for i, steps, w in cohort(row):
                    step += w * (client(i, x, own, steps, rate) - x)
                x = x + step
            else:
                after = x.copy()
                for i in row["compute"]:
                    after[i] = client(i, x[i], own, row["steps"][i], rate)
                x = mix(metropolis(problem.n, self.edges), [(e[0], e[1]) for e in row["edges"]], after, False)
        return x


Both = tuple[Array, Array]
"""Common parameters, and the clients' own."""


def ditto(problem: Any, run: Any, local: Local, setting: Setting, pull: float, scale: float = 1.0) -> Both:
    """Li et al., Algorithm 1; `scale` is the learning rate of v over that of x."""
    own = {"v": np.tile(problem.x0, (problem.n, 1))}

    def client(i: int, x: Array, own: Own, steps: int, rate: float) -> Array:
        own["v"][i] = local.train(problem, i, own["v"][i], steps, scale * rate, lambda g, v: g + pull * (v - x))
        return local.train(problem, i, x, steps, rate, plain)

    return setting.replay(problem, run, local, own, client), own["v"]


def pfedme(problem: Any, run: Any, local: Local, setting: Setting, pull: float, inner: int, scale: float) -> Both:
    """Dinh et al., Algorithm 1, in which theta goes on from one local step to the next."""
    own = {"v": np.tile(problem.x0, (problem.n, 1))}

    def client(i: int, x: Array, own: Own, steps: int, rate: float) -> Array:
        w, theta, b = x.copy(), x.copy(), np.zeros(problem.d)
        for _ in range(steps):
            for _ in range(inner):
                theta = theta - scale * rate * (local.gradient(problem, i, theta) + pull * (theta - w))
            b = local.momentum * b + pull * (w - theta) + local.weight_decay * w
            w = w - rate * b
        own["v"][i] = theta
        return w

    return setting.replay(problem, run, local, own, client), own["v"]


def apfl(
    problem: Any, run: Any, local: Local, setting: Setting, alpha: float, alpha_scale: float | None = None
) -> Both:
    """Deng et al., Algorithm 1; `alpha_scale`, of an adaptive alpha, is its learning rate over that of x.

    Own parameters are the mixtures with the last common model.
    """
    n = problem.n
    own = {"v": np.tile(problem.x0, (n, 1)), "alpha": np.full(n, alpha)}

    def client(i: int, x: Array, own: Own, steps: int, rate: float) -> Array:
        w, v, a = x.copy(), own["v"][i].copy(), float(own["alpha"][i])
        b_w, b_v = np.zeros(problem.d), np.zeros(problem.d)
        for _ in range(steps):
            g_w, g = local.gradient(problem, i, w), local.gradient(problem, i, a * v + (1 - a) * w)
            b_w = local.momentum * b_w + g_w + local.weight_decay * w
            b_v = local.momentum * b_v + a * g + local.weight_decay * v
            moved = a if alpha_scale is None else min(1.0, max(0.0, a - alpha_scale * rate * float((v - w) @ g)))
            w, v, a = w - rate * b_w, v - rate * b_v, moved
        own["v"][i], own["alpha"][i] = v, a
        return w

    x = setting.replay(problem, run, local, own, client)
    a = own["alpha"][:, None]
    return x, a * own["v"] + (1 - a) * x
