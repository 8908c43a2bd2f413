"""Local solvers: PyTorch's own optimisers on one client, what they remember and for how long, who may use them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.algorithms.base import ServerAlgorithm
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.feddyn import FedDyn
from fedsim.algorithms.fednova import FedNova
from fedsim.algorithms.fedprox import FedProx
from fedsim.algorithms.solvers import SGD, Adagrad, Adam, AdamW, LocalSolver, Nesterov
from fedsim.contract.laws import check_algorithm
from fedsim.core.errors import InputError
from fedsim.core.fields import dump_part, make_part
from fedsim.core.registry import lookup, names
from fedsim.core.rules import AdamRule, HeavyBall
from fedsim.scenario.load import parse

Make = Callable[..., Any]
Torch = Callable[[list[torch.Tensor]], torch.optim.Optimizer]
LR, STEPS, ROUNDS = 0.05, 7, 3

PAIRS: dict[str, tuple[dict[str, Any], Torch]] = {
    "sgd": ({"name": "sgd", "momentum": 0.9, "weight_decay": 0.1},
            lambda p: torch.optim.SGD(p, LR, momentum=0.9, weight_decay=0.1)),
    "nesterov": ({"name": "nesterov", "momentum": 0.8, "weight_decay": 0.1},
                 lambda p: torch.optim.SGD(p, LR, momentum=0.8, weight_decay=0.1, nesterov=True)),
    "adam": ({"name": "adam", "weight_decay": 0.1}, lambda p: torch.optim.Adam(p, LR, weight_decay=0.1)),
    "adam-betas": ({"name": "adam", "beta1": 0.5, "beta2": 0.9, "eps": 1e-3},
                   lambda p: torch.optim.Adam(p, LR, betas=(0.5, 0.9), eps=1e-3)),
    "adamw": ({"name": "adamw"}, lambda p: torch.optim.AdamW(p, LR, weight_decay=0.01)),
    "adagrad": ({"name": "adagrad", "initial_accumulator": 0.2, "weight_decay": 0.1},
                lambda p: torch.optim.Adagrad(p, LR, initial_accumulator_value=0.2, weight_decay=0.1)),
}  # fmt: skip


@pytest.mark.parametrize("state", ["round", "kept"])
@pytest.mark.parametrize("name", PAIRS)
def test_one_client_does_what_pytorch_does(name: str, state: str, quadratic: Make, run_scenario: Make) -> None:
    """``round`` is a new optimiser in every round, ``kept`` one for the whole run."""
    keys, make = PAIRS[name]
    problem = quadratic(n=1, d=5)
    run = run_scenario(
        data=problem.section(),
        algorithm={"name": "fedavg", "lr": LR, "local_steps": STEPS, "solver": {**keys, "state": state}},
        run={"rounds": ROUNDS},
    )
    x = torch.tensor(problem.x0).requires_grad_()
    optimiser = make([x])
    for step in range(STEPS * ROUNDS):
        if state == "round" and step % STEPS == 0:
            optimiser = make([x])
        x.grad = torch.tensor(problem.grad(0, x.detach().numpy()))
        optimiser.step()
    assert float((run.params - x.detach()).abs().max()) < 1e-10
    assert float((run.params - torch.tensor(problem.x0)).abs().max()) > 1e-2


def test_a_round_of_rounds_is_not_one_run(quadratic: Make, run_scenario: Make) -> None:
    problem = quadratic(n=1, d=5)
    keys = {"name": "fedavg", "lr": LR, "local_steps": STEPS}
    ends = [
        run_scenario(
            data=problem.section(), algorithm={**keys, "solver": {"name": "adam", "state": s}}, run={"rounds": 3}
        ).params
        for s in ("round", "kept")
    ]
    assert float((ends[0] - ends[1]).abs().max()) > 1e-3


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold", "fednova", "feddyn", "fedcm", "fedsam", "dspodfl"])
def test_the_algorithms_own_keys_are_sgd(algorithm: str, quadratic: Make, run_scenario: Make) -> None:
    """Bit for bit."""
    problem, ends = quadratic(n=4, d=3), []
    for keys in ({"momentum": 0.9, "weight_decay": 0.05},
                 {"solver": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.05}}):  # fmt: skip
        sections: dict[str, Any] = {"algorithm": {"name": algorithm, "lr": 0.02, "local_steps": [1, 2, 3, 4], **keys}}
        if algorithm == "dspodfl":
            sections["topology"] = {"graph": "ring"}
        ends.append(run_scenario(data=problem.section(noise=0.1), run={"rounds": 4}, **sections).params)
    assert torch.equal(ends[0], ends[1])


@pytest.mark.parametrize("solver", [SGD(), SGD(momentum=0.6), Nesterov(momentum=0.6), Nesterov(momentum=0.0)])
@pytest.mark.parametrize("steps", [0, 1, 2, 9])
def test_the_sum_of_weights_is_how_far_equal_directions_lead(solver: LocalSolver, steps: int) -> None:
    x, lr, one = torch.zeros(1, 2, dtype=torch.float64), torch.full((1, 1), 0.25), torch.ones(1, 2, dtype=torch.float64)
    state = solver.start(x)
    for _ in range(steps):
        x, state = solver.step(x, one, lr, state)
    found = solver.weight_sum(torch.full((1, 1), float(steps), dtype=torch.float64))
    assert found is not None
    assert float(-x[0, 0] / 0.25) == pytest.approx(float(found), abs=1e-12)


# --- names have no hidden meaning -----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Ditto(ServerAlgorithm):
    """Ditto (arXiv 2012.04221): beside the common model a client trains a personal one, here called v."""

    pull: float = 0.5
    called: str = "v"

    def init_client(self, params: Any) -> Any:
        return {self.called: params}

    def start(self, received: Any, client: Any) -> Any:
        return {"x": received["x"], self.called: client[self.called]}

    def local_step(self, oracle: Any, local: Any, received: Any, client: Any) -> Any:
        after = super().local_step(oracle, local, received, client)
        v = local[self.called]
        return {**after, self.called: v - oracle.lr * (oracle.grad(v) + self.pull * (v - received["x"]))}

    def message(self, local: Any, received: Any, client: Any, effort: Any) -> Any:
        return {"delta": local["x"] - received["x"]}, {}, {self.called: local[self.called]}


@pytest.mark.parametrize("solver", [{"name": "sgd", "momentum": 0.9}, {"name": "adam", "state": "kept"}], ids=str)
@pytest.mark.parametrize("name", ["v", "b", "m", "s", "t"])
def test_an_algorithms_names_mean_nothing_to_the_solver(
    solver: dict[str, Any], name: str, quadratic: Make, run_scenario: Make
) -> None:
    """The common model of Ditto is FedAvg's, whatever the personal one is called."""
    problem = quadratic(n=3, d=4)
    keys = {"lr": 0.03, "local_steps": 4, "solver": solver}
    runs = [
        run_scenario(data=problem.section(noise=0.1), algorithm=algorithm, run={"rounds": 5})
        for algorithm in ({"name": f"{__name__}:Ditto", "called": name, **keys}, {"name": "fedavg", **keys})
    ]
    assert torch.equal(runs[0].params, runs[1].params)
    assert np.abs(runs[0].params.numpy() - problem.x0).max() > 1e-2


