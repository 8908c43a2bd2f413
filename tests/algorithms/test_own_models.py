"""Models of clients' own, and the baselines: limit cases as identities, fixed points, what is counted and refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kept_models import KEEP, kept, own_models
from torch import Tensor, nn

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.registry import lookup
from fedsim.objective.compiled import CompiledChain
from fedsim.objective.kernel import Walk
from fedsim.scenario.load import parse

Make = Callable[..., Any]
OWN = ["ditto", "pfedme", "apfl"]
BASELINES = ["local", "gossip_local", "centralized"]
DIGITS = {"dataset": "digits", "limit": 200, "clients": 5, "partition": {"scheme": "dirichlet", "alpha": 0.3}}
RING: dict[str, Any] = {
    "topology": {"graph": "ring"},
    "participation": {"mode": "gossip", "compute": 0.7, "links": 0.6},
}
SOME: dict[str, Any] = {"participation": {"mode": "synchronous", "clients_per_round": 3}}
CLOCK: dict[str, Any] = {
    "participation": {"mode": "fedbuff", "buffer": 2, "concurrency": 3},
    "system": {"compute": {"model": "linear", "slowest": 1.0, "fastest": 0.3}},
}
LINEAR: dict[str, Any] = {"data": DIGITS, "model": {"name": "linear"}}
SOLVERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.5, "weight_decay": 0.01, "clip": 1.0},
    "adam": {"solver": {"name": "adam", "state": "kept"}, "lr": 0.01},
}


@pytest.fixture
def go(run_scenario: Make) -> Make:
    """Parameters of a run and the clients' own models, with minibatches and unequal steps unless said otherwise."""

    def run(name: str, around: Any = SOME, problem: Any = LINEAR, rounds: int = 4, **keys: Any) -> tuple[Any, Any]:
        work = (
            {}
            if keys.keys() & {"local_epochs", "local_steps"}
            else {"local_steps": {"model": "uniform", "low": 1, "high": 4}}
        )
        made = run_scenario(
            **problem,
            algorithm={"name": name, "lr": 0.1, "batch_size": 8, **work, **keys},
            run={"rounds": rounds, "metrics": [KEEP]},
            **around,
        )
        return made.params.numpy(), own_models()

    return run


AROUND = {"server": ("", "fedavg", SOME), "clock": ("", "fedavg", CLOCK), "graph": ("gossip_", "dfedavg", RING)}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name,keys", [("ditto", {"lambda": 0.5}), ("apfl", {"alpha": 0.3, "adaptive": True})])
def test_the_common_model_is_that_of_fedavg(
    go: Make, around: str, solver: str, name: str, keys: dict[str, Any]
) -> None:
    prefix, plain, sections = AROUND[around]
    x, own = go(prefix + name, sections, **keys, **SOLVERS[solver])
    assert np.array_equal(x, go(plain, sections, **SOLVERS[solver])[0])
    assert np.abs(own - x).max() > 1e-3


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name,keys", [("ditto", {"lambda": 0.0}), ("apfl", {"alpha": 1.0})])
def test_without_a_pull_the_own_model_is_trained_alone(
    go: Make, around: str, solver: str, name: str, keys: dict[str, Any]
) -> None:
    prefix, _, sections = AROUND[around]
    _, own = go(prefix + name, sections, **keys, **SOLVERS[solver])
    _, alone = go(prefix + "local", sections, **SOLVERS[solver])
    assert np.abs(own - alone).max() <= 1e-12  # plain steps may be taken in place
    assert np.abs(own - own.mean(0)).max() > 1e-3


