"""How fast DADAO and ACiD are: means, slopes and stationary distances against exact values, within their errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import fedsim
from fedsim.engine.run_directory import read_jsonl

pytestmark = pytest.mark.slow

Make = Callable[..., Any]


def go(problem: Any, folder: Path, graph: str, algorithm: dict[str, Any], rounds: int, **sections: Any) -> Any:
    settings = {
        "data": problem.section(), "topology": {"graph": graph}, "algorithm": algorithm,
        "participation": {"mode": "poisson", **sections.pop("participation", {})},
        "run": {"rounds": rounds, "eval_every": 1, "dtype": "float64", "device": "cpu"}, **sections,
    }  # fmt: skip
    return fedsim.run(settings, out=folder)


@pytest.mark.parametrize("graph", ["ring", "star"])
def test_dadao_is_as_fast_as_the_theory_says(quadratic: Make, tmp_path: Path, graph: str) -> None:
    """With curvatures of 1 to 20 the squared distance falls with an exponent of at least sqrt(mu/L) / (8 sqrt 2)."""
    n, d, random = 8, 5, np.random.default_rng(3)
    curvatures = random.uniform(1.0, 20.0, (n, d))
    curvatures[0, 0], curvatures[1, 1] = 1.0, 20.0
    problem = quadratic(A=curvatures, b=random.standard_normal((n, d)), x0=np.zeros(d))
    run = go(problem, tmp_path, graph, {"name": "dadao"}, 60, participation={"window": 10})
    rows = [row for row in read_jsonl(tmp_path / "metrics.jsonl") if row["time"] >= 200]
    times = np.array([row["time"] for row in rows])
    # of sum_i |x_i - x*|^2 = n (|mean - x*|^2 + the mean squared distance to the mean)
    squared = n * np.array([row["optimum_distance"] ** 2 + row["consensus_distance"] for row in rows])
    slope = -np.polyfit(times, np.log(squared), 1)[0]
    assert 0.01976 <= slope <= 2 * 0.01976
    total = yaml.safe_load((tmp_path / "scenario.yaml").read_text())["participation"]["links"] * (n - (graph == "star"))
    assert rows[-1]["communications"] / 600 == pytest.approx(total, abs=4 * np.sqrt(total / 600))
    assert run.params.shape == (n, d)


def test_dadao_has_the_first_moments_of_its_equations(quadratic: Make, tmp_path: Path) -> None:
    problem = quadratic(A=[[0.1], [1.0], [1.0], [1.0]], b=[[1.0], [-1.0], [2.0], [0.0]], x0=[0.0])
    algorithm = {"name": "dadao", "mu": 0.1, "L": 1.0}
    found = np.array([
        go(problem, tmp_path / str(seed), "ring", algorithm, 1, seed=seed, participation={"window": 20}).params[:, 0]
        for seed in range(300)
    ])  # fmt: skip
    error = found.std(0, ddof=1) / np.sqrt(len(found))
    assert (np.abs(found.mean(0) - [0.39329374, 0.16929501, 0.64150232, 0.33743342]) < 4 * error).all()
    squared = (found - 0.354838709677) ** 2
    error = squared.std(0, ddof=1) / np.sqrt(len(found))
    assert (np.abs(squared.mean(0) - [0.007786, 0.038519, 0.085626, 0.003987]) < 4 * error).all()


@pytest.mark.parametrize("eta,expected", [("auto", 0.261562), (0.0, 0.389987)], ids=["acid", "averaging"])
def test_acid_keeps_a_ring_closer_together(quadratic: Make, tmp_path: Path, eta: Any, expected: float) -> None:
    problem = quadratic(A=np.ones((8, 1)), b=2 * np.cos(np.arange(8.0))[:, None], x0=[0.0])
    run = go(problem, tmp_path, "ring", {"name": "acid", "lr": 0.1, "eta": eta}, 2100, participation={"links": 0.5})
    distances = run.metrics["consensus_distance"].to_numpy()[101:]
    blocks = distances.reshape(20, -1).mean(1)
    assert abs(blocks.mean() - expected) < 4 * blocks.std(ddof=1) / np.sqrt(20)
    assert 4 * blocks.std(ddof=1) / np.sqrt(20) < 0.06  # it would notice the other
