"""Runs on graphs whose links and nodes come and go: identities, invariants, resuming, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fedsim
from fedsim.core.errors import InputError
from fedsim.deployment.noise import check_trust
from fedsim.graphs.topology import build_topology
from fedsim.participation.coming import among
from fedsim.reports.numbers import size
from fedsim.scenario.load import parse

Make = Callable[..., Any]
N = 6
EDGES = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (0, 5), (1, 4)]
COMING = "0,1,1,5\n1,2,3,8\n2,3,,\n3,4,2,6\n4,3,7,9\n4,5,6,\n5,0,1,4\n1,4,4,11\n"
AWAY = '{{"nodes": [{}], "edges": [{}]}}'


def node_link(folder: Path, spells: str = "", away: dict[int, str] | None = None) -> str:
    """A JSON graph whose edges have `spells`, and some nodes theirs."""
    nodes = ", ".join(f'{{"id": {i}{", " + away[i] if away and i in away else ""}}}' for i in range(N))
    edges = ", ".join(f'{{"source": {i}, "target": {j}{spells}}}' for i, j in EDGES)
    (folder / "graph.json").write_text(AWAY.format(nodes, edges), encoding="utf-8")
    return str(folder / "graph.json")


def contacts(folder: Path) -> dict[str, Any]:
    (folder / "contacts.csv").write_text("source,target,start,end\n" + COMING, encoding="utf-8")
    return {"graph": "file", "path": str(folder / "contacts.csv"), "spells": {"unit": "rounds"}}


MODES: dict[str, dict[str, Any]] = {
    "always": {"mode": "gossip"}, "sporadic": {"mode": "gossip", "compute": 0.6, "links": 0.7},
    "windows": {"mode": "gossip", "links": 0.5, "schedule": [{"from": 2, "until": 5, "links": 0}]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("dspodfl", "sporadic"), ("dgd", "always"), ("dfedavg", "windows"), ("gradient_tracking", "always"),
        ("monna", "sporadic"), ("periodic_gossip", "always"),
    ],
)  # fmt: skip
def test_a_graph_that_is_always_there_is_the_graph(
    name: str, mode: str, quadratic: Make, run_scenario: Make, tmp_path: Path
) -> None:
    keys = {"data": quadratic(n=N, d=3).section(noise=0.1), "algorithm": {"name": name, "lr": 0.05}}
    keys |= {"participation": MODES[mode], "run": {"rounds": 8}}
    file = node_link(tmp_path, ', "start": 0, "end": 9', {2: '"start": 1', 3: '"end": 30'})
    static = run_scenario(topology={"graph": "file", "path": file}, **keys)
    timed = run_scenario(topology={"graph": "file", "path": file, "spells": {"unit": "rounds"}}, **keys)
    assert torch.equal(static.params, timed.params)
    for row, other in zip(static.trace, timed.trace, strict=True):
        assert {**row, "nodes_there": N, "links_there": 7} == other
    assert (static.metrics["delay_total"] == timed.metrics["delay_total"]).all()


@pytest.mark.parametrize("unit", ["rounds", "s"])
def test_two_graphs_in_turns_are_the_sequence_of_their_files(
    unit: str, quadratic: Make, run_scenario: Make, tmp_path: Path
) -> None:
    """Links of a and of b that take turns, three rounds each; rounds of one second begin at 0, 1, ..."""
    a, b, first = EDGES[:4], EDGES[3:], 1 if unit == "rounds" else 0
    for name, edges in (("a", a), ("b", b)):
        text = f"{N}\n" + "".join(f"{i} {j}\n" for i, j in edges)
        (tmp_path / f"{name}.edges").write_text(text, encoding="utf-8")
    rows = []
    for edges, turn in ((a, 0), (b, 1)):
        rows += [f"{i},{j},{first + k},{first + k + 3}" for i, j in edges for k in range(3 * turn, 12, 6)]
    (tmp_path / "turns.csv").write_text("source,target,start,end\n" + "\n".join(rows), encoding="utf-8")
    files = [{"graph": "file", "path": str(tmp_path / f"{name}.edges")} for name in "ab"]
    keys = {"data": quadratic(n=N, d=3).section(), "algorithm": {"name": "dspodfl", "lr": 0.05}, "run": {"rounds": 12}}
    keys["participation"] = {"mode": "gossip", "compute": 0.6, "links": 0.7}
    turns = run_scenario(topology={"graph": "sequence", "every": 3, "graphs": files}, **keys)
    section = {"graph": "file", "path": str(tmp_path / "turns.csv"), "spells": {"unit": unit}}
    spells = run_scenario(topology=section, **keys)
    assert torch.equal(turns.params, spells.params)
    assert [row["edges"] for row in turns.trace] == [row["edges"] for row in spells.trace]
    assert [row["links_there"] for row in spells.trace] == ([len(a)] * 3 + [len(b)] * 3) * 2


@pytest.mark.parametrize("clock", ["rounds", "s", "poisson"])
def test_a_resumed_run_is_the_whole_one(clock: str, quadratic: Make, tmp_path: Path) -> None:
    problem = quadratic(n=N, d=3)
    file = node_link(tmp_path, ', "start": 1, "end": 7', {0: '"start": 3', 4: '"spells": [[0, 4], [6, 99]]'})
    mode: dict[str, Any] = {"mode": "poisson"} if clock == "poisson" else MODES["sporadic"]
    join = "last" if clock == "poisson" else "average"
    scenario: dict[str, Any] = {
        "data": problem.section(noise=0.1), "algorithm": {"name": "dspodfl", "lr": 0.05}, "participation": mode,
        "topology": {"graph": "file", "path": file,
                     "spells": {"unit": "rounds" if clock == "rounds" else "s", "join": join}},
        "run": {"rounds": 9, "dtype": "float64", "trace": True, "eval_every": 3},
    }  # fmt: skip
    if clock == "s":
        scenario["system"] = {"compute": {"model": "linear", "slowest": 1.5, "fastest": 0.5}}
    whole = fedsim.run(scenario, out=tmp_path / "whole")
    part = {**scenario, "run": {**scenario["run"], "rounds": 5}}
    fedsim.run(part, out=tmp_path / "part")
    resumed = fedsim.run(scenario, out=tmp_path / "part", resume=True)
    assert torch.equal(whole.params, resumed.params)
    assert whole.trace == resumed.trace
    assert len({row["nodes_there"] for row in whole.trace}) > 1
    columns = ["consensus_distance", "nodes_there", "links_there"]
    assert whole.metrics[columns].iloc[-1].equals(resumed.metrics[columns].iloc[-1])


def test_who_is_away_keeps_its_model_and_is_not_measured(quadratic: Make, run_scenario: Make, tmp_path: Path) -> None:
    problem = quadratic(n=N, d=3)
    file = node_link(tmp_path, "", {0: '"end": 3', 5: '"start": 9'})
    section = {"graph": "file", "path": file, "spells": {"unit": "rounds"}}
    keys = {"data": problem.section(), "algorithm": {"name": "dfedavg", "lr": 0.05}, "topology": section}
    early = run_scenario(**keys, run={"rounds": 2})
    run = run_scenario(**keys, run={"rounds": 8, "eval_every": 8})
    x = run.params.numpy()
    assert (x[0] == early.params.numpy()[0]).all()  # round 2 was its last
    assert (x[5] == problem.x0).all()
    last = run.metrics.iloc[-1]
    assert (last["nodes_there"], last["links_there"]) == (4, 4)
    assert last["consensus_distance"] == pytest.approx(((x[1:5] - x[1:5].mean(0)) ** 2).sum(-1).mean(), rel=1e-9)
    assert all({0, 5}.isdisjoint(row["compute"]) for row in run.trace[2:])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.booleans(), min_size=7, max_size=7), st.sets(st.integers(0, 5)), st.lists(st.booleans(), min_size=7),
    st.sampled_from(["metropolis", "lazy", "max_degree"]),
)  # fmt: skip
def test_mixing_keeps_sums_whoever_is_there(
    tmp_path_factory: Any, up: list[bool], away: set[int], fires: list[bool], rule: str
) -> None:
    """Every realised matrix is symmetric and doubly stochastic, and what joins changes no one else."""
    from fedsim.graphs.network import build_network

    folder = tmp_path_factory.mktemp("mixing")
    spells = [f', "start": 1, "end": {9 if u else 2}' for u in up]
    nodes = ", ".join(f'{{"id": {i}, "end": {2 if i in away else 9}}}' for i in range(N))
    edges = ", ".join(f'{{"source": {i}, "target": {j}{s}}}' for (i, j), s in zip(EDGES, spells, strict=True))
    (folder / "g.json").write_text(AWAY.format(nodes, edges), encoding="utf-8")
    section = {"graph": "file", "path": "g.json", "spells": {"unit": "rounds"}, "weights": rule}
    topology, weights = build_topology(section, None, 0, folder)
    network = build_network(topology, weights, "DSpodFL", True)
    assert topology.presence is not None
    there = topology.presence.at(5)
    assert set(np.flatnonzero(~there.nodes)) == away
    fired = np.array(fires[:7]) & there.links
    nobody = np.zeros(N, dtype=bool)
    matrix, sends = among(network, 0, there, fired, nobody)
    W = matrix.toarray()
    assert W.shape == (N - len(away),) * 2
    assert sends == 2 * fired.sum() == (W - np.diag(W.diagonal()) > 0).sum()
    assert np.array_equal(W, W.T)
    assert np.allclose(W.sum(0), 1, atol=1e-15)
    joins = there.nodes & np.isin(np.arange(N), [1, 4])
    links = network.mixings[0].links
    fired &= ~joins[links].all(-1)
    P = among(network, 0, there, fired, joins).matrix.toarray()
    stay = ~joins[there.nodes]
    assert np.allclose(P.sum(1), 1, atol=1e-15)
    assert (P[np.ix_(stay, ~stay)] == 0).all()  # nobody hears those that join
    assert np.allclose(P[np.ix_(stay, stay)].sum(0), 1, atol=1e-15)


def refused(tmp_path: Path, **sections: Any) -> tuple[str, str | None]:
    scenario = {"algorithm": {"name": "dspodfl", "lr": 0.05}, "run": {"rounds": 8}, **sections}
    with pytest.raises(InputError) as caught:
        fedsim.run(scenario, out=tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    (problem,) = caught.value.problems
    return problem.message, problem.key


@pytest.mark.parametrize(
    ("sections", "key", "said"),
    [
        ({"topology": {"weights": "uniform"}}, "topology.weights", "its columns need not sum to 1"),
        ({"participation": {"mode": "poisson"}}, "topology.spells.unit", "clocks tick in virtual seconds; allowed: s"),
        ({"algorithm": {"name": "choco"}, "compression": {"name": "top_k", "k": 1}}, "topology", "change"),
        ({"participation": {"merge": "final"}}, "participation.merge", "some are not always there"),
        ({"aggregator": {"name": "median"}}, "aggregator.name", "a node may hear nobody"),
        ({"attack": {"name": "sign_flip", "attackers": [1]}}, "attack.name", "but nodes come and go"),
        ({"algorithm": {"name": "gradient_tracking"}, "join": "average"}, "topology.spells.join", "allowed: last"),
        ({"topology": {"spells": {"unit": "rounds", "origin": -50.0}}}, "topology.spells", "no link that is there"),
        ({"participation": {"mode": "poisson"}, "unit": "s", "join": "average"}, "topology.spells.join", "at a tick"),
        ({"algorithm": {"name": "dadao"}, "unit": "s"}, "topology.spells", "constants are those of a graph that stays"),
        ({"algorithm": {"name": "acid", "lr": 0.1}, "unit": "s"}, "topology.spells", "a graph that stays"),
        (
            {"privacy": {"mechanism": "muffliato", "noise_multiplier": 1.0, "clip_norm": 1.0, "delta": 1e-5}},
            "topology.graph", "one undirected graph",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_sound_is_refused_before_anything_is_written(
    sections: dict[str, Any], key: str, said: str, quadratic: Make, tmp_path: Path
) -> None:
    sections = dict(sections)
    file = node_link(tmp_path, ', "start": 1, "end": 7', {2: '"start": 4'})
    spells = {"unit": sections.pop("unit", "rounds"), "join": sections.pop("join", "last")}
    topology = {"graph": "file", "path": file, "spells": spells, **sections.pop("topology", {})}
    message, found = refused(tmp_path, data=quadratic(n=N, d=3).section(), topology=topology, **sections)
    assert (found, said in message) == (key, True), message


def test_plan_says_how_many_there_are_and_when_all_are_connected(quadratic: Make, tmp_path: Path) -> None:
    scenario = {
        "data": quadratic(n=N, d=3).section(), "algorithm": {"name": "dspodfl", "lr": 0.05},
        "topology": contacts(tmp_path), "run": {"rounds": 10},
    }  # fmt: skip
    network = fedsim.plan(scenario)["network"]
    assert network["links that are there"] == "4 of 7 on average, 3 to 5"
    assert network["nodes that are there"] == "all 6, always"
    assert network["jointly connected"].startswith("over any ")
    assert network["links"] == "they come and go; these are the facts of all links together"
    assert network["weights of a round"] == "metropolis, of the links that are there"
    short = fedsim.plan({**scenario, "run": {"rounds": 2}})["network"]
    assert short["never there in the run"] == "3 of 7 links"
    assert short["jointly connected"].startswith("never")


def test_plan_counts_what_those_send_who_are_there(quadratic: Make, tmp_path: Path) -> None:
    """Round 1 has four nodes and no links: it does not stand for the others."""
    away = {0: '"start": 3', 4: '"spells": [[0, 0.5], [6, 99]]'}
    file = node_link(tmp_path, ', "start": 2, "end": 9', away)
    scenario = {
        "data": quadratic(n=N, d=3).section(), "algorithm": {"name": "dspodfl", "lr": 0.05}, "run": {"rounds": 12},
        "topology": {"graph": "file", "path": file, "spells": {"unit": "rounds"}},
    }  # fmt: skip
    facts, last = fedsim.plan(scenario), fedsim.run(scenario, out=tmp_path / "run").metrics.iloc[-1]
    assert facts["work"]["clients in the first round"] == 4
    assert facts["work"]["sample gradients in all"] == f"about {int(last['gradients'])}"
    assert facts["messages"]["sent in the first round"] == "0 B"
    assert facts["messages"]["sent in all"] == f"about {size(int(last['bytes_sent']))}" != "about 0 B"


def test_a_deployment_has_no_such_graph(tmp_path: Path) -> None:
    scenario = {
        "data": {"dataset": "digits", "clients": N, "limit": 60}, "model": {"name": "linear"},
        "algorithm": {"name": "dfedavg", "lr": 0.1}, "topology": contacts(tmp_path), "run": {"rounds": 10},
    }  # fmt: skip
    with pytest.raises(InputError, match=r"topology\.spells: nodes of a deployment are there when their machines are"):
        check_trust(parse(scenario))
