"""DADAO and ACiD: against their equations event by event, their exact values, and what runs of them must not change.

What is asked of them, and where it is tried (here, where no file is named):

* DADAO's vectors after given events: `test_dadao_on_two_nodes_by_hand`; ACiD's: `test_acid_on_three_nodes_by_hand`;
* the flow in closed form: `test_the_flow_is_the_matrix_exponential`;
* a traced run replays from its own events: `test_a_trace_replays`; with windows and merges: test_stretches;
* the length of rounds and resuming change nothing: `test_windows_and_resuming_change_nothing`; nor do shards, Ray and
  dead actors: test_ray_continuous;
* DADAO's optimum is exact, also with unequal rates of nodes: `test_it_reaches_the_exact_optimum`;
* its first and second moments, its rate, and its messages per second: test_continuous_rates;
* the least rates of links, constants of unequal rates, what is refused: the last part of this file;
* identities: `test_without_eta_it_is_pairwise_averaging`, `test_on_a_complete_graph_acid_changes_nothing`,
  `test_a_node_without_links_finds_its_own_minimum`; invariants: `test_what_no_event_changes`;
* how much closer together ACiD keeps a ring: test_continuous_rates;
* both against others at equal messages: scenarios/dadao-quadratic-sweep.yaml, scenarios/acid-cifar10-sweep.yaml.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from reference import continuous_loops as loops
from scipy.linalg import expm

import fedsim
from fedsim.algorithms.base import Surroundings
from fedsim.algorithms.dadao import Constants, Dadao
from fedsim.core.clock import ticks
from fedsim.core.errors import InputError
from fedsim.engine.assembly import assemble
from fedsim.engine.loop import Simulation
from fedsim.participation import poisson
from fedsim.reports.plan import plan
from fedsim.scenario.load import parse

Make = Callable[..., Any]
VECTORS = ("x", "x_tilde", "y", "y_tilde", "z", "z_tilde")
POISSON = {"mode": "poisson"}


def scenario(problem: Any, graph: Any, algorithm: dict[str, Any], rounds: int, **sections: Any) -> dict[str, Any]:
    return {
        "data": problem.section(), "topology": {"graph": graph} if isinstance(graph, str) else graph,
        "algorithm": algorithm, "participation": {**POISSON, **sections.pop("participation", {})},
        "run": {"rounds": rounds, "eval_every": rounds, "dtype": "float64", "device": "cpu", "trace": True,
                **sections.pop("run", {})},
        **sections,
    }  # fmt: skip


def events_of(run: Any) -> list[Any]:
    return [e for row in run.trace for e in row["events"]]


class Listed:
    """Clocks that ring as they are told, in the place of the random ones."""

    events: ClassVar[list[Any]] = []

    def __init__(self, compute: Any, links: Any, base: Any, seed: int, timetable: Any) -> None:
        self.links = base.links.tolist()

    def until(self, end: int) -> list[Any]:
        found: list[Any] = []
        done, self.last = getattr(self, "last", 0), end
        for t, *ends in self.events:
            if done < ticks(t) <= end:
                ring = (ends[0], -1) if len(ends) == 1 else (-1, self.links.index(sorted(ends)))
                found.append(poisson._Ring(ticks(t), *ring, number=len(found)))
        return found


@pytest.fixture
def states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """``states(scenario, events)``: all vectors at the end of a run on these events, ``[n, vectors, d]``."""

    def make(settings: dict[str, Any], events: list[Any] | None = None, x0: Any = None, out: str = "run") -> Any:
        if events is not None:
            monkeypatch.setattr(poisson, "_Clocks", type("Told", (Listed,), {"events": events}))
        s = parse(settings)
        simulation = Simulation(s, assemble(s), tmp_path / out)
        if x0 is not None:
            simulation.home.values = simulation.scenario.algorithm.init(torch.as_tensor(x0, dtype=torch.float64))
        simulation.run()
        names = list(simulation.home.values)
        return torch.stack([simulation.home.state(name) for name in names], 1).numpy()

    return make


# --- exact values -----------------------------------------------------------------------------------------------------

_TWO = [[0.25, 0], [0.75, 0, 1], [1, 1], [1.5, 0, 1], [1.75, 0], [2.5, 1], [3, 0, 1], [3.5, 0]]
_THREE = [[0.25, 0], [0.5, 0, 1], [1, 2], [1.25, 1, 2], [2, 1], [2.5, 0, 1], [3, 0]]


def test_dadao_on_two_nodes_by_hand(quadratic: Make, states: Make) -> None:
    problem = quadratic(A=[[1.0], [4.0]], b=[[1.0], [-1.0]], x0=[0.5])
    settings = scenario(problem, "path", {"name": "dadao"}, 4, participation={"links": 1.0})
    found = states(settings, _TWO)[..., 0]
    expected = [
        [0.44312588543645, 0.33388414769680, -0.30203704689432, -1.07626703370889, 0.73811741459030, 2.50009138276443],
        [0.18477020116004, -0.13845611426227, 1.13888453752445, 3.29406112250945, -0.73811741459030, -2.50009138276443],
    ]
    assert np.abs(found - expected).max() < 1e-12
    first = states({**settings, "run": {**settings["run"], "rounds": 1}, "participation": {**POISSON, "window": 0.25}},
                   _TWO, out="first")[0, :4, 0]  # fmt: skip
    assert first == pytest.approx([0.541357878984, 0.616977746740, -0.000968778969, -0.808488873370], abs=1e-11)
    third = states({**settings, "run": {**settings["run"], "rounds": 1}}, _TWO, out="third")[1, :, 0]
    expected = [0.119345036262, -0.576654824607, -0.014954308318, 6.288327412304, -0.017546941457, -0.089330752750]
    assert third == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize(
    "keys,x,x_tilde",
    [
        (
            {},
            [1.43444867999609, 1.49158010261921, 1.68053713549147],
            [1.43769682768121, 1.50440827756707, 1.66446081285848],
        ),
        ({"momentum": 0.9, "weight_decay": 0.01}, [1.42999201455657, 1.48960528390334, 1.67857263190756], None),
    ],
    ids=["sgd", "momentum"],
)
def test_acid_on_three_nodes_by_hand(quadratic: Make, states: Make, keys: Any, x: Any, x_tilde: Any) -> None:
    problem = quadratic(A=[[1.0], [2.0], [4.0]], b=[[1.0], [0.0], [-1.0]], x0=[0.0])
    settings = scenario(problem, "path", {"name": "acid", "lr": 0.1, **keys}, 4, participation={"links": 0.5})
    found = states(settings, _THREE, x0=[[1.0], [2.0], [4.0]])[..., 0]
    assert np.abs(found[:, 0] - x).max() < 1e-12
    if x_tilde is not None:
        assert np.abs(found[:, 1] - x_tilde).max() < 1e-12
    algorithm = assemble(parse(settings)).settled(parse(settings)).algorithm
    assert (algorithm.chi_1, algorithm.chi_2) == pytest.approx((2.0, 1.0))  # type: ignore[attr-defined]
    assert algorithm.eta == pytest.approx(0.353553390593274, rel=1e-14)  # type: ignore[attr-defined]
    assert algorithm.alpha_tilde == pytest.approx(0.707106781186548, rel=1e-14)  # type: ignore[attr-defined]


@pytest.mark.parametrize("mu,L", [(1.0, 1.0), (1.0, 4.0), (0.01, 1.0), (1e-4, 1.0), (1.0, 1e4)])
def test_the_flow_is_the_matrix_exponential(mu: float, L: float) -> None:
    algorithm, c = Dadao(mu=mu, L=L, chi_1=0.7, chi_2=0.5), Constants.of(mu, L, 0.7)
    A = np.zeros((6, 6))
    A[[0, 0, 1, 1], [0, 1, 0, 1]] = -c.eta, c.eta, c.eta, -c.eta
    A[[2, 2, 3, 3, 3], [2, 3, 1, 2, 4]] = -c.alpha, c.alpha, -c.theta * c.nu, -c.theta, -c.theta
    A[[4, 4, 5, 5], [4, 5, 4, 5]] = -c.alpha, c.alpha, c.alpha_t, -c.alpha_t
    for t in (1e-6, 0.01, 0.3, 1.0, 7.0, 50.0):
        unit = dict(zip(VECTORS, torch.eye(6, dtype=torch.float64).unsqueeze(1), strict=True))
        after = algorithm.flow(unit, torch.full((1, 1), t, dtype=torch.float64))
        found, exact = torch.cat([after[k] for k in VECTORS]).numpy(), expm(A * t)
        assert np.abs(found - exact).max() < 1e-10 * max(1.0, np.abs(exact).max())


# --- against the loops ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph,n,d", [("ring", 4, 1), ("star", 6, 3), ("ring", 8, 5)])
@pytest.mark.parametrize("window", [0.5, 1.0, 7.0])
def test_a_trace_replays(quadratic: Make, tmp_path: Path, graph: str, n: int, d: int, window: float) -> None:
    problem, rounds = quadratic(n=n, d=d, importance=n == 6), round(14 / window)
    dadao = fedsim.run(
        scenario(problem, graph, {"name": "dadao", "weight_decay": 0.1}, rounds, participation={"window": window}),
        out=tmp_path / "dadao",
    )
    keys = yaml.safe_load((tmp_path / "dadao" / "scenario.yaml").read_text())
    edges = [tuple(e) for e in sorted({tuple(e) for row in dadao.trace for e in row["edges"]})]
    assert keys["algorithm"]["chi_1"] == pytest.approx(loops.chi(n, edges, keys["participation"]["links"])[0])
    curvatures = [np.linalg.eigvalsh(n * p * A) for p, A in zip(problem.p, problem.A, strict=True)]
    assert keys["algorithm"]["mu"] == pytest.approx(min(c[0] for c in curvatures))
    assert keys["algorithm"]["L"] == pytest.approx(max(c[-1] for c in curvatures))

    def grad(i: int, x: Any) -> Any:
        return n * problem.p[i] * problem.grad(i, x) + 0.1 * x

    mu, L = (keys["algorithm"][k] + 0.1 for k in ("mu", "L"))
    expected = loops.dadao(events_of(dadao), grad, np.tile(problem.x0, (n, 1)), mu, L, keys["algorithm"]["chi_1"], 14.0)
    assert np.abs(dadao.params.numpy() - expected[:, 0]).max() < 1e-10
    acid = fedsim.run(
        scenario(problem, graph, {"name": "acid", "lr": 0.1, "momentum": 0.5, "weight_decay": 0.1}, rounds,
                 participation={"window": window, "links": 0.5}),
        out=tmp_path / "acid",
    )  # fmt: skip
    chi_1, chi_2 = loops.chi(n, edges, 0.5)
    expected = loops.acid(
        events_of(acid), problem.grad, np.tile(problem.x0, (n, 1)), 0.1, 1 / (2 * np.sqrt(chi_1 * chi_2)),
        np.sqrt(chi_1 / chi_2) / 2, 14.0, 0.5, 0.1,
    )  # fmt: skip
    assert np.abs(acid.params.numpy() - expected[:, 0]).max() < 1e-10
    last, messages = acid.metrics.iloc[-1], sum(len(row["edges"]) for row in acid.trace)
    assert last["communications"] == messages
    assert last["bytes_sent"] == 2 * 8 * d * messages  # x alone crosses a link
    assert last["gradients"] == sum(len(row["compute"]) for row in acid.trace)


@pytest.mark.parametrize(
    "algorithm,links", [({"name": "dadao"}, "auto"), ({"name": "acid", "momentum": 0.9}, 0.7)], ids=["dadao", "acid"]
)
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_windows_and_resuming_change_nothing(
    quadratic: Make, tmp_path: Path, algorithm: Any, links: Any, noise: float
) -> None:
    problem = quadratic(n=6, d=3)

    def go(rounds: int, window: float, out: str, resume: bool = False) -> Any:
        settings = scenario(problem, "ring", algorithm, rounds, participation={"window": window, "links": links})
        settings["data"]["noise"] = noise
        settings["run"]["eval_every"] = 1
        return fedsim.run(settings, out=tmp_path / out, resume=resume)

    whole = go(14, 1.0, "whole")
    for window in (0.5, 7.0):
        other = go(round(14 / window), window, f"window-{window}")
        assert torch.equal(whole.params, other.params)
        assert events_of(whole) == events_of(other)
    go(5, 1.0, "parts")
    parts = go(14, 1.0, "parts", resume=True)
    assert torch.equal(whole.params, parts.params)
    assert whole.metrics.drop(columns="wall").equals(parts.metrics.drop(columns="wall"))


def test_the_end_of_a_resumed_run_is_flowed(quadratic: Make, tmp_path: Path) -> None:
    """Nothing is left to do, but what is saved is the model at the window's end, not that after the last event."""
    settings = scenario(quadratic(n=6), "ring", {"name": "dadao"}, 5)
    whole = fedsim.run(settings, out=tmp_path / "run")
    before = whole.params.clone()
    (tmp_path / "run" / "params.safetensors").unlink()
    again = fedsim.run(settings, out=tmp_path / "run", resume=True)
    assert torch.equal(before, again.params)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_without_eta_it_is_pairwise_averaging(quadratic: Make, tmp_path: Path, dtype: str) -> None:
    problem = quadratic(n=6)

    def go(algorithm: dict[str, Any], **keys: Any) -> Any:
        settings = scenario(problem, {"graph": "random_geometric", "radius": 0.7}, {"lr": 0.1, **algorithm}, 10,
                            participation={"compute": {"model": "beta", "a": 0.8, "b": 0.8}, "links": 0.8, **keys},
                            run={"dtype": dtype})  # fmt: skip
        return fedsim.run(settings, out=tmp_path / f"{algorithm['name']}-{algorithm.get('alpha_tilde')}")

    plain = go({"name": "dspodfl"}, pair_weight="half")
    for alpha_tilde in ("auto", 3.0):
        run = go({"name": "acid", "eta": 0.0, "alpha_tilde": alpha_tilde})
        assert torch.equal(run.params, plain.params)
        assert events_of(run) == events_of(plain)
        same = [c for c in plain.metrics if c != "wall"]
        assert run.metrics[same].equals(plain.metrics[same])


