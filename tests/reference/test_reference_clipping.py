"""What `clip` bounds where the gradient is corrected: FL-Simulator's steps, written out one client after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedsim.core.errors import InputError
from fedsim.scenario.load import parse

Make = Callable[..., Any]
Array = np.ndarray[Any, Any]
N, LR, CLIP, DECAY, MU, ALPHA, RHO = 5, 0.05, 0.5, 0.1, 0.7, 0.4, 0.2
KEYS: dict[str, dict[str, float]] = {
    "fedprox": {"mu": MU}, "scaffold": {}, "fedgamma": {"rho": RHO}, "fedcm": {"alpha": ALPHA},
    "mofedsam": {"alpha": ALPHA, "rho": RHO},
}  # fmt: skip
WAYS = ["gradient", "corrected", "official"]


def clipped(v: Array) -> Array:
    return v * min(1.0, CLIP / float(np.sqrt((v**2).sum())))


def step(name: str, clipping: str, g: Array, y: Array, x: Array, variate: Array, d: Array) -> Array:
    """What is subtracted before weight decay."""

    def corrected(g: Array) -> Array:
        if name in ("scaffold", "fedgamma"):
            return g + variate
        return g + MU * (y - x) if name == "fedprox" else ALPHA * g + (1 - ALPHA) * d

    if clipping == "gradient":
        return corrected(clipped(g))
    if clipping == "official" and name == "fedprox":  # mu y is weight decay there
        return clipped(g - MU * x) + MU * y
    return clipped(corrected(g))


def replay(problem: Any, trace: list[dict[str, Any]], name: str, clipping: str) -> Array:
    x, c, d, own = problem.x0.copy(), np.zeros(problem.d), np.zeros(problem.d), np.zeros((N, problem.d))
    for row in trace:
        deltas, changes, means = [], np.zeros(problem.d), np.zeros(problem.d)
        for i, steps, w in zip(row["clients"], row["steps"], row["weights"], strict=True):
            y = x.copy()
            for _ in range(steps):
                g = problem.grad(i, y)
                if "rho" in KEYS[name]:
                    g = problem.grad(i, y + RHO * g / (np.sqrt((g**2).sum()) + 1e-7))
                y = y - LR * (step(name, clipping, g, y, x, c - own[i], d) + DECAY * y)
            per_step = (y - x) / (steps * LR)
            deltas.append(w * (y - x))
            changes += (-c - per_step) / N
            means -= w * per_step
            own[i] = own[i] - c - per_step
        x, c, d = x + sum(deltas), c + changes, means
    return np.asarray(x)


@pytest.mark.parametrize("clipping", WAYS)
@pytest.mark.parametrize("name", KEYS)
def test_where_the_clip_goes(name: str, clipping: str, quadratic: Make, run_scenario: Make) -> None:
    problem = quadratic(n=N, d=3)
    run = run_scenario(
        data=problem.section(),
        algorithm={
            "name": name, "lr": LR, "clip": CLIP, "weight_decay": DECAY, "clipping": clipping,
            "local_steps": {"uniform": [2, 6]}, **KEYS[name],
        },
        participation={"clients_per_round": 3},
        run={"rounds": 6},
    )  # fmt: skip
    found = run.params.numpy()
    assert np.abs(found - replay(problem, run.trace, name, clipping)).max() < 1e-12
    for other in set(WAYS) - {clipping}:
        same = {clipping, other} == {"corrected", "official"} and name != "fedprox"
        difference = np.abs(found - replay(problem, run.trace, name, other)).max()
        assert (difference < 1e-12) if same else (difference > 1e-2)


def test_fednovas_normaliser_does_not_know_it() -> None:
    keys = {"name": "fednova", "mu": 0.1, "clip": 1.0, "clipping": "corrected"}
    algorithm = parse({"data": {"dataset": "quadratic", "file": "q.npz"}, "algorithm": keys}).algorithm
    with pytest.raises(InputError, match="clipping: found 'corrected'"):
        algorithm.check(4)
