"""FSGLD: exact values, the reference loop, surrogates, and what chains do not depend on."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fedsim
from fedsim.algorithms.fsgld import FSGLD
from fedsim.algorithms.posterior import PosteriorOracle, PosteriorTask
from fedsim.algorithms.surrogates import Gaussians, Local, Surrogate
from fedsim.clients.worker import Worker
from fedsim.core import rng
from fedsim.core.errors import InputError
from fedsim.core.fields import part_from
from fedsim.core.job import VISIT, Job
from fedsim.data.sets import Quadratic
from fedsim.deployment.noise import check_trust
from fedsim.engine.assembly import assemble
from fedsim.objective.quadratic import QuadraticTask
from fedsim.scenario.load import given

sys.path.insert(0, str(Path(__file__).parent.parent / "reference"))

from fsgld_loop import chain, handed_over

A = np.array([[2.0, 1], [1, 3], [4, 1]])
B = np.array([[1.0, 0], [-1, 2], [0, 1]])
THIRD = np.full(3, 1 / 3)
GAUSSIAN: dict[str, Any] = {  # one dimension, five shards of twenty samples of unit variance, with these means
    "A": np.full((5, 1), 20.0), "b": np.array([[-4.0], [-1], [0.5], [2], [5]]), "x0": np.zeros(1),
}  # fmt: skip
LOGISTIC: dict[str, Any] = {
    "data": {
        "dataset": "synthetic",
        "clients": 4,
        "alpha": 1.0,
        "beta": 1.0,
        "dimension": 3,
        "num_classes": 3,
        "max_samples": 40,
    },
    "model": {"name": "linear", "init": "zeros"},
    "algorithm": {"name": "fsgld", "lr": 2e-3, "local_steps": 3, "batch_size": 5, "chains": 3},
    "participation": {"clients_per_round": 1},
    "run": {"rounds": 8, "eval_every": 4, "dtype": "float64", "device": "cpu", "threads": 1, "trace": True},
}


def quadratic(A: Any = A, b: Any = B, x0: Any = (3.0, -3.0)) -> QuadraticTask:
    a, c, x = (torch.as_tensor(np.asarray(v), dtype=torch.float64) for v in (A, b, x0))
    p = torch.full((len(c),), 1 / len(c), dtype=torch.float64)
    return QuadraticTask(Quadratic(a, c, x, p, 0.0), 0, torch.device("cpu"), torch.float64)


def made(**keys: Any) -> FSGLD:
    found = part_from("algorithm", "name", {"name": "fsgld", **keys})
    assert isinstance(found, FSGLD)
    return found


def walked(algorithm: FSGLD, task: QuadraticTask, order: list[int], picked: Any = THIRD, x: Any = None) -> Any:
    """A chain's state after visits to these clients, with the very parts that a run is made of."""
    worker = Worker(algorithm.objective(task, np.asarray(picked)), algorithm)
    state = algorithm.init(task.initial() if x is None else torch.as_tensor(x, dtype=torch.float64))
    for number, s in enumerate(order, 1):
        one, steps = np.array([s]), algorithm.steps(task, np.array([s]), np.array([number]), 0)
        state = worker.run(Job(one, np.array([number]), steps, algorithm.broadcast(state)))
        state = {"x": state["x"][0]}
    return state["x"].numpy()


@pytest.mark.parametrize(
    "surrogate", ["exact", "laplace", {"name": "laplace", "covariance": "diagonal"}], ids=["exact", "full", "diagonal"]
)
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 2, 1]], ids=str)
def test_without_noise_it_is_gradient_descent_whoever_is_drawn(surrogate: Any, order: list[int]) -> None:
    cold = made(surrogate=surrogate, lr=0.05, local_steps=4, temperature=0.0)
    assert walked(cold, quadratic(), order) == pytest.approx([0.3225684956, 0.5739926786], abs=1e-10)
    x, total, mode = np.array([3.0, -3.0]), A.sum(0), (A * B).sum(0)
    for _ in range(12):
        x = x + 0.05 / 2 * (mode - (total + 1.0) * x)
    assert walked(cold, quadratic(), order) == pytest.approx(x, abs=1e-12)