def test_on_a_complete_graph_acid_changes_nothing(quadratic: Make, tmp_path: Path) -> None:
    """chi_1 = chi_2 there, so that x and x~ never part."""
    problem, runs = quadratic(n=5), []
    for eta in ("auto", 0.0):
        settings = scenario(problem, "complete", {"name": "acid", "lr": 0.1, "eta": eta}, 20)
        runs.append(fedsim.run(settings, out=tmp_path / str(eta)).params)
    assert (runs[0] - runs[1]).abs().max() < 1e-13


def test_what_no_event_changes(quadratic: Make, states: Make) -> None:
    """At a common time the nodes' z and z~ sum to 0, and x and x~ of ACiD have one mean."""
    problem = quadratic(n=6, d=3)
    dadao = states(scenario(problem, "star", {"name": "dadao"}, 40), out="dadao")
    assert np.abs(dadao[:, 4:]).max() > 0.1
    assert np.abs(dadao[:, 4:].sum(0)).max() < 1e-11
    acid = states(scenario(problem, "ring", {"name": "acid", "lr": 0.05}, 40), out="acid")
    means = acid.mean(0)
    assert np.abs(acid[:, 0] - acid[:, 1]).max() > 1e-3
    assert np.abs(means[0] - means[1]).max() < 1e-13


