"""FedSpeed and its family: fixed points, limit cases in which one is another, what is counted, refused keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.algorithms.sam import Ascent
from fedsim.core.errors import InputError
from fedsim.core.fields import dump_part
from fedsim.core.oracle import Oracle
from fedsim.core.rules import Climb
from fedsim.engine.assembly import assemble
from fedsim.engine.loop import Simulation
from fedsim.scenario.load import parse

Make = Callable[..., Any]
TWO_OF_FIVE = {"mode": "synchronous", "clients_per_round": 2}


@pytest.fixture
def go(run_scenario: Make) -> Make:
    """Final parameters of an algorithm on a problem."""

    def run(problem: Any, name: str, rounds: int, participation: Any = None, noise: float = 0.0, **keys: Any) -> Any:
        work = {} if "local_steps" in keys else {"local_steps": 6}
        return run_scenario(
            data=problem.section(noise=noise),
            algorithm={"name": name, "lr": 0.1, **work, **keys},
            participation=participation or {"mode": "synchronous"},
            run={"rounds": rounds},
        ).params.numpy()

    return run


def gap(one: Any, other: Any) -> float:
    return float(np.abs(one - other).max())


# --- fixed points ---------------------------------------------------------------------------------


@pytest.mark.parametrize("lam", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("off", [{"alpha": 0.0}, {"rho": 0.0}], ids=["alpha 0", "rho 0"])
def test_without_ascent_the_optimum_is_exact(quadratic: Make, go: Make, off: dict[str, float], lam: float) -> None:
    problem = quadratic(importance=True)
    for participation, rounds in ((None, int(80 + 50 * lam)), (TWO_OF_FIVE, int(80 + 180 * lam))):
        found = go(problem, "fedspeed", rounds, participation, **{"lambda": lam}, **off)
        assert gap(found, problem.optimum()) < 1e-12
    assert gap(go(problem, "fedavg", 60), problem.optimum()) > 1e-2  # where FedAvg stays biased


def test_duals_become_the_gradients_at_the_optimum(quadratic: Make, tmp_path: Path) -> None:
    problem = quadratic(importance=True)
    scenario = parse(
        {
            "data": problem.section(),
            "algorithm": {"name": "fedspeed", "lr": 0.1, "local_steps": 6, "lambda": 1.0, "rho": 0.0},
            "run": {"rounds": 150, "dtype": "float64", "device": "cpu", "eval_every": 150},
        }
    )
    simulation = Simulation(scenario, assemble(scenario), tmp_path / "run")
    simulation.run()
    duals = simulation.backend.worker.store.gather(np.arange(5))["g"].numpy()  # type: ignore[attr-defined]
    expected = np.stack([problem.grad(i, problem.optimum()) for i in range(5)])
    assert np.abs(expected).max() > 0.5
    assert gap(duals, expected) < 1e-12
    assert np.abs(problem.p @ duals).max() < 1e-12
    assert gap(simulation.state["h"].numpy(), problem.p @ duals) < 1e-12


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("name", ["fedspeed", "fedgamma"])
def test_an_ascent_without_normalisation_shifts_the_optimum(quadratic: Make, go: Make, name: str, alpha: float) -> None:
    """It is the optimum of the problem with A_i (I + alpha rho A_i) in place of A_i."""
    problem, rho = quadratic(), 0.3
    keys = {"fedspeed": {"lambda": 1.0, "alpha": alpha}, "fedgamma": {}}[name]
    share = alpha if name == "fedspeed" else 1.0
    shifted = quadratic(A=problem.A @ (np.eye(4) + share * rho * problem.A), b=problem.b, x0=problem.x0)
    for participation, rounds in ((None, 120), (TWO_OF_FIVE, 340)):
        found = go(problem, name, rounds, participation, rho=rho, normalize=False, **keys)
        assert gap(found, shifted.optimum()) < 1e-12
    assert gap(shifted.optimum(), problem.optimum()) > 1e-2


def test_only_all_clients_duals_converge_under_partial_participation(quadratic: Make, go: Make) -> None:
    problem = quadratic()

    def error(dual: str, lam: float, rounds: int, participation: Any = TWO_OF_FIVE) -> float:
        found = go(problem, "fedspeed", rounds, participation, rho=0.0, dual=dual, **{"lambda": lam})
        return gap(found, problem.optimum())

    floors = [error("active", lam, 100) for lam in (0.5, 1.0, 2.0)]
    assert floors[0] > 0.05
    assert floors[0] < floors[1] < floors[2]  # it grows with lambda
    assert max(error("all", lam, 100 + int(200 * lam)) for lam in (0.5, 1.0, 2.0)) < 1e-12
    assert error("active", 1.0, 120, {"mode": "synchronous"}) < 1e-12


def test_the_paper_and_the_code_agree_when_everybody_takes_part(quadratic: Make, go: Make) -> None:
    problem = quadratic(importance=True)
    keys = {"lambda": 2.0, "rho": 0.2, "local_steps": [1, 2, 3, 4, 5]}
    both = [go(problem, "fedspeed", 40, dual=dual, noise=0.3, **keys) for dual in ("all", "active")]
    assert gap(*both) < 1e-13
    apart = [go(problem, "fedspeed", 40, TWO_OF_FIVE, dual=dual, noise=0.3, **keys) for dual in ("all", "active")]
    assert gap(*apart) > 0.1


# --- one method is another ------------------------------------------------------------------------


@pytest.mark.parametrize("participation", [None, TWO_OF_FIVE], ids=["everybody", "two of five"])
@pytest.mark.parametrize(
    "name,off", [("fedspeed", {"rho": 0.0}), ("fedspeed", {"alpha": 0.0}), ("fedsmoo", {"rho": 0.0})]
)
def test_without_ascent_they_are_feddyn(
    quadratic: Make, go: Make, participation: Any, name: str, off: dict[str, float]
) -> None:
    """Over 40 rounds with noisy gradients: FedDyn's alpha is 1 / lambda."""
    problem, keys = quadratic(importance=True), {"local_steps": {"uniform": [1, 6]}, "noise": 0.3}
    dyn = go(problem, "feddyn", 40, participation, alpha=0.4, **keys)
    assert gap(go(problem, name, 40, participation, **{"lambda": 2.5}, **off, **keys), dyn) < 1e-10
    assert gap(go(problem, name, 40, participation, **{"lambda": 2.5}, **keys), dyn) > 1e-3


