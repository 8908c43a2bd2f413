"""What clients together cost of models that drop, beside client by client and a plain PyTorch loop.

    python benchmarks/dropout.py [--clients 100] [--batch 16] [--steps 5] [--repeats 9]

One round of FedAvg's local steps on digits in this process, by one thread. The three ways take turns; medians of the
seconds of the processor count. Masks of both kernels are the same ones, those of the loop are of torch's generator.
"""

from __future__ import annotations

import argparse
import copy
import time
from functools import partial

import numpy as np
import torch
from torch import nn

from fedsim.clients.worker import Worker
from fedsim.core.job import Job
from fedsim.engine.assembly import assemble
from fedsim.scenario.load import parse


class Encoder(nn.Module):
    """An encoder layer with PyTorch's dropout of 0.1, over the rows of an image."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.enc, self.head = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, num_outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.enc(x.reshape(-1, 8, 8)).mean(1))


def perceptron(num_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, num_outputs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("clients", 100), ("batch", 16), ("steps", 5), ("repeats", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    n = asked.clients
    clients, ones = np.arange(n), np.ones(n, dtype=np.int64)
    for model in ("perceptron", "Encoder"):
        sections = {
            "data": {"dataset": "digits", "clients": n},
            "model": {"name": f"dropout:{model}"},
            "algorithm": {"name": "fedavg", "lr": 0.1, "local_steps": asked.steps, "batch_size": asked.batch},
        }
        tasks = {way: assemble(parse({**sections, "run": {"kernel": way}})).task for way in ("auto", "rows")}
        workers = {way: Worker(task, parse(sections).algorithm) for way, task in tasks.items()}
        job = Job(clients, ones, ones * asked.steps, {"x": tasks["auto"].initial()})
        plan = tasks["rows"].plan(clients, ones, ones * asked.steps, asked.batch, False)
        batches, inputs = plan.batches, tasks["rows"].inputs  # type: ignore[attr-defined]
        module = tasks["rows"].kernel.module  # type: ignore[attr-defined]

        def loop(module: nn.Module = module, batches: object = batches, inputs: torch.Tensor = inputs) -> None:
            for i in range(n):
                local = copy.deepcopy(module).train()
                sgd = torch.optim.SGD(local.parameters(), lr=0.1)
                for k in range(asked.steps):
                    sgd.zero_grad()
                    nn.functional.cross_entropy(local(inputs[batches.index[i, k]]), batches.targets[i, k]).backward()
                    sgd.step()

        ways = {
            "together": partial(workers["auto"].run, job),
            "client by client": partial(workers["rows"].run, job),
            "PyTorch loop": loop,
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(asked.repeats + 1):
            for name, way in ways.items():
                started = time.process_time()
                way()
                if turn:  # the first warms up
                    seconds[name].append(time.process_time() - started)
        median = {name: float(np.median(found)) for name, found in seconds.items()}
        far = float((workers["auto"].run(job)["delta"] - workers["rows"].run(job)["delta"]).abs().max())
        shown = ", ".join(f"{name} {1000 * s:.0f} ms" for name, s in median.items())
        loops, rows = (median[k] / median["together"] for k in ("PyTorch loop", "client by client"))
        print(f"{model}: {shown}; together {rows:.1f}x client by client, {loops:.1f}x the loop; apart {far:.0e}")


if __name__ == "__main__":
    main()