def test_without_noise_dsgld_follows_the_clients() -> None:
    cold = made(surrogate="none", lr=0.05, local_steps=4, temperature=0.0)
    assert walked(cold, quadratic(), [0, 1, 2]) == pytest.approx([0.1984067274, 0.6566279999], abs=1e-10)


def test_without_noise_prior_and_surrogate_it_is_sgd(tmp_path: Path) -> None:
    base = {k: v for k, v in LOGISTIC.items() if k not in ("algorithm", "participation")}
    base = {**base, "data": {**base["data"], "clients": 1}}
    work = {"local_steps": 3, "batch_size": 5}
    size = int(assemble(given({**base, "algorithm": {"name": "fedavg"}})).task.sizes[0])
    sgld = {"name": "fsgld", "surrogate": "none", "temperature": 0.0, "prior_precision": 0.0, "lr": 2e-3, **work}
    one = {**base, "participation": {"clients_per_round": 1}}
    cold = fedsim.run({**one, "algorithm": sgld}, out=tmp_path / "cold").params
    sgd = fedsim.run({**one, "algorithm": {"name": "fedavg", "lr": 1e-3 * size, **work}}, out=tmp_path / "sgd").params
    torch.testing.assert_close(cold, sgd, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "T,variance,printed", [(1, 0.4796688, 0.47967), (5, 2.3049143, 2.30491), (20, 6.9579635, 6.95796)]
)
def test_variance_at_hand_over_of_dsgld(T: int, variance: float, printed: float) -> None:
    """The state at hand-over is linear in the state before and in the noise: both are read off runs of the product."""
    task, f = quadratic(**GAUSSIAN), np.full(5, 0.2)
    cold = made(surrogate="none", lr=2e-3, local_steps=T, temperature=0.0)
    ends = [[walked(cold, task, [s], f, [x])[0] for x in (0.0, 1.0)] for s in range(5)]
    slopes, at_zero = np.array([b - a for a, b in ends]), np.array([a for a, _ in ends])
    a = 1 - 2e-3 * 101 / 2
    assert slopes == pytest.approx(np.full(5, a**T), rel=1e-12)
    means = at_zero / (1 - a**T)
    assert means == pytest.approx(100 * GAUSSIAN["b"][:, 0] / 101, rel=1e-10)
    assert handed_over(means, a, T, 1 / (101 * (1 - 2e-3 * 101 / 4))) == pytest.approx(variance, abs=5e-8)
    noisy = walked(made(surrogate="none", lr=2e-3, local_steps=T), task, [3], f, [0.0])[0]
    drawn = rng.normal(rng.key(0, "langevin", 0, 1, np.arange(T), 0))
    assert noisy - at_zero[3] == pytest.approx(math.sqrt(2e-3) * (a ** np.arange(T)[::-1] * drawn).sum(), rel=1e-9)
    stationary = at_zero.var() / (1 - a ** (2 * T)) + 2e-3 * (a ** (2 * np.arange(T))).sum() / (1 - a ** (2 * T))
    assert stationary == pytest.approx(variance, abs=5e-8)
    assert stationary == pytest.approx(printed, abs=5e-6)


def many_chains(tmp_path: Path, surrogate: str, T: int, chains: int = 4000, rounds: int = 60) -> torch.Tensor:
    np.savez(tmp_path / "g.npz", **GAUSSIAN)
    run = fedsim.run(
        {
            "data": {"dataset": "quadratic", "file": str(tmp_path / "g.npz")},
            "algorithm": {"name": "fsgld", "lr": 2e-3, "local_steps": T, "chains": chains, "surrogate": surrogate,
                          "burn_in": rounds - 1},
            "participation": {"clients_per_round": 1},
            "run": {"rounds": rounds, "eval_every": rounds, "dtype": "float64", "device": "cpu"},
        },
        out=tmp_path / f"{surrogate}-{T}",
    )  # fmt: skip
    samples = load_file(run.dir / "samples.safetensors")["samples"]
    assert torch.equal(samples[-1], run.params)
    return samples[-1, :, 0]


