"""How big it gets: a gossip run of 1,000 nodes, 100,000 registered clients against 1,000, and clients' state of 4 GB.

    python benchmarks/scale.py gossip [--mnist DIR]     one whole run: wall seconds and peak memory
    python benchmarks/scale.py population               seconds per round, cohort of 100 both times, and their ratio
    python benchmarks/scale.py state [--rounds 250]     1,000 clients x 1e6 parameters of SCAFFOLD: peak memory with
                                                        the state on disk and in memory, each a whole run
    python benchmarks/scale.py places                   seconds per round of both, 100 such clients, taking turns

`gossip` runs softmax regression for 1,000 rounds with an evaluation (of every node's own model too) every 100, on MNIST
in hub format where its folder is given, else on random numbers of MNIST's shape.

Peak memory is the resident set of the run's own process, PyTorch included. The file of clients' state is read and
written, not mapped, so its pages in the system's cache are not part of that; the system takes them back when anybody
needs memory.
"""

from __future__ import annotations

import argparse
import json
import os
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
        data: dict[str, object] = (
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
        start = time.perf_counter()
        last, peak = whole_run(scenario, folder)
        wall = time.perf_counter() - start
        print(
            f"1,000 nodes, 1,000 rounds: {wall:.0f} s, peak memory {peak:.2f} GiB, "
            f"node accuracy {last['node_accuracy']:.3f}"
        )


def whole_run(scenario: dict[str, object], folder: Path) -> tuple[dict[str, float], float]:
    """The last metrics and the peak memory (GiB) of ``fedsim run`` as a process of its own."""
    file = folder / "scenario.yaml"
    file.write_text(json.dumps(scenario))
    command = [sys.executable, "-m", "fedsim.cli.app", "run", str(file), "--out", str(folder / "run"), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)  # this one's peak, not the largest of all so far
    if status:
        raise SystemExit(f"the run failed: {' '.join(command)}")
    return json.loads(output)["metrics"], usage.ru_maxrss / 2**20


def million(folder: Path, clients: int, **run: object) -> dict[str, object]:
    """SCAFFOLD with 1,000,353 parameters, cohorts of 20, five small local steps."""
    return {
        "name": "state",
        "data": {"dataset": "npz", "path": str(made_data(folder, 10 * clients, (784,))), "clients": clients},
        "model": {"name": "mlp", "hidden": [1000, 213]},
        "algorithm": {"name": "scaffold", "lr": 0.01, "local_steps": 5, "batch_size": 10},
        "participation": {"mode": "synchronous", "clients_per_round": 20},
        "run": run,
    }


def places(repeats: int) -> None:
    """Rounds with the state on disk and in memory, every client having some, so that rows are read and written."""
    with tempfile.TemporaryDirectory() as temporary:
        engines = {}
        for place in ("disk", "memory"):
            folder = Path(temporary) / place
            folder.mkdir()
            sections = million(folder, 100, rounds=10**9, eval_every=10**9, client_state=place)
            engines[place] = Engine(sections, folder)
            for _ in range(15):
                engines[place].round()
        disk, memory, ratio = alternate(engines["disk"].round, engines["memory"].round, (3, 3), repeats)
        print(f"on disk {disk * 1e3:.0f} ms/round, in memory {memory * 1e3:.0f} ms/round, ratio {1 / ratio:.2f}")


def state(places: list[str], rounds: int, threads: int) -> None:
    """The control variates of 1,000 clients, once per place."""
    for place in places:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            scenario = million(folder, 1000, rounds=rounds, eval_every=rounds, threads=threads, client_state=place)
            last, peak = whole_run(scenario, folder)
            files = [f for f in (folder / "run").rglob("*") if f.name in ("clients.bin", "clients.safetensors")]
            size = sum(f.stat().st_size for f in files) / 2**30
            print(
                f"{place}: peak memory {peak:.2f} GiB, {last['wall'] / rounds * 1e3:.0f} ms/round with checkpoints, "
                f"{size:.2f} GiB of clients' state in the run directory",
                flush=True,
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
    arguments.add_argument("what", choices=["gossip", "population", "state", "places"])
    arguments.add_argument("--mnist", type=Path)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--repeats", type=int, default=9)
    arguments.add_argument("--rounds", type=int, default=250)
    arguments.add_argument("--places", nargs="+", default=["disk", "memory"], choices=["disk", "memory"])
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    if options.what == "gossip":
        gossip(options.mnist, options.threads)
    elif options.what == "places":
        places(options.repeats)
    elif options.what == "state":
        state(options.places, options.rounds, options.threads)
    else:
        population(options.repeats)


if __name__ == "__main__":
    main()
