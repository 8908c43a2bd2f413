"""Rounds to a target accuracy: FedSpeed, FedAvg, FedProx and SCAFFOLD on MNIST, each tuned over the same small grid.

    python benchmarks/fedspeed.py --mnist DIR [--out DIR] [--rounds 60]

An MLP 784-50-10, 100 clients with Dirichlet(0.1) labels, 10 per round, 2 local epochs of batch 50. Every method tries
the learning rates of `LRS` and, where it has one, the coefficients of its pull towards the received model of `PULLS`,
for 60 rounds at seed 0; the choice that reaches the target in the fewest rounds (of several, the one with the highest
mean of its last ten evaluations) then runs at seeds 1, 2 and 3: other partitions, cohorts and initial models. Evaluated
in every second round on a fixed sample of 5,000 test rows. DIR is MNIST in Hugging Face format; runs that are finished
are not repeated. Ten minutes on one free core.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fedsim
from fedsim.engine.run_directory import read_jsonl

Rows = list[dict[str, Any]]
LRS, PULLS = (0.1, 0.2), (0.01, 0.1)
TARGET, TARGETS, SEEDS = 0.93, (0.9, 0.93, 0.95), (1, 2, 3)
METHODS = ("fedavg", "fedprox", "scaffold", "fedspeed")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--mnist", type=Path, required=True)
    arguments.add_argument("--out", type=Path, default=Path("runs/fedspeed-study"))
    arguments.add_argument("--rounds", type=int, default=60)
    options = arguments.parse_args()
    chosen = {}
    for method in METHODS:
        tried = [(keys, train(options, method, keys, seed=0, rounds=60)) for keys in choices(method)]
        for keys, rows in tried:
            print(f"tuning {method} {keys}: {describe([rows])}", flush=True)
        chosen[method] = min(tried, key=lambda t: (first_at(t[1], TARGET), -statistics.mean(tail(t[1]))))[0]
    for seed, method in itertools.product(SEEDS, METHODS):
        rows = train(options, method, chosen[method], seed, options.rounds)
        print(f"seed {seed} {method} {chosen[method]}: {describe([rows])}", flush=True)
    heads = [f"{target:.0%}" for target in TARGETS]
    columns = ["method", "tuned", *(f"rounds to {head}" for head in heads), "last", "best", "mean of the last 10"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for method in METHODS:
        runs = [train(options, method, chosen[method], seed, options.rounds) for seed in SEEDS]
        keys = ", ".join(f"{k} {v:g}" for k, v in chosen[method].items())
        print(f"| `{method}` | {keys} | {describe(runs)} |", flush=True)


def choices(method: str) -> Iterator[dict[str, float]]:
    for lr, pull in itertools.product(LRS, PULLS if method in ("fedprox", "fedspeed") else (None,)):
        if pull is None:
            yield {"lr": lr}
        else:
            yield {"lr": lr, "mu": pull} if method == "fedprox" else {"lr": lr, "lambda": 1 / pull}


def train(options: argparse.Namespace, method: str, keys: dict[str, float], seed: int, rounds: int) -> Rows:
    """The evaluations of one run, made or found."""
    place = options.out / "-".join([method, *(f"{k}{v:g}" for k, v in keys.items()), f"seed{seed}", str(rounds)])
    if not (place / "params.safetensors").exists():
        scenario = {
            "name": place.name,
            "seed": seed,
            "data": {
                "dataset": "mnist", "path": str(options.mnist.resolve()), "clients": 100,
                "partition": {"scheme": "dirichlet", "alpha": 0.1},
            },
            "model": {"name": "mlp", "hidden": [50]},
            "algorithm": {"name": method, "local_epochs": 2, "batch_size": 50, **keys},
            "participation": {"mode": "synchronous", "clients_per_round": 10},
            "run": {"rounds": rounds, "eval_every": 2, "eval_samples": 5000, "device": "cpu", "threads": 1},
        }  # fmt: skip
        fedsim.run(scenario, out=place)
    return read_jsonl(place / "metrics.jsonl")


def first_at(rows: Rows, target: float) -> float:
    """The first evaluated round with at least that accuracy."""
    return next((row["round"] for row in rows if row["test_accuracy"] >= target), float("inf"))


def tail(rows: Rows) -> list[float]:
    return [row["test_accuracy"] for row in rows[-10:]]


def describe(runs: list[Rows]) -> str:
    """Rounds to the targets, then last, best and mean of the last 10 accuracies, one number per seed or their mean."""
    cells = [", ".join(f"{first_at(rows, target):g}" for rows in runs).replace("inf", "never") for target in TARGETS]
    accuracies = [[row["test_accuracy"] for row in rows] for rows in runs]
    for pick in (lambda a: a[-1], max, lambda a: statistics.mean(a[-10:])):
        values = [pick(a) for a in accuracies]
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.4f}{spread}")
    return " | ".join(cells)


if __name__ == "__main__":
    main()
