"""What Ray costs in continuous time: the ticks of Poisson clocks in one process against actors, in turn.

    python benchmarks/ray_ticks.py [--nodes 1000] [--ticks 100000] [--window 5] [--actors 2] [--repeats 5]

ACiD on quadratics of 50 parameters with noisy gradients over a torus, as many ticks of nodes as of links. Both take the
same ticks with the same numbers, which is checked. Printed are medians of whole runs without the start of Ray, their
ratio, the ticks per second of each, and the seconds that each process computed, which other programs on the machine
change less. Every process computes with one thread.
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


def computed(pid: int) -> float:
    """Seconds that a process has computed (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def timed(settings: dict[str, Any], folder: Path) -> tuple[float, list[float], Any]:
    """Seconds of all rounds, those that this process and the actors computed, and the run."""
    checked = parse(settings)
    simulation = Simulation(checked, assemble(checked), folder)
    backend: Any = simulation.backend
    try:
        pids = [os.getpid()]
        if settings.get("backend"):
            import ray

            pids += [ray.get(host.ready.remote()) for host in backend.host.values()]
        before, begun = [computed(pid) for pid in pids], time.perf_counter()
        run = simulation.run()
        wall = time.perf_counter() - begun
        return wall, [computed(pid) - was for pid, was in zip(pids, before, strict=True)], run
    finally:
        backend.close()


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
    work: tuple[list[list[float]], list[list[float]]] = ([], [])
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        one = scenario(folder, options.nodes, options.ticks, options.window)
        other = {**one, "backend": {"name": "ray", "actors": options.actors}}
        for k in range(options.repeats):
            seconds, cpu, run = timed(one, folder / f"alone-{k}")
            alone.append(seconds)
            work[0].append(cpu)
            seconds, cpu, remote = timed(other, folder / f"actors-{k}")
            actors.append(seconds)
            work[1].append(cpu)
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
    (mine,), (caller, *others) = (np.median(np.array(cpu), axis=0) for cpu in work)
    each = ", ".join(f"{seconds:.2f}" for seconds in others)
    print(f"computed: one process {mine:.2f} s; calling process {caller:.2f} s and actors {each} s")
    print(f"ratio {there / here:.2f} of medians, {spread}")


if __name__ == "__main__":
    main()
