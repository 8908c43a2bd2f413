"""FedFix against synchronous and asynchronous FedAvg: time to a target accuracy, and how steady the end is.

    fedsim sweep scenarios/fedfix-mnist-tuned.yaml --out sweeps/fedfix-tuned
    python benchmarks/fedfix.py sweeps/fedfix-tuned [--target 0.9] [--figure accuracy.png]

Per case and seed: virtual seconds until the test accuracy first reaches the target, and mean and standard deviation of
the accuracy over the last quarter of the time. The figure shows accuracy against virtual time, a line per seed.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fedsim.engine.run_directory import read_jsonl


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("sweep", type=Path)
    arguments.add_argument("--target", type=float, default=0.9)
    arguments.add_argument("--figure", type=Path)
    options = arguments.parse_args()
    cases: dict[str, list[list[dict[str, Any]]]] = defaultdict(list)
    for file in sorted(options.sweep.glob("*/metrics.jsonl")):
        cases[file.parent.name.rpartition("_")[0]].append(read_jsonl(file))
    for case, runs in cases.items():
        print(f"{case:16}", *(describe(rows, options.target) for rows in runs), sep="  ")
    if options.figure:
        draw(cases).savefig(options.figure, dpi=110, bbox_inches="tight")


def describe(rows: list[dict[str, Any]], target: float) -> str:
    """Time to the target, and the last quarter's mean and standard deviation."""
    hit = next((f"{row['time']:.0f} s" for row in rows if row["test_accuracy"] >= target), "never")
    last = [row["test_accuracy"] for row in rows if row["time"] >= 0.75 * rows[-1]["time"]]
    return f"{hit:>6}, {statistics.mean(last):.4f} +- {statistics.pstdev(last):.4f}"


def draw(cases: dict[str, list[list[dict[str, Any]]]]) -> Figure:
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    for i, (case, runs) in enumerate(cases.items()):
        for j, rows in enumerate(runs):
            line = [row["time"] for row in rows], [row["test_accuracy"] for row in rows]
            axes.plot(*line, color=f"C{i}", linewidth=1, alpha=0.8, label=case if j == 0 else None)
    axes.set(xlabel="virtual time (s)", ylabel="test accuracy", ylim=(0.6, 0.95))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure


if __name__ == "__main__":
    main()
