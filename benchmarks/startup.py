"""How long a small run takes to start: CPU seconds of the quickstart's first round against those of ``import torch``.

    python benchmarks/startup.py [--repeats 3]

The two take turns, each in a process of its own, from its start to its end; of a run that is with the first round, its
evaluations and the run directory. The least of each is compared.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

QUICKSTART = Path(__file__).parents[1] / "scenarios" / "quickstart.yaml"


def cpu_seconds(*arguments: str) -> float:
    """What a Python process with these arguments costs, in user and system mode."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    torch, run = [], []
    with tempfile.TemporaryDirectory() as folder:
        command = ("-m", "fedsim", "run", str(QUICKSTART), "--set", "run.rounds=1", "--out")
        for i in range(repeats):
            torch.append(cpu_seconds("-c", "import torch"))
            run.append(cpu_seconds(*command, str(Path(folder) / str(i))))
    print(f"import torch           {min(torch):.2f} s of CPU (least of {repeats})")
    print(f"fedsim run, one round  {min(run):.2f} s of CPU (least of {repeats}): {min(run) / min(torch):.2f}x")


if __name__ == "__main__":
    main()
