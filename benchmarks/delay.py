"""DSpodFL and its special cases: delay until the nodes' mean accuracy reaches a target (arXiv 2402.03448, Table 4).

    fedsim sweep scenarios/dspodfl-mnist-baselines.yaml --set run.eval_every=5 --out sweeps/delay
    python benchmarks/delay.py sweeps/delay [--target 0.4]

Prints processing / transmission / total delay of every run, and each method's median over the seeds.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from pathlib import Path

from fedsim.engine.run_directory import read_jsonl


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("sweep", type=Path)
    arguments.add_argument("--target", type=float, default=0.4)
    options = arguments.parse_args()
    totals: dict[str, list[float]] = defaultdict(list)
    for file in sorted(options.sweep.glob("*/metrics.jsonl")):
        case, _, seed = file.parent.name.rpartition("_")
        hit = next((row for row in read_jsonl(file) if row["node_accuracy"] >= options.target), None)
        totals[case].append(hit["delay_total"] if hit else float("inf"))
        parts = (
            [f"{hit[k]:9.1f}" for k in ("delay_processing", "delay_transmission", "delay_total")]
            if hit
            else ["not reached"]
        )
        print(f"{case:20} {seed:8} {' '.join(parts)}")
    for case, values in sorted(totals.items(), key=lambda item: statistics.median(item[1])):
        print(f"{case:20} median   {statistics.median(values):29.1f}")


if __name__ == "__main__":
    main()
