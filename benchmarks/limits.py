"""How far each kernel is from what the machine can do: its rate of matrix products and of memory, in the same run.

    python benchmarks/limits.py [--repeats 7] [--threads 1] [--write [PAGE]] [case ...]

Operations of a step are counted by PyTorch's `FlopCounterMode` on the plain model (products and convolutions, forward
and backward), bytes from shapes: what has to be read and written at least once, each number once (parameters in and
out, inputs, messages). Both have a rate that is measured between the cases: a float32 product of 1024 x 1024, and
``a = b + s * c`` over arrays far larger than any cache. The longer of the two times is the bound that binds, and the
share is that time over the one measured. More than 100 % means that data come from a cache. Of one thread the time is
that of the processor, which other programs disturb less; of several it is that of the clock. `--write` puts the table
into docs/speed.md, and a JSON file beside it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from eval_clients import AT_A_TIME, CLASSES, evaluations
from peer.works import network
from tables import PAGE, load_words, markdown, page_of, said_of, with_earlier, wrapped, write
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedsim.clients.malloc import keep_freed_memory
from fedsim.core import crew
from fedsim.core.fields import make_part, part_from
from fedsim.core.registry import lookup
from fedsim.core.tokens import Tokens
from fedsim.models.build import build_model, flatten
from fedsim.models.losses import cross_entropy
from fedsim.objective import minibatch
from fedsim.objective.kernel import Walk
from fedsim.objective.stacked import build_kernel
from fedsim.privacy.noise import gaussian
from fedsim.privacy.updates import clip_update

VOCABULARY, POSITIONS, LR, SIDE, STREAM, SECONDS = 80, 20, 0.01, 1024, 2**25, 0.2
STEPS = 20  # of SGD, one after the other: a round of 640 samples
TRANSFORMER = {"name": "transformer", "layers": 2, "width": 32, "heads": 4}
LSTM = {"name": "char_lstm", "embedding": 8, "layers": 1, "hidden": 32}


@dataclass(frozen=True)
class Case:
    """Something that fedsim computes, with the operations and bytes that it takes at least."""

    words: str
    run: Callable[[], object]
    flops: float
    bytes: float
    times: int = 1
    """How often `run` does it."""


def counted(module: nn.Module, inputs: Tensor, targets: Tensor) -> int:
    """Operations of one client's step: products and convolutions, forward and backward."""
    # oneDNN's LSTM is one operator that the counter does not know; to do without it warns of Intel's graphics cards
    with warnings.catch_warnings(action="ignore"), torch.backends.mkldnn.flags(enabled=False):
        counter = FlopCounterMode(display=False)
        with counter:
            loss = nn.functional.cross_entropy(module(inputs).flatten(0, -2), targets.flatten())
            loss.backward()  # type: ignore[no-untyped-call]
    return int(counter.get_total_flops())


def size(*tensors: Tensor) -> int:
    """Bytes of tensors."""
    return sum(t.numel() * t.element_size() for t in tensors)


def step(words: str, module: nn.Module, inputs: Tensor, targets: Tensor) -> Case:
    """Local steps of SGD of all clients as a round takes them: minibatches ``[m, b, ...]``, again and again."""
    m, b = inputs.shape[:2]
    x, lr = flatten(module).repeat(m, 1), torch.full((m, 1), LR)
    kernel = build_kernel(module, cross_entropy, torch.device("cpu"), inputs[0, 0], others=inputs[0])
    descend = minibatch.descending(kernel, x, inputs[0], b, lr)
    index = torch.arange(m * b).view(m, 1, b).expand(m, STEPS, b)
    walk = Walk(index, targets.unsqueeze(1).expand(m, STEPS, *targets.shape[1:]), 1 / b)

    def steps() -> None:
        if minibatch.walks(kernel, x, inputs[0], b):
            kernel.walk(x, inputs.flatten(0, 1), walk, lr)
            return
        for _ in range(STEPS):
            descend(inputs, targets, 1 / b)

    flops = m * counted(module, inputs[0], targets[0])
    return Case(words, steps, flops, 2 * size(x) + size(inputs, targets), STEPS)


def images(words: str, model: str, clients: int, b: int, shape: tuple[int, ...]) -> Case:
    """A step of one of the models of `peers.py`."""
    return step(words, network(model), torch.randn(clients, b, *shape), torch.randint(10, (clients, b)))