def test_reserved_rows_do_not_reach_the_algorithm(quadratic: Make, run_scenario: Make) -> None:
    """Whatever a client keeps for its solver, `message` sees the algorithm's own names alone."""
    run_scenario(
        data=quadratic(n=3, d=4).section(),
        algorithm={"name": f"{__name__}:Strict", "solver": {"name": "adam", "state": "kept"}},
        run={"rounds": 2},
    )


@dataclass(frozen=True, kw_only=True)
class Strict(ServerAlgorithm):
    def message(self, local: Any, received: Any, client: Any, effort: Any) -> Any:
        assert set(local) == {"x"}
        assert client == {}
        return super().message(local, received, client, effort)


def test_the_last_point_of_relaxed_init_is_nobodys(quadratic: Make, run_scenario: Make) -> None:
    with pytest.raises(InputError, match="keeps 'last', as relaxed_init does"):
        run_scenario(
            data=quadratic(n=3, d=4).section(),
            algorithm={"name": f"{__name__}:Ditto", "called": "last", "relaxed_init": 0.1},
        )


# --- who may use them -----------------------------------------------------------------------------

OWN = {
    "beer",
    "dadao",
    "diff2",
    "diff2_bvr",
    "ef21",
    "ef21_w",
    "fedamd",
    "fsgld",
    "gradient_tracking",
    "monna",
    "push_diging",
}
LINEAR = {"scaffold", "fedgamma", "fednova", "fedcm", "mofedsam"}


