"""What it is worth that clients move to other actors where one lags, with and without in turns, in the same run.

python benchmarks/ray_balance.py [--actors 2] [--clients 16] [--dear 4] [--repeats 5] [--rounds 10]

Half of the clients take `--dear` times as long as the others, for no reason that fedsim could know, and are placed on
the first half of the actors. A client waits by the clock and does not compute, as if each actor had a machine to
itself, so that actors do not get in each other's way on few cores.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from speed import Engine, alternate
from torch import Tensor

from fedsim.algorithms.fedavg import FedAvg
from fedsim.core.oracle import Oracle

SECONDS = 0.005  # of a cheap client's gradient


@dataclass(frozen=True, kw_only=True)
class Waiting(FedAvg):
    """FedAvg whose clients take as long as the last entry of their gradient says, which is next to constant."""

    def gradient(self, oracle: Oracle, x: Tensor) -> Tensor:
        g = super().gradient(oracle, x)
        time.sleep(SECONDS * float(-g[:, -1].sum()))
        return g


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--dear", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    actors, n = options.actors, options.clients
    random = np.random.default_rng(0)
    A, b = random.uniform(0.5, 2.0, (n, 5)), random.standard_normal((n, 5))
    A[:, -1] = 1e-6
    dear = np.arange(n) % actors < actors / 2  # clients that look alike are dealt out to the actors in turn
    b[:, -1] = np.where(dear, options.dear, 1.0) * 1e6
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        np.savez(folder / "quadratics.npz", A=A, b=b, x0=np.zeros(5))

        def engine(name: str, **backend: Any) -> Engine:
            sections: dict[str, Any] = {
                "data": {"dataset": "quadratic", "file": str(folder / "quadratics.npz")},
                "algorithm": {"name": "ray_balance:Waiting", "lr": 0.01, "batch_size": "full"},
                "backend": {"name": "ray", "actors": actors, "cpus_per_actor": 1 / (2 * actors), **backend},
            }
            return Engine(sections, folder / name)

        moves, stays = engine("moves"), engine("stays", rebalance=False)
        backend: Any = moves.simulation.backend
        rounds = 0
        while math.isnan(backend.balance.measured) and rounds < 1000:
            moves.round()
            rounds += 1
        first, second, ratio = alternate(stays.round, moves.round, (options.rounds, options.rounds), options.repeats)
        b = backend.balance
        stays.simulation.backend.close()
        moves.simulation.backend.close()  # whose cluster it is
    print(
        f"{actors} actors, {n} clients, half of them {options.dear:g} times as dear: the slowest actor took "
        f"{b.before:.2f} times the mean; {b.measured:.2f} since clients moved, expected: {b.expected:.2f}"
    )
    print(f"{1e3 * first:.0f} ms/round where clients stay, {1e3 * second:.0f} ms/round where they moved: {ratio:.2f}x")


if __name__ == "__main__":
    main()
