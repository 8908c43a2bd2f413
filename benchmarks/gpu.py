"""ResNet-18 on a GPU: seconds per round of FedAvg against a plain sequential PyTorch loop on the same device.

    python benchmarks/gpu.py [--repeats 5] [--clients 10] [--samples 500] [--batch 50] [--algorithm fedavg]
    python benchmarks/gpu.py --device cpu --clients 2 --samples 8 --batch 4 --repeats 1     tries the script out

A round is one local epoch of every client, 500 random images of CIFAR's shape each, with group normalisation and the
7x7 stem as in FL-Simulator. Every combination of `run.kernel` and `run.precision` takes turns with a loop of the same
precision, so that a device whose clock drifts slows both; medians are printed with the rows of a chunk and the peak of
the device's memory. The first rounds, in which libraries choose their algorithms, are left out.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from loops import ClientLoop
from speed import Engine, alternate, made_data

from fedsim.backends.in_process import Vectorized
from fedsim.models.build import load_flat


def engine(options: argparse.Namespace, kernel: str, precision: str, file: Path, folder: Path) -> Engine:
    sections: dict[str, object] = {
        "name": "gpu",
        "data": {"dataset": "npz", "path": str(file), "clients": options.clients},
        "model": {"name": "resnet18", "groups": 2, "stem": "imagenet"},
        "algorithm": {"name": options.algorithm, "lr": 0.01, "local_epochs": 1, "batch_size": options.batch},
        "run": {"rounds": 10**9, "device": options.device, "kernel": kernel, "precision": precision},
    }
    return Engine(sections, folder)


def loop_of(made: Engine, batch: int, cast: Callable[[], AbstractContextManager[object]]) -> ClientLoop:
    """The sequential loop on the engine's own data and device, in the same precision."""
    task = made.assembly.task
    loop = made.loop(0.01, batch)
    assert isinstance(loop, ClientLoop)
    loop.rows = [rows.to(task.device) for rows in loop.rows]
    load_flat(loop.model, task.initial())
    forward = loop.model.forward

    def casting(x: torch.Tensor) -> torch.Tensor:
        with cast():
            return forward(x).float()

    loop.model.forward = casting  # type: ignore[method-assign]
    return loop


def waited(round_: Callable[[], None], device: str) -> Callable[[], None]:
    """The round until the device is done with it."""

    def whole() -> None:
        round_()
        if device == "cuda":
            torch.cuda.synchronize()

    return whole


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    arguments.add_argument("--algorithm", default="fedavg")
    for name, default in (("repeats", 5), ("clients", 10), ("samples", 500), ("batch", 50)):
        arguments.add_argument(f"--{name}", type=int, default=default)
    options = arguments.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("PyTorch sees no CUDA device; --device cpu with small numbers tries the script out")
    device = torch.cuda.get_device_name(0) if options.device == "cuda" else "CPU"
    print(f"torch {torch.__version__}, {device}, {options.algorithm}, {options.clients} clients x {options.samples}")
    print(
        f"{'kernel':8} {'precision':10} {'fedsim s/round':>15} {'loop s/round':>13} {'ratio':>6} {'rows':>5} {'GiB':>6}"
    )
    with tempfile.TemporaryDirectory() as place:
        file = made_data(Path(place), options.clients * options.samples, (3, 32, 32))
        for kernel, precision in itertools.product(("stacked", "rows"), ("full", "bf16")):
            made = engine(options, kernel, precision, file, Path(place) / f"{kernel}-{precision}")
            bf16 = precision == "bf16"
            cast = (lambda: torch.autocast(options.device, torch.bfloat16)) if bf16 else nullcontext
            loop = loop_of(engine(options, "rows", "full", file, Path(place) / "loop"), options.batch, cast)
            if options.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            a, b, ratio = alternate(
                waited(made.round, options.device), waited(loop.round, options.device), (1, 1), options.repeats
            )
            backend = made.simulation.backend
            rows = backend.worker.chunk_rows if isinstance(backend, Vectorized) else 0
            peak = torch.cuda.max_memory_allocated() / 2**30 if options.device == "cuda" else float("nan")
            print(f"{kernel:8} {precision:10} {a:15.3f} {b:13.3f} {ratio:6.2f} {rows:5} {peak:6.1f}", flush=True)


if __name__ == "__main__":
    main()
