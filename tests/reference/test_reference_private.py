"""DIFF2-GD and DP-GD replayed from their own trace by loops over clients and examples."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import private_loops as slow
import pytest
import torch

import fedsim
from fedsim.engine.assembly import assemble
from fedsim.engine.run_directory import Run
from fedsim.privacy.noise import gaussian
from fedsim.scenario.load import parse

sys.path.insert(0, str(Path(__file__).parent.parent / "privacy"))

import diff2_makers as makers


def replayed(run: Run, sections: dict[str, Any], trust: str) -> torch.Tensor:
    scenario = parse(sections)
    task: Any = assemble(scenario).task
    clients = [
        [(task.inputs[i].numpy(), float(task.targets[i])) for i in task.indices[a:b]]
        for a, b in zip(task.offsets[:-1], task.offsets[1:], strict=True)
    ]
    a: Any = scenario.algorithm
    privacy: Any = scenario.privacy
    n, sizes, d = len(clients), [len(c) for c in clients], task.dim
    share = [s / sum(sizes) for s in sizes] if a.weighting == "samples" else [1 / n] * n
    worst = max(w / s for w, s in zip(share, sizes, strict=True))
    z1, z2 = privacy.multipliers(scenario.run.rounds, a.restart_every)

    def draw(purpose: str, *parts: Any) -> np.ndarray[Any, Any]:
        seeds = (privacy.noise_seed, scenario.seed)
        return gaussian(seeds, purpose, *parts, width=d, device=torch.device("cpu"), dtype=torch.float64).numpy()

    def noise(number: int, C: float) -> np.ndarray[Any, Any]:
        z = z1 if (number - 1) % a.restart_every == 0 else z2
        if trust == "central":
            return z * 2 * C * worst * draw("server", number)[0]
        own = draw("client", np.full(n, number), np.arange(n))
        if trust == "secagg":
            return sum(z * 2 * C * worst / math.sqrt(n) * row for row in own)
        return sum(w * z * 2 * C / s * row for w, s, row in zip(share, sizes, own, strict=True))

    w = slow.diff2(
        task.initial().numpy(), clients, run.trace, lambda x, e: slow.gradient(x, e, makers.HIDDEN), a.lr,
        a.restart_every, a.clip_norm, a.difference_clip, noise,
    )  # fmt: skip
    return torch.as_tensor(w)


@pytest.mark.parametrize("trust", ["central", "secagg", "local"])
@pytest.mark.parametrize("T,weighting", [(1, "uniform"), (3, "uniform"), (3, "samples"), (100, "uniform")])
def test_a_run_is_what_the_loops_give(tmp_path: Path, trust: str, T: int, weighting: str) -> None:
    changes = {"algorithm": {"restart_every": T, "weighting": weighting}, "privacy": {"trust": trust}}
    scenario = makers.scenario(tmp_path, **changes)
    run = fedsim.run(scenario, out=tmp_path / "run")
    expected = replayed(run, scenario.document.values, trust)
    assert (run.params - expected).norm() <= 1e-10 * expected.norm()
