"""How big it gets: a million registered clients, 100,000 nodes of a graph, and clients' state of 4 GB.

    python benchmarks/scale.py gossip [--mnist DIR]     one whole run: wall seconds and peak memory
    python benchmarks/scale.py population               a round with cohorts of 10 and 100 among 10^4, 10^5 and 10^6
                                                        registered clients, and the ratios
    python benchmarks/scale.py clients [--clients N]    a million clients: plan, run, resume and report, each a process
    python benchmarks/scale.py nodes [--clients N]      100,000 nodes in two Ray actors: plan and run
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
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from processes import spent
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


def whole_run(scenario: Mapping[str, object], folder: Path) -> tuple[dict[str, float], float]:
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


def registered(folder: Path, clients: int, cohort: int, **run: object) -> dict[str, object]:
    """SCAFFOLD of softmax regression with a cohort among so many clients of two samples each."""
    return {
        "name": "population",
        "data": {"dataset": "npz", "path": str(made_data(folder, 2 * clients, (16,))), "clients": clients},
        "model": {"name": "linear"},
        "algorithm": {"name": "scaffold", "lr": 0.01, "local_steps": 5, "batch_size": 2},
        "participation": {"mode": "synchronous", "clients_per_round": cohort},
        "run": {"rounds": 10**9, "eval_every": 10**9, **run},
    }


def population(repeats: int) -> None:
    """Rounds of a cohort among more and more registered clients, taking turns; milliseconds of the processor."""
    for cohort in (10, 100):
        with tempfile.TemporaryDirectory() as place:
            engines = {}
            for clients in (10_000, 100_000, 1_000_000):
                folder = Path(place) / str(clients)
                folder.mkdir()
                engines[clients] = Engine(registered(folder, clients, cohort), folder)
            found: dict[int, list[float]] = {clients: [] for clients in engines}
            for turn in range(repeats + 1):
                for clients, engine in engines.items():
                    start = time.process_time()
                    for _ in range(50):
                        engine.round()
                    if turn:  # the first is for warming up
                        found[clients].append((time.process_time() - start) / 50)
        few = found[10_000]
        told = [
            f"{clients:,}: {statistics.median(times) * 1e3:.2f} ms "
            f"(ratio {statistics.median(a / b for a, b in zip(times, few, strict=True)):.2f})"
            for clients, times in found.items()
        ]
        print(f"a round with a cohort of {cohort} among {'; '.join(told)}", flush=True)


def commands(scenario: dict[str, object], folder: Path, *more: str) -> None:
    """What the commands take, each in a process of its own."""
    file, run = folder / "scenario.yaml", str(folder / "run")
    file.write_text(json.dumps(scenario))
    told = {
        "plan": ["plan", str(file)],
        "run": ["run", str(file), "--out", run],
        "resume": ["run", str(file), "--out", run, "--resume", "--set", "run.rounds=40"],
        "report": ["report", run],
    }
    for name in more:
        print(f"{name}: {spent(told[name])}", flush=True)
    if "report" in more:
        print(f"report.html: {(folder / 'run' / 'report.html').stat().st_size / 2**20:.2f} MiB")


def clients(count: int, threads: int) -> None:
    """A million registered clients, cohorts of 100, 20 rounds and 20 more."""
    with tempfile.TemporaryDirectory() as place:
        run = {"rounds": 20, "eval_every": 10, "eval_samples": 10_000, "threads": threads}
        commands(registered(Path(place), count, 100, **run), Path(place), "plan", "run", "resume", "report")


def nodes(count: int, threads: int) -> None:
    """D-PSGD on a regular graph in two Ray actors, five rounds."""
    with tempfile.TemporaryDirectory() as place:
        scenario = {
            **registered(Path(place), count, 1, rounds=5, eval_every=5, eval_samples=10_000, threads=threads),
            "algorithm": {"name": "dpsgd", "lr": 0.01, "batch_size": 2},
            "topology": {"graph": "k_regular", "degree": 6},
            "backend": {"name": "ray", "actors": 2},
        }
        del scenario["participation"]
        commands(scenario, Path(place), "plan", "run")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", choices=["gossip", "population", "clients", "nodes", "state", "places"])
    arguments.add_argument("--mnist", type=Path)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--repeats", type=int, default=9)
    arguments.add_argument("--clients", type=int)
    arguments.add_argument("--rounds", type=int, default=250)
    arguments.add_argument("--places", nargs="+", default=["disk", "memory"], choices=["disk", "memory"])
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    if options.what == "gossip":
        gossip(options.mnist, options.threads)
    elif options.what == "places":
        places(options.repeats)
    elif options.what == "clients":
        clients(options.clients or 1_000_000, options.threads)
    elif options.what == "nodes":
        nodes(options.clients or 100_000, options.threads)
    elif options.what == "state":
        state(options.places, options.rounds, options.threads)
    else:
        population(options.repeats)


if __name__ == "__main__":
    main()
