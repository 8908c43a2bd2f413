"""How fast rounds run, as a ratio against a per-client PyTorch loop measured in the same run.

    python benchmarks/speed.py [--threads 2] [--repeats 7] [--operators] [case ...]

Whole rounds of the engine are timed: drawing minibatches, local steps, combining, counting (no evaluation). The two
sides take turns, so that a machine whose speed drifts slows both. Data are random numbers of MNIST's shape: only speed
counts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from loops import ClientLoop, NodeLoop

from fedsim.core import crew
from fedsim.engine.assembly import assemble
from fedsim.engine.loop import Simulation
from fedsim.participation.base import Dispatch
from fedsim.scenario.load import parse


def made_data(folder: Path, samples: int, shape: tuple[int, ...]) -> Path:
    """Random samples with random labels, as an .npz data set."""
    random = np.random.default_rng(0)
    x = random.normal(size=(samples, *shape)).astype(np.float32)
    y = random.integers(0, 10, samples)
    np.savez(folder / "data.npz", x_train=x, y_train=y, x_test=x[:100], y_test=np.arange(len(x[:100])) % 10)
    return folder / "data.npz"


class Engine:
    """fedsim's rounds, without evaluation."""

    def __init__(self, sections: dict[str, object], folder: Path, operators: bool = False) -> None:
        self.operators = operators
        scenario = parse({"run": {"rounds": 10**9, "eval_every": 10**9}, **sections})
        self.assembly = assemble(scenario)
        self.simulation = Simulation(scenario, self.assembly, folder / "run")
        self.events = scenario.participation.events(self.assembly.setting(scenario))

    def round(self) -> None:
        """A round as `fedsim.run` does it, with as many threads as PyTorch has."""
        with crew.working(torch.get_num_threads(), self.operators):
            self.step()

    def step(self) -> None:
        """A round with the threads that are set."""
        for event in islice(self.events, 2):
            if isinstance(event, Dispatch):
                self.simulation._dispatch([event])
            else:
                self.simulation._combine(event)
                self.simulation.parts.clear()

    def parameters(self) -> torch.Tensor:
        """Of the server ``[d]``, or of all nodes ``[n, d]``, as they are now."""
        params = self.simulation.home.params
        assert isinstance(params, torch.Tensor)
        return params

    def loop(self, lr: float, batch: int) -> ClientLoop | NodeLoop:
        """The alternative on the same data, partition, model and graph."""
        task = self.assembly.task
        rows = [torch.as_tensor(task.indices[a:b]) for a, b in zip(task.offsets, task.offsets[1:], strict=False)]
        parts = (task.kernel.module, task.inputs, task.targets, rows, lr, batch)
        if self.assembly.network is None:
            return ClientLoop(*parts)
        return NodeLoop(*parts, torch.as_tensor(self.assembly.network.mixings[0].matrix.toarray(), dtype=torch.float32))


def alternate(
    a: Callable[[], None], b: Callable[[], None], rounds: tuple[int, int], repeats: int
) -> tuple[float, float, float]:
    """Median seconds per round of each, and the median of the pairwise ratios b / a."""

    def timed(f: Callable[[], None], n: int) -> float:
        start = time.perf_counter()
        for _ in range(n):
            f()
        return (time.perf_counter() - start) / n

    timed(a, max(2, rounds[0] // 5)), timed(b, max(1, rounds[1] // 5))
    pairs = [(timed(a, rounds[0]), timed(b, rounds[1])) for _ in range(repeats)]
    return (
        statistics.median(p[0] for p in pairs),
        statistics.median(p[1] for p in pairs),
        statistics.median(p[1] / p[0] for p in pairs),
    )


def gemm_rate(repeats: int = 9) -> float:
    """Multiply-adds per second times 2 of a 2048 x 2048 float32 matrix product."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / statistics.median(times)


def sections(
    clients: int, model: dict[str, object], file: Path, gossip: bool, batch: int, lr: float
) -> dict[str, object]:
    common = {"data": {"dataset": "npz", "path": str(file), "clients": clients}, "model": model, "name": "speed"}
    if gossip:
        algorithm = {"name": "dpsgd", "lr": lr, "batch_size": batch}
        return {**common, "algorithm": algorithm, "topology": {"graph": "k_regular", "degree": 6}}
    return {**common, "algorithm": {"name": "fedavg", "lr": lr, "batch_size": batch, "local_epochs": 1}}


RESNET = {"name": "resnet18", "groups": 2, "stem": "imagenet"}
CASES = {
    # name: clients, samples per client, input shape, model, gossip, batch, (engine rounds, loop rounds)
    "softmax-gossip-b1": (100, 600, (784,), {"name": "linear"}, True, 1, (100, 10)),
    "softmax-gossip-b16": (100, 600, (784,), {"name": "linear"}, True, 16, (100, 10)),
    "mlp-fedavg": (100, 600, (784,), {"name": "mlp", "hidden": [200]}, False, 32, (1, 1)),
    "cnn-fedavg": (10, 128, (1, 28, 28), {"name": "cnn"}, False, 32, (1, 1)),
    "softmax-one-client": (1, 600, (784,), {"name": "linear"}, False, 32, (20, 20)),
    "mlp-one-client": (1, 600, (784,), {"name": "mlp", "hidden": [200]}, False, 32, (20, 20)),
    "cnn-one-client": (1, 600, (1, 28, 28), {"name": "cnn"}, False, 32, (1, 1)),
    "resnet18-fedavg": (4, 50, (3, 32, 32), RESNET, False, 50, (1, 1)),
    "resnet18-one-client": (1, 150, (3, 32, 32), RESNET, False, 50, (1, 1)),
}  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("case", nargs="*", choices=[*CASES, []], help="default: all")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--repeats", type=int, default=7)
    arguments.add_argument("--operators", action="store_true", help="fedsim with run.operator_threads")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.repeats} repeats, medians")
    print(
        f"{'case':22} {'fedsim ms/round':>16} {'loop ms/round':>14} {'ratio':>7} {'client-steps/s':>15} {'of GEMM':>8}"
    )
    for name in options.case or CASES:
        clients, samples, shape, model, gossip, batch, rounds = CASES[name]
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            given = sections(clients, model, made_data(folder, clients * samples, shape), gossip, batch, 0.01)
            engine = Engine(given, folder, options.operators)
            loop = engine.loop(0.01, batch)
            rate = gemm_rate()
            ours, theirs, ratio = alternate(engine.round, loop.round, rounds, options.repeats)
            steps = clients * (1 if gossip else -(-samples // batch))
            # Forward and weight gradients: 4 operations per parameter and sample; input gradients are not counted.
            share = 4 * engine.assembly.task.dim * (clients * batch if gossip else clients * samples) / ours / rate
            gemm = f"{share:8.0%}" if "cnn" not in name and "resnet" not in name else f"{'':8}"
            print(
                f"{name:22} {ours * 1e3:16.2f} {theirs * 1e3:14.2f} {ratio:6.1f}x {steps / ours:15,.0f} {gemm}",
                flush=True,
            )


if __name__ == "__main__":
    main()
