"""What the virtual clock costs.

    python benchmarks/clock.py lazy [--clients 1000] [--combines 5000]           lazy batches against each arrival alone
    python benchmarks/clock.py events [--clients 1000000] [--events 10000000]    a schedule alone: seconds, peak memory

`lazy` runs asynchronous FedAvg of softmax regression 784-10 (log-normal speeds, one step of batch 16) twice on the
same schedule, once with the local work of all pending clients in one batch, once with every job computed by itself when
it is dispatched, and compares the parameters.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
from speed import Engine, made_data

from fedsim.backends.in_process import Vectorized
from fedsim.core.job import Job
from fedsim.devices.system import Durations, SystemSection
from fedsim.participation import schedule
from fedsim.participation.base import Dispatch
from fedsim.participation.fates import jobs_of
from fedsim.participation.policy import EachArrival


class Eager(Vectorized):
    """Every job is computed by itself as soon as it is dispatched."""

    def dispatch(self, job: Job) -> None:
        for i in range(len(job.clients)):
            one = slice(i, i + 1)
            rows = (job.clients[one], job.rounds[one], job.steps[one])
            super().dispatch(Job(*rows, job.received, job.numbers[one]))
            self.compute()


def lazy(clients: int, combines: int) -> None:
    """Seconds per combine of both, their ratio, and the largest difference of the parameters."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        file = made_data(folder, 20 * clients, (784,))
        sections = {
            "name": "lazy",
            "data": {"dataset": "npz", "path": str(file), "clients": clients},
            "model": {"name": "linear"},
            "algorithm": {"name": "fedavg", "lr": 0.01, "local_steps": 1, "batch_size": 16},
            "participation": {"mode": "asynchronous", "weights": "identical", "staleness": {"polynomial": 0.5}},
            "system": {"compute": {"model": "lognormal", "sigma": 0.5}},
        }
        seconds, params = {}, {}
        for name, backend in (("lazy", Vectorized), ("alone", Eager)):
            engine = Engine(sections, folder)
            engine.simulation.home.backend = backend(engine.simulation.backend.worker)
            start = time.perf_counter()
            for event in islice(engine.events, 2 * combines):
                if isinstance(event, Dispatch):
                    engine.simulation._dispatch([event])
                else:
                    engine.simulation._combine(event)
            seconds[name] = (time.perf_counter() - start) / combines
            params[name] = engine.simulation.home.kept()["x"]
        gap = float((params["lazy"] - params["alone"]).abs().max() / params["alone"].abs().max())
        print(f"{clients:,} clients, {combines:,} combines: lazy {seconds['lazy'] * 1e6:.0f} us per combine,", end=" ")
        ratio = seconds["alone"] / seconds["lazy"]
        print(f"alone {seconds['alone'] * 1e6:.0f} us, ratio {ratio:.1f}, difference {gap:.1e}")


def events(clients: int, count: int) -> None:
    """An asynchronous schedule with random job durations, without training."""
    section = SystemSection.model_validate(
        {"compute": {"model": "lognormal", "sigma": 0.5}, "jitter": {"model": "exponential", "mean": 0.1}}
    )
    start = time.perf_counter()
    durations = Durations(section, clients, 0)
    made = 0
    for _ in schedule.steps(EachArrival(), clients, jobs_of(durations, lambda *_: 1)):
        made += 1
        if made == count:
            break
    wall = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{clients:,} clients, {made:,} events: {wall:.0f} s, peak memory {peak:.2f} GiB")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", choices=["lazy", "events"])
    arguments.add_argument("--clients", type=int)
    arguments.add_argument("--combines", type=int, default=5000)
    arguments.add_argument("--events", type=int, default=10_000_000)
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    if options.what == "lazy":
        lazy(options.clients or 1000, options.combines)
    else:
        events(options.clients or 1_000_000, options.events)


if __name__ == "__main__":
    main()
