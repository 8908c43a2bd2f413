"""What it costs to evaluate every client by itself, beside one pass of the same rows through one model.

    python benchmarks/eval_clients.py [--clients 1000] [--rows 60] [--share 0.5] [--hidden 0] [--repeats 9]

`--rows` rows per client of 64 numbers and 10 classes are made from a seed, with sizes that differ (a linear partition
from a third of that to five thirds); `--share` of each client's are held out. The named alternative `pass` is plain
PyTorch: all held-out rows, 1,000 at a time, through one `nn.Module`, their losses and how many are right. `common` is
the whole of fedsim's evaluation of all clients with the server's model: rows gathered, losses and accuracies by client,
and the columns that sum them up. `own` is the same where each client has a model of its own, made of what it receives
and of what it keeps. All take turns in one process, with one thread; medians over the repeats count. The bar: either
takes at most twice the time of `pass`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.round import Effort, Report
from fedsim.core.crew import working
from fedsim.core.types import Message, State
from fedsim.engine.assembly import assemble
from fedsim.engine.evaluate import Evaluation
from fedsim.engine.place import make_backend
from fedsim.engine.states import run_state
from fedsim.scenario.load import given

BAR, INPUTS, CLASSES, AT_A_TIME = 2.0, 64, 10, 1000


@dataclass(frozen=True, kw_only=True)
class Own(FedAvg):
    """FedAvg whose clients keep their last model, and use it."""

    def init_client(self, params: Tensor) -> State:
        return {**super().init_client(params), "v": params}

    def message(self, local: State, received: Message, client: State, effort: Effort) -> Report:
        travels, stays, kept = super().message(local, received, client, effort)
        return travels, stays, {**kept, "v": local["x"]}

    def personal_model(self, received: Message, client: State) -> Tensor:
        return client["v"]


def scenario(folder: Path, args: argparse.Namespace, algorithm: str) -> dict[str, Any]:
    draws, n = np.random.default_rng(0), args.clients * args.rows
    x = draws.standard_normal((n + 100, INPUTS), dtype=np.float32)
    y = draws.integers(CLASSES, size=n + 100)
    np.savez(folder / "rows.npz", x_train=x[:n], y_train=y[:n], x_test=x[n:], y_test=y[n:])
    sizes = np.linspace(args.rows / 3, 5 * args.rows / 3, args.clients).astype(int).tolist()
    model = {"name": "mlp", "hidden": [args.hidden]} if args.hidden else {"name": "linear"}
    partition = {"scheme": "size", "partition_sizes": sizes}
    return {
        "data": {
            "dataset": "npz", "path": str(folder / "rows.npz"), "clients": args.clients, "local_test": args.share,
            "partition": partition, "num_classes": CLASSES,
        },
        "model": model, "algorithm": {"name": algorithm, "lr": 0.1, "batch_size": "full"},
        "run": {"rounds": 1, "device": "cpu"},
    }  # fmt: skip


def evaluations(folder: Path, args: argparse.Namespace, algorithm: str) -> tuple[Callable[[], Any], Any]:
    """What evaluates all clients once, after a round in which all of them worked; and the task."""
    s = given(scenario(folder, args, algorithm))
    a = assemble(s)
    home = run_state(s, a, make_backend(s, a, folder))
    evaluation = Evaluation(s, a).clients
    assert evaluation is not None
    for event in s.participation.events(a.setting(s), 0):
        home.dispatch(event) if hasattr(event, "in_vain") else home.combine(event)
        if not hasattr(event, "in_vain"):
            break
    return lambda: evaluation.row(evaluation.table(home, 1)), a.task


def one_pass(task: Any, hidden: int) -> Callable[[], tuple[float, int]]:
    """Plain PyTorch on the same rows."""
    layers = (
        [nn.Linear(INPUTS, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES)] if hidden else [nn.Linear(INPUTS, CLASSES)]
    )
    net = nn.Sequential(nn.Flatten(), *layers)
    rows = torch.as_tensor(task.tests.indices)
    x, y = task.inputs[rows], task.targets[rows]

    @torch.no_grad()
    def run() -> tuple[float, int]:
        loss, right = 0.0, 0
        for inputs, targets in zip(torch.split(x, AT_A_TIME), torch.split(y, AT_A_TIME), strict=True):
            out = net(inputs)
            loss += float(nn.functional.cross_entropy(out, targets, reduction="sum"))
            right += int((out.argmax(1) == targets).sum())
        return loss / len(x), right

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, kind, usual in (
        ("clients", int, 1000), ("rows", int, 60), ("share", float, 0.5), ("hidden", int, 0), ("repeats", int, 9),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, default=usual)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, working(1):
        common, task = evaluations(Path(folder), args, "fedavg")
        own, _ = evaluations(Path(folder), args, "__main__:Own")
        work = {"pass": one_pass(task, args.hidden), "common": common, "own": own}
        seconds: dict[str, list[float]] = {name: [] for name in work}
        for repeat in range(args.repeats + 1):
            for name, run in work.items():
                before = time.process_time()
                run()
                if repeat:  # the first one loads and allocates
                    seconds[name].append(time.process_time() - before)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{args.clients} clients, {len(task.tests.indices)} rows, {task.dim} parameters, one thread")
    for name, value in medians.items():
        ratio = value / medians["pass"]
        bar = "" if name == "pass" else f"  {'holds' if ratio <= BAR else 'MISSES'} the bar of {BAR:g}"
        print(f"{name:7} {1e3 * value:8.2f} ms  {ratio:5.2f} x{bar}")


if __name__ == "__main__":
    main()