def text(words: str, section: dict[str, Any]) -> Case:
    """A step of a model of text, a target at every position."""
    tokens = Tokens(VOCABULARY, True, positions=POSITIONS)
    part = part_from("model", "name", section)
    name = section["name"]
    module = build_model(part, (POSITIONS,), VOCABULARY, 0, torch.float32, name=name, tokens=tokens)[0]
    draw = torch.randint(VOCABULARY, (2, 20, 16, POSITIONS))
    return step(words, module, draw[0], draw[1])


def clipped(words: str, model: str, clients: int, b: int) -> Case:
    """The sum of clipped per-sample gradients of all clients."""
    module, inputs, targets = network(model), torch.randn(clients, b, 784), torch.randint(10, (clients, b))
    x, bound = flatten(module).repeat(clients, 1), torch.ones(clients, 1)
    kernel = build_kernel(module, cross_entropy, torch.device("cpu"), inputs[0, 0], others=inputs[0])
    flops = clients * counted(module, inputs[0], targets[0])
    bytes_ = 2 * size(x) + size(inputs, targets)
    return Case(words, lambda: kernel.clipped_sum(x, inputs, targets, None, bound, None), flops, bytes_)


def updates() -> Case:
    """Clients' updates clipped, with noise for each of their numbers: what local DP does to messages."""
    rows, clients = torch.randn(100, 159_010), np.arange(100)

    def run() -> Tensor:
        noise = gaussian((0, 0), "message", clients, 1, width=rows.shape[1], device=rows.device, dtype=rows.dtype)
        return clip_update(rows, 1.0)[0] + 0.1 * noise

    return Case("clipping and noise of 100 updates of 159,010 numbers", run, 5 * rows.numel(), 2 * size(rows))


def rule(words: str, name: str, products: int = 0, **keys: object) -> Case:
    """A robust rule over 100 messages; `products` of every pair of them."""
    rows = torch.randn(100, 159_010)
    made = make_part(lookup("aggregator", name), keys)
    flops = rows.numel() * (2 + products * len(rows))
    return Case(f"{words} of 100 messages of 159,010 numbers", lambda: made.of(rows), flops, size(rows))


def evaluation(words: str, folder: Path, algorithm: str) -> Case:
    """Every client's own test rows: 1,000 clients of 30 rows, an MLP 64-32-10."""
    own = folder / words.partition(",")[0].replace(" ", "-")
    own.mkdir(exist_ok=True)  # the other case may have made it
    asked = Namespace(clients=1000, rows=60, share=0.5, hidden=32)
    run, task = evaluations(own, asked, algorithm)
    rows = len(task.tests.indices)
    models = asked.clients if "own" in words else 1
    assert task.inputs.shape[1:] == (64,), f"rows of {task.inputs.shape[1:]}"
    assert CLASSES < AT_A_TIME
    return Case(words, run, 2 * task.dim * rows, 4 * (64 * rows + models * task.dim))


CASES: dict[str, Callable[[Path], Case]] = {
    "softmax-b1": lambda _: images("softmax 784-10, 100 clients, batch 1", "softmax", 100, 1, (784,)),
    "softmax-b16": lambda _: images("softmax 784-10, 100 clients, batch 16", "softmax", 100, 16, (784,)),
    "mlp": lambda _: images("MLP 784-200-10, 20 clients, batch 32", "mlp", 20, 32, (784,)),
    "mlp-one": lambda _: images("MLP 784-200-10, one client, batch 32", "mlp", 1, 32, (784,)),
    "cnn": lambda _: images("CNN of LeNet's size, 5 clients, batch 32", "cnn", 5, 32, (1, 28, 28)),
    "cnn-one": lambda _: images("CNN of LeNet's size, one client, batch 32", "cnn", 1, 32, (1, 28, 28)),
    "transformer": lambda _: text("transformer, 2 layers of width 32, 20 clients, batch 16", TRANSFORMER),
    "lstm": lambda _: text("LSTM, one layer of 32, 20 clients, batch 16", LSTM),
    "clip-samples": lambda _: clipped("clipped gradients of each sample, MLP 784-200-10, 10 clients", "mlp", 10, 32),
    "clip-updates": lambda _: updates(),
    "median": lambda _: rule("median", "median"),
    "trimmed-mean": lambda _: rule("trimmed mean", "trimmed_mean", f=24),
    "krum": lambda _: rule("Krum", "krum", products=1, f=24),
    "eval-common": lambda f: evaluation("evaluation of each of 1,000 clients, common model", f, "fedavg"),
    "eval-own": lambda f: evaluation("evaluation of each of 1,000 clients, own models", f, "eval_clients:Own"),
}