@pytest.mark.parametrize("surrogate,T,variance", [("none", 5, 2.30491), ("exact", 5, 0.0104276)])
def test_many_chains_have_the_stationary_law(tmp_path: Path, surrogate: str, T: int, variance: float) -> None:
    found, count = many_chains(tmp_path, surrogate, T), 4000
    assert float(found.mean()) == pytest.approx(100 * 0.5 / 101, abs=4 * math.sqrt(variance / count))
    assert float(found.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / count))


def test_wrong_surrogates_cost_no_bias_of_one_step() -> None:
    f, x = np.array([0.2, 0.3, 0.5]), torch.tensor([[0.4, -1.1]], dtype=torch.float64)

    class Wrong(Surrogate):
        def fit(self, task: Any, local: Local) -> Any:
            precision = torch.as_tensor(1.7 * A)
            return Gaussians(precision, precision * (torch.as_tensor(B) + 0.3))

    task = PosteriorTask(quadratic(), Wrong(), f, Local(0.05, 1, 1.0), noisy=False)
    one = np.ones(3, dtype=np.int64)
    oracle = task.plan(np.arange(3), one, one, 1, False).oracle(0, 3, torch.ones(3, 1, dtype=torch.float64))
    assert isinstance(oracle, PosteriorOracle)
    g = oracle.conducive(x.expand(3, -1))
    assert g is not None
    assert float(g.abs().max()) > 1
    assert (torch.as_tensor(f) @ g).numpy() == pytest.approx([0, 0], abs=1e-12)
    likelihood = torch.as_tensor(f) @ oracle.likelihood(x.expand(3, -1))
    assert likelihood.numpy() == pytest.approx((A * (B - x.numpy())).sum(0), abs=1e-12)


@pytest.mark.parametrize("T,mean", [(1, -0.4444444444), (5, -0.4573446145), (50, -0.4741010744)])
def test_wrong_precisions_bias_long_visits(T: int, mean: float) -> None:
    """Without noise the state at hand-over is an affine map of the state before: where their mean rests is the bias."""
    own, wrong = np.array([[2.0], [6.0]]), np.array([[1.5 * 1.3 * 2.0], [1.5 * 0.8 * 6.0]])
    b = np.array([[1.0], [-1.0]])
    task = quadratic(own, b, [0.0])

    class Wrong(Surrogate):
        def fit(self, task: Any, local: Local) -> Any:
            return Gaussians(torch.as_tensor(wrong), torch.as_tensor(wrong * b))

    cold = made(surrogate=Wrong(), lr=0.05, local_steps=T, temperature=0.0)
    ends = np.array([[walked(cold, task, [s], [0.5, 0.5], [x])[0] for x in (0.0, 1.0)] for s in range(2)])
    slope, start = (ends[:, 1] - ends[:, 0]).mean(), ends[:, 0].mean()
    assert start / (1 - slope) == pytest.approx(mean, abs=5e-11)


def test_a_run_is_the_reference_loop(tmp_path: Path) -> None:
    s = {**LOGISTIC, "algorithm": {**LOGISTIC["algorithm"], "surrogate": "laplace",
                                   "exploration": 0.7, "temperature": 0.5, "prior_precision": 2.0}}  # fmt: skip
    run = fedsim.run(s, out=tmp_path / "run")
    scenario = given(s)
    task: Any = assemble(scenario).task
    f = np.full(4, 0.25)
    fitted = scenario.algorithm.surrogate.fit(task.inner, task.local)  # type: ignore[attr-defined]
    precision, b = fitted.precision.numpy(), fitted.b.numpy()
    surrogates = [(p, np.linalg.lstsq(p, v, rcond=None)[0]) for p, v in zip(precision, b, strict=True)]
    visits = np.array([row["clients"] for row in run.trace])
    for c in range(3):

        def gradient(client: int, v: int, k: int, x: Any, c: int = c) -> Any:
            one = np.array([client])
            plan = task.inner.plan(one, np.array([v + 1 + VISIT * c]), np.array([3]), 5, False)
            lr = torch.ones(1, 1, dtype=torch.float64)
            return -task.sizes[client] * plan.oracle(k, 1, lr).grad(torch.as_tensor(x)[None])[0].numpy()

        def noise(v: int, k: int, c: int = c) -> Any:
            return rng.normal(rng.key(0, "langevin", c, v + 1, k, np.arange(task.dim)))

        ends = chain(np.zeros(task.dim), visits[:, c].tolist(), 3, 2e-3, gradient, f, surrogates, 2.0, 0.5, 0.7, noise)
        assert run.params[c].numpy() == pytest.approx(ends[-1], abs=1e-9)


