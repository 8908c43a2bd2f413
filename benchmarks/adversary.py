"""What adversarial training costs: a round with K attack steps beside a plain one.

    python benchmarks/adversary.py [--model linear] [--steps 5] [--clients 10] [--batch 50] [--local-steps 10]

Images of 28 x 28 made from a seed; clients take their local steps in this process, which keeps freed memory as
`fedsim run` does. Plain and attacked rounds take turns, and medians over the repeats count, in seconds of the processor
and, in brackets, of the clock. The bar: an attacked round takes at most 1.3 (K + 1) plain ones, for it evaluates K + 1
gradients per sample.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch

from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.work import Work
from fedsim.clients.malloc import keep_freed_memory
from fedsim.clients.worker import Worker
from fedsim.core import crew
from fedsim.core.job import Job
from fedsim.data.pixels import PixelRange
from fedsim.data.sets import Dataset
from fedsim.models.build import CNN, MLP, LinearModel, build_model
from fedsim.models.losses import cross_entropy
from fedsim.objective.adversary import Adversary
from fedsim.objective.batches import Inputs
from fedsim.objective.supervised import SupervisedTask

BAR = 1.3
ATTACKS: dict[str, dict[str, Any]] = {
    "linf": {},
    "linf, random start": {"random_start": True},
    "linf, on the received model": {"attack_on": "received"},
    "l2": {"norm": "l2"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("steps", 5),
        ("clients", 10),
        ("batch", 50),
        ("local-steps", 10),
        ("repeats", 5),
        ("threads", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", help="one of them alone")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    keep_freed_memory()
    generator = torch.Generator().manual_seed(0)
    rows = 200
    x = torch.rand(asked.clients * rows, 1, 28, 28, generator=generator)
    y = torch.randint(0, 10, (len(x),), generator=generator)
    pixels = PixelRange(torch.tensor(0.0), torch.tensor(1.0))
    data = Dataset("made", x, y, x[:10], y[:10], 10, pixels=pixels)
    owned = np.split(np.arange(len(x)), asked.clients)
    everyone, ones = np.arange(asked.clients), np.ones(asked.clients, dtype=np.int64)
    few = -(-asked.local_steps // 5)  # of the model of which a step takes a hundred times as long
    models = {
        "linear": (LinearModel(), asked.local_steps),
        "mlp 100": (MLP(hidden=[100]), asked.local_steps),
        "cnn": (CNN(), few),
    }
    print(f"{asked.clients} clients, batches of {asked.batch} images, {asked.threads} threads")
    for model, (part, steps) in models.items():
        if asked.model not in (None, model):
            continue
        algorithm = FedAvg(lr=0.01, local_steps=Work.model_validate(steps), batch_size=asked.batch)
        module, loss = build_model(part, (1, 28, 28), 10, 0, torch.float32, 1, model)

        def worker(
            seen: Inputs, module: torch.nn.Module = module, loss: str = loss, algorithm: FedAvg = algorithm
        ) -> Worker:
            task = SupervisedTask(
                data, owned, module, loss, cross_entropy, 0, torch.device("cpu"), torch.float32, seen=seen
            )
            return Worker(task, algorithm)

        workers = {"plain": worker(Inputs())}
        for name, keys in ATTACKS.items():
            workers[name] = worker(Adversary(eps=0.1, steps=asked.steps, **keys).on(pixels))
        start = {"x": workers["plain"].task.initial()}
        job = Job(everyone, ones, steps * ones, start)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in workers}
        with crew.working(asked.threads):
            workers["plain"].run(job)  # the first one meets everything cold
            for _ in range(asked.repeats):
                for name, one in workers.items():
                    began = time.process_time(), time.perf_counter()
                    one.run(job)
                    times[name].append((time.process_time() - began[0], time.perf_counter() - began[1]))
        medians = {name: np.median(found, 0) for name, found in times.items()}
        plain, wall = medians["plain"]
        print(f"{model}, {steps} local steps: a plain round takes {plain:.3f} s ({wall:.3f} s)")
        for name in ATTACKS:
            ratio, wall = medians[name] / medians["plain"]
            most = BAR * (asked.steps + 1)
            verdict = "within" if ratio <= most else "NOT within"
            print(f"  {name}: {ratio:.2f} ({wall:.2f}) plain rounds ({verdict} the bar {most:.1f})")


if __name__ == "__main__":
    main()
