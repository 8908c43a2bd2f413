"""Gossip on Poisson clocks against a slow reference, and the clocks against the law they follow."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference.poisson_loop import replay
from scipy import stats

import fedsim
from fedsim.core.clock import seconds
from fedsim.core.errors import InputError
from fedsim.engine.assembly import assemble
from fedsim.participation.base import Arrival
from fedsim.participation.record import whole
from fedsim.reports.timeline import follow
from fedsim.scenario.load import parse

Make = Callable[..., Any]
GRAPH = {"graph": "random_geometric", "radius": 0.6}
RATES = {"mode": "poisson", "compute": {"beta": [0.8, 0.8]}, "links": {"uniform": [0.2, 3.0]}}


@pytest.fixture
def go(quadratic: Make, tmp_path: Path) -> Make:
    """``go(n, participation, rounds, out)``: DSpodFL on a random quadratic, with exact gradients unless `noise`."""

    problems: dict[int, Any] = {}

    def run(
        n: int = 6, participation: Any = None, rounds: int = 10, out: str = "run", noise: float = 0.0, **keys: Any
    ) -> Any:
        problem = problems.setdefault(n, quadratic(n=n, x0=np.zeros(4)))
        scenario = {
            "data": problem.section(noise=noise), "topology": GRAPH, "participation": participation or RATES,
            "algorithm": {"name": "dspodfl", "lr": 0.1, **keys.pop("algorithm", {})},
            "run": {"rounds": rounds, "eval_every": max(rounds // 10, 1), "dtype": "float64", "trace": True}, **keys,
        }  # fmt: skip
        resume = scenario.pop("resume", False)
        return fedsim.run(scenario, out=tmp_path / out, resume=resume), problem

    return run


@pytest.mark.parametrize("pair_weight", ["matrix", "half"])
@pytest.mark.parametrize("steps", [1, 3])
def test_it_is_the_loop_over_single_ticks(go: Make, pair_weight: str, steps: int) -> None:
    run, problem = go(participation={**RATES, "pair_weight": pair_weight}, algorithm={"local_steps": steps})
    degrees = np.bincount(np.concatenate([e for row in run.trace for e in row["edges"]]), minlength=6)
    assert degrees.min() > 0  # every node mixes at some time
    graph = _graph(run)
    expected = replay(run.trace, problem, graph, lr=0.1, half=pair_weight == "half")
    assert np.abs(run.params.numpy() - expected).max() < 1e-10
    assert run.metrics["gradients"].iloc[-1] == steps * sum(len(row["compute"]) for row in run.trace)
    assert run.metrics["bytes_sent"].iloc[-1] == 2 * sum(len(row["edges"]) for row in run.trace) * 4 * 8


def _graph(run: Any) -> Any:
    import networkx as nx

    graph = nx.read_graphml(run.dir / "topology.graphml")
    return nx.relabel_nodes(graph, {str(i): i for i in range(len(graph))})


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_window_does_not_change_the_ticks(go: Make, noise: float) -> None:
    whole, _ = go(rounds=6, noise=noise)
    halves, _ = go(participation={**RATES, "window": 0.5}, rounds=12, out="halves", noise=noise)
    assert [e for row in whole.trace for e in row["events"]] == [e for row in halves.trace for e in row["events"]]
    assert (whole.params - halves.params).abs().max() < 1e-12
    assert whole.metrics["delay_total"].iloc[-1] == pytest.approx(halves.metrics["delay_total"].iloc[-1])
    assert [row["time"] for row in halves.trace] == [0.5 * k for k in range(1, 13)]


def test_resumed_and_unbroken_are_the_same(go: Make) -> None:
    whole, _ = go(rounds=9, out="whole", noise=0.3)
    go(rounds=4, out="parts", noise=0.3)
    parts, _ = go(rounds=9, out="parts", noise=0.3, resume=True)
    assert torch.equal(whole.params, parts.params)
    assert whole.trace == parts.trace
    for name in ("delay_total", "bytes_sent", "gradients", "consensus_distance"):
        assert whole.metrics[name].iloc[-1] == parts.metrics[name].iloc[-1]


def test_mixing_alone_keeps_the_mean_and_reaches_consensus(go: Make) -> None:
    """A node whose clock never ticks again after the first half keeps what it has; then everybody agrees."""
    moved, _ = go(participation={**RATES, "links": 0.0}, rounds=5)
    assert all(row["edges"] == [] for row in moved.trace)
    both, _ = go(participation={**RATES, "pair_weight": "half"}, rounds=5, out="both")
    assert [row["compute"] for row in both.trace] == [row["compute"] for row in moved.trace]  # clocks are independent
    still, _ = go(participation={**RATES, "compute": 0.0}, rounds=5, out="still")
    assert torch.equal(still.params, torch.zeros(6, 4, dtype=torch.float64))
    agree = {"mode": "poisson", "compute": 1.0, "links": 50.0, "pair_weight": "half"}
    fast, _ = go(participation=agree, rounds=10, out="fast", algorithm={"lr": 0.01})
    assert fast.metrics["consensus_distance"].iloc[-1] < 1e-3
    assert fast.params.norm() > 0.1


@pytest.fixture
def windows(quadratic: Make) -> Make:
    """``windows(participation, count)``: the first `count` rounds, without training, and the graph."""

    def make(participation: dict[str, Any], count: int) -> tuple[list[Arrival], Any]:
        scenario = parse({
            "data": quadratic(n=6).section(), "topology": GRAPH, "participation": participation,
            "algorithm": {"name": "dspodfl"}, "run": {"device": "cpu"},
        })  # fmt: skip
        a = assemble(scenario)
        assert a.network is not None
        events = scenario.participation.events(a.setting(scenario))
        rounds, parts = list[Arrival](), list[Arrival]()
        for event in events:
            if isinstance(event, Arrival):
                parts.append(event)
                if event.closes:
                    rounds.append(whole(parts))
                    parts = []
            if len(rounds) == count:
                break
        return rounds, a.network.topology.graphs[0]

    return make


def test_counts_are_poisson_and_gaps_exponential(windows: Make) -> None:
    participation = {"mode": "poisson", "compute": [3.0, 0.5, 1.0, 1.0, 1.0, 0.0], "links": 2.0}
    rounds, graph = windows(participation, 300)
    counts = np.array([np.bincount(r.compute, minlength=6) for r in rounds])
    for node, rate in enumerate(participation["compute"]):  # type: ignore[arg-type]
        if rate == 0:
            assert counts[:, node].sum() == 0
            continue
        assert counts[:, node].mean() == pytest.approx(rate, abs=4 * np.sqrt(rate / 300))
        expected = np.append(stats.poisson.pmf(range(6), rate), stats.poisson.sf(5, rate)) * 300
        observed = np.bincount(np.minimum(counts[:, node], 6), minlength=7)
        kept = expected > 5
        assert (
            stats.chisquare(observed[kept], expected[kept] * observed[kept].sum() / expected[kept].sum()).pvalue > 1e-3
        )
    assert abs(np.corrcoef(counts[:, :5].T)[np.triu_indices(5, 1)]).max() < 4 / np.sqrt(300)
    first = np.array([seconds(t.time) for r in rounds for t in r.ticks if t.nodes == (0,)])
    assert stats.kstest(np.diff(first), stats.expon(scale=1 / 3).cdf).pvalue > 1e-3
    links = graph.number_of_edges()
    fired = sum(len(r.edges) for r in rounds)
    assert fired / links / 300 == pytest.approx(2.0, abs=4 * np.sqrt(2.0 / 300 / links))


def test_delays_are_those_of_bernoulli_rounds_on_average(windows: Make) -> None:
    """A window of one second of rates d and b costs what a round of probabilities d and b does, within 4 errors.

    The processing delay ``sum_i N_i / d_i / sum_i 1 / d_i`` and the transmission delay ``sum_l c_l N_l`` have their
    variance from that of the counts N: d for Poisson clocks, d (1 - d) for Bernoulli indicators.
    """
    d, b, count = np.array([0.9, 0.3, 0.5, 0.5, 0.2, 0.8]), 0.5, 1500
    for mode, node_variance, link_variance in (("poisson", d, b), ("gossip", d * (1 - d), b * (1 - b))):
        rounds, graph = windows({"mode": mode, "compute": d.tolist(), "links": b}, count)
        found = np.mean([r.delays for r in rounds], axis=0)
        node_share = (1 / d) / (1 / d).sum()
        link_share = np.array([1 / graph.degree[u] + 1 / graph.degree[v] for u, v in graph.edges])
        link_share /= link_share.sum()
        errors = np.sqrt([(node_share**2 * node_variance).sum() / count, (link_share**2).sum() * link_variance / count])
        assert (abs(found - [(node_share * d).sum(), b]) < 4 * errors).all()
        assert (4 * errors < 0.1 * found).all()  # it would notice a tenth
        by_hand = [node_share[np.asarray(r.compute, dtype=int)].sum() for r in rounds]
        assert np.array([r.delays[0] for r in rounds]) == pytest.approx(np.array(by_hand))


def test_a_thousand_nodes_are_fast(go: Make) -> None:
    """Twenty thousand ticks of a thousand nodes; level by level, not tick by tick."""
    participation = {"mode": "poisson", "compute": 1.0, "links": 0.5}
    begun = time.process_time()  # of a processor, whatever else the machine does
    run, problem = go(n=1000, participation=participation, rounds=10, topology={"graph": "k_regular", "degree": 4})
    assert sum(len(row["events"]) for row in run.trace) > 18_000
    assert time.process_time() - begun < 30
    expected = replay(run.trace, problem, _graph(run), lr=0.1, half=False)
    assert np.abs(run.params.numpy() - expected).max() < 1e-10


def test_the_schedule_without_training(go: Make) -> None:
    run, _ = go(rounds=8)
    t = follow(fedsim.load(run.dir / "scenario.yaml"))
    assert [c.clients for c in t.first] == [row["compute"] for row in run.trace]
    assert [c.links for c in t.first] == [row["edges"] for row in run.trace]
    assert t.delivered.tolist() == np.bincount([i for r in run.trace for i in r["compute"]], minlength=6).tolist()
    assert t.end == 8.0


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"algorithm": {"name": "dgd"}}, "participation.mode: 'dgd' acts by rounds, and Poisson clocks know none"),
        ({"algorithm": {"name": "randomized_gossip"}}, "participation.mode: 'randomized_gossip' acts by rounds"),
        ({"algorithm": {"name": "gradient_tracking"}}, "participation.mode: 'gradient_tracking' acts by rounds"),
        ({"system": {"compute": 2.0}}, "system: ticks of Poisson clocks take no time"),
        (
            {"participation": {**RATES, "compute": -1.0}},
            "participation.compute: found -1.0, allowed: greater",
        ),
        ({"participation": {**RATES, "compute": [1.0]}}, "participation.compute: found a list of 1"),
        ({"participation": {**RATES, "compute": {"beta": [1.0, 1.0], "redraw_every": 3}}}, "found redraw_every"),
        ({"participation": {**RATES, "window": 0.0}}, "participation.window: found 0.0, allowed: greater than 0"),
        (
            {"participation": {**RATES, "pair_weight": "third"}},
            "pair_weight: found 'third', allowed: 'matrix'",
        ),
        (
            {"topology": {"graph": "sequence", "graphs": [{"graph": "ring"}, {"graph": "star"}]}},
            "neighbours that change with the round",
        ),
        ({"topology": {"graph": "exponential"}}, "needs symmetric mixing weights"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(quadratic: Make, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    scenario = {
        "data": quadratic(n=6).section(), "algorithm": {"name": "dspodfl"}, "topology": GRAPH, "participation": RATES,
        "run": {"rounds": 2},
    }  # fmt: skip
    with pytest.raises(InputError) as error:
        fedsim.run(parse(scenario | changes), out=tmp_path / "run")
    assert message in str(error.value)