@pytest.mark.parametrize("sampling", ["uniform", "weighted"])
def test_a_chain_does_not_depend_on_the_others(tmp_path: Path, sampling: str) -> None:
    walks = {"participation": {"clients_per_round": 1, "sampling": sampling}}
    runs = {c: fedsim.run({**LOGISTIC, **walks, "algorithm": {**LOGISTIC["algorithm"], "chains": c}},
                          out=tmp_path / str(c)) for c in (1, 2, 5)}  # fmt: skip
    torch.testing.assert_close(runs[2].params, runs[5].params[:2], rtol=0, atol=1e-12)
    torch.testing.assert_close(runs[1].params, runs[5].params[0], rtol=0, atol=1e-12)
    visits = np.array([row["clients"] for row in runs[5].trace])
    assert len({tuple(column) for column in visits.T}) == 5


def test_chains_in_chunks_are_the_same(tmp_path: Path) -> None:
    whole = fedsim.run(LOGISTIC, out=tmp_path / "whole")
    parts = fedsim.run({**LOGISTIC, "run": {**LOGISTIC["run"], "chunk_rows": 2}}, out=tmp_path / "parts")
    torch.testing.assert_close(whole.params, parts.params, rtol=0, atol=1e-12)


def test_a_shard_has_the_conducive_gradients_of_the_whole() -> None:
    algorithm = made(surrogate="laplace", lr=0.05)
    task, x = algorithm.objective(quadratic(), THIRD), torch.ones(1, 2, dtype=torch.float64)
    one = np.ones(1, dtype=np.int64)

    def of(task: Any, client: int) -> Any:
        oracle: Any = task.plan(np.array([client]), one, one, 1, False).oracle(0, 1, torch.ones(1, 1).double())
        return oracle.conducive(x), oracle.noise

    part: Any = task.shard(np.array([1, 2])).shard(np.array([2]))
    for whole, alone in zip(of(task, 2), of(part, 2), strict=True):
        assert torch.equal(whole, alone)


def test_weighted_chains_go_where_the_data_are(tmp_path: Path) -> None:
    s = {**LOGISTIC, "participation": {"clients_per_round": 1, "sampling": "weighted"}}
    s = {**s, "algorithm": {**LOGISTIC["algorithm"], "chains": 500, "local_steps": 1, "surrogate": "none"}}
    run = fedsim.run(s, out=tmp_path / "run")
    counts = np.bincount(np.concatenate([row["clients"] for row in run.trace]), minlength=4)
    share = assemble(given(s)).task.importance
    assert counts / counts.sum() == pytest.approx(share, abs=4 * 0.5 / math.sqrt(counts.sum()))