@pytest.mark.parametrize(
    "name,keys,other,others",
    [
        ("fedsam", {"rho": 0.0}, "fedavg", {}),
        ("fedcm", {"alpha": 1.0}, "fedavg", {}),
        ("mofedsam", {"rho": 0.0}, "fedcm", {}),
        ("mofedsam", {"alpha": 1.0}, "fedsam", {}),
        ("fedgamma", {"rho": 0.0}, "scaffold", {}),
        ("fedspeed", {"relaxed_init": 0.0}, "fedspeed", {}),
    ],
)
def test_limits(
    quadratic: Make, go: Make, name: str, keys: dict[str, float], other: str, others: dict[str, float]
) -> None:
    problem, rest = quadratic(importance=True), {"local_steps": {"uniform": [1, 4]}, "noise": 0.3, "momentum": 0.3}
    this = go(problem, name, 10, TWO_OF_FIVE, **keys, **rest)
    assert np.array_equal(this, go(problem, other, 10, TWO_OF_FIVE, **others, **rest))
    if name != other:
        assert gap(this, go(problem, name, 10, TWO_OF_FIVE, **rest)) > 1e-3


def test_beginnings(quadratic: Make, go: Make) -> None:
    """While mu, s and c are 0, FedSMOO's first step is FedSpeed's and FedGamma's first round is FedSAM's; FedCM's first
    round is FedAvg's with alpha times the rate; a relaxed start is the start in a client's first round from x_0."""
    problem = quadratic()
    keys = {"lambda": 2.0, "rho": 0.2}
    smoo, speed = ([go(problem, name, 1, local_steps=k, **keys) for k in (1, 6)] for name in ("fedsmoo", "fedspeed"))
    assert gap(smoo[0], speed[0]) < 1e-14
    assert gap(smoo[1], speed[1]) > 1e-3
    assert gap(go(problem, "fedgamma", 1), go(problem, "fedsam", 1)) < 1e-14
    assert gap(go(problem, "fedcm", 1, alpha=0.3), go(problem, "fedavg", 1, lr=0.03)) < 1e-14
    assert gap(go(problem, "fedavg", 1, relaxed_init=0.3), go(problem, "fedavg", 1)) == 0
    assert gap(go(problem, "fedavg", 2, relaxed_init=0.3), go(problem, "fedavg", 2)) > 1e-3


