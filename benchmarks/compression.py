"""What compression costs in time: a CHOCO round against the same gossip round without compression, on the CPU.

    python benchmarks/compression.py [--nodes 1000] [--rounds 7] [--threads 2]

Softmax regression with 10,000 parameters per node, minibatches of 16, a ring and Metropolis weights. DFedAvg and CHOCO
take the same local step and mix over the same graph; rounds of all methods take turns in one run, and medians are
compared. The bar is 3 times DFedAvg's round for CHOCO with top-k of 1 %. `selection` is the compressor alone.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fedsim.core.oracle import Task
from fedsim.engine.assembly import assemble
from fedsim.engine.place import make_backend
from fedsim.engine.states import run_state
from fedsim.participation.base import Arrival, Dispatch
from fedsim.scenario.load import parse

BAR = 3.0
FEATURES, CLASSES = 999, 10  # and a bias: 10,000 parameters
METHODS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "dfedavg": ("dfedavg", None),
    "choco, none": ("choco", {"name": "none"}),
    "choco, top_k 1 %": ("choco", {"name": "top_k", "fraction": 0.01}),
    "choco, top_k 10 %": ("choco", {"name": "top_k", "fraction": 0.1}),
    "choco, sign": ("choco", {"name": "sign"}),
    "choco, qsgd 15": ("choco", {"name": "qsgd", "levels": 15}),
    "deepsqueeze, top_k 1 %": ("deepsqueeze", {"name": "top_k", "fraction": 0.01}),
    "beer, top_k 1 %": ("beer", {"name": "top_k", "fraction": 0.01}),
}


def rounds_of(
    method: str, compression: dict[str, Any] | None, nodes: int, folder: Path, tasks: list[Task]
) -> Callable[[], None]:
    """A function that does the next round; all methods share the data of the first one, in `tasks`."""
    data = {
        "dataset": "synthetic", "alpha": 0.0, "beta": 0.0, "clients": nodes, "dimension": FEATURES,
        "num_classes": CLASSES, "max_samples": 20,
    }  # fmt: skip
    sections: dict[str, Any] = {
        "data": data, "model": {"name": "linear"}, "algorithm": {"name": method, "lr": 0.01, "batch_size": 16},
        "topology": {"graph": "ring"}, "run": {"rounds": 1000, "device": "cpu"},
    }  # fmt: skip
    scenario = parse(sections | ({} if compression is None else {"compression": compression}))
    made = assemble(scenario)
    tasks[1:] = []
    tasks.append(made.task)
    made = replace(made, task=tasks[0])
    assert made.task.dim == (FEATURES + 1) * CLASSES
    folder.mkdir()
    home = run_state(scenario, made, make_backend(scenario, made, folder))
    events = scenario.participation.events(made.setting(scenario))

    def once() -> None:
        for event in events:
            if isinstance(event, Dispatch):
                home.dispatch(event)
            elif isinstance(event, Arrival):
                home.combine(event)
                return

    return once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    taken: dict[str, list[float]] = {name: [] for name in METHODS}
    with tempfile.TemporaryDirectory() as folder:
        tasks: list[Task] = []
        ways = {
            name: rounds_of(*what, given.nodes, Path(folder) / str(i), tasks)
            for i, (name, what) in enumerate(METHODS.items())
        }
        for number in range(given.rounds + 2):
            for name, once in ways.items():
                began = time.perf_counter()
                once()
                if number > 1:  # the first two warm up
                    taken[name].append(time.perf_counter() - began)
    plain = statistics.median(taken["dfedavg"])
    print(f"{given.nodes} nodes x 10,000 parameters, {given.threads} threads, medians of {given.rounds} rounds")
    for name, seconds in taken.items():
        middle = statistics.median(seconds)
        print(f"{name:24s} {1e3 * middle:8.1f} ms  {middle / plain:5.2f} x dfedavg")
    worst = statistics.median(taken["choco, top_k 1 %"]) / plain
    print(f"bar: below {BAR} for choco, top_k 1 %: {worst:.2f}, {'met' if worst < BAR else 'MISSED'}")


if __name__ == "__main__":
    main()
