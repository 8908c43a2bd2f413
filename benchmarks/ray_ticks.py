"""What Ray costs in continuous time: the ticks of Poisson clocks in one process against actors, in turn.

    python benchmarks/ray_ticks.py [--nodes 1000] [--ticks 100000] [--window 5] [--actors 2] [--repeats 5]

ACiD on quadratics of 50 parameters with noisy gradients over a torus, as many ticks of nodes as of links. Both take the
same ticks with the same numbers, which is checked. Printed are medians of whole runs without the start of Ray, their
ratio, and the ticks per second of each. Every process computes with one thread.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from fedsim.engine.assembly import assemble
from fedsim.engine.loop import Simulation
from fedsim.scenario.load import parse


def scenario(folder: Path, nodes: int, ticks: int, window: float) -> dict[str, Any]:
    random, data = np.random.default_rng(0), folder / "quadratic.npz"
    np.savez(data, A=random.uniform(0.5, 2.0, (nodes, 50)), b=random.standard_normal((nodes, 50)))
    rounds = max(round(ticks / (2 * nodes) / window), 1)  # a torus has two links per node
    return {
        "data": {"dataset": "quadratic", "file": str(data), "noise": 0.1},
        "algorithm": {"name": "acid", "lr": 0.05, "momentum": 0.9},
        "topology": {"graph": "torus"},
        "participation": {"mode": "poisson", "compute": 1.0, "links": 0.5, "window": window},
        "run": {"rounds": rounds, "eval_every": rounds, "device": "cpu", "threads": 1},
    }


def timed(settings: dict[str, Any], folder: Path) -> tuple[float, Any]:
    """Seconds of all rounds, and the run."""
    checked = parse(settings)
    simulation = Simulation(checked, assemble(checked), folder)
    try:
        begun = time.perf_counter()
        run = simulation.run()
        return time.perf_counter() - begun, run
    finally:
        simulation.backend.close()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--nodes", type=int, default=1000)
    arguments.add_argument("--ticks", type=int, default=100_000)
    arguments.add_argument("--window", type=float, default=5.0)
    arguments.add_argument("--actors", type=int, default=2)
    arguments.add_argument("--repeats", type=int, default=5)
    options = arguments.parse_args()
    alone: list[float] = []
    actors: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        one = scenario(folder, options.nodes, options.ticks, options.window)
        other = {**one, "backend": {"name": "ray", "actors": options.actors}}
        for k in range(options.repeats):
            seconds, run = timed(one, folder / f"alone-{k}")
            alone.append(seconds)
            seconds, remote = timed(other, folder / f"actors-{k}")
            actors.append(seconds)
            if not torch.equal(run.params, remote.params):
                raise SystemExit("the numbers differ")
        last = run.metrics.iloc[-1]
    ticks = int(last["communications"] + last["gradients"])
    here, there = statistics.median(alone), statistics.median(actors)
    ratios = [b / a for a, b in zip(alone, actors, strict=True)]
    print(f"{options.nodes:,} nodes, {ticks:,} ticks, windows of {options.window:g} s, equal bit for bit")
    print(f"one process {here:.2f} s ({ticks / here:,.0f} ticks per second)")
    print(f"{options.actors} actors {there:.2f} s ({ticks / there:,.0f} ticks per second)")
    spread = f"{statistics.median(ratios):.2f} of pairs, from {min(ratios):.2f} to {max(ratios):.2f}"
    print(f"ratio {there / here:.2f} of medians, {spread}")


if __name__ == "__main__":
    main()
