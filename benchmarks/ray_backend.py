"""What the Ray backend costs against one process, measured in the same run.

python benchmarks/ray_backend.py overhead [--actors 2]     rounds of the MLP benchmark on Ray against in process
python benchmarks/ray_backend.py empty [--actors 4]        milliseconds of a round with next to no work
python benchmarks/ray_backend.py memory [--rounds 3]       peak memory here, gossip of 2,000 nodes x 100,000
python benchmarks/ray_backend.py kills [--repeats 20]      runs with an actor killed at a random moment: all equal?
python benchmarks/ray_backend.py sweep [--repeats 1]       24 trials side by side against `fedsim run` of each in turn
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from speed import Engine, alternate, made_data

from fedsim.engine.assembly import assemble
from fedsim.engine.loop import Simulation
from fedsim.scenario.load import parse

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


def kills(actors: int, repeats: int) -> None:
    """SCAFFOLD on digits, whose clients keep state; a random actor SIGKILLed at a random moment of the run."""
    scenario = {
        "name": "kills",
        "data": {"dataset": "digits", "clients": 20},
        "model": {"name": "linear"},
        "algorithm": {"name": "scaffold", "lr": 0.05, "local_steps": 5},
        "participation": {"fraction": 0.5},
        "run": {"rounds": 60, "eval_every": 10, "dtype": "float64", "device": "cpu"},
    }
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        whole = Simulation(parse(scenario), assemble(parse(scenario)), folder / "whole").run()
        checked = parse({**scenario, "backend": {"name": "ray", "actors": actors}})
        unbroken = _killed(checked, folder / "unbroken", None, chance)
        length = float(unbroken.metrics["wall"].iloc[-1])
        equal = close = lost = 0
        for i in range(repeats):
            run = _killed(checked, folder / f"killed-{i}", chance.uniform(0.0, length), chance)
            same = run.metrics.drop(columns="wall").equals(unbroken.metrics.drop(columns="wall"))
            equal += torch.equal(run.params, unbroken.params) and same
            close += bool(torch.allclose(run.params, whole.params, rtol=0, atol=1e-12))
            lost += KILLED.pop() if KILLED else 0
    print(
        f"{lost} of {repeats} kills hit a run at work; {equal} of {repeats} runs equal the unbroken one bit for bit, "
        f"{close} that of one process to 1e-12"
    )


KILLED: list[int] = []


def _killed(checked: Any, folder: Path, after: float | None, chance: random.Random) -> Any:
    """Run; `after` seconds from the first round on, kill a random actor."""
    simulation = Simulation(checked, assemble(checked), folder)
    backend: Any = simulation.backend
    pids = [backend.cluster.ray.get(host.ready.remote()) for host in dict.fromkeys(backend.host.values())]
    done = threading.Event()

    def kill() -> None:
        if not done.wait(after):
            os.kill(chance.choice(pids), signal.SIGKILL)
            KILLED.append(1)

    killer = threading.Thread(target=kill, daemon=True)
    if after is not None:
        killer.start()
    try:
        return simulation.run()
    finally:
        done.set()
        backend.close()


def sweep(parallel: int) -> None:
    """24 small trials by `fedsim sweep --parallel` against 24 times `fedsim run`, one thread each."""
    scenario = {
        "name": "trial",
        "data": {"dataset": "digits", "clients": 20},
        "model": {"name": "mlp", "hidden": [64]},
        "algorithm": {"name": "fedavg", "lr": 0.1, "local_epochs": 1},
        "run": {"rounds": 40, "eval_every": 20, "threads": 1},
    }
    rates, seeds = [0.02, 0.05, 0.1, 0.2], list(range(6))
    grid = {"algorithm.lr": rates, "seed": seeds}
    program = [sys.executable, "-m", "fedsim.cli.app"]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "trial.yaml").write_text(yaml.safe_dump(scenario))
        (folder / "sweep.yaml").write_text(yaml.safe_dump({"name": "s", "scenario": "trial.yaml", "grid": grid}))
        start = time.perf_counter()
        for rate in rates:
            for seed in seeds:
                values = ["--set", f"algorithm.lr={rate}", "--set", f"seed={seed}"]
                out = ["--out", str(folder / f"{rate}-{seed}"), "--json"]
                subprocess.run(
                    [*program, "run", str(folder / "trial.yaml"), *values, *out], check=True, capture_output=True
                )
        middle = time.perf_counter()
        side = [*program, "sweep", str(folder / "sweep.yaml"), "--parallel", str(parallel), "--out", str(folder / "s")]
        subprocess.run(side, check=True, capture_output=True)
        end = time.perf_counter()
    one, other = middle - start, end - middle
    print(f"24 trials: {other:.0f} s side by side ({parallel}), {one:.0f} s in turn: {other / one:.2f}x the time")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", choices=["overhead", "empty", "memory", "kills", "sweep"])
    arguments.add_argument("--actors", type=int)
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    if options.what == "overhead":
        overhead(options.actors or 2, options.repeats)
    elif options.what == "empty":
        empty(options.actors or 4, options.repeats)
    elif options.what == "kills":
        kills(options.actors or 2, options.repeats)
    elif options.what == "sweep":
        sweep(options.actors or 2)
    else:
        memory(options.actors or 2, options.rounds)


if __name__ == "__main__":
    main()