@pytest.mark.parametrize("solver", [n for n in names("solver") if n != "sgd"])
@pytest.mark.parametrize("algorithm", names("algorithm"))
def test_every_algorithm_takes_a_solver_or_says_why_not(algorithm: str, solver: str) -> None:
    kind = lookup("algorithm", algorithm)
    made = make_part(kind, {"solver": {"name": solver}})
    if algorithm in OWN or (algorithm in LINEAR and solver != "nesterov"):
        with pytest.raises(InputError, match="by its own rule" if algorithm in OWN else "sum of its steps' weights"):
            made.check_solver()
    else:
        made.check_solver()


@pytest.mark.parametrize(
    "algorithm,solver",
    [
        ("fedavg", "{name: adam, state: kept}"), ("fedprox", "{name: adagrad}"), ("feddyn", "{name: adam}"),
        ("fedspeed", "{name: adamw}"), ("fedsmoo", "{name: nesterov}"), ("fedsam", "{name: nesterov, state: kept}"),
        ("scaffold", "{name: nesterov}"), ("fednova", "{name: nesterov, weight_decay: 0.01}"),
        ("fedcm", "{name: sgd, momentum: 0.5}"), ("dspodfl", "{name: adam, state: kept}"), ("dfedavg", "{name: adamw}"),
    ],
)  # fmt: skip
def test_the_laws_hold_with_it(algorithm: str, solver: str) -> None:
    results = check_algorithm(algorithm, [f"solver={solver}", "lr=0.05"])
    assert {r.name: r.detail for r in results if not r.passed} == {}


