"""Clients that are chosen by what they lose and how fast they are: references, limit cases, costs, resumed runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.contract.participation_laws import check_participation
from fedsim.core.errors import InputError
from fedsim.deployment.app import deploy
from fedsim.engine.inquiry import ServerInquiry
from fedsim.participation.oort import Oort
from fedsim.participation.selection import ClientLosses
from fedsim.scenario.load import parse

Make = Callable[..., Any]
LR, ROUNDS, N = 0.05, 10, 8
POW = {"name": "power_of_choice", "candidates": 6}
RPOW = {**POW, "variant": "rpow-d"}
CPOW = {**POW, "variant": "cpow-d", "samples": 3}
OORT = {"name": "oort", "preferred": 2.0, "exploration": 0.5, "samples": 4}
OWN = {"name": "own_selection:Rarest"}
EVERY = {"pow-d": POW, "cpow-d": CPOW, "rpow-d": RPOW, "oort": OORT, "own": OWN}
SPEEDS = {"compute": {"model": "linear", "slowest": 1.0, "fastest": 0.2}}
DIGITS: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": N, "limit": 400, "partition": {"scheme": "dirichlet", "alpha": 0.5}},
    "model": {"name": "linear"},
    "algorithm": {"name": "fedavg", "lr": 0.1, "local_steps": 2, "batch_size": 8},
}


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.fixture
def problem(quadratic: Make) -> Any:
    return quadratic(n=N, d=4, importance=True)


@pytest.fixture
def go(run_scenario: Make, problem: Any) -> Make:
    def run(selection: Any = None, rounds: int = ROUNDS, **participation: Any) -> Any:
        chosen = {} if selection is None else {"selection": selection}
        return run_scenario(
            data=problem.section(),
            algorithm={"name": "fedavg", "lr": LR, "local_steps": 2, "weighting": "uniform"},
            participation={"clients_per_round": 3, **chosen, **participation},
            system=SPEEDS,
            run={"rounds": rounds},
        )

    return run


def loss(problem: Any, i: int, x: Any) -> float:
    return float(0.5 * (x - problem.b[i]) @ problem.grad(i, x))


def step(problem: Any, x: Any, cohort: list[int]) -> Any:
    """FedAvg with two local steps and the plain mean of the cohort."""
    ends = []
    for i in cohort:
        y = x.copy()
        for _ in range(2):
            y = y - LR * problem.grad(i, y)
        ends.append(y)
    return np.mean(ends, axis=0)


# --- against slow references ------------------------------------------------------------------------------------------


def test_pow_d_takes_those_that_lose_most(go: Make, problem: Any) -> None:
    """All clients are candidates, so that the cohort follows from the model alone."""
    run, x, seen = go({"name": "power_of_choice", "candidates": N}), problem.x0.copy(), set()
    for row in run.trace:
        lost = np.array([loss(problem, i, x) for i in range(N)])
        cohort = np.sort(np.argsort(-lost)[:3]).tolist()
        assert row["clients"] == cohort
        assert row["weights"] == pytest.approx([1 / 3] * 3)
        x, seen = step(problem, x, cohort), seen | {tuple(cohort)}
    assert len(seen) > 1
    assert np.abs(run.params.numpy() - x).max() < 1e-10


def test_rpow_d_takes_those_that_lost_most_when_they_were_last_seen(go: Make, problem: Any) -> None:
    run, x = go({"name": "power_of_choice", "candidates": N, "variant": "rpow-d"}), problem.x0.copy()
    last = np.full(N, np.inf)
    for row in run.trace:
        cohort = row["clients"]
        least = last[cohort].min()
        assert all(last[i] <= least for i in set(range(N)) - set(cohort))
        for i in cohort:
            last[i] = loss(problem, i, x)
        x = step(problem, x, cohort)
    assert np.isfinite(last).all()
    assert len({i for row in run.trace[:2] for i in row["clients"]}) == 6  # whoever was never seen comes first
    assert np.abs(run.params.numpy() - x).max() < 1e-10


def test_candidates_are_drawn_by_importance(quadratic: Make, run_scenario: Make) -> None:
    p = np.array([20.0, 20.0, 1.0, 1.0, 1.0, 1.0])
    problem = quadratic(n=6, d=2, p=p)
    run = run_scenario(
        data=problem.section(), algorithm={"name": "fedavg", "lr": LR}, run={"rounds": 60},
        participation={"clients_per_round": 2, "selection": {"name": "power_of_choice", "candidates": 2}},
    )  # fmt: skip
    times = np.bincount(np.concatenate([row["clients"] for row in run.trace]), minlength=6)
    assert times[:2].min() > 40
    assert times[2:].max() < 20


def slow_score(
    utility: list[float], took: list[float], seen: list[int], number: int, clip: float, T: float | None, alpha: float
) -> list[float]:
    """The score of the official code's getTopK with the paper's penalty, one client after the other."""
    rising = sorted(utility)
    most, least = rising[min(int(len(rising) * clip), len(rising) - 1)], rising[0] * 0.999
    spread, found = max(rising[-1] - least, 1e-4), []
    for u, seconds, when in zip(utility, took, seen, strict=True):
        score = (min(u, most) - least) / spread + (0.1 * np.log(number) / when) ** 0.5
        if T is not None and seconds > T:
            score *= (T / seconds) ** alpha
        found.append(score)
    return found


@pytest.mark.parametrize("T", [None, 1.5])
@pytest.mark.parametrize("clip", [0.5, 0.95])
def test_oorts_score(T: float | None, clip: float) -> None:
    draw = np.random.default_rng(1)
    utility, took, seen = draw.uniform(1, 9, 12), draw.uniform(0.5, 4, 12), draw.integers(1, 9, 12)
    known = {"utility": utility, "seconds": took, "seen": seen.astype(float)}
    who = np.array([7, 2, 3, 11, 0])
    found = Oort(preferred=T, clip=clip, penalty=1.5).scores(who, 10, known)
    slow = slow_score(utility[who].tolist(), took[who].tolist(), seen[who].tolist(), 10, clip, T, 1.5)
    assert np.abs(found - slow).max() < 1e-10


def test_oort_learns_the_utility_and_the_seconds(go: Make, problem: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []
    learn = Oort.learn
    monkeypatch.setattr(Oort, "learn", lambda self, k, r: heard.append((r, learn(self, k, r))) or heard[-1][1])
    x, run = problem.x0.copy(), go({"name": "oort", "exploration": 1.0, "exploration_min": 1.0}, rounds=4)
    told = [h for h in heard if float(h[0].losses("full").mean.sum()) != len(h[0].clients)]  # not those of a plan
    for row, (reported, known) in zip(run.trace, told, strict=True):
        assert reported.clients.tolist() == row["clients"]
        mine = [loss(problem, i, x) for i in row["clients"]]  # one sample each
        assert np.abs(known["utility"][row["clients"]] - mine).max() < 1e-10
        speeds = np.linspace(1.0, 0.2, N)[row["clients"]]
        assert np.abs(known["seconds"][row["clients"]] - speeds).max() < 1e-6
        assert (known["seen"][row["clients"]] == row["round"]).all()
        x = step(problem, x, row["clients"])


@pytest.mark.parametrize("selection", [*EVERY.values()], ids=[*EVERY])
@pytest.mark.parametrize("beyond", [np.nan, np.inf])
def test_a_loss_that_is_no_finite_number_is_the_largest(
    selection: Any, beyond: float, go: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ServerInquiry.losses

    def losses(self: Any, clients: Any, *others: Any) -> ClientLosses:
        found = asked(self, clients, *others)
        odd = np.isin(clients, (1, 5))
        return ClientLosses(np.where(odd, beyond, found.mean), np.where(odd, beyond, found.square))

    monkeypatch.setattr(ServerInquiry, "losses", losses)
    chosen = [set(row["clients"]) for row in go(selection).trace]
    assert all(len(cohort) == 3 for cohort in chosen)
    if selection["name"] == "power_of_choice":
        assert sum(len({1, 5} & cohort) for cohort in chosen) > 2 * ROUNDS * 3 / N  # more than their share


def test_where_all_losses_are_beyond_numbers_oort_still_chooses() -> None:
    known = {"utility": np.full(4, np.inf), "seconds": np.ones(4), "seen": np.ones(4)}
    assert np.isfinite(Oort().scores(np.arange(4), 3, known)).all()


def test_exploring_alone_sees_everybody_first(go: Make) -> None:
    run = go({"name": "oort", "exploration": 1.0, "exploration_decay": 1.0}, clients_per_round=2, rounds=4)
    assert sorted(i for row in run.trace for i in row["clients"]) == list(range(N))


def test_slow_clients_are_avoided(go: Make) -> None:
    """Client 0 takes five times as long as client 7; penalised, it takes part less often and rounds are shorter."""
    keys = {"name": "oort", "exploration_decay": 0.5, "exploration_min": 0.1}
    free, bound = (go({**keys, **more}, rounds=40) for more in ({}, {"preferred": 0.5, "penalty": 6.0}))
    often = [sum(sum(i < 4 for i in row["clients"]) for row in run.trace) for run in (free, bound)]
    assert often[1] < often[0] / 2
    assert bound.metrics["time"].iloc[-1] < free.metrics["time"].iloc[-1]


# --- limit cases ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["pow-d", "cpow-d", "rpow-d"])
@pytest.mark.parametrize("more", [{}, {"over_selection": 1.5}, {"dropout": 0.3}], ids=str)
def test_with_as_many_candidates_as_clients_it_is_the_draw_without(go: Make, variant: str, more: Any) -> None:
    size = 5 if "over_selection" in more else 3
    chosen = go({"name": "power_of_choice", "candidates": size, "draw": "uniform", "variant": variant}, **more)
    drawn = go(**more)
    assert chosen.trace == drawn.trace
    assert torch.equal(chosen.params, drawn.params)


def test_only_clients_that_are_on_are_chosen(run_scenario: Make, problem: Any) -> None:
    sections = {
        "data": problem.section(), "algorithm": {"name": "fedavg", "lr": LR},
        "system": {**SPEEDS, "availability": {"model": "on_off", "on": 3.0, "off": 3.0}}, "run": {"rounds": 15},
    }  # fmt: skip
    for selection in (RPOW, OORT):
        participation = {"clients_per_round": 2, "selection": selection}
        run = run_scenario(**sections, participation=participation)
        assert len(run.trace) == 15
        assert len({tuple(row["clients"]) for row in run.trace}) > 4


# --- one run, wherever it goes ----------------------------------------------------------------------------------------


def sections(selection: dict[str, Any], **more: Any) -> dict[str, Any]:
    run = {"rounds": 8, "eval_every": 4, "device": "cpu", "threads": 1, "trace": True, "dtype": "float64"}
    chosen = {"clients_per_round": 3, "selection": selection}
    return {**DIGITS, "participation": chosen, "system": SPEEDS, "run": run, **more}


def rows(run: Any) -> Any:
    return run.metrics.drop(columns="wall")


@pytest.mark.parametrize("name", EVERY)
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(name: str, tmp_path: Path) -> None:
    def interrupt(number: int, _row: object) -> None:
        if number == 3:
            os.kill(os.getpid(), signal.SIGINT)

    whole = fedsim.run(sections(EVERY[name]), out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fedsim.run(sections(EVERY[name]), out=tmp_path / "parts", progress=interrupt)
    parts = fedsim.run(sections(EVERY[name]), out=tmp_path / "parts", resume=True)
    assert parts.resumed_at == 3
    assert torch.equal(parts.params, whole.params)
    assert parts.trace == whole.trace
    assert rows(parts).equals(rows(whole))


def test_a_finished_run_goes_on_with_more_rounds(tmp_path: Path) -> None:
    """The round that a mode would have begun next asks nobody, and leaves nothing behind."""
    whole = fedsim.run(sections(RPOW), out=tmp_path / "whole")
    for rounds in (5, 8):
        made = sections(RPOW)
        made["run"]["rounds"] = rounds
        parts = fedsim.run(made, out=tmp_path / "parts", resume=True)
    assert torch.equal(parts.params, whole.params)
    assert parts.metrics.iloc[-1]["loss_evaluations"] == whole.metrics.iloc[-1]["loss_evaluations"]


def test_a_round_that_is_cut_off_leaves_nothing_behind(tmp_path: Path) -> None:
    """What a checkpoint has is of the last round that was combined."""
    whole = fedsim.run(sections(OORT), out=tmp_path / "whole")
    cut, after = sections(OORT), whole.trace[4]["time"]
    cut["run"] = {**cut["run"], "seconds": (after + whole.trace[5]["time"]) / 2}
    parts = fedsim.run(cut, out=tmp_path / "parts")
    assert parts.trace == whole.trace[:5]
    state = fedsim.run(cut, out=tmp_path / "parts", resume=True)
    assert torch.equal(state.params, parts.params)


@pytest.mark.parametrize("name", EVERY)
def test_the_laws_of_modes_hold(name: str) -> None:
    written = {**EVERY[name], **({"candidates": 4} if "candidates" in EVERY[name] else {})}
    keys = ", ".join(f"{k}: '{v}'" if isinstance(v, str) else f"{k}: {v}" for k, v in written.items())
    results = check_participation("synchronous", ["clients_per_round=3", f"selection={{{keys}}}"])
    assert [(r.name, r.detail) for r in results if not r.passed] == []


# --- costs and refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "selection,models,numbers,evaluated",
    [(POW, 3, 6, None), (CPOW, 3, 6, 3), (RPOW, 0, 3, None), (OORT, 0, 3, 4)],
    ids=["pow-d", "cpow-d", "rpow-d", "oort"],
)
def test_what_it_costs(selection: Any, models: int, numbers: int, evaluated: int | None, tmp_path: Path) -> None:
    """Of 6 candidates 3 are sent the model for nothing; every one that is asked sends one number."""
    made = sections(selection)
    run = fedsim.run(made, out=tmp_path / "run")
    del made["participation"]["selection"]
    plain = fedsim.run(made, out=tmp_path / "plain")
    more = run.metrics["bytes_sent"].iloc[-1] - plain.metrics["bytes_sent"].iloc[-1]
    assert more == 8 * 8 * (models * len(run.params) + numbers)
    counted = run.metrics["loss_evaluations"].tolist()
    assert counted[0] == 0
    if evaluated is not None:
        assert counted == [4 * i * numbers * evaluated for i in range(3)]
    assert counted[-1] > 0
    assert "loss_evaluations" not in plain.metrics


@pytest.mark.parametrize(
    "change,key,says",
    [
        ({"participation": {"fraction": 0.5, "selection": {**POW, "candidates": 3}}},
         "participation.selection.candidates", r"found 3, allowed: 4 \(the clients of a round\) to 8"),
        ({"participation": {"fraction": 0.5, "selection": {**POW, "candidates": 9}}},
         "participation.selection.candidates", "found 9"),
        ({"participation": {"fraction": 0.5, "sampling": "weighted", "selection": OORT}}, "participation.sampling",
         "found weighted beside selection"),
        ({"participation": {"fraction": 0.5, "selection": {**OWN, "samples": 0}}}, "participation.selection.samples",
         "found 0, allowed: 1 or more"),
        ({"participation": {"fraction": 0.5, "selection": {"name": "power_of_chance"}}}, "participation.selection.name",
         "power_of_choice"),
        ({"participation": {"fraction": 0.5, "selection": {**OORT, "prefered": 1}}}, "participation.selection.prefered",
         "did you mean 'preferred'"),
        ({"privacy": {"mechanism": "dp_sgd", "noise_multiplier": 1.0, "clip_norm": 1.0}}, "participation.selection",
         "which no mechanism makes noise for"),
        ({"model": {"name": "linear", "personal": ["*bias"]}}, "participation.selection", "server's own model loses"),
        ({"algorithm": {"name": "fsgld"}}, "participation.selection", "walk to clients that are drawn"),
        (
            {"participation": {"mode": "asynchronous", "selection": OORT}},
            "participation.selection", "unknown key; .*; it is a key of synchronous",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(change: Any, key: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says) as caught:
        fedsim.run({**sections(OORT), **change}, out=tmp_path / "run")
    assert key in [problem.key for problem in caught.value.problems]
    assert not (tmp_path / "run").exists()


def test_a_deployment_is_refused_before_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not asked what they lose before a round; allowed: no selection"):
        deploy(parse(sections(POW)), tmp_path / "app")
    assert not (tmp_path / "app").exists()