def test_a_node_without_links_finds_its_own_minimum(quadratic: Make, states: Make) -> None:
    """Identities of the equations: no link ticks; and equal nodes that tick together are one node."""
    problem = quadratic(n=3, d=2)
    ends = [[0.5 * k, i] for k in range(1, 401) for i in range(3)]
    alone = states(scenario(problem, "ring", {"name": "dadao"}, 2, participation={"window": 100}), ends)
    assert np.abs(alone[:, 0] - problem.b).max() < 1e-3
    same = quadratic(n=3, A=np.tile(problem.A[:1, :2, :2], (3, 1, 1)), b=np.tile(problem.b[:1], (3, 1)), x0=[1.0, 2.0])
    together = [e for k in range(1, 41) for e in [*([0.5 * k, i] for i in range(3)), [0.5 * k + 0.1, 0, 1]]]
    found = states(scenario(same, "ring", {"name": "dadao"}, 20), together, out="same")
    assert (found[0] == found[1]).all()
    assert (found[:, 4:] == 0).all()  # links find messages that agree, and do nothing
    assert np.abs(found[2] - found[0]).max() < 1e-12  # the same in one stretch of time as in two


# --- the optimum ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("compute", "seed"), [(1.0, 0), ([0.25, 1.0, 1.0, 1.0], 1)], ids=["equal", "unequal"])
def test_it_reaches_the_exact_optimum(quadratic: Make, tmp_path: Path, compute: Any, seed: int) -> None:
    problem = quadratic(A=[[0.1], [1.0], [1.0], [1.0]], b=[[1.0], [-1.0], [2.0], [0.0]], x0=[0.0])
    settings = scenario(problem, "ring", {"name": "dadao", "mu": 0.1, "L": 1.0}, 12, seed=seed,
                        participation={"compute": compute, "window": 100}, run={"trace": False})  # fmt: skip
    run = fedsim.run({**settings, "run": {**settings["run"], "rounds": 6}}, out=tmp_path / "run")
    assert (run.params - 0.354838709677419).abs().max() < 1e-5
    run = fedsim.run(settings, out=tmp_path / "run", resume=True)
    assert (run.params - 0.354838709677419).abs().max() < 1e-10


