"""What robust rules cost beside the plainest thing that does their work: ``torch.cdist``, or a mean over the rows.

    python benchmarks/rules.py [--clients 100] [--parameters 1000000] [--repeats 3] [--threads 1] [--dtype float32]

Rules that compare messages are measured against ``torch.cdist(V, V)`` as it comes (the Gram formula, in the rows' own
type, where fedsim sums differences), the geometric median against as many passes ``V.mean(0)`` as it goes over the
rows. All take turns in one process, and the fastest of the repeats counts, in seconds of the processor. Memory is what
a rule adds to the peak of the process, which has the rows already.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable

import torch

from fedsim.core.fields import make_part
from fedsim.core.registry import lookup

BAR = 3.0
STEPS = 10
PASSES = 2 * STEPS + 3
"""Of the geometric median over the rows: is all finite, the mean, two for each step, the end."""


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def peak() -> float:
    """The most memory that the process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def added(work: Callable[[], object]) -> float:
    """What `work` adds to the memory that the process has now, in MiB: measured in a copy of the process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        before = peak()
        work()
        os.write(writer, f"{peak() - before}".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        found = float(answer.read())
    os.waitpid(child, 0)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(asked.clients, asked.parameters, generator=generator, dtype=getattr(torch, asked.dtype))
    f = (asked.clients - 3) // 4
    print(f"{asked.clients} x {asked.parameters:,} {asked.dtype}: {rows.numel() * rows.element_size() / 2**20:.0f} MiB")

    def rule(name: str, **keys: object) -> Callable[[], object]:
        made = make_part(lookup("aggregator", name), keys)
        return lambda: made.of(rows)

    rules = {
        "krum": rule("krum", f=f),
        "nnm, then mean": rule("trimmed_mean", f=0, pre={"name": "nnm", "f": f}),
        "geometric_median": rule("geometric_median", iters=STEPS, tol=0.0),
    }
    memory = {name: added(work) for name, work in rules.items()}
    plain = {"cdist": lambda: torch.cdist(rows, rows), "mean": lambda: rows.mean(0)}
    times: dict[str, float] = {}
    for _ in range(asked.repeats):
        for name, work in {**plain, **rules}.items():
            times[name] = min(times.get(name, float("inf")), seconds(work))
    print(f"torch.cdist {times['cdist']:.3f} s, V.mean(0) {times['mean']:.4f} s")
    for name in rules:
        beside = PASSES * times["mean"] if name == "geometric_median" else times["cdist"]
        what = f"{PASSES} passes" if name == "geometric_median" else "torch.cdist"
        ratio = times[name] / beside
        verdict = "below" if ratio < BAR else "NOT below"
        print(f"{name}: {times[name]:.3f} s, {ratio:.2f} x {what} ({verdict} {BAR:g}), {memory[name]:.0f} MiB more")


if __name__ == "__main__":
    main()
