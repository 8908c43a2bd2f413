"""IFCA against the same method written as loops over clients, its identities, and mixtures that it takes apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cluster_loops as slow
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from server_loops import Local

import fedsim
from fedsim.algorithms.ifca import IFCA
from fedsim.core.errors import InputError
from fedsim.engine.run_directory import read_jsonl
from fedsim.scenario.load import parse

Make = Callable[..., Any]
ROUNDS, D = 10, 4


def began(problem: Any, **keys: Any) -> list[np.ndarray[Any, Any]]:
    """The models before the first round."""
    algorithm = IFCA(**keys)
    state = algorithm.init(torch.tensor(problem.x0))
    return [state[name].numpy() for name in algorithm.names]


def models(run: Any, k: int) -> list[np.ndarray[Any, Any]]:
    state = load_file(run.dir / "checkpoint" / "state.safetensors")
    return [state[f"model_{j}"].numpy() for j in range(1, k + 1)]


def agree(found: list[Any], expected: list[Any], first: list[Any]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert np.abs(a - b).max() <= 1e-10 * max(1.0, np.abs(b).max())
    assert max(np.abs(b - c).max() for b, c in zip(expected, first, strict=True)) > 1e-2


@pytest.mark.parametrize("averaging", ["models", "gradients"])
@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("weighting", ["samples", "uniform"])
def test_it_is_algorithm_one(averaging: str, k: int, weighting: str, quadratic: Make, run_scenario: Make) -> None:
    problem = quadratic(n=7, d=D, importance=True)
    keys = {"models": k, "averaging": averaging, "weighting": weighting, "server_lr": 0.8, "initial_seed": 5}
    run = run_scenario(
        data=problem.section(),
        algorithm={"name": "ifca", "lr": 0.1, "lr_decay": 0.9, "local_steps": {"uniform": [1, 4]}, **keys},
        participation={"clients_per_round": 5}, run={"rounds": ROUNDS, "metrics": [{"name": "clusters"}]}, seed=3,
    )  # fmt: skip
    first = began(problem, **keys)
    local = Local(0.1, decay=lambda t: 0.9**t)
    expected, choices = slow.ifca(problem, run.trace, local, first, averaging, 0.8)
    agree(models(run, k), expected, first)
    sizes = np.bincount(list(choices[-1].values()), minlength=k)
    assert np.array_equal(run.params.numpy(), models(run, k)[int(sizes.argmax())])  # what most of the last round chose
    assert len({j for chosen in choices for j in chosen.values()}) > 1
    last = read_jsonl(run.dir / "metrics.jsonl")[-1]
    latest: dict[int, int] = {}
    for chosen in choices[:-1]:
        latest |= chosen
    changed = [j != latest[i] for i, j in choices[-1].items() if i in latest]
    every = np.bincount(list((latest | choices[-1]).values()))
    assert last["cluster_changed"] == pytest.approx(np.mean(changed))
    assert last["cluster_largest"] == pytest.approx(every.max() / every.sum())
    assert last["clusters_used"] == (every > 0).sum()


def test_gradient_averaging_is_option_one(quadratic: Make, run_scenario: Make) -> None:
    problem = quadratic(n=6, d=D)
    keys = {"models": 2, "averaging": "gradients", "weighting": "uniform"}
    run = run_scenario(
        data=problem.section(), algorithm={"name": "ifca", "lr": 0.4, **keys}, run={"rounds": ROUNDS}
    )  # fmt: skip
    first = began(problem, **keys)
    agree(models(run, 2), slow.option_one(problem, first, 0.4, ROUNDS), first)


DIGITS = {"dataset": "digits", "clients": 5, "limit": 200, "partition": {"scheme": "dirichlet", "alpha": 0.5}}


@pytest.mark.parametrize(
    "sections",
    [{}, {"participation": {"fraction": 0.6}}, {"participation": {"mode": "fedbuff", "buffer": 2}},
     {"compression": {"name": "top_k", "k": 50}}], ids=lambda s: "-".join(s),
)  # fmt: skip
def test_one_model_is_fedavg(sections: dict[str, Any], run_scenario: Make) -> None:
    """Bit for bit, with its cost: its only model is sent once, and nobody asks what it loses."""
    keys = {
        "lr": 0.1,
        "local_epochs": 2,
        "batch_size": 8,
        "solver": {"name": "adam", "state": "kept"},
        "server_lr": 0.7,
    }
    runs = [
        run_scenario(
            data=DIGITS, model={"name": "linear"}, algorithm={**named, **keys}, run={"rounds": 4, "dtype": "float32"},
            **sections,
        )
        for named in ({"name": "ifca", "models": 1}, {"name": "fedavg"})
    ]  # fmt: skip
    assert torch.equal(runs[0].params, runs[1].params)
    rows = [[{**row, "wall": 0} for row in read_jsonl(run.dir / "metrics.jsonl")] for run in runs]
    assert rows[0] == rows[1]


def test_where_all_choose_one_model_it_is_fedavg(run_scenario: Make) -> None:
    """The other one is too far away for anybody, and is sent all the same."""
    keys = {"lr": 0.1, "local_epochs": 1, "batch_size": 8}
    far, fedavg = (
        run_scenario(
            data=DIGITS, model={"name": "linear"}, algorithm={**named, **keys}, run={"rounds": 4},
            participation={"fraction": 0.6},
        )
        for named in ({"name": "ifca", "models": 2, "spread": 1e4}, {"name": "fedavg"})
    )  # fmt: skip
    assert torch.equal(far.params, fedavg.params)
    told, other = (read_jsonl(run.dir / "metrics.jsonl")[-1] for run in (far, fedavg))
    d, cohort, size = far.params.numel(), 3, far.params.element_size()
    assert told["bytes_sent"] - other["bytes_sent"] == 4 * cohort * size * (d + 1)  # a model down, a number up
    sizes = pd.read_csv(far.dir / "partition.csv")
    asked = sum(sizes[sizes.columns[1]][row["clients"]].sum() for row in far.trace)
    assert told["loss_evaluations"] == 2 * asked


def test_a_mixture_is_taken_apart(quadratic: Make, run_scenario: Make) -> None:
    """Two groups of clients with one minimiser each: every model becomes that of its group, up to the noise."""
    draw = np.random.default_rng(0)
    centres, group = np.array([[2.0] * D, [-2.0] * D]), np.array([0, 1, 0, 0, 1, 1, 0, 1])
    b = centres[group] + 0.05 * draw.standard_normal((8, D))
    problem = quadratic(n=8, d=D, b=b, x0=np.zeros(D), dense=False)
    run = run_scenario(
        data=problem.section(), algorithm={"name": "ifca", "lr": 0.3, "local_steps": 5}, run={"rounds": 30},
        participation={"fraction": 0.75},
    )  # fmt: skip
    found = models(run, 2)
    chosen = load_file(run.dir / "checkpoint" / "state.safetensors")["cluster"].squeeze(1).numpy()
    assert set(chosen) == {0, 1}
    assert len({(g, j) for g, j in zip(group, chosen, strict=True)}) == 2
    for g in (0, 1):
        mine = found[int(chosen[group == g][0])]
        assert np.abs(mine - centres[g]).max() < 0.1


@pytest.fixture(scope="module")
def permuted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight clients with digits of their own; four of them call them by other names."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, who = (x[:960] / 16).astype(np.float32), np.arange(960) % 8
    y = np.where(who % 2 == 1, (y[:960] + 1) % 10, y[:960])
    file = tmp_path_factory.mktemp("permuted") / "digits.npz"
    half = np.arange(960) < 800
    np.savez(file, x_train=x[half], y_train=y[half], who_train=who[half], x_test=x[~half], y_test=y[~half],
             who_test=who[~half])  # fmt: skip
    return file


def section(file: Path, **algorithm: Any) -> dict[str, Any]:
    return {
        "data": {
            "dataset": "npz", "path": str(file), "local_test": 0.2,
            "partition": {"scheme": "natural_id", "partition_by": "who"},
        },
        "model": {"name": "linear"},
        "algorithm": {"lr": 0.5, "local_epochs": 2, "batch_size": 10, **algorithm},
        "run": {"rounds": 12, "eval_every": 12, "dtype": "float64", "device": "cpu", "threads": 1},
    }  # fmt: skip


def test_clients_are_tested_with_the_model_that_they_chose(permuted: Path, tmp_path: Path) -> None:
    """What a client's row says is what PyTorch says of the model that loses least on its training rows."""
    run = fedsim.run(section(permuted, name="ifca", models=2), out=tmp_path / "ifca")
    common = fedsim.run(section(permuted, name="fedavg"), out=tmp_path / "fedavg")
    assert run.metrics["client_accuracy_mean"].iloc[-1] > common.metrics["client_accuracy_mean"].iloc[-1] + 0.2
    assert run.metrics["client_accuracy_worst"].iloc[-1] > 0.6
    from fedsim.engine.assembly import assemble

    task = assemble(parse(section(permuted, name="ifca", models=2))).task
    everybody = np.arange(8)
    losses = np.stack([task.losses(torch.tensor(v), everybody, everybody, "full").mean[:, 0] for v in models(run, 2)])
    chosen = losses.argmin(0)
    assert set(chosen[::2]) != set(chosen[1::2])
    assert len(set(chosen[::2])) == len(set(chosen[1::2])) == 1
    rows = pd.read_parquet(run.dir / "clients.parquet").query("round == 12").sort_values("client")
    tests = task.own
    assert tests is not None
    for i in range(8):
        flat = torch.tensor(models(run, 2)[chosen[i]])
        own = tests.answers(flat, np.array([i]), True)
        assert own.right is not None
        assert rows["accuracy"].iloc[i] == pytest.approx(float(own.right[0]) / rows["test_samples"].iloc[i])