def test_a_clip_that_never_binds(quadratic: Make, go: Make) -> None:
    problem, keys = quadratic(), {"lambda": 2.0, "rho": 0.2}
    free = go(problem, "fedspeed", 5, **keys)
    for clipping in ("gradient", "corrected", "official"):
        assert gap(go(problem, "fedspeed", 5, clip=1e6, clipping=clipping, **keys), free) < 1e-14


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "scaffold", "feddyn", "fednova", "fedadam", "fedcm", "fedspeed"])
def test_relaxed_initialisation_is_an_option_of_all(quadratic: Make, go: Make, name: str) -> None:
    problem = quadratic()
    on, off = (go(problem, name, 12, TWO_OF_FIVE, relaxed_init=beta, local_steps=3) for beta in (0.3, 0.0))
    assert gap(on, off) > 1e-3
    if name in ("scaffold", "feddyn", "fedspeed"):  # it moves the way there, not the fixed point
        extra = {"rho": 0.0, "lambda": 1.0} if name == "fedspeed" else {"alpha": 1.0} if name == "feddyn" else {}
        assert gap(go(problem, name, 220, TWO_OF_FIVE, relaxed_init=0.1, **extra), problem.optimum()) < 1e-10


def test_relaxed_initialisation_on_the_virtual_clock(quadratic: Make, go: Make) -> None:
    clock = {"mode": "fedbuff", "buffer": 2, "concurrency": 3}
    on, off = (go(quadratic(), "fedavg", 12, clock, relaxed_init=beta) for beta in (0.3, 0.0))
    assert gap(on, off) > 1e-3


# --- the ascent itself ----------------------------------------------------------------------------


class Squares(Oracle):
    """Per-sample losses |x|^2 / 2 and |x - 1|^2."""

    def grad(self, x: torch.Tensor) -> torch.Tensor:
        return self.per_sample_grad(x).mean(-2)

    def per_sample_grad(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x, 2 * (x - 1)], -2)


@pytest.mark.parametrize("normalize", [True, False])
def test_per_sample_gradients_average_to_the_gradient(normalize: bool) -> None:
    x = torch.tensor([[3.0, -1.0], [0.5, 2.0]], dtype=torch.float64)
    ascent = Ascent(Squares(torch.ones(2, 1)), Climb(0.4, normalize, 0.7))
    assert torch.allclose(ascent.per_sample_grad(x).mean(-2), ascent.grad(x), rtol=1e-14)
    assert not torch.allclose(ascent.grad(x), Squares(torch.ones(2, 1)).grad(x))


def test_where_the_gradient_vanishes_the_ascent_is_finite() -> None:
    x = torch.tensor([[2 / 3, 2 / 3]], dtype=torch.float64)
    assert Ascent(Squares(torch.ones(1, 1)), Climb(0.4)).grad(x).abs().max() < 1e-6


