"""What the Ray backend costs against one process, measured in the same run.

python benchmarks/ray_backend.py overhead [--actors 2]     rounds of the MLP benchmark on Ray against in process
python benchmarks/ray_backend.py empty [--actors 4]        milliseconds of a round with next to no work
python benchmarks/ray_backend.py memory [--rounds 3]       peak memory here, gossip of 2,000 nodes x 100,000
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from speed import Engine, alternate, made_data

_RUN = """
import json, resource, sys
import fedsim
fedsim.run(json.load(open(sys.argv[1])), sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
MLP: dict[str, Any] = {
    "name": "ray",
    "model": {"name": "mlp", "hidden": [200]},
    "algorithm": {"name": "fedavg", "lr": 0.01, "batch_size": 32, "local_epochs": 1},
}


def overhead(actors: int, repeats: int) -> None:
    """100 clients x 600 samples, one local epoch, as `speed.py mlp-fedavg`; all cores both times, in turns."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = {"dataset": "npz", "path": str(made_data(folder, 60_000, (784,))), "clients": 100}
        torch.set_num_threads(os.cpu_count() or 1)
        here = Engine({**MLP, "data": data}, folder / "here")
        there = Engine({**MLP, "data": data, "backend": {"name": "ray", "actors": actors}}, folder / "there")
        a, b, ratio = alternate(there.round, here.round, (1, 1), repeats)
        there.simulation.backend.close()
    print(f"{actors} actors {a:.2f} s/round, in process {b:.2f} s/round: {ratio:.2f}x the throughput (median of pairs)")


def empty(actors: int, repeats: int) -> None:
    """One step on quadratics of five parameters: what is left is the way there and back."""
    data = {"dataset": "quadratic", "file": str(Path(__file__).parent.parent / "scenarios" / "quadratic.npz")}
    backend = {"name": "ray", "actors": actors}
    with tempfile.TemporaryDirectory() as place:
        engine = Engine(
            {
                "name": "empty",
                "data": data,
                "algorithm": {"name": "fedavg"},
                "backend": backend,
            },
            Path(place),
        )
        for _ in range(20):
            engine.round()
        times = []
        for _ in range(repeats * 20):
            start = time.perf_counter()
            engine.round()
            times.append(time.perf_counter() - start)
        engine.simulation.backend.close()
    middle, least = 1e3 * statistics.median(times), 1e3 * min(times)
    print(f"{actors} actors: {middle:.1f} ms per round (median), fastest {least:.1f} ms")


def memory(actors: int, rounds: int) -> None:
    """A whole run in a process of its own, evaluations, checkpoint and final parameters included."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        scenario = {
            "name": "memory",
            "data": {"dataset": "npz", "path": str(made_data(folder, 4_000, (9_999,))), "clients": 2_000},
            "model": {"name": "linear"},
            "algorithm": {"name": "dspodfl", "lr": 0.01, "batch_size": 2},
            "topology": {"graph": "torus"},
            "run": {"rounds": rounds, "eval_every": rounds},
            "backend": {"name": "ray", "actors": actors},
        }
        (folder / "scenario.json").write_text(json.dumps(scenario))
        start = time.perf_counter()
        command = [sys.executable, "-c", _RUN, str(folder / "scenario.json"), str(folder / "run")]
        peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 2**20
        seconds = time.perf_counter() - start
        size = (folder / "run" / "params.safetensors").stat().st_size / 2**20
    print(
        f"2,000 nodes x 100,000 parameters ({size:.0f} MiB), {rounds} rounds: {seconds:.0f} s, peak {peak:.2f} GiB here"
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", choices=["overhead", "empty", "memory"])
    arguments.add_argument("--actors", type=int)
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    if options.what == "overhead":
        overhead(options.actors or 2, options.repeats)
    elif options.what == "empty":
        empty(options.actors or 4, options.repeats)
    else:
        memory(options.actors or 2, options.rounds)


if __name__ == "__main__":
    main()