@pytest.mark.parametrize("loss,classes", [("cross_entropy", 3), ("logistic", 2), ("multi_margin", 3)])
def test_laplace_of_a_linear_model_is_its_hessian(loss: str, classes: int) -> None:
    s = {**LOGISTIC, "data": {**LOGISTIC["data"], "num_classes": classes}, "algorithm": {"name": "fsgld"}}
    task: Any = assemble(given({**s, "model": {"name": "linear", "loss": loss}})).task.inner
    x = torch.linspace(-1, 1, task.dim, dtype=torch.float64)
    full, diagonal = task.curvature(1, x, False), task.curvature(1, x, True)
    one, eps = np.array([1]), 1e-6

    def gradient(x: torch.Tensor) -> Any:
        lr = torch.ones(1, 1, dtype=torch.float64)
        return task.sizes[1] * task.plan(one, one, one, "full", False).oracle(0, 1, lr).grad(x[None])[0]

    eye = eps * torch.eye(task.dim, dtype=torch.float64)
    differences = torch.stack([(gradient(x + e) - gradient(x - e)) / (2 * eps) for e in eye])
    torch.testing.assert_close(full, differences, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(diagonal, full.diagonal(), rtol=1e-12, atol=1e-12)


def test_the_local_mode_is_one() -> None:
    task: Any = assemble(given({**LOGISTIC, "algorithm": {"name": "fsgld"}})).task.inner
    laplace: Any = part_from("surrogate", "name", {"name": "laplace"})
    clients = np.arange(4)
    modes = laplace._mode(task, clients, 1.0)
    one = np.ones(4, dtype=np.int64)
    oracle = task.plan(clients, one, one, "full", False).oracle(0, 4, torch.ones(4, 1, dtype=torch.float64))
    gradient = torch.as_tensor(task.sizes).unsqueeze(1) * oracle.grad(modes) + modes
    assert float(gradient.abs().max()) < 1e-6


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_a_local_chain_finds_the_local_gaussian(covariance: str) -> None:
    task = quadratic(20 * A, B)
    keys = {"name": "sgld", "samples": 8000, "burn_in": 500, "lr": 0.005, "covariance": covariance}
    chained: Any = part_from("surrogate", "name", keys)
    found = chained.fit(task, Local(0.05, 1, 1.0))
    precision = found.precision if covariance == "diagonal" else found.precision.diagonal(dim1=-2, dim2=-1)
    assert precision.numpy() == pytest.approx(20 * A, rel=0.4)  # of some hundred independent samples
    mean = found.b / precision if covariance == "diagonal" else torch.linalg.solve(found.precision, found.b)
    assert mean.numpy() == pytest.approx(B, abs=0.1)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_a_local_chain_that_tells_no_gaussian_is_refused(tmp_path: Path, covariance: str) -> None:
    """Of 200 steps whose states are alike: precisions too large, with which chains are driven away."""
    np.savez(tmp_path / "q.npz", A=A, b=B, x0=np.zeros(2))
    surrogate = {"name": "sgld", "samples": 200, "burn_in": 20, "lr": 0.02, "covariance": covariance}
    s = {
        "data": {"dataset": "quadratic", "file": str(tmp_path / "q.npz")},
        "algorithm": {"name": "fsgld", "lr": 0.01, "surrogate": surrogate},
        "participation": {"clients_per_round": 1},
        "run": {"rounds": 2},
    }
    with pytest.raises(
        InputError, match=r"algorithm\.surrogate: the local chain of client \d, 200 samples at lr 0\.02"
    ):
        fedsim.run(s, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    fedsim.run({**s, "algorithm": {**s["algorithm"], "surrogate": {**surrogate, "min_effective_samples": 0}}},
               out=tmp_path / "run")  # fmt: skip


@pytest.mark.parametrize(
    "surrogate,gradients,numbers",
    [
        ("none", 0, 0),
        ({"name": "laplace", "covariance": "diagonal"}, 103, 2),
        ({"name": "sgld", "samples": 30, "burn_in": 10, "min_effective_samples": 0}, 40 * 5, 2),
    ],
    ids=["none", "laplace", "sgld"],
)
def test_costs_of_surrogates_come_before_round_1(tmp_path: Path, surrogate: Any, gradients: int, numbers: int) -> None:
    s = {**LOGISTIC, "algorithm": {**LOGISTIC["algorithm"], "surrogate": surrogate}}
    run = fedsim.run(s, out=tmp_path / "run")
    first, last = run.metrics.iloc[0], run.metrics.iloc[-1]
    task = assemble(given(s)).task
    each = task.sizes.sum() if "laplace" in str(surrogate) else task.num_clients
    assert first["gradients"] == gradients * each
    assert first["bytes_sent"] == 2 * 4 * numbers * task.dim * 8  # what each sends and is sent
    assert last["gradients"] - first["gradients"] == 8 * 3 * 3 * 5
    assert last["bytes_sent"] - first["bytes_sent"] == 8 * 3 * 2 * task.dim * 8  # one theta there, one back


@pytest.mark.parametrize(
    "keys,says",
    [
        ({"lr": 0.5, "surrogate": "exact"}, "algorithm.lr: found 0.5, with which chains diverge"),
        ({"lr": 0.31, "surrogate": "none"}, "algorithm.lr: found 0.31"),
        ({"server_lr": 0.5}, "algorithm.server_lr"), ({"momentum": 0.9}, "algorithm.momentum"),
        ({"weight_decay": 0.1}, "algorithm.weight_decay"), ({"clip": 1.0}, "algorithm.clip"),
        ({"relaxed_init": 0.1}, "algorithm.relaxed_init"), ({"solver": {"name": "adam"}}, "algorithm.solver"),
        ({"chains": 10**11}, "algorithm.chains: a state of 100,000,000,000 chains of 2 numbers needs"),
        ({"burn_in": -1}, "algorithm.burn_in"), ({"surrogate": "nobody"}, "surrogate"),
        ({"surrogate": {"name": "sgld", "samples": 2, "covariance": "full"}}, "algorithm.surrogate.samples"),
    ],
    ids=str,
)  # fmt: skip
def test_keys_that_do_not_fit_are_refused(tmp_path: Path, keys: dict[str, Any], says: str) -> None:
    np.savez(tmp_path / "q.npz", A=A, b=B, x0=np.zeros(2))
    s = {
        "data": {"dataset": "quadratic", "file": str(tmp_path / "q.npz")},
        "algorithm": {"name": "fsgld", "lr": 0.01, **keys},
        "participation": {"clients_per_round": 1},
    }
    with pytest.raises(InputError) as error:
        fedsim.run(s, out=tmp_path / "run")
    assert says in str(error.value)
    assert not (tmp_path / "run").exists()


def test_the_largest_lr_is_the_spectrums() -> None:
    """h A < 4: with the largest precision 8 of the posterior, 0.5 is the first that diverges."""
    largest = float((A.sum(0) + 1).max())
    made(surrogate="exact", lr=3.99 / largest).objective(quadratic(), THIRD)
    with pytest.raises(InputError, match="diverge"):
        made(surrogate="exact", lr=4.01 / largest).objective(quadratic(), THIRD)
    alone = float((3 * A + 1).max())
    made(surrogate="none", lr=3.99 / alone).objective(quadratic(), THIRD)
    with pytest.raises(InputError, match="diverge"):
        made(surrogate="none", lr=4.01 / alone).objective(quadratic(), THIRD)


@pytest.mark.parametrize(
    "sections,key",
    [
        ({"participation": {}}, "participation.clients_per_round"),
        ({"participation": {"fraction": 1.0}}, "participation.fraction"),
        ({"participation": {"clients_per_round": 1, "sampling": "poisson"}}, "participation.sampling"),
        ({"participation": {"clients_per_round": 1, "dropout": 0.1}}, "participation.dropout"),
        ({"participation": {"clients_per_round": 1, "deadline": 2.0}}, "participation.deadline"),
        ({"participation": {"mode": "asynchronous"}}, "participation.mode"),
        ({"participation": {"mode": "fedbuff", "buffer": 2}}, "participation.mode"),
        ({"participation": {"mode": "gossip"}}, "participation.mode"),
        ({"aggregator": {"name": "median"}}, "aggregator.name"),
        ({"compression": {"name": "top_k", "k": 2}}, "compression.name"),
        ({"attack": {"name": "sign_flip", "attackers": 0.25}}, "attack.name"),
        ({"attack": {"name": "label_flip", "attackers": 0.25}}, "attack.name"),
        ({"privacy": {"mechanism": "dp_sgd", "epsilon": 5.0, "delta": 1e-5, "clip_norm": 1.0}}, "privacy.mechanism"),
        ({"system": {"departure": {"model": "constant", "value": 3.0}}}, "system.departure"),
        ({"backend": {"name": "ray", "client_errors": "drop"}}, "backend.client_errors"),
    ],
    ids=str,
)  # fmt: skip
def test_sections_that_do_not_fit_are_refused(sections: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError) as error:
        assemble(given({**LOGISTIC, **sections}))
    assert key in [problem.key for problem in error.value.problems]


def test_a_deployment_is_refused() -> None:
    with pytest.raises(InputError, match=r"algorithm\.name"):
        check_trust(given(LOGISTIC))
