"""Runs on the virtual clock against a loop over single events with exact time, on quadratics, to 1e-10."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import async_loops as slow
import numpy as np
import pytest

Make = Callable[..., Any]
ROUNDS = 60
STEPS = [1, 3, 2, 4, 1]
TAU = [Fraction(t) for t in ("1", "0.6", "0.4", "0.4", "0.15")]  # ties: 0.4 twice, 0.6 = 4 * 0.15, 1.2 of three
F80 = [1 - Fraction(4, 5) * Fraction(i, 4) for i in range(5)]
SYSTEMS: dict[str, tuple[dict[str, Any], list[Fraction]]] = {
    "table": ({"compute": {"model": "table", "values": [float(t) for t in TAU]}}, TAU),
    "F-80": ({"compute": {"model": "linear", "fastest": 0.2}}, F80),
    "latency, per step": (
        {"compute": {"model": "table", "values": [float(t) for t in TAU]}, "per": "step", "network": {"latency": 0.05}},
        [t * k + Fraction("0.1") for t, k in zip(TAU, STEPS, strict=True)],
    ),
}
FACTORS: dict[str, tuple[Any, Callable[[int], float]]] = {
    "constant": ("constant", lambda _: 1.0),
    "polynomial": ({"polynomial": 0.5}, lambda s: 1 / math.sqrt(1 + s)),
    "hinge": ({"hinge": [0.7, 2.0]}, lambda s: 1.0 if s <= 2 else 1 / (0.7 * (s - 2) + 1)),
}
WINDOW, BUFFER = Fraction("0.3"), 3


def weights(mode: str, kind: str, p: Any, tau: list[Fraction]) -> list[float]:
    """d_i from the formulas, exact up to the last conversion."""
    if kind == "identical":
        return [{"asynchronous": 1.0, "fixed_interval": 1 / 5, "barrier": 1 / BUFFER}[mode]] * 5
    if mode == "asynchronous":
        return [float(sum(1 / t for t in tau) * tau[i]) * p[i] for i in range(5)]
    return [math.ceil(tau[i] / WINDOW) * p[i] for i in range(5)]


@pytest.mark.parametrize("staleness", FACTORS)
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize(
    "mode,kind",
    [
        ("asynchronous", "debiased"),
        ("asynchronous", "identical"),
        ("fixed_interval", "debiased"),
        ("fixed_interval", "identical"),
        ("barrier", "identical"),
    ],
)
def test_replay(quadratic: Make, run_scenario: Make, mode: str, kind: str, system: str, staleness: str) -> None:
    problem = quadratic(importance=True)
    section, tau = SYSTEMS[system]
    keys: dict[str, Any] = {"mode": mode, "weights": kind, "staleness": FACTORS[staleness][0]}
    if mode == "fixed_interval":
        keys["window"] = float(WINDOW)
    if mode == "barrier":
        keys |= {"mode": "fedbuff", "restart": "barrier", "buffer": BUFFER}
    run = run_scenario(
        data=problem.section(),
        algorithm={"name": "fedavg", "lr": 0.03, "local_steps": STEPS, "server_lr": 0.8},
        participation=keys,
        system=section,
        run={"rounds": ROUNDS},
    )
    server = slow.Server(problem, tau, 0.03, STEPS, 0.8, FACTORS[staleness][1])
    d = weights(mode, kind, problem.p, tau)
    if mode == "asynchronous":
        slow.asynchronous(server, ROUNDS, d)
    elif mode == "fixed_interval":
        slow.fixed_interval(server, ROUNDS, d, WINDOW)
    else:
        slow.barrier(server, ROUNDS, d, BUFFER)
    assert [(float(t), c, s) for t, c, s in server.history] == [
        (row["time"], row["clients"], row["staleness"]) for row in run.trace
    ]
    assert max(s for _, _, stale in server.history for s in stale) >= 2
    assert np.abs(server.x - problem.x0).max() > 1e-2
    assert np.abs(run.params.numpy() - server.x).max() <= 1e-10 * max(1.0, np.abs(server.x).max())