def test_estimated_losses_do_not_depend_on_shards(permuted: Path, tmp_path: Path) -> None:
    settings = section(permuted, name="ifca", models=3, loss_samples=4)
    settings["run"] |= {"rounds": 3, "eval_every": 3}
    stacked = fedsim.run(settings, out=tmp_path / "stacked")
    apart = fedsim.run({**settings, "run": {**settings["run"], "chunk_rows": 1}}, out=tmp_path / "apart")
    assert float((stacked.params - apart.params).abs().max()) < 1e-12
    whole = fedsim.run({**settings, "algorithm": {**settings["algorithm"], "loss_samples": "full"}}, out=tmp_path / "f")
    assert whole.metrics["loss_evaluations"].iloc[-1] > stacked.metrics["loss_evaluations"].iloc[-1]


@pytest.mark.parametrize(
    "sections,key,says",
    [
        ({"aggregator": {"name": "median"}}, "aggregator.name", "every model is the mean of its own clients"),
        ({"privacy": {"mechanism": "dp_fedavg", "clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-3}},
         "privacy.mechanism", "lose on their own data"),
        ({"algorithm": {"name": "ifca", "spread": 0.0}}, "algorithm.spread", "would stay alike"),
        ({"algorithm": {"name": "ifca", "relaxed_init": 0.1}}, "algorithm.relaxed_init", "with another model"),
        ({"algorithm": {"name": "ifca", "models": 0}}, "algorithm.models", "greater than 0"),
        ({"algorithm": {"name": "fedavg"}, "run": {"metrics": [{"name": "clusters"}]}}, "run.metrics.0.name",
         "the state of 'fedavg' has no changed, cluster"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_first(sections: dict[str, Any], key: str, says: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "data": {"dataset": "digits", "clients": 4, "limit": 60}, "model": {"name": "linear"},
        "algorithm": {"name": "ifca"}, **sections,
    }  # fmt: skip
    with pytest.raises(InputError, match=says) as caught:
        fedsim.run(settings, out=tmp_path / "run")
    assert key in [problem.key for problem in caught.value.problems]
    assert not (tmp_path / "run").exists()


def test_a_model_with_buffers_is_refused(tmp_path: Path) -> None:
    settings = {"data": {"dataset": "digits", "clients": 4, "limit": 60}, "model": {"name": f"{__name__}:with_buffers"},
                "algorithm": {"name": "ifca", "local_steps": 1}, "run": {"rounds": 1}}  # fmt: skip
    with pytest.raises(InputError, match="which would be the same for all clusters"):
        fedsim.run(settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def with_buffers() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 10)
    )
