"""How big it gets: a gossip run of 1,000 nodes, and 100,000 registered clients against 1,000.

    python benchmarks/scale.py gossip [--mnist DIR]     one whole run: wall seconds and peak memory
    python benchmarks/scale.py population               seconds per round, cohort of 100 both times, and their ratio

`gossip` runs softmax regression for 1,000 rounds with an evaluation (of every node's own model too) every 100, on MNIST
in hub format where its folder is given, else on random numbers of MNIST's shape.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from speed import Engine, alternate, made_data


def gossip(mnist: Path | None, threads: int) -> None:
    """A whole run in its own process, so that the peak memory is the run's."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = (
            {"dataset": "mnist", "path": str(mnist.resolve())}
            if mnist
            else {"dataset": "npz", "path": str(made_data(folder, 60_000, (784,)))}
        )
        scenario = {
            "name": "thousand",
            "data": {**data, "clients": 1000},
            "model": {"name": "linear"},
            "algorithm": {"name": "dspodfl", "lr": 0.05, "batch_size": 1},
            "topology": {"graph": "k_regular", "degree": 6},
            "participation": {"mode": "gossip", "compute": {"beta": [0.5, 0.5]}, "links": {"beta": [0.5, 0.5]}},
            "run": {"rounds": 1000, "eval_every": 100, "threads": threads},
        }
        (folder / "scenario.yaml").write_text(json.dumps(scenario))
        command = [
            sys.executable,
            "-m",
            "fedsim.cli",
            "run",
            str(folder / "scenario.yaml"),
            "--out",
            str(folder / "run"),
            "--json",
        ]
        start = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        wall = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        last = json.loads(done.stdout)["metrics"]
        print(
            f"1,000 nodes, 1,000 rounds: {wall:.0f} s, peak memory {peak:.2f} GiB, "
            f"node accuracy {last['node_accuracy']:.3f}"
        )


def population(repeats: int) -> None:
    """Rounds of a cohort of 100 among 1,000 and among 100,000 registered clients, taking turns."""
    with tempfile.TemporaryDirectory() as place:
        engines = []
        for clients in (100_000, 1_000):
            folder = Path(place) / str(clients)
            folder.mkdir()
            file = made_data(folder, 2 * clients, (64,))
            sections = {
                "name": "population",
                "data": {"dataset": "npz", "path": str(file), "clients": clients},
                "model": {"name": "linear"},
                "algorithm": {"name": "scaffold", "lr": 0.01, "local_steps": 5, "batch_size": 2},
                "participation": {"mode": "synchronous", "clients_per_round": 100},
            }
            engines.append(Engine(sections, folder))
        small, large, ratio = engines[1], engines[0], 0.0
        a, b, ratio = alternate(small.round, large.round, (50, 50), repeats)
        print(
            f"cohort of 100 among 1,000: {a * 1e3:.2f} ms/round; among 100,000: {b * 1e3:.2f} ms/round; "
            f"ratio {ratio:.2f}"
        )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", choices=["gossip", "population"])
    arguments.add_argument("--mnist", type=Path)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--repeats", type=int, default=9)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    if options.what == "gossip":
        gossip(options.mnist, options.threads)
    else:
        population(options.repeats)


if __name__ == "__main__":
    main()
