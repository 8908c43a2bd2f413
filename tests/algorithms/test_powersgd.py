"""PowerSGD: against its two exchanges as a loop, FedAvg at full rank, its bytes, and what it does not go with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference.low_rank_loop import powersgd

import fedsim
from fedsim.algorithms.powersgd import PowerSGD
from fedsim.core.errors import InputError
from fedsim.core.types import message_bytes
from fedsim.deployment.noise import check_trust
from fedsim.engine.assembly import assemble
from fedsim.scenario.load import parse

Make = Callable[..., Any]
SHAPES = [[6, 5], [4], [3, 2, 4]]
D = 30 + 4 + 24
DIGITS: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 4, "limit": 200, "partition": {"scheme": "dirichlet", "alpha": 0.5}},
    "model": {"name": "mlp", "hidden": [12]},
    "algorithm": {"name": "powersgd", "lr": 0.2, "local_steps": 2, "rank": 2},
    "run": {"rounds": 4, "eval_every": 1, "dtype": "float64"},
}


def first(rank: int) -> list[Any]:
    """Q of the first round of the two matrices of `SHAPES`."""
    algorithm = PowerSGD(rank=rank, shapes=SHAPES)
    q = algorithm.init(torch.zeros(D, dtype=torch.float64))["q"]
    return [m.factor(q, rank).numpy().copy() for m in algorithm._low()]


@pytest.mark.parametrize("rank,keys", [(1, {}), (2, {"server_lr": 0.5}), (1, {"local_steps": 3})])
def test_its_two_exchanges(quadratic: Make, run_scenario: Make, rank: int, keys: dict[str, Any]) -> None:
    problem = quadratic(n=5, d=D, importance=True)
    algorithm = {"name": "powersgd", "lr": 0.1, "rank": rank, "shapes": SHAPES, "batch_size": "full", **keys}
    run = run_scenario(data=problem.section(), algorithm=algorithm, run={"rounds": 12})
    expected, sent = powersgd(
        problem.grad, problem.x0, problem.p, SHAPES, first(rank), 12, 0.1, keys.get("server_lr", 1.0),
        keys.get("local_steps", 1),
    )  # fmt: skip
    assert np.abs(expected - problem.x0).max() > 1e-2
    assert np.abs(run.params.numpy() - expected).max() < 1e-10
    up = {1: 11 + 4 + 11, 2: 22 + 4 + 22}[rank]
    assert sent == 12 * 5 * up
    assert run.metrics["bytes_sent"].iloc[-1] == 8 * (sent + 12 * 5 * D)


def test_nothing_is_lost(quadratic: Make, run_scenario: Make) -> None:
    """What rank 1 leaves out comes later: the optimum is that of all clients."""
    problem = quadratic(A=np.ones((4, D)), n=4, d=D)
    algorithm = {"name": "powersgd", "lr": 0.1, "rank": 1, "shapes": SHAPES, "batch_size": "full"}
    run = run_scenario(data=problem.section(), algorithm=algorithm, run={"rounds": 400})
    assert np.abs(run.params.numpy() - problem.optimum()).max() < 1e-8


def test_means_of_low_rank_are_exact(quadratic: Make, run_scenario: Make) -> None:
    """Clients' own changes have full rank, but their mean has rank one, and the mean is all that counts."""
    draw = np.random.default_rng(0)
    b = draw.normal(size=(4, D))
    mean = np.concatenate(
        [np.outer(draw.normal(size=a), draw.normal(size=c)).ravel() for a, c in ((6, 5), (1, 4), (3, 8))]
    )
    problem = quadratic(A=np.ones((4, D)), b=b - b.mean(0) + mean, x0=np.zeros(D))
    low = {"name": "powersgd", "lr": 0.1, "rank": 1, "shapes": SHAPES, "batch_size": "full"}
    whole = {"name": "fedavg", "lr": 0.1, "batch_size": "full"}
    found, expected = (
        run_scenario(data=problem.section(), algorithm=a, run={"rounds": 20}).params for a in (low, whole)
    )
    assert float((found - expected).abs().max()) < 1e-10


