"""Attackers on a graph: where they sit, who hears them, and what is measured of the honest nodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attackers_bench import DIGITS, EDGES, refused, rows, scenario_of
from reference import attacks as reference

import fedsim
from fedsim.engine.assembly import assemble


def test_the_honest_part_of_a_graph(dumbbell: dict[str, Any], tmp_path: Path) -> None:
    scenario = {**dumbbell, "attack": {"name": "label_flip", "attackers": [6, 7]}}
    found = json.loads((fedsim.run(scenario, out=tmp_path / "run").dir / "attack.json").read_text())
    assert found["delta_max"] == pytest.approx(0.2, abs=1e-12)
    assert found["honest_gap"] == pytest.approx(0.0876894374, abs=1e-9)
    assert found["connected"] is True
    W = reference.metropolis(8, EDGES)
    assert reference.gap(W) == pytest.approx(0.0708497378, abs=1e-9)
    assert reference.gap(reference.without(W, {6, 7})) == pytest.approx(found["honest_gap"], abs=1e-12)
    facts = fedsim.plan(scenario)["attack"]
    assert facts["honest gap"] == pytest.approx(0.0876894374, abs=1e-9)
    assert facts["attackers that an honest node hears"] == "at most 1, mean 0.333"
    assert facts["honest nodes that hear some"] == ["node 2: 1, weight 0.2", "node 3: 1, weight 0.2"]
    assert facts["their numbers"] == "6, 7"


@pytest.mark.parametrize("f,within", [(0, False), (1, True), (2, True)])
def test_whether_the_rule_is_within_its_bound(dumbbell: dict[str, Any], tmp_path: Path, f: int, within: bool) -> None:
    """An honest node hears one of the two attackers; under a server both may be in a cohort."""
    attack = {"name": "label_flip", "attackers": [6, 7]}
    run = fedsim.run({**dumbbell, "attack": attack, "aggregator": {"name": "nna", "f": f}}, out=tmp_path / "graph")
    found = json.loads((run.dir / "attack.json").read_text())
    assert (found["f"], found["within_bound"]) == (f, within)
    rule, data = {"name": "attackers_bench:Tolerates", "f": f}, {**DIGITS["data"], "clients": 8}
    server = fedsim.run({**DIGITS, "data": data, "attack": attack, "aggregator": rule}, out=tmp_path / "server")
    assert json.loads((server.dir / "attack.json").read_text())["within_bound"] is (f >= 2)


def test_honest_nodes_are_measured(dumbbell: dict[str, Any], tmp_path: Path) -> None:
    run = fedsim.run({**dumbbell, "attack": {"name": "label_flip", "attackers": [6, 7]}}, out=tmp_path / "run")
    last, honest = rows(run)[-1], run.params[:6]
    assert last["consensus_distance"] == pytest.approx(float(((honest - honest.mean(0)) ** 2).sum(1).mean()), abs=1e-12)
    task = assemble(scenario_of(dumbbell)).task
    accuracies = [task.evaluate(x)["test_accuracy"] for x in honest]
    assert last["node_accuracy"] == pytest.approx(np.mean(accuracies), abs=1e-12)
    assert last["node_accuracy_min"] == pytest.approx(min(accuracies), abs=1e-12)
    assert last["test_accuracy"] == pytest.approx(task.evaluate(honest.mean(0))["test_accuracy"], abs=1e-12)
    flat = torch.cat([p.flatten() for p in run.model().parameters()])
    assert torch.allclose(flat.double(), honest.mean(0), atol=1e-6)  # the model that is exported leaves attackers out
    assert "node_accuracy_min" not in fedsim.run(dumbbell, out=tmp_path / "plain").metrics


@pytest.mark.parametrize(
    "placement,count,who",
    [("degree", 2, [2, 3]), ("betweenness", 3, [2, 3]), ("cut", 1, None), ("cut", 3, None), ("random", 2, None)],
)
def test_where_they_sit(dumbbell: dict[str, Any], placement: str, count: int, who: list[int] | None) -> None:
    attack = {"name": "label_flip", "attackers": count, "placement": placement, "allow_disconnected": True}
    found = assemble(scenario_of({**dumbbell, "attack": attack})).pipeline.run.attackers
    assert found is not None
    assert len(found) == count
    assert set(who or ()) <= set(found)
    if placement == "cut":  # every node of the chain 6-2-3-7 or 2 and 3 parts the graph, and 2 is the first by degree
        assert found == {1: (2,), 3: (0, 2, 3)}[count] or found == {1: (3,), 3: (0, 2, 3)}[count]


def test_equal_nodes_are_taken_by_number(dumbbell: dict[str, Any]) -> None:
    ring = {**dumbbell, "topology": {"graph": "ring"}}
    for placement in ("degree", "betweenness"):
        attack = {"name": "label_flip", "attackers": 3, "placement": placement, "allow_disconnected": True}
        assert assemble(scenario_of({**ring, "attack": attack})).pipeline.run.attackers == (0, 1, 2)


def test_honest_nodes_that_are_parted(dumbbell: dict[str, Any], tmp_path: Path) -> None:
    attack = {"name": "label_flip", "attackers": [2]}
    said = refused({**dumbbell, "attack": attack}, tmp_path / "run")
    assert "fall into 3 parts, {3, 4, 5, 7}; {0, 1}; {6}" in said
    run = fedsim.run({**dumbbell, "attack": {**attack, "allow_disconnected": True}}, out=tmp_path / "allowed")
    found = json.loads((run.dir / "attack.json").read_text())
    assert found["connected"] is False
    assert found["honest_gap"] == 0.0


def test_little_is_enough_against_bridge(tmp_path: Path) -> None:
    """Five honest nodes and an attacker that knows them all, each doing x = bridge(x) - lr A (x - b)."""
    A = np.array([[1.0, 2], [2, 1], [1, 1], [3, 1], [1, 2], [1, 1]])
    b = np.array([[1.0, 0], [0, 1], [2, 2], [1, -1], [0, 0], [9, 9]])
    np.savez(tmp_path / "q.npz", A=A, b=b)
    scenario: dict[str, Any] = {
        "data": {"dataset": "quadratic", "file": str(tmp_path / "q.npz")}, "topology": {"graph": "complete"},
        "algorithm": {"name": "dgd", "lr": 0.2}, "aggregator": {"name": "bridge", "f": 1},
        "attack": {"name": "alie", "attackers": [5], "z": 1.0, "knowledge": "all"},
    }  # fmt: skip
    for rounds, x in ((1, [0.2, 0.0]), (3, [0.4007737002, 0.0145730894]), (400, [0.6470522568, 0.0237637963])):
        how = {"rounds": rounds, "dtype": "float64", "eval_every": 400}
        run = fedsim.run({**scenario, "run": how}, out=tmp_path / str(rounds))
        assert run.params[0].tolist() == pytest.approx(x, abs=5e-11)
        centre = run.params[:5].mean(0).numpy()
        off = np.linalg.norm(centre - [0.75, 2 / 7])
        assert run.metrics["optimum_distance"].iloc[-1] == pytest.approx(off, abs=1e-12)
    whole = fedsim.run({**scenario, "run": {**how, "rounds": 40}}, out=tmp_path / "whole")
    fedsim.run({**scenario, "run": {**how, "rounds": 20}}, out=tmp_path / "half")
    rest = fedsim.run({**scenario, "run": {**how, "rounds": 40}}, out=tmp_path / "half", resume=True)
    assert torch.equal(rest.params, whole.params)


@pytest.mark.parametrize("name,keys", [("dissensus", {"eps": 1.5}), ("spectral", {}), ("alie", {}), ("zero", {})])
def test_attackers_move_their_neighbours(dumbbell: dict[str, Any], tmp_path: Path, name: str, keys: Any) -> None:
    plain = fedsim.run({**dumbbell, "run": {**DIGITS["run"], "rounds": 1}}, out=tmp_path / "plain")
    attack = {"name": name, "attackers": [6, 7], **keys}
    run = fedsim.run(
        {**dumbbell, "attack": attack, "run": {**DIGITS["run"], "rounds": 2, "trace": True}}, out=tmp_path / "run"
    )
    assert not torch.equal(run.params[2], plain.params[2])
    assert [row["attackers"] for row in run.trace] == [[6, 7]] * 2


def test_nobody_attacks_a_graph(dumbbell: dict[str, Any], tmp_path: Path) -> None:
    plain = fedsim.run(dumbbell, out=tmp_path / "plain")
    run = fedsim.run({**dumbbell, "attack": {"name": "dissensus", "attackers": 0}}, out=tmp_path / "run")
    assert torch.equal(run.params, plain.params)
    assert rows(run) == rows(plain)