@pytest.mark.parametrize(
    "keys,says",
    [
        ({"solver": {"name": "adamm"}}, "algorithm.solver.name: .*did you mean 'adam'"),
        ({"solver": {"name": "adam", "beta3": 1}}, "algorithm.solver.beta3: unknown key"),
        ({"solver": {"name": "adam", "beta1": 1.5}}, "algorithm.solver.beta1: found 1.5"),
        ({"solver": {"beta1": 0.9}}, "algorithm.solver.name: missing"),
        ({"solver": "adam"}, "algorithm.solver: .*a mapping with the key 'name'"),
        ({"solver": {"name": "adam"}, "momentum": 0.9}, "algorithm.momentum: found beside solver"),
        ({"solver": {"name": "adam"}, "weight_decay": 0.1}, "algorithm.weight_decay: found beside solver"),
        ({"solver": {"name": "fedsim.algorithms.fedavg:FedAvg"}}, "algorithm.solver.name: .*LocalSolver"),
    ],
    ids=str,
)
def test_what_is_no_solver_is_refused(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse({"data": {"dataset": "quadratic", "file": "q.npz"}, "algorithm": {"name": "fedavg", **keys}})


def test_momentum_that_is_kept_has_no_sum_of_weights() -> None:
    with pytest.raises(InputError, match="sum of its steps' weights"):
        FedNova(solver=SGD(momentum=0.5, state="kept")).check_solver()


@pytest.mark.parametrize("algorithm", ["feddyn", "fedspeed", "fedsmoo"])
def test_what_is_remembered_of_a_round_does_not_fit_the_next_ones_correction(algorithm: str) -> None:
    made = make_part(lookup("algorithm", algorithm), {"solver": {"name": "sgd", "momentum": 0.9, "state": "kept"}})
    with pytest.raises(InputError, match=r"solver.state: found 'kept', but .* corrects directions anew"):
        made.check_solver()


# --- keys and speed -------------------------------------------------------------------------------

OWN_SOLVER = """
from dataclasses import dataclass
import torch
from fedsim.algorithms.fednova import FedNova
from fedsim.algorithms.fedprox import FedProx
from fedsim.algorithms.solvers import SGD, LocalSolver

@dataclass(frozen=True, kw_only=True)
class Sign(LocalSolver):
    "x = x - lr sign(v)"
    scale: float = 1.0
    def step(self, x, v, lr, state):
        return x - self.scale * lr * torch.sign(v), state

@dataclass(frozen=True, kw_only=True)
class Half(SGD):
    "x = x - lr v / 2"
    def step(self, x, v, lr, state):
        return super().step(x, v, lr / 2, state)
"""


def test_ones_own_is_named_by_its_module(
    quadratic: Make, run_scenario: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_solver.py").write_text(OWN_SOLVER)
    monkeypatch.syspath_prepend(str(tmp_path))
    solver = {"name": "own_solver:Sign", "scale": 2.0}
    run = run_scenario(
        data=quadratic(n=2, d=3, x0=[9.0, -9.0, 9.0], b=np.zeros((2, 3))).section(),
        algorithm={"name": "fedavg", "lr": 0.5, "local_steps": 3, "solver": solver},
        run={"rounds": 2},
    )
    assert run.params.abs().tolist() == [3.0] * 3
    data = {"dataset": "quadratic", "file": "q.npz"}
    again = parse({"data": data, "algorithm": {"name": "fedavg", "solver": solver}})
    assert again.resolved()["algorithm"]["solver"] == {**solver, "weight_decay": 0.0, "state": "round"}


def test_scenarios_without_one_are_written_as_before() -> None:
    assert "solver" not in dump_part(FedAvg())
    assert dump_part(FedAvg(solver=Adam()))["solver"]["name"] == "adam"


def test_the_solver_says_whether_steps_may_be_taken_in_place() -> None:
    assert FedAvg().is_plain_sgd
    assert FedAvg(solver=SGD()).is_plain_sgd
    for keys in ({"momentum": 0.5}, {"weight_decay": 0.1}, {"clip": 1.0}, {"solver": Adam()}, {"solver": Nesterov()}):
        assert not FedAvg(**keys).is_plain_sgd  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["start", "step", "decayed"])
@pytest.mark.parametrize("kind", [SGD, Nesterov])
def test_a_solver_that_derives_from_another_takes_its_own_steps(kind: type[SGD], name: str) -> None:
    """What its parent says of plain steps is not said of them: neither in place nor as a sum of directions."""
    plain, steps = kind(momentum=0.0), torch.ones(2, 1)
    assert plain.in_place
    assert plain.weight_sum(steps) is not None

    def own(self: SGD, *inputs: Any) -> Any:
        return getattr(kind, name)(self, *inputs)

    mine = type("Mine", (kind,), {name: own})(momentum=0.0)
    assert not mine.in_place
    assert mine.weight_sum(steps) is None
    assert mine.rule is None
    assert not FedAvg(solver=mine).is_plain_sgd
    assert type("Renamed", (kind,), {})(momentum=0.0).in_place


def test_half_steps_of_a_solver_of_ones_own_are_half_as_long(
    quadratic: Make, run_scenario: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_half_solver.py").write_text(OWN_SOLVER)
    monkeypatch.syspath_prepend(str(tmp_path))
    problem = quadratic(n=4, d=3)
    found = [
        run_scenario(
            data=problem.section(), algorithm={"name": "fedavg", "local_steps": 3, **keys}, run={"rounds": 5}
        ).params.numpy()
        for keys in ({"lr": 0.1, "solver": {"name": "own_half_solver:Half"}}, {"lr": 0.05})
    ]
    np.testing.assert_allclose(*found, rtol=1e-12, atol=1e-15)


def test_the_solver_says_by_which_rule_steps_follow_gradients() -> None:
    class Own(SGD):
        """It may do anything."""

    assert FedAvg().rule == FedAvg(solver=SGD(state="kept")).rule == HeavyBall()
    assert FedAvg(momentum=0.5, weight_decay=0.1).rule == HeavyBall(momentum=0.5, decay=0.1)
    assert FedAvg(solver=SGD(momentum=0.5)).rule == HeavyBall(momentum=0.5)
    assert FedAvg(solver=Nesterov(momentum=0.5)).rule == HeavyBall(momentum=0.5, nesterov=True)
    assert FedAvg(solver=Nesterov(momentum=0.0)).rule == HeavyBall()
    assert FedAvg(solver=Adam(weight_decay=0.1)).rule == AdamRule(beta1=0.9, beta2=0.999, eps=1e-8, decay=0.1)
    assert FedAvg(solver=AdamW(weight_decay=0.1)).rule == AdamRule(beta1=0.9, beta2=0.999, eps=1e-8, shrink=0.1)
    others: list[LocalSolver] = [
        Adam(amsgrad=True),
        Adam(state="kept"),
        Adagrad(),
        Own(),
        SGD(momentum=0.5, state="kept"),
        Nesterov(state="kept"),
    ]
    assert [FedAvg(solver=other).rule for other in others] == [None] * 6
    assert FedAvg(clip=1.0).rule == HeavyBall(clip=1.0)
    assert FedProx(mu=0.1).rule == HeavyBall()
    assert FedProx(mu=0.1, clip=1.0).rule == HeavyBall(clip=1.0)
    assert FedProx(mu=0.1, clip=1.0, clipping="corrected").rule is None
    assert FedDyn(clip=1.0, clipping="official").rule is None