@pytest.mark.parametrize("rank", [5, 12, 100])
def test_full_rank_is_fedavg(rank: int, tmp_path: Path) -> None:
    whole = {**DIGITS, "model": {"name": "mlp", "hidden": [5]}}
    found = fedsim.run({**whole, "algorithm": {**DIGITS["algorithm"], "rank": rank}}, out=tmp_path / "low")
    fedavg = {k: v for k, v in DIGITS["algorithm"].items() if k != "rank"} | {"name": "fedavg"}
    expected = fedsim.run({**whole, "algorithm": fedavg}, out=tmp_path / "fedavg")
    assert torch.equal(found.params, expected.params)
    assert found.metrics["bytes_sent"].tolist() == expected.metrics["bytes_sent"].tolist()


def test_a_network_finds_its_own_matrices(tmp_path: Path) -> None:
    """64 to 12 and 12 to 10 in rank 2, biases whole; resumed bit for bit."""
    run = fedsim.run(DIGITS, out=tmp_path / "whole")
    d = 64 * 12 + 12 + 12 * 10 + 10
    up = 2 * (64 + 12) + 12 + 2 * (12 + 10) + 10
    assert run.metrics["bytes_sent"].iloc[-1] == 4 * 4 * 8 * (d + up)
    assert run.metrics["train_loss"].iloc[-1] < run.metrics["train_loss"].iloc[0]
    short = {**DIGITS, "run": {**DIGITS["run"], "rounds": 2}}
    fedsim.run(short, out=tmp_path / "parts")
    assert torch.equal(fedsim.run(DIGITS, out=tmp_path / "parts", resume=True).params, run.params)
    facts = fedsim.plan(DIGITS)
    assert facts["algorithm"]["low rank"] == "2 matrices of 888 parameters in rank 2"
    assembly = assemble(parse(DIGITS))
    assert assembly.pipeline.row_bytes({"sent": torch.zeros(1, d, dtype=torch.float64)}) == 8 * up
    assert message_bytes({"sent": torch.zeros(1, d, dtype=torch.float64)}) == 8 * d


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"compression": {"name": "top_k", "k": 3}}, "compression"),
    ({"aggregator": {"name": "median"}}, "aggregator.name"),
    ({"attack": {"name": "sign_flip", "attackers": 1}}, "attack"),
    ({"participation": {"clients_per_round": 2}}, "participation.clients_per_round"),
    ({"participation": {"mode": "asynchronous"}}, "participation.mode"),
    ({"privacy": {"mechanism": "dp_fedavg", "epsilon": 5.0, "clip_norm": 1.0}}, "algorithm.name"),
    ({"algorithm": {**DIGITS["algorithm"], "shapes": [[12, 64]]}}, "algorithm.shapes"),
    ({"topology": {"graph": "ring"}}, "topology"),
]


@pytest.mark.parametrize("sections,key", REFUSED, ids=[c[1] for c in REFUSED])
def test_what_it_does_not_go_with(sections: dict[str, Any], key: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        fedsim.run({**DIGITS, **sections}, out=tmp_path / "run")
    assert key in [p.key for p in caught.value.problems]
    assert not (tmp_path / "run").exists()


def test_it_needs_one_machine(quadratic: Make) -> None:
    with pytest.raises(InputError, match="a SuperNode would send its whole matrix"):
        check_trust(parse(DIGITS))
    vector = {"data": quadratic(n=3).section(), "algorithm": {"name": "powersgd"}, "run": {"rounds": 1}}
    assert "all is sent whole" in fedsim.plan(vector)["algorithm"]["low rank"]


def test_local_noise_comes_before_the_factors(tmp_path: Path) -> None:
    run = fedsim.run({**DIGITS, "privacy": {"mechanism": "local_dp", "epsilon": 50.0, "clip_norm": 1.0}}, out=tmp_path)
    assert run.metrics["bytes_sent"].iloc[-1] == 4 * 4 * 8 * (910 + 2 * 98 + 22)