# --- what is counted ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name,calls,down,up,keys",
    [
        ("fedsam", 2, 4, 4, {}),
        ("fedsam", 1, 4, 4, {"rho": 0.0}),
        ("fedcm", 1, 8, 4, {}),
        ("mofedsam", 2, 8, 4, {}),
        ("fedgamma", 2, 8, 8, {"option": 1}),
        ("fedspeed", 2, 4, 4, {}),
        ("fedspeed", 2, 4, 4, {"dual": "active", "alpha": 0.1}),
        ("fedspeed", 1, 4, 4, {"alpha": 0.0}),
        ("fedspeed", 1, 4, 4, {"rho": 0.0}),
        ("fedsmoo", 2, 8, 8, {}),
        ("fedsmoo", 1, 8, 8, {"rho": 0.0}),
        ("fedavg", 1, 4, 4, {"relaxed_init": 0.1}),
        ("scaffold", 1, 8, 8, {"option": 1}),
    ],
)
def test_bytes_and_gradients(
    quadratic: Make, run_scenario: Make, monkeypatch: pytest.MonkeyPatch, name: str, calls: int, down: int, up: int,
    keys: dict[str, Any],
) -> None:  # fmt: skip
    """Counted is what is evaluated: the oracle's own calls are counted beside it."""
    from fedsim.objective import quadratic as task

    evaluated = 0
    original = task._QuadraticOracle.grad

    def count(self: Any, x: torch.Tensor) -> torch.Tensor:
        nonlocal evaluated
        evaluated += len(x)
        return original(self, x)

    monkeypatch.setattr(task._QuadraticOracle, "grad", count)
    run = run_scenario(
        data=quadratic(n=5, d=4).section(),
        algorithm={"name": name, "lr": 0.1, "local_steps": 3, **keys},
        participation=TWO_OF_FIVE,
        run={"rounds": 10},
    )
    last = run.metrics.iloc[-1]
    assert last["bytes_sent"] == 10 * 2 * (down + up) * 8
    assert last["gradients"] == evaluated == 10 * 2 * 3 * calls


# --- keys -----------------------------------------------------------------------------------------


def algorithm(**keys: Any) -> Any:
    return parse({"data": {"dataset": "quadratic", "file": "q.npz"}, "algorithm": keys}).algorithm


def test_lambda_is_a_key_although_python_keeps_the_word() -> None:
    made = algorithm(name="fedspeed", **{"lambda": 4.0})
    assert made.lambda_ == 4.0
    assert made.penalty == 0.25
    assert dump_part(made)["lambda"] == 4.0
    with pytest.raises(InputError, match="did you mean 'lambda'"):
        algorithm(name="fedspeed", lambda_=4.0)


@pytest.mark.parametrize(
    "keys,says",
    [
        ({"name": "fedspeed", "lambda": 0.0}, "algorithm.lambda: found 0.0, allowed: greater than 0"),
        ({"name": "fedspeed", "lamb": 0.1}, "algorithm.lamb: unknown key (did you mean 'lambda'?)"),
        ({"name": "fedspeed", "rho": -0.1}, "algorithm.rho: found -0.1, allowed: greater than or equal to 0"),
        ({"name": "fedspeed", "alpha": 1.1}, "algorithm.alpha: found 1.1, allowed: less than or equal to 1"),
        ({"name": "fedspeed", "dual": "mine"}, "algorithm.dual: found 'mine', allowed: 'all' or 'active'"),
        ({"name": "feddyn", "clipping": "after"}, "algorithm.clipping: found 'after'"),
        ({"name": "fedcm", "alpha": 0.0}, "algorithm.alpha: found 0.0, allowed: greater than 0"),
        ({"name": "fedsam", "normalize": 1}, "algorithm.normalize: found 1, allowed: true or false"),
        ({"name": "fedavg", "relaxed_init": -0.1}, "algorithm.relaxed_init: found -0.1"),
        ({"name": "dgd", "relaxed_init": 0.1}, "algorithm.relaxed_init: unknown key"),
    ],
)
def test_wrong_keys_are_named(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as error:
        algorithm(**keys)
    assert says in str(error.value)


@pytest.mark.parametrize("name", ["fedcm", "mofedsam", "fedgamma", "fedspeed", "fedsmoo", "fedamd"])
def test_a_common_round_is_needed(name: str) -> None:
    scenario = {
        "data": {"dataset": "quadratic", "file": "q.npz"},
        "algorithm": {"name": name},
        "participation": {"mode": "asynchronous"},
    }
    with pytest.raises(InputError, match="synchronous"):
        parse(scenario)
