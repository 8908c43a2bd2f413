"""Per-sample gradients against a loop over samples, and DIFF2's 2,000-round run at the size of California housing.

    python benchmarks/privacy.py [--rounds 2000] [--threads 2]

The alternative is what a careful person writes without per-sample machinery: one backward pass per sample, clip, add.
Both are timed in the same process, alternating; the ratio is that of medians. The run uses random data of the table's
size (16,512 rows of 8 features among 10 clients), since only its size matters here.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fedsim
from fedsim.engine.assembly import assemble
from fedsim.scenario.load import parse

ROWS, FEATURES, CLIENTS = 16512, 8, 10


class SampleLoop:
    """One backward pass per sample."""

    def __init__(self, module: nn.Module, inputs: Tensor, targets: Tensor, bound: float) -> None:
        self.module, self.inputs, self.targets, self.bound = module, inputs, targets, bound

    def clipped_sum(self) -> Tensor:
        parameters = list(self.module.parameters())
        total = [torch.zeros_like(p) for p in parameters]
        for x, y in zip(self.inputs, self.targets, strict=True):
            loss = (self.module(x.unsqueeze(0)).squeeze() - y).square()
            grads = torch.autograd.grad(loss, parameters)
            length = torch.sqrt(sum(g.square().sum() for g in grads))
            torch._foreach_add_(total, torch._foreach_mul(list(grads), float((self.bound / length).clamp(max=1.0))))
        return torch.cat([t.flatten() for t in total])


def sections(folder: Path, rows: int, rounds: int, hidden: int, threads: int) -> dict[str, Any]:
    random = np.random.default_rng(0)
    x = random.normal(size=(rows + 100, FEATURES)).astype(np.float32)
    y = np.tanh(x[:, 0] - x[:, 1] * x[:, 2]).astype(np.float32)
    np.savez(folder / "rows.npz", x_train=x[:rows], y_train=y[:rows], x_test=x[rows:], y_test=y[rows:])
    return {
        "data": {"dataset": "npz", "path": str(folder / "rows.npz"), "task": "regression", "clients": CLIENTS},
        "model": {"name": "mlp", "hidden": [hidden], "activation": "softplus"},
        "algorithm": {"name": "diff2", "lr": 0.1, "restart_every": 20, "clip_norm": 1.0, "difference_clip": 3.0},
        "privacy": {"mechanism": "gaussian", "epsilon": 3.0, "delta": 1e-5},
        "run": {"rounds": rounds, "eval_every": 20, "threads": threads},
    }


def medians(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each call, all of them taking turns, after one call that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def per_sample(folder: Path, hidden: int, rows: int, repeats: int, threads: int) -> None:
    assembly = assemble(parse(sections(folder, rows, 20, hidden, threads)))
    task: Any = assembly.task
    clients, ones = np.arange(CLIENTS), np.ones(CLIENTS, dtype=np.int64)
    oracle = task.plan(clients, ones, ones, "full", False).oracle(0, CLIENTS, torch.ones(CLIENTS, 1))
    x = task.initial().expand(CLIENTS, -1)
    before = x + 0.01 * torch.randn(1, task.dim)
    module = task.kernel.module
    torch.nn.utils.vector_to_parameters(task.initial(), module.parameters())
    loop = SampleLoop(module, task.inputs, task.targets, 1.0)
    gap = float((oracle.clipped_sum(x, 1.0).sum(0) - loop.clipped_sum()).norm() / loop.clipped_sum().norm())
    seconds = medians(
        {
            "loop over samples": loop.clipped_sum,
            "clipped sums": lambda: oracle.clipped_sum(x, 1.0),
            "clipped differences": lambda: oracle.clipped_sum(x, 1.0, before),
            "clipped differences, float64": lambda: oracle.clipped_sum(x, 1.0, before, torch.float64),
        },
        repeats,
    )
    print(f"\n{task.dim:,} parameters, {rows:,} samples (relative gap to the loop {gap:.1e})")
    for name, value in seconds.items():
        points = 2 if "differences" in name else 1
        ratio = seconds["loop over samples"] * points / value
        print(f"  {name:30s} {1e3 * value:10.2f} ms   {ratio:7.1f} x a loop over as many gradients")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        per_sample(folder, 10, 2000, 5, given.threads)
        per_sample(folder, 200, 500, 5, given.threads)
        wall, cpu = time.perf_counter(), time.process_time()
        fedsim.run(sections(folder, ROWS, given.rounds, 10, given.threads), out=folder / "run")
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(f"\nDIFF2, {given.rounds} rounds, {ROWS:,} rows, {CLIENTS} clients: {wall:.1f} s wall, {cpu:.1f} s CPU")


if __name__ == "__main__":
    main()