# --- rates, and what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "graph,n,rate",
    [
        ("ring", 4, 0.612372), ("ring", 8, 1.222178), ("ring", 16, 2.481532), ("star", 4, 1.0), ("star", 16, 1.0),
        ("complete", 4, 0.353553), ("complete", 16, 0.088388), ("path", 4, 1.306563), ("path", 16, 5.101149),
    ],
)  # fmt: skip
def test_auto_is_the_critical_rate(quadratic: Make, graph: str, n: int, rate: float) -> None:
    s = parse(scenario(quadratic(n=n, d=1), graph, {"name": "dadao"}, 1))
    a = assemble(s)
    settled = a.settled(s).resolved()
    assert settled["participation"]["links"] == pytest.approx(rate, abs=1e-6)
    again = assemble(parse(settled))
    assert again.settled(parse(settled)).resolved() == settled
    facts = plan(s)["algorithm"]
    assert facts["2 chi_1 chi_2"] == pytest.approx(1.0, abs=1e-12)
    assert facts["beta~"] > 0


def test_unequal_rates_weigh_the_links(quadratic: Make) -> None:
    s = parse(scenario(quadratic(n=4, d=1), "star", {"name": "dadao"}, 1, participation={"links": [1.0, 2.0, 4.0]}))
    algorithm: Any = assemble(s).settled(s).algorithm
    assert algorithm.chi_1 == pytest.approx(0.831586, abs=1e-6)
    assert algorithm.chi_2 == pytest.approx(0.5, abs=1e-12)


