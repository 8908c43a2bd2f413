"""What other work on the cores costs: rounds on a machine that has none, and with a busy process on each core.

    python benchmarks/busy.py [--threads 2] [--repeats 5] [--seconds 60] [case ...]

Two ways take turns in one process: fedsim's threads, which share chunks of rows and compute each with one thread of
PyTorch, and `torch`, the same rounds with PyTorch's threads inside every operator. A way that does not end a round in
`--seconds` is given up. Busy processes are started here, one per core, and end with it, after ten minutes at most.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from speed import Engine, made_data, sections

from fedsim.core import cores, crew

BUSY = "import os, time\nend = time.monotonic() + 600\nwhile time.monotonic() < end and os.getppid() == {parent}: pass"

CASES = {
    # name: clients, samples per client, input shape, model, gossip, batch, rounds of a measurement
    "softmax-gossip-b16": (100, 600, (784,), {"name": "linear"}, True, 16, 10),
    "mlp-64": (50, 100, (64,), {"name": "mlp", "hidden": [200]}, False, 10, 1),
    "mlp-784": (100, 600, (784,), {"name": "mlp", "hidden": [200]}, False, 32, 1),
    "cnn": (10, 128, (1, 28, 28), {"name": "cnn"}, False, 32, 1),
}  # fmt: skip


@contextmanager
def busy(count: int) -> Iterator[None]:
    """That many processes that do nothing but compute."""
    code = BUSY.format(parent=os.getpid())
    started = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        time.sleep(0.5)
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


class Way:
    """Rounds done in one way; its times, until one takes too long."""

    def __init__(self, name: str, engine: Engine, threads: int, seconds: float) -> None:
        self.name, self.engine, self.threads, self.seconds = name, engine, threads, seconds
        self.times: list[float] = []
        self.given_up = False

    def measure(self, rounds: int) -> None:
        """Time `rounds` rounds."""
        if self.given_up:
            return
        start = time.perf_counter()
        if self.name == "torch":
            torch.set_num_threads(self.threads)
            self._rounds(rounds)
        else:
            with crew.working(self.threads):
                self._rounds(rounds)
        taken = (time.perf_counter() - start) / rounds
        self.times.append(taken)
        self.given_up = taken > self.seconds

    def _rounds(self, rounds: int) -> None:
        for _ in range(rounds):
            self.engine.step()

    def told(self) -> float:
        """Median seconds of a round."""
        return statistics.median(self.times)


def alternated(ways: list[Way], rounds: int, repeats: int) -> list[float]:
    """Median seconds of a round in each way, the ways taking turns."""
    for way in ways:
        way.times, way.given_up = [], False
        way.measure(1)
        way.times = way.times if way.given_up else []
    for _ in range(repeats):
        for way in ways:
            way.measure(rounds)
    return [way.told() for way in ways]


def main(told: Callable[[str], None] = print) -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("case", nargs="*", choices=[*CASES, []], help="default: all")
    arguments.add_argument("--threads", type=int, default=cores.available())
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=20.0, help="a round that takes longer is given up")
    options = arguments.parse_args()
    others = min(cores.available(), 64)
    told(f"torch {torch.__version__}, {options.threads} threads, {others} busy processes, medians of {options.repeats}")
    told(f"{'case':20} {'':6} {'fedsim ms':>12} {'torch ms':>12} {'torch / fedsim':>15} {'busy / quiet':>13}")
    for name in options.case or CASES:
        clients, samples, shape, model, gossip, batch, rounds = CASES[name]
        with tempfile.TemporaryDirectory() as place:
            file = made_data(Path(place), clients * samples, shape)
            ways = []
            for way in ("fedsim", "torch"):
                folder = Path(place) / way
                folder.mkdir()
                engine = Engine(sections(clients, model, file, gossip, batch, 0.01), folder)
                ways.append(Way(way, engine, options.threads, options.seconds))
            quiet = alternated(ways, rounds, options.repeats)
            with busy(others):
                loaded = alternated(ways, rounds, options.repeats)
            for state, times in (("quiet", quiet), ("busy", loaded)):
                cost = f"{times[0] / quiet[0]:12.1f}x" if state == "busy" else ""
                told(
                    f"{name:20} {state:6} {times[0] * 1e3:12.1f} {times[1] * 1e3:12.1f} {times[1] / times[0]:14.2f}x "
                    f"{cost}"
                )


if __name__ == "__main__":
    main()
