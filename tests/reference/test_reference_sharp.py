"""FedSpeed, its family and FedAMD against loops over clients, on quadratics, replayed from the trace, to 1e-10."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import server_loops as slow
import sharp_loops as sharp
from server_loops import Local
from sharp_loops import Sharp

ROUNDS = 12
Make = Callable[..., Any]
LOCAL: dict[str, tuple[dict[str, Any], Local]] = {
    "plain": ({}, Local(0.05)),
    "all": (
        {"momentum": 0.5, "weight_decay": 0.1, "clip": 1.5, "lr_decay": 0.9},
        Local(0.05, 0.5, 0.1, 1.5, lambda t: 0.9**t),
    ),
}


@pytest.fixture(params=[False, True], ids=["uniform", "with p"])
def problem(request: pytest.FixtureRequest, quadratic: Make) -> Any:
    return quadratic(importance=request.param)


@pytest.fixture
def go(run_scenario: Make, problem: Any) -> Make:
    """Run an algorithm with three of five clients and unequal steps, and return its run."""

    def run(name: str, rounds: int = ROUNDS, **keys: Any) -> Any:
        return run_scenario(
            data=problem.section(),
            algorithm={"name": name, "lr": 0.05, "local_steps": {"uniform": [1, 4]}, **keys},
            participation={"mode": "synchronous", "clients_per_round": 3},
            run={"rounds": rounds},
            seed=3,
        )

    return run


def agree(run: Any, expected: Any, start: Any) -> None:
    found = run.params.numpy()
    assert np.abs(expected - start).max() > 1e-2  # the reference moved, so agreement means something
    assert np.abs(found - expected).max() <= 1e-10 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("case", LOCAL)
@pytest.mark.parametrize("normalize", [True, False])
def test_fedsam(go: Make, problem: Any, case: str, normalize: bool) -> None:
    keys, local = LOCAL[case]
    run = go("fedsam", rho=0.3, normalize=normalize, server_momentum=0.4, **keys)
    expected = slow.fedavg(Sharp(problem, 0.3, normalize=normalize), run.trace, local, server_momentum=0.4)
    agree(run, expected, problem.x0)
    plain = slow.fedavg(problem, run.trace, local, server_momentum=0.4)
    assert np.abs(expected - plain).max() > 1e-3  # rho matters here


@pytest.mark.parametrize("case", LOCAL)
def test_fedcm_and_mofedsam(go: Make, problem: Any, case: str) -> None:
    keys, local = LOCAL[case]
    run = go("fedcm", alpha=0.3, server_lr=0.8, **keys)
    agree(run, sharp.fedcm(problem, run.trace, local, 0.3, 0.8), problem.x0)
    run = go("mofedsam", alpha=0.3, rho=0.2, **keys)
    agree(run, sharp.fedcm(Sharp(problem, 0.2), run.trace, local, 0.3), problem.x0)


@pytest.mark.parametrize("case", LOCAL)
@pytest.mark.parametrize("option", [1, 2])
def test_fedgamma(go: Make, problem: Any, case: str, option: int) -> None:
    keys, local = LOCAL[case]
    run = go("fedgamma", rho=0.2, option=option, **keys)
    agree(run, slow.scaffold(Sharp(problem, 0.2), run.trace, local, option=option), problem.x0)


@pytest.mark.parametrize("case", LOCAL)
@pytest.mark.parametrize("normalize,alpha", [(True, 1.0), (False, 1.0), (True, 0.4), (False, 0.4)])
def test_fedspeed(go: Make, problem: Any, case: str, normalize: bool, alpha: float) -> None:
    keys, local = LOCAL[case]
    run = go("fedspeed", rho=0.3, normalize=normalize, alpha=alpha, **{"lambda": 1.5}, **keys)
    agree(run, sharp.dual_table(Sharp(problem, 0.3, alpha, normalize), run.trace, local, 1 / 1.5), problem.x0)


@pytest.mark.parametrize("case", LOCAL)
def test_fedspeed_as_in_the_paper(go: Make, problem: Any, case: str) -> None:
    keys, local = LOCAL[case]
    run = go("fedspeed", rho=0.3, normalize=False, alpha=0.5, dual="active", **{"lambda": 1.5}, **keys)
    agree(run, sharp.fedspeed_paper(Sharp(problem, 0.3, 0.5, False), run.trace, local, 1.5), problem.x0)


@pytest.mark.parametrize("clipping", ["gradient", "corrected", "official"])
@pytest.mark.parametrize("name", ["feddyn", "fedspeed", "fedsmoo"])
def test_where_the_clip_goes(go: Make, problem: Any, name: str, clipping: str) -> None:
    coefficient = {"alpha": 0.5} if name == "feddyn" else {"lambda": 2.0, "rho": 0.2}
    run = go(name, clip=1.0, clipping=clipping, **coefficient)
    given = Sharp(problem, 0.2) if name == "fedspeed" else problem
    rho = 0.2 if name == "fedsmoo" else None
    expected = sharp.dual_table(given, run.trace, Local(0.05, clip=1.0), 0.5, clipping, rho=rho)
    agree(run, expected, problem.x0)
    for other in {"gradient", "corrected", "official"} - {clipping}:
        elsewhere = sharp.dual_table(given, run.trace, Local(0.05, clip=1.0), 0.5, other, rho=rho)
        assert np.abs(expected - elsewhere).max() > 1e-4


@pytest.mark.parametrize("case", LOCAL)
def test_fedsmoo(go: Make, problem: Any, case: str) -> None:
    keys, local = LOCAL[case]
    run = go("fedsmoo", rho=0.2, **{"lambda": 2.0}, **keys)
    agree(run, sharp.dual_table(problem, run.trace, local, 0.5, rho=0.2), problem.x0)


@pytest.mark.parametrize("case", LOCAL)
def test_relaxed_initialisation(go: Make, problem: Any, case: str) -> None:
    keys, local = LOCAL[case]
    run = go("fedavg", relaxed_init=0.4, **keys)
    expected = sharp.fedavg_relaxed(problem, run.trace, local, 0.4)
    agree(run, expected, problem.x0)
    assert np.abs(expected - slow.fedavg(problem, run.trace, local)).max() > 1e-3
    run = go("fedspeed", relaxed_init=0.4, rho=0.2, **{"lambda": 2.0}, **keys)
    agree(run, sharp.dual_table(Sharp(problem, 0.2), run.trace, local, 0.5, beta=0.4), problem.x0)
    run = go("fedsmoo", relaxed_init=0.4, rho=0.2, **{"lambda": 2.0}, **keys)
    agree(run, sharp.dual_table(problem, run.trace, local, 0.5, beta=0.4, rho=0.2), problem.x0)


@pytest.mark.parametrize(
    "keys,local",
    [
        ({}, Local(0.05)),
        ({"weight_decay": 0.1, "clip": 1.5, "lr_decay": 0.9}, Local(0.05, 0.0, 0.1, 1.5, lambda t: 0.9**t)),
    ],
    ids=["plain", "all"],
)
@pytest.mark.parametrize("anchors", [{}, {"anchor_probability": 0.5}, {"anchor_every": 3}], ids=str)
def test_fedamd(go: Make, problem: Any, anchors: dict[str, float], keys: dict[str, Any], local: Local) -> None:
    run = go("fedamd", server_lr=0.8, **anchors, **keys)
    roles = [set(row["roles"]) for row in run.trace]
    assert {0, 1} <= set.union(*roles)
    agree(run, sharp.fedamd(problem, run.trace, local, 0.8), problem.x0)
