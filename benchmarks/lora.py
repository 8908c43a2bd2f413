"""100 clients' adapters (LoRA, rank 8) of one base: all at once against one after the other, and what they take.

    python benchmarks/lora.py [--clients 100] [--repeats 7]

Times are of a round's local work, three steps of every client, as `run.kernel` auto and rows compute it, in turns in
one process; printed are medians and their ratio. Memory is the kernel's peak of a process that runs two rounds with all
clients, less that of one with one client, next to what these clients' adapters and whole models would take.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.clients.worker import Worker
from fedsim.core.job import Job
from fedsim.engine.assembly import assemble
from fedsim.scenario.load import parse

STEPS, RANK = 3, 8
ALL, ATTENTION = ["*"], ["attended", "projected"]
WIDE = {"name": "mlp", "hidden": [512, 512, 512]}
TRANSFORMER = {"name": "transformer", "layers": 2, "width": 256, "heads": 4}
BIG = {"name": "mlp", "hidden": [2048, 2048, 2048]}
CASES: tuple[tuple[dict[str, Any], list[str], str, int], ...] = (
    (WIDE, ALL, "numbers", 1),
    (WIDE, ALL, "numbers", 4),
    (WIDE, ALL, "numbers", 16),
    (TRANSFORMER, ATTENTION, "tokens", 1),
    (TRANSFORMER, ATTENTION, "tokens", 4),
)


def scenario(
    folder: Path, model: dict[str, Any], targets: list[str], data: str, clients: int, batch: int, kernel: str = "auto"
) -> dict[str, Any]:
    own = {"task": "tokens", "num_classes": 64} if data == "tokens" else {}
    return {
        "data": {"dataset": "npz", "path": str(folder / f"{data}.npz"), **own, "clients": clients},
        "model": {**model, "lora": {"targets": targets, "rank": RANK}},
        "algorithm": {"name": "fedavg", "lr": 0.01, "local_steps": STEPS, "batch_size": batch},
        "run": {"rounds": 2, "kernel": kernel, "eval_samples": 10},
    }


def write(folder: Path) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((2000, 256)).astype(np.float32)
    np.savez(folder / "numbers.npz", x=x, y=x[:, :10].argmax(1))
    ids = random.integers(0, 64, (2000, 17))
    np.savez(folder / "tokens.npz", x=ids[:, :-1], y=ids[:, 1:])


def round_of(given: dict[str, Any], clients: int) -> tuple[Worker, Job]:
    s = parse(given)
    made = assemble(s)
    who = np.arange(clients)
    job = Job(who, np.ones_like(who), np.full_like(who, STEPS), {"x": made.task.initial()})
    return made.worker(s), job


def times(folder: Path, clients: int, repeats: int) -> None:
    print(f"{'model':12} {'batch':>5} {'adapters':>9} {'rows':>9} {'stacked':>9} {'ratio':>6}")
    for model, targets, data, batch in CASES:
        ways = {
            k: round_of(scenario(folder, model, targets, data, clients, batch, k), clients) for k in ("rows", "auto")
        }
        found: dict[str, list[float]] = {way: [] for way in ways}
        sent = {way: worker.run(job)["delta"] for way, (worker, job) in ways.items()}
        assert float((sent["rows"] - sent["auto"]).abs().max()) < 1e-3 * float(sent["rows"].abs().max())
        for _ in range(repeats):
            for way, (worker, job) in ways.items():
                start = time.perf_counter()
                worker.run(job)
                found[way].append(time.perf_counter() - start)
        rows, stacked = (statistics.median(found[way]) for way in ("rows", "auto"))
        size = sent["rows"].shape[1]
        print(f"{model['name']:12} {batch:5} {size:9,} {rows:8.3f}s {stacked:8.3f}s {rows / stacked:6.2f}", flush=True)


def peak(folder: Path, clients: int) -> float:
    """MiB that a process holds at most in a run of so many clients."""
    program = (
        "import fedsim, json, sys\n"
        "fedsim.run(json.loads(sys.argv[1]), out=sys.argv[2])\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )

    given = json.dumps(scenario(folder, BIG, ALL, "numbers", clients, 4))
    ran = subprocess.run(
        [sys.executable, "-c", program, given, str(folder / f"run-{clients}")],
        check=True,
        capture_output=True,
        text=True,
    )
    return int(ran.stdout.split()[-1]) / 1024


def memory(folder: Path, clients: int) -> None:
    made = assemble(parse(scenario(folder, BIG, ALL, "numbers", clients, 4)))
    adapters, base = made.task.dim * 4 / 2**20, made.stays["bytes"] / 2**20
    one, all_of_them = peak(folder, 1), peak(folder, clients)
    print(f"\nbase {base:.1f} MiB, one's adapters {adapters:.2f} MiB, of {clients}: {clients * adapters:.0f} MiB")
    print(f"peak with 1 client {one:.0f} MiB, with {clients} {all_of_them:.0f} MiB: {all_of_them - one:.0f} MiB more")
    print(f"{clients} whole models would be {clients * (base + adapters):,.0f} MiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=7)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        write(Path(name))
        times(Path(name), asked.clients, asked.repeats)
        memory(Path(name), asked.clients)
