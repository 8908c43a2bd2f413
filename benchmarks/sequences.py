"""A local step of many clients with recurrent nets and small transformers: at once, one by one, and in a PyTorch loop.

    python benchmarks/sequences.py [--clients 20] [--batch 16] [--repeats 15] [--cpu]

The loop is a lean one: one module whose parameters become each client's, slices of one tensor, one backward and one
step of SGD each. All take turns in one process, with one thread. Medians and smallest times count, of the wall clock,
or with ``--cpu`` of the thread's processor time, which other programs disturb less. The rate is that of the matrix
products of a step (three times those of the forward pass) next to the rate of a product of 1024 x 1024, measured in
the same run. The bars: where models are computed at once at least 2.5 times one by one, and nowhere below 0.97 times
the loop.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from fedsim.clients.malloc import keep_freed_memory
from fedsim.core.fields import part_from
from fedsim.core.tokens import Tokens
from fedsim.models.build import build_model, flatten
from fedsim.models.losses import cross_entropy
from fedsim.objective.general import RowKernel
from fedsim.objective.kernel import Kernel
from fedsim.objective.stacked import build_kernel

VOCABULARY, LR = 80, 0.1
TRANSFORMER = {"name": "transformer", "layers": 2, "width": 32, "heads": 4}
LSTM = {"name": "char_lstm", "embedding": 8, "layers": 1, "hidden": 32}
CASES: tuple[tuple[str, dict[str, Any], int, bool], ...] = (  # words, model, positions, a target at every position
    ("transformer, 2 layers of width 32", TRANSFORMER, 20, False),
    ("the same, every position", TRANSFORMER, 20, True),
    ("transformer, 2 layers of width 128, every position", {**TRANSFORMER, "width": 128}, 20, True),
    ("LSTM, one layer of 16", {**LSTM, "hidden": 16}, 20, True),
    ("LSTM, one layer of 32", LSTM, 20, True),
    ("LSTM, two layers of 32", {**LSTM, "layers": 2}, 20, False),
    ("LSTM, one layer of 64", {**LSTM, "hidden": 64}, 20, True),
)


class Loop:
    """One client after the other in plain PyTorch."""

    def __init__(self, module: nn.Module, x: Tensor, inputs: Tensor, targets: Tensor) -> None:
        self.module, self.x, self.inputs, self.targets = module, x.clone(), inputs, targets
        self.optimiser = torch.optim.SGD(module.parameters(), LR)
        self.loss = nn.CrossEntropyLoss()

    def step(self) -> None:
        for row, inputs, targets in zip(self.x, self.inputs, self.targets, strict=True):
            vector_to_parameters(row, self.module.parameters())
            self.optimiser.zero_grad()
            self.loss(self.module(inputs).flatten(0, -2), targets.flatten()).backward()
            self.optimiser.step()


def flops(module: nn.Module, inputs: Tensor) -> int:
    """Of the products with weights, forward and backward, of one client's minibatch."""
    found = 0

    def count(layer: nn.Module, _given: Any, out: Any) -> None:
        nonlocal found
        weights = [p for p in layer.parameters(recurse=False) if p.dim() == 2]
        found += 6 * sum(p.numel() for p in weights) * (out.numel() // out.shape[-1])

    kinds = (nn.Linear, nn.LSTM)
    hooks = [layer.register_forward_hook(count) for layer in module.modules() if isinstance(layer, kinds)]
    with torch.no_grad():
        module(inputs)
    for hook in hooks:
        hook.remove()
    return found


def measured(ways: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, call in ways.items():
            began = clock()
            call()
            if turn:  # the first one meets everything cold
                found[name].append(clock() - began)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("clients", 20), ("batch", 16), ("repeats", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--cpu", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    clock = time.thread_time if asked.cpu else time.perf_counter
    square = torch.randn(1024, 1024)
    m, b = asked.clients, asked.batch
    print(f"{m} clients, minibatches of {b}, one thread; medians (smallest) in ms a step of all clients")
    for words, section, positions, every in CASES:
        tokens = Tokens(VOCABULARY, True, positions=positions) if every else Tokens(VOCABULARY, True)
        part = part_from("model", "name", section)
        module = build_model(part, (positions,), VOCABULARY, 0, torch.float32, name=section["name"], tokens=tokens)[0]
        random = torch.Generator().manual_seed(0)
        inputs = torch.randint(VOCABULARY, (m, b, positions), generator=random)
        targets = torch.randint(VOCABULARY, (m, b, positions) if every else (m, b), generator=random)
        x, lr = flatten(module).repeat(m, 1), torch.full((m, 1), LR)
        kernel = build_kernel(module, cross_entropy, torch.device("cpu"), inputs[0, 0], others=inputs[0])
        loop = Loop(module, x, inputs, targets)
        kernels: dict[str, Kernel] = {"fedsim": kernel, "rows": RowKernel(module, cross_entropy)}
        models = {name: x.clone() for name in kernels}
        work = m * flops(module, inputs[0])
        ways: dict[str, Callable[[], object]] = {
            name: partial(of.descend, models[name], inputs, targets, 1 / b, lr) for name, of in kernels.items()
        }
        ways |= {"loop": loop.step, "product": partial(torch.mm, square, square)}
        found = measured(ways, asked.repeats, clock)
        far = max(float((v - loop.x).abs().max()) for v in models.values())
        assert far < 1e-3, f"{words}: the parameters differ by {far}"
        middle = {name: 1e3 * statistics.median(times) for name, times in found.items()}
        least = {name: 1e3 * min(times) for name, times in found.items()}
        rate = (work / middle["fedsim"]) / (2 * 1024**3 / middle["product"])
        print(f"  {words} ({type(kernel).__name__}, {x.shape[1]:,} parameters)")
        print("    " + ", ".join(f"{n} {middle[n]:.1f} ({least[n]:.1f})" for n in ("fedsim", "rows", "loop")))
        print(
            f"    rows / fedsim {middle['rows'] / middle['fedsim']:.2f} ({least['rows'] / least['fedsim']:.2f}), "
            f"loop / fedsim {middle['loop'] / middle['fedsim']:.2f} ({least['loop'] / least['fedsim']:.2f}), "
            f"{100 * rate:.0f} % of the rate of products"
        )


if __name__ == "__main__":
    main()