def clock() -> float:
    """Seconds of the processor where there is one thread, else of the wall clock."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def median(work: Callable[[], object], repeats: int, seconds: float = 0.0) -> float:
    """Median seconds of `work` after two times that do not count; at least `repeats`, and for `seconds`."""
    work()
    work()
    found: list[float] = []
    while len(found) < repeats or (sum(found) < seconds and len(found) < 1000):
        before = clock()
        work()
        found.append(clock() - before)
    return statistics.median(found)


class Machine:
    """What the machine can do, as it is now."""

    def __init__(self) -> None:
        self.a, self.b = torch.randn(2, SIDE, SIDE)
        self.out, self.x, self.y = torch.zeros(3, STREAM)

    def rates(self, repeats: int) -> tuple[float, float]:
        """Operations of a product and bytes of a triad, each a second."""
        product = median(lambda: torch.mm(self.a, self.b), repeats)
        triad = median(lambda: torch.add(self.x, self.y, alpha=3.0, out=self.out), repeats)
        return 2 * SIDE**3 / product, 3 * size(self.x) / triad


def judged(case: Case, seconds: float, gemm: float, triad: float) -> dict[str, Any]:
    """How far a case is from its bound."""
    compute, memory = case.flops / gemm, case.bytes / triad
    return {
        "words": case.words, "seconds": seconds, "flops": case.flops, "bytes": case.bytes, "gemm": gemm, "triad": triad,
        "binds": "products" if compute >= memory else "memory", "share": max(compute, memory) / seconds,
    }  # fmt: skip


def table(found: list[dict[str, Any]]) -> str:
    rows = [
        [
            f["words"], f"{1e3 * f['seconds']:.4g}", f"{f['flops'] / f['seconds'] / 1e9:.3g}",
            f"{f['bytes'] / f['seconds'] / 1e9:.3g}", f["binds"], f"{f['share']:.0%}".replace("%", " %"),
        ]
        for f in found
    ]  # fmt: skip
    return markdown(["what", "ms", "GFLOP/s", "GB/s", "what binds", "of that bound"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="*", choices=[*CASES, []], help="default: all")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", nargs="?", type=page_of, const=PAGE, help="into this page (default: docs/speed.md)")
    options = parser.parse_args()
    began, machine_words = time.perf_counter(), load_words()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    machine, found = Machine(), []
    with tempfile.TemporaryDirectory() as place, crew.working(options.threads):
        for name in options.case or CASES:
            case = CASES[name](Path(place))
            before = machine.rates(options.repeats)
            seconds = median(case.run, options.repeats, SECONDS) / case.times
            after = machine.rates(options.repeats)
            gemm, triad = ((x + y) / 2 for x, y in zip(before, after, strict=True))
            found.append(judged(case, seconds, gemm, triad))
            print(table(found[-1:]).splitlines()[-1], flush=True)
    rates = [statistics.median(f[key] for f in found) / 1e9 for key in ("gemm", "triad")]
    head = (
        f"{options.threads} {'thread' if options.threads == 1 else 'threads'} on {machine_words}. Matrix products: "
        f"{rates[0]:.0f} GFLOP/s, memory: {rates[1]:.1f} GB/s (medians over the rows). PyTorch {torch.__version__}."
    )
    print(f"\n{wrapped(head)}\n\n{table(found)}\n\n{time.perf_counter() - began:.0f} s in all")
    if options.write:
        by_name = {row["words"]: row for row in found}
        every, kept = with_earlier("limits", options.write, by_name, lambda of: {r["words"]: r for r in of["rows"]})
        rows = list(every.values())
        facts = {"threads": options.threads, "machine": machine_words, "rows": rows}
        write("limits", f"{wrapped(head + said_of(kept))}\n\n{table(rows)}", facts, options.write)


if __name__ == "__main__":
    main()
