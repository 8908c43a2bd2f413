"""FedAsync against its recursion, event by event."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.core.errors import InputError

SPEEDS = (Fraction(1), Fraction(11, 15), Fraction(7, 15), Fraction(1, 5))
FACTORS: dict[str, tuple[Any, Callable[[int], float]]] = {
    "constant": ("constant", lambda _: 1.0),
    "polynomial": ({"polynomial": 0.5}, lambda s: (s + 1) ** -0.5),
    "hinge": ({"hinge": [2.0, 1.0]}, lambda s: 1.0 if s <= 1 else 1 / (2.0 * (s - 1) + 1)),
}


def scenario(tmp_path: Path, staleness: Any, **participation: Any) -> dict[str, Any]:
    random = np.random.default_rng(3)
    np.savez(tmp_path / "q.npz", A=random.uniform(0.5, 2.0, (4, 3)), b=random.normal(size=(4, 3)))
    return {
        "data": {"dataset": "quadratic", "file": str(tmp_path / "q.npz")},
        "algorithm": {"name": "fedasync", "lr": 0.2, "local_steps": 3, "alpha": 0.7, "mu": 0.1},
        "participation": {"mode": "asynchronous", "weights": "identical", "staleness": staleness, **participation},
        "system": {"compute": {"model": "linear", "fastest": 0.2}},
        "run": {"rounds": 60, "eval_every": 60, "dtype": "float64"},
    }


@pytest.mark.parametrize("name", list(FACTORS))
def test_models_are_mixed_as_they_arrive(tmp_path: Path, name: str) -> None:
    given, factor = FACTORS[name]
    run = fedsim.run(scenario(tmp_path, given), out=tmp_path / "run")
    data = np.load(tmp_path / "q.npz")
    x = np.zeros(3)
    sent = {c: (x.copy(), 0) for c in range(4)}
    heap = [(SPEEDS[c], c) for c in range(4)]
    heapq.heapify(heap)
    for version in range(60):
        time, c = heapq.heappop(heap)
        start, pulled = sent[c]
        y = start.copy()
        for _ in range(3):
            y = y - 0.2 * (data["A"][c] * (y - data["b"][c]) + 0.1 * (y - start))
        a = 0.7 * factor(version - pulled)
        x = (1 - a) * x + a * y
        sent[c] = (x.copy(), version + 1)
        heapq.heappush(heap, (time + SPEEDS[c], c))
    np.testing.assert_allclose(run.params.numpy(), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "changes,key",
    [({"weights": "debiased"}, "participation.weights"), ({"mode": "fedbuff", "buffer": 2}, "participation.mode")],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError) as error:
        fedsim.run(scenario(tmp_path, "constant", **changes), out=tmp_path / "run")
    assert [p.key for p in error.value.problems] == [key]