def test_a_written_rate_may_be_rounded() -> None:
    class Known:
        num_clients, importance = 4, np.full(4, 0.25)

    run = Surroundings(Known(), lambda: (1.0, (1 + 1e-9) / 2))  # type: ignore[arg-type]
    assert Dadao(mu=0.1, L=1.0).placed(run).chi_1 == 1.0
    with pytest.raises(InputError, match="DADAO diverges"):
        Dadao(mu=0.1, L=1.0).placed(Surroundings(run.task, lambda: (1.0, (1 + 1e-6) / 2)))


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"participation": {**POISSON, "links": 0.5 * 0.6123724}},
         "participation.links: 2 chi_1 chi_2 = 4 > 1: DADAO diverges; raise links by a factor of at least 2.001"),
        ({"participation": {**POISSON, "links": [1.0, 1.0, 0.0, 0.0]}}, "participation.links: found links of positive"),
        ({"topology": {"graph": "exponential"}}, "needs symmetric mixing weights"),
        ({"algorithm": {"name": "dadao", "lr": 0.1}}, "algorithm.lr: found 0.1, but the step sizes of DADAO follow"),
        ({"algorithm": {"name": "dadao", "momentum": 0.9}}, "algorithm.momentum: found 0.9, but DADAO has its own"),
        ({"algorithm": {"name": "dadao", "clip": 1.0}}, "algorithm.clip: found 1.0, but a clipped gradient"),
        ({"algorithm": {"name": "dadao", "local_steps": 2}}, "algorithm.local_steps: a node of DADAO takes exactly"),
        ({"algorithm": {"name": "dadao", "mu": 2.0, "L": 1.0}}, "algorithm.mu: found 2, above L = 1"),
        ({"algorithm": {"name": "dadao", "mu": 5.0}}, "algorithm.mu: found 5, above L ="),
        ({"algorithm": {"name": "dadao", "mu": 0.0, "L": 1.0}}, "algorithm.mu: found 0, and no weight_decay"),
        ({"algorithm": {"name": "dadao", "mu": -1.0}}, "algorithm.mu: found -1.0, allowed: greater than or equal to 0"),
        ({"algorithm": {"name": "dadao", "chi_1": 0.3}}, "algorithm.chi_1: found 0.3, but links at these rates have"),
        ({"participation": {"mode": "gossip"}}, "participation.mode: found 'gossip', but nodes of 'dadao' go on"),
        ({"participation": {**POISSON, "pair_weight": "half"}}, "participation.pair_weight: found 'half', but Dadao"),
        ({"topology": {"graph": "sequence", "graphs": [{"graph": "ring"}, {"graph": "star"}]}}, "neighbours that"),
        ({"algorithm": {"name": "acid", "local_steps": 3}, "participation": POISSON}, "takes exactly one step"),
        ({"algorithm": {"name": "acid"}, "participation": {**POISSON, "pair_weight": "matrix"}}, "but Acid mixes"),
        ({"algorithm": {"name": "acid"}, "participation": {**POISSON, "links": "auto"}}, "Acid needs none"),
        ({"algorithm": {"name": "acid"}, "participation": {"mode": "gossip"}}, "but nodes of 'acid' go on between"),
        ({"algorithm": {"name": "dspodfl"}, "participation": {**POISSON, "pair_weight": "own"}}, "DSpodFL has no"),
        ({"algorithm": {"name": "dspodfl"}, "participation": {**POISSON, "links": "auto"}}, "DSpodFL needs none"),
        ({"participation": {**POISSON, "compute": "auto"}}, "participation.compute: found 'auto', allowed: a prob"),
        ({"participation": {**POISSON, "merge": "final"}}, "found a merge, but every node of DADAO knows"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_is_refused(quadratic: Make, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    settings = scenario(quadratic(n=4, d=2), "ring", {"name": "dadao"}, 2)
    with pytest.raises(InputError) as error:
        fedsim.run(parse({**settings, **changes}), out=tmp_path / "run")
    assert message in str(error.value)
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())
