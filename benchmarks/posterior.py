"""How near the samples of a run are to the posterior: against a long centralised chain on all data at once.

    python benchmarks/posterior.py [SCENARIO] [--set key.path=value]... [--rounds N]

The scenario (default: scenarios/fsgld-logistic.yaml) is run with each surrogate. The reference is written here on its
own: Langevin proposals from the whole data's gradient with a Metropolis step, so that its law is the posterior itself.
Printed are, over the parameters, the largest distance of means in posterior standard deviations, the smallest and the
largest ratio of standard deviations, and the squared maximum mean discrepancy (a Gaussian kernel, its width the median
distance) of `--points` samples of each, next to that of the reference with itself.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

import fedsim
from fedsim.core.errors import RunError
from fedsim.engine.assembly import assemble
from fedsim.objective.supervised import SupervisedTask
from fedsim.scenario.load import load

ROOT = Path(__file__).parents[1]
SURROGATES = (
    "none",
    "laplace",
    "{name: laplace, covariance: diagonal}",
    "{name: sgld, lr: 0.01, covariance: full}",
    "{name: sgld, lr: 0.01}",
)
CHAINS = 50


def centralised(scenario: fedsim.Scenario, steps: int, every: int) -> Tensor:
    """Samples ``[k, d]`` of the posterior: the Metropolis-adjusted Langevin algorithm on all data, in float64."""
    task = assemble(scenario).task
    inner = getattr(task, "inner", task)
    assert isinstance(inner, SupervisedTask)
    inputs, targets = inner.inputs.double().flatten(1), inner.targets
    prior, one = getattr(scenario.algorithm, "prior_precision", 1.0), inner.loss_name == "logistic"
    classes = 2 if one else int(targets.max()) + 1
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=torch.float64)], 1)
    hot = torch.nn.functional.one_hot(targets, classes).double()
    generator = torch.Generator().manual_seed(0)

    def density(w: Tensor) -> tuple[Tensor, Tensor]:
        z = inputs @ w  # w [chains, features + 1, outputs]
        logs = torch.log_softmax(torch.cat([torch.zeros_like(z), z], -1) if one else z, -1)
        value = (logs * hot).sum((-2, -1)) - prior / 2 * w.square().sum((-2, -1))
        return value, inputs.T @ (hot - logs.exp())[..., 1 if one else 0 :] - prior * w

    w, kept, h, accepted = (
        torch.zeros(CHAINS, inputs.shape[1], 1 if one else classes, dtype=torch.float64),
        [],
        1e-3,
        0.0,
    )
    value, slope = density(w)
    for step in range(steps):
        noise = torch.randn(w.shape, generator=generator, dtype=torch.float64)
        moved = w + h / 2 * slope + h**0.5 * noise
        there, back = density(moved)
        forth = -noise.square().sum((-2, -1)) / 2
        ret = -(w - moved - h / 2 * back).square().sum((-2, -1)) / (2 * h)
        takes = torch.rand(CHAINS, generator=generator).double().log() < there - value + ret - forth
        rate, takes = float(takes.double().mean()), takes.view(-1, 1, 1)
        w, slope = torch.where(takes, moved, w), torch.where(takes, back, slope)
        value = torch.where(takes.view(-1), there, value)
        if step < steps // 4:
            h *= 1.02 if rate > 0.57 else 0.98  # tuned first, and fixed afterwards
        else:
            accepted += rate / (steps - steps // 4)
            if step % every == 0:
                kept.append(w.clone())
    print(f"centralised: {steps} steps of {CHAINS} chains, step length {h:.2g}, {accepted:.0%} accepted")
    found = torch.stack(kept).flatten(0, 1)
    return torch.cat([found[:, :-1].mT.flatten(1), found[:, -1]], 1)  # as the model's vector: weights, then biases


def discrepancy(x: Tensor, y: Tensor, points: int) -> float:
    """The unbiased estimate of MMD^2 of `points` samples of each."""
    x, y = (v[torch.linspace(0, len(v) - 1, points).long()] for v in (x, y))
    width = torch.cdist(y, y).median()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(a, b).square() / (2 * width**2))

    off = points * (points - 1)
    within = sum(float(kernel(v, v).sum() - points) / off for v in (x, y))
    return within - 2 * float(kernel(x, y).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", nargs="?", default=str(ROOT / "scenarios" / "fsgld-logistic.yaml"))
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--steps", type=int, default=4000, help="of the centralised chain")
    parser.add_argument("--points", type=int, default=2000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    truth = centralised(load(arguments.scenario, arguments.settings), arguments.steps, 25)
    mean, std = truth.mean(0), truth.std(0)
    halves = truth[: len(truth) // 2], truth[len(truth) // 2 :]
    print(f"{'surrogate':42} {'means apart':>12} {'std ratio':>14} {'MMD^2':>10}  log-lik.  seconds")
    apart = float(((halves[0].mean(0) - halves[1].mean(0)) / std).abs().max())
    print(f"{'(the reference with itself)':42} {apart:12.3f} {'':>14} {discrepancy(*halves, arguments.points):10.5f}")
    for surrogate in SURROGATES:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            scenario = load(arguments.scenario, [*arguments.settings, f"algorithm.surrogate={surrogate}"])
            try:
                run = fedsim.run(scenario, out=Path(folder) / "run")
            except RunError as error:
                print(f"{surrogate:42} {str(error).partition(';')[0]}")
                continue
            taken = time.perf_counter() - start
            samples = load_file(run.dir / "samples.safetensors")["samples"].double().flatten(0, 1)
            said = run.metrics["ensemble_log_likelihood"].iloc[-1]
        apart = float(((samples.mean(0) - mean) / std).abs().max())
        ratio = (samples.std(0) / std).numpy()
        ratios = f"{np.min(ratio):.2f} to {np.max(ratio):.2f}"
        found = discrepancy(samples, truth, arguments.points)
        print(f"{surrogate:42} {apart:12.3f} {ratios:>14} {found:10.5f} {said:9.4f} {taken:8.1f}")


if __name__ == "__main__":
    main()