@pytest.mark.parametrize("around", ["server", "graph"])
@pytest.mark.parametrize("solver", [*SOLVERS, "nesterov"])
@pytest.mark.parametrize("keys", [{"lambda": 0.5}, {"lambda": 0.0}, {"lambda": 2.0, "personal_lr": 0.03}], ids=str)
def test_ditto_walks_both_models_as_steps_do(
    run_scenario: Make, around: str, solver: str, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All steps of a client in one call against all clients step by step."""
    walked: list[int] = []
    walk = CompiledChain.walk

    def noted(self: CompiledChain, x: Tensor, inputs: Tensor, path: Walk, *rest: Any) -> None:
        walked.append(path.targets.shape[1])
        walk(self, x, inputs, path, *rest)

    monkeypatch.setattr(CompiledChain, "walk", noted)
    prefix, _, sections = AROUND[around]
    own = SOLVERS.get(solver, {"solver": {"name": "nesterov", "momentum": 0.5}})
    found = []
    for kernel in ("auto", "stacked"):
        made = run_scenario(
            data={**DIGITS, "clients": 3},
            model={"name": "linear"},
            algorithm={
                "name": prefix + "ditto", "lr": 0.1, "batch_size": 8, "local_steps": [3, 5, 2], **keys, **own
            },
            run={"rounds": 3, "metrics": [KEEP], "kernel": kernel, "dtype": "float64"},
            **{**sections, "participation": {"mode": sections["participation"]["mode"]}},
        )  # fmt: skip
        found.append(np.concatenate([np.atleast_2d(made.params.numpy()), own_models()]))
        if kernel == "auto":  # with Adam's kept state steps are taken one by one
            assert (max(walked, default=0) > 1) == (solver != "adam")
            walked.clear()
    assert not walked
    np.testing.assert_allclose(*found, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("around", AROUND)
def test_apfl_without_an_own_share_uses_the_common_model(go: Make, around: str) -> None:
    prefix, plain, sections = AROUND[around]
    x, own = go(prefix + "apfl", sections, alpha=0.0)
    assert np.array_equal(own, np.broadcast_to(x, own.shape))
    assert np.array_equal(x, go(plain, sections)[0])


def test_an_alpha_that_is_adaptive_stays_a_share_and_differs(go: Make) -> None:
    go("apfl", alpha=0.5, adaptive=True, alpha_lr=0.5, rounds=4)
    alpha = kept("alpha")
    assert alpha.min() >= 0
    assert alpha.max() <= 1
    assert len(np.unique(alpha)) > 2


# --- fixed points on quadratics ---------------------------------------------------------------------------------------


def converged(go: Make, name: str, problem: Any, rounds: int = 200, **keys: Any) -> tuple[Any, Any]:
    data: dict[str, Any] = {"data": problem.section()}
    everybody = {"participation": {"mode": "synchronous"}}
    found: tuple[Any, Any] = go(name, everybody, data, rounds=rounds, local_steps=1, **keys)
    return found


def test_ditto_comes_to_rest_between_its_own_minimum_and_the_common_one(go: Make, quadratic: Make) -> None:
    """``(A_i + lambda I) v_i = A_i b_i + lambda x*``"""
    problem = quadratic(n=4, d=3, importance=True)
    x, own = converged(go, "ditto", problem, lr=0.3, **{"lambda": 0.8})
    best = problem.optimum()
    rest = [np.linalg.solve(A + 0.8 * np.eye(3), A @ b + 0.8 * best) for A, b in zip(problem.A, problem.b, strict=True)]
    assert np.abs(x - best).max() < 1e-10
    assert np.abs(own - np.stack(rest)).max() < 1e-10


@pytest.mark.parametrize("inner", [1, 3, 60])
def test_pfedme_comes_to_rest_where_its_envelopes_balance(go: Make, quadratic: Make, inner: int) -> None:
    """With one local step from theta = x: ``theta - x = -(I - (I - r H)^K) H^-1 A (x - b)``, ``H = A + lambda I``."""
    problem, pull, rate = quadratic(n=4, d=3, importance=True), 2.0, 0.4
    x, own = converged(go, "pfedme", problem, lr=1.0, inner_steps=inner, personal_lr=rate, **{"lambda": pull})
    eye, moves = np.eye(3), []
    for A in problem.A:
        H = A + pull * eye
        moves.append((eye - np.linalg.matrix_power(eye - rate * H, inner)) @ np.linalg.solve(H, A))
    rest = np.linalg.solve(
        sum(p * M for p, M in zip(problem.p, moves, strict=True)),
        sum(p * M @ b for p, M, b in zip(problem.p, moves, problem.b, strict=True)),
    )
    assert np.abs(x - rest).max() < 1e-10
    assert np.abs(own - np.stack([x - M @ (x - b) for M, b in zip(moves, problem.b, strict=True)])).max() < 1e-10
    if inner == 60:  # theta is the proximal point, and x the minimum of the mean envelope
        near = [np.linalg.solve(A + pull * eye, A @ b + pull * x) for A, b in zip(problem.A, problem.b, strict=True)]
        assert np.abs(own - np.stack(near)).max() < 1e-10


def test_apfl_comes_to_rest_where_its_mixture_is_best_for_the_client(go: Make, quadratic: Make) -> None:
    problem = quadratic(n=4, d=3)
    x, own = converged(go, "apfl", problem, lr=0.8, alpha=0.6)
    assert np.abs(x - problem.optimum()).max() < 1e-10
    assert np.abs(own - problem.b).max() < 1e-10


# --- baselines --------------------------------------------------------------------------------------------------------


def test_a_client_alone_comes_to_its_own_minimum(go: Make, quadratic: Make) -> None:
    problem = quadratic(n=4, d=3, importance=True)
    x, own = converged(go, "local", problem, lr=0.3)
    assert np.abs(own - problem.b).max() < 1e-10
    assert np.abs(x - problem.p @ problem.b).max() < 1e-10  # the mean of all clients' models
    rest, nodes = go("gossip_local", RING, {"data": problem.section()}, rounds=200, lr=0.8)
    assert np.abs(rest - problem.b).max() < 1e-10
    assert np.array_equal(rest, nodes)


def test_central_training_comes_to_the_minimum_of_all(go: Make, quadratic: Make) -> None:
    problem = quadratic(n=4, d=3, importance=True)
    everybody, data = {"participation": {"mode": "synchronous"}}, {"data": problem.section()}
    x, own = go("centralized", everybody, data, rounds=100, local_steps=4, lr=0.3)
    assert np.abs(x - problem.optimum()).max() < 1e-10
    assert np.array_equal(own, np.broadcast_to(x, own.shape))


@pytest.mark.parametrize(
    "keys",
    [
        {"local_epochs": 2, "batch_size": 16},
        {"local_steps": 3, "batch_size": "full"},
        {"local_steps": 5, "batch_size": 4},
    ],
    ids=str,
)
def test_central_training_does_the_work_of_a_round(run_scenario: Make, keys: dict[str, Any]) -> None:
    """As many sample gradients as FedAvg with all clients, of which one that has everything is trained the same."""
    whole = {**DIGITS, "clients": 1, "partition": {"scheme": "iid"}}
    run = {"rounds": 3, "eval_every": 1}
    central, shared = (
        run_scenario(**LINEAR, algorithm={"name": name, "lr": 0.1, **keys}, run=run)
        for name in ("centralized", "fedavg")
    )
    assert np.array_equal(central.metrics["gradients"], shared.metrics["gradients"])
    assert (central.metrics["bytes_sent"] == 0).all()
    steps = sum(central.trace[0]["steps"])
    one = run_scenario(
        data=whole, model={"name": "linear"}, run=run,
        algorithm={"name": "fedavg", "lr": 0.1, "local_steps": steps, "batch_size": keys["batch_size"]},
    )  # fmt: skip
    assert one.metrics["gradients"].equals(central.metrics["gradients"]) or "local_epochs" in keys
    gap = np.abs(np.asarray(one.metrics["train_loss"]) - np.asarray(central.metrics["train_loss"])).max()
    assert gap < (1e-12 if keys["batch_size"] == "full" else 0.05)
    assert float(central.metrics["train_loss"].iloc[-1]) < float(shared.metrics["train_loss"].iloc[-1])


@pytest.mark.parametrize("name", ["local", "gossip_local"])
def test_nothing_is_sent_by_those_who_train_alone(run_scenario: Make, name: str) -> None:
    around = RING if name.startswith("gossip") else SOME
    made = run_scenario(**LINEAR, algorithm={"name": name, "lr": 0.1}, run={"rounds": 3, "eval_every": 1}, **around)
    assert (made.metrics["bytes_sent"] == 0).all()
    assert made.metrics["gradients"].iloc[-1] > 0
    assert made.metrics["train_loss"].iloc[-1] < made.metrics["train_loss"].iloc[0]


ODD: dict[str, tuple[dict[str, Any], str]] = {
    "privacy": ({"privacy": {"mechanism": "dp_sgd", "clip_norm": 1.0, "noise_multiplier": 1.0}}, "privacy.mechanism"),
    "aggregator": ({"aggregator": {"name": "median"}}, "aggregator.name"),
    "attack": ({"attack": {"name": "label_flip", "attackers": [1]}}, "attack.name"),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", BASELINES)
def test_there_is_nothing_to_protect_or_to_change_in_what_is_not_sent(name: str, odd: str) -> None:
    sections, key = ODD[odd]
    around = RING if name.startswith("gossip") else {}
    with pytest.raises(InputError) as caught:
        parse({**LINEAR, "algorithm": {"name": name}, **around, **sections})
    assert key in [p.key for p in caught.value.problems]
    with pytest.raises(InputError, match=r"algorithm.name: .* allowed: fedsim run"):
        lookup("algorithm", name)().check_deployed()


@pytest.mark.parametrize(
    "algorithm,key",
    [
        ({"name": "local", "server_lr": 0.5}, "algorithm.server_lr"),
        ({"name": "local", "relaxed_init": 0.1}, "algorithm.relaxed_init"),
        ({"name": "centralized", "weighting": "uniform"}, "algorithm.weighting"),
        ({"name": "apfl", "alpha_lr": 0.1}, "algorithm.alpha_lr"),
        ({"name": "apfl", "alpha": 1.5}, "algorithm.alpha"),
        *[({"name": name, "train": [{"parameters": ["0"], "steps": 1}]}, "algorithm.train") for name in OWN],
    ],
    ids=str,
)
def test_keys_that_mean_nothing_are_refused(algorithm: dict[str, Any], key: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        fedsim.run({**LINEAR, "algorithm": algorithm}, out=tmp_path / "run")
    assert [p.key for p in caught.value.problems] == [key]
    assert not (tmp_path / "run").exists()


def test_central_training_is_of_everybody(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"participation.clients_per_round: .*all data are in one place"):
        fedsim.run({**LINEAR, "algorithm": {"name": "centralized"}, **SOME}, out=tmp_path / "run")


@pytest.mark.parametrize("name", OWN)
def test_under_dp_sgd_own_models_are_trained_with_noise_too(go: Make, name: str) -> None:
    """Each of a step's gradients is a release: what clients keep is as private as what they send."""
    private = {"privacy": {"mechanism": "dp_sgd", "clip_norm": 1.0, "noise_multiplier": 1.0}}
    everybody = {"participation": {"mode": "synchronous"}}
    found = [
        go(name, {**everybody, **around}, batch_size="full", local_steps=2)[1]
        for around in ({}, private, {"privacy": {**private["privacy"], "noise_seed": 1}})
    ]
    assert np.abs(found[0] - found[1]).max() > 1e-3
    assert np.abs(found[1] - found[2]).max() > 1e-3


@pytest.mark.parametrize("name", OWN)
def test_parts_that_stay_with_clients_are_refused_where_whole_models_do(name: str) -> None:
    with pytest.raises(InputError, match=r"model.personal: .* trains a model of each client.s own"):
        parse({**LINEAR, "model": {"name": "linear", "personal": ["*.bias"]}, "algorithm": {"name": name}})


def normed() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))


@pytest.mark.parametrize("name", OWN)
def test_models_with_statistics_of_their_own_are_refused(name: str, tmp_path: Path) -> None:
    model = {"name": f"{__name__}:normed", "batch_norm": "average"}
    with pytest.raises(InputError, match="which trains two models"):
        fedsim.run({**LINEAR, "model": model, "algorithm": {"name": name}}, out=tmp_path / "run")
