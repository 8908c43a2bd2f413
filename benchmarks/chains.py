"""Many chains at once, beside a Python loop over chains.

    python benchmarks/chains.py [--chains 100] [--clients 10] [--features 20] [--batch 32] [--local-steps 10]

FSGLD with full conducive gradients on a logistic regression of 10,000 samples made from a seed. The named alternatives
do the same work without a simulator, chain by chain and step by step, with random numbers of PyTorch or numpy: `torch`
as most would write it, the loss and its gradient by autograd; `numpy` with the gradient written out by hand. Their
minibatches are drawn with repetition, which is the cheapest; those of fedsim without.
`fedsim` is the whole of `fedsim.run`, with its keys, records and samples, less what it takes to start. All take turns
in one process, with one thread; medians over the repeats count, in seconds of the processor. The bar: `fedsim` takes at
most a twentieth of the time of `torch`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fedsim
from fedsim.engine.assembly import assemble
from fedsim.scenario.load import given

BAR, SAMPLES, LR, PRIOR = 20, 10_000, 1e-4, 1.0


class TorchLoop:
    """One chain after the other; its gradient by autograd."""

    def __init__(self, x: Tensor, y: Tensor, rows: list[Tensor], batch: int, offset: Tensor, slope: Tensor) -> None:
        self.x, self.y, self.rows, self.batch, self.offset, self.slope = x, y.to(x.dtype), rows, batch, offset, slope

    def visit(self, theta: Tensor, steps: int) -> Tensor:
        """A chain's state ``[d]`` after a visit to a random client."""
        s = int(torch.randint(len(self.rows), ()))
        rows, scale = self.rows[s], len(self.rows[s]) * len(self.rows)
        for _ in range(steps):
            picked = rows[torch.randint(len(rows), (self.batch,))]
            leaf = theta.requires_grad_()
            z = self.x[picked] @ leaf[:-1] + leaf[-1]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(z, self.y[picked])
            (g,) = torch.autograd.grad(loss, leaf)
            theta = theta.detach()
            drift = -scale * g - PRIOR * theta + self.offset[s] - self.slope[s] @ theta
            theta = theta + LR / 2 * drift + LR**0.5 * torch.randn_like(theta)
        return theta


class NumpyLoop:
    """One chain after the other; its gradient by hand."""

    def __init__(self, loop: TorchLoop) -> None:
        self.x, self.y, self.batch = loop.x.numpy(), loop.y.numpy(), loop.batch
        self.rows, self.offset, self.slope = [r.numpy() for r in loop.rows], loop.offset.numpy(), loop.slope.numpy()
        self.random = np.random.default_rng(0)

    def visit(self, theta: Any, steps: int) -> Any:
        s = self.random.integers(len(self.rows))
        rows, scale = self.rows[s], np.float32(len(self.rows[s]) * len(self.rows))
        for _ in range(steps):
            picked = rows[self.random.integers(len(rows), size=self.batch)]
            x = self.x[picked]
            away = self.y[picked] - 1 / (1 + np.exp(-(x @ theta[:-1] + theta[-1])))
            g = np.append(away @ x, away.sum()) / len(away)
            drift = scale * g - PRIOR * theta + self.offset[s] - self.slope[s] @ theta
            theta = theta + LR / 2 * drift + LR**0.5 * self.random.standard_normal(len(theta), dtype=np.float32)
        return theta


def problem(features: int) -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    x = random.standard_normal((SAMPLES, features)).astype(np.float32)
    w = random.standard_normal(features)
    return x, (random.random(SAMPLES) < 1 / (1 + np.exp(-x @ w))).astype(np.int64)


def loops(scenario: dict[str, Any], batch: int) -> tuple[TorchLoop, NumpyLoop]:
    """Both alternatives on the clients' very data and with the conducive gradients of the scenario."""
    task: Any = assemble(given({**scenario, "run": {**scenario["run"], "rounds": 1}})).task
    inner, conducive = task.inner, task.conducive
    rows = [torch.as_tensor(inner.indices[a:b]) for a, b in pairwise(inner.offsets.tolist())]
    slow = TorchLoop(inner.inputs, inner.targets, rows, batch, conducive.offset, conducive.slope)
    return slow, NumpyLoop(slow)


def seconds(call: Callable[[int], None], count: int) -> float:
    """Of the processor."""
    began = time.process_time()
    call(count)
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("chains", 100), ("clients", 10), ("features", 20), ("batch", 32), ("local-steps", 10), ("rounds", 100),
        ("repeats", 3),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    x, y = problem(asked.features)
    print(
        f"{SAMPLES:,} samples of {asked.features} features, {asked.clients} clients, {asked.chains} chains, "
        f"batches of {asked.batch}, {asked.local_steps} local steps a round"
    )
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "made.npz", x=x, y=y)
        scenario = {
            "data": {"dataset": "npz", "path": str(Path(folder) / "made.npz"), "clients": asked.clients,
                     "normalize": "none"},
            "model": {"name": "linear", "loss": "logistic", "init": "zeros"},
            "algorithm": {"name": "fsgld", "surrogate": "laplace", "lr": LR, "local_steps": asked.local_steps,
                          "batch_size": asked.batch, "chains": asked.chains, "burn_in": 10, "thin": 10},
            "participation": {"clients_per_round": 1},
            "run": {"device": "cpu", "threads": 1},
        }  # fmt: skip

        def run(rounds: int) -> None:
            of = {**scenario, "run": {**scenario["run"], "rounds": rounds, "eval_every": rounds}}
            fedsim.run(of, out=Path(folder) / "run")

        slow, quick = loops(scenario, asked.batch)

        def loop(which: Any, start: Any) -> Callable[[int], None]:
            def go(rounds: int) -> None:
                for _ in range(rounds):
                    which.visit(start.copy() if isinstance(start, np.ndarray) else start.clone(), asked.local_steps)

            return go

        zero = torch.zeros(asked.features + 1)
        few = asked.rounds // 10
        ways = {  # what is called, how often at the least and more often, and how many visits each call makes
            "fedsim": (run, few, few + asked.rounds, asked.chains),
            "torch": (loop(slow, zero), few, few + 5 * asked.rounds, 1),
            "numpy": (loop(quick, zero.numpy()), few, few + 5 * asked.rounds, 1),
        }
        run(2)  # the first one meets everything cold
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(asked.repeats):
            for name, (call, least, most, visits) in ways.items():
                spent = [seconds(call, least), seconds(call, most)]
                found[name].append((spent[1] - spent[0]) / ((most - least) * visits * asked.local_steps))
    medians = {name: float(np.median(times)) for name, times in found.items()}
    for name, each in medians.items():
        print(f"  {name}: {1e6 * each:.2f} us a step of a chain, {each / medians['fedsim']:.1f} times fedsim's")
    ratio = medians["torch"] / medians["fedsim"]
    print(f"torch / fedsim {ratio:.1f} ({'within' if ratio >= BAR else 'NOT within'} the bar {BAR})")


if __name__ == "__main__":
    main()
