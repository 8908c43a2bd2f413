"""How often the canary audit accuses: DIFF2 with a tenth of the noise it claims, and with all of it.

Run with ``python benchmarks/audit.py``: 20 seeds of a small DIFF2 run on digits, epsilon 3, 500 canaries, 95 %. The
broken runs should be flagged in at least 19 seeds, the sound ones in at most 1.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from fedsim.audit.command import audit
from fedsim.scenario.load import parse

ROOT = Path(__file__).parents[1]
SCENARIO: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 10},
    "model": {"name": "linear"},
    "algorithm": {"name": "diff2", "lr": 0.2, "restart_every": 5, "clip_norm": 1.0, "difference_clip": 3.0},
    "run": {"rounds": 20, "device": "cpu"},
    "audit": {"canaries": {"canaries": 500}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--epsilon", type=float, default=3.0)
    arguments = parser.parse_args()
    sys.path.append(str(ROOT / "tests" / "audit"))
    for mechanism in ("broken_mechanisms:Broken", "gaussian"):
        began, flagged, bounds = time.perf_counter(), 0, []
        for seed in range(arguments.seeds):
            privacy = {"mechanism": mechanism, "epsilon": arguments.epsilon}
            report = audit(parse({**SCENARIO, "seed": seed, "privacy": privacy}))
            flagged += bool(report.alarms)
            bounds.append(report.audits[0].finding.results["lower_bound"])
        seconds = (time.perf_counter() - began) / arguments.seeds
        print(
            f"{mechanism}: flagged {flagged} of {arguments.seeds}; lower bounds {min(bounds):.2f} to {max(bounds):.2f}"
            f", median {statistics.median(bounds):.2f}, claimed {arguments.epsilon:g}; {seconds:.1f} s per audit"
        )


if __name__ == "__main__":
    main()
