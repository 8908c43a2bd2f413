"""Runs with attackers: who they are, what is measured of the honest ones, and what is written down."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from reference import attacks as reference

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.job import Job, RunFacts
from fedsim.deployment.noise import check_trust
from fedsim.engine.assembly import Held, assemble, load_data
from fedsim.scenario.load import parse

EDGES = [(0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5), (2, 3), (2, 6), (3, 7)]
"""Two triangles with a bridge between 2 and 3, and at each of its ends an attacker, 6 and 7."""
V = [[1.0, 2, -1], [2, 1, 0], [0, 2, 1], [1, 0, -2], [3, 1, 1], [9, 9, 9], [9, 9, 9]]
DIGITS: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 6, "limit": 300},
    "model": {"name": "linear"},
    "algorithm": {"name": "fedavg", "lr": 0.2, "local_steps": 2, "batch_size": 16},
    "run": {"rounds": 2, "eval_every": 1, "dtype": "float64"},
}


@pytest.fixture
def quadratic(tmp_path: Path) -> dict[str, Any]:
    """Seven clients, of whom 5 and 6 attack; client i pulls towards row i of V."""
    np.savez(tmp_path / "q.npz", A=np.ones((7, 3)), b=np.array(V))
    return {
        "data": {"dataset": "quadratic", "file": str(tmp_path / "q.npz")},
        "algorithm": {"name": "fedavg", "lr": 1.0, "local_steps": 1, "weighting": "uniform"},
        "run": {"rounds": 3, "eval_every": 1, "dtype": "float64", "trace": True},
    }


@pytest.fixture
def dumbbell(tmp_path: Path) -> dict[str, Any]:
    """The graph of `EDGES`, on which nodes pull towards different places."""
    graph = nx.Graph()
    graph.add_nodes_from(range(8))
    graph.add_edges_from(EDGES)
    nx.write_graphml(graph, tmp_path / "g.graphml")
    return {
        "data": {"dataset": "digits", "clients": 8, "limit": 400}, "model": {"name": "linear"},
        "algorithm": {"name": "dpsgd", "lr": 0.1, "batch_size": 16}, "run": {**DIGITS["run"], "rounds": 3},
        "topology": {"graph": "file", "path": str(tmp_path / "g.graphml"), "weights": "metropolis"},
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Tolerates(fedsim.Aggregator):
    """The mean, which says that it tolerates `f` attackers."""

    f: int

    def __call__(self, values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return weights @ values


def rows(run: fedsim.Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "wall"} for row in run.metrics.to_dict("records")]


def refused(scenario: dict[str, Any], out: Path) -> str:
    with pytest.raises(InputError) as caught:
        fedsim.run(scenario, out=out)
    assert not out.exists()
    return str(caught.value)


# --- under a server ---------------------------------------------------------------------------------------------------


def test_a_round_of_attackers_and_honest_clients(quadratic: dict[str, Any], tmp_path: Path) -> None:
    """A round moves to the mean of what arrives: five honest rows of V, and twice what the attackers send."""
    honest = np.array(V[:5])
    attacks = {
        "alie": ({"z": 1.0}, reference.alie(honest, 1.0)),
        "min_max": ({}, reference.min_max(honest, "std")),
        "ipm": ({"eps": 0.5}, reference.ipm(honest, 0.5)),
        "zero": ({}, np.zeros(3)),
    }
    for name, (keys, sent) in attacks.items():
        scenario = {**quadratic, "attack": {"name": name, "attackers": [5, 6], **keys}}
        scenario["run"] = {**quadratic["run"], "rounds": 1}
        run = fedsim.run(scenario, out=tmp_path / name)
        assert run.params.numpy() == pytest.approx((honest.sum(0) + 2 * sent) / 7, abs=1e-12)


def test_measured_on_honest_clients(quadratic: dict[str, Any], tmp_path: Path) -> None:
    """Loss and optimum are those of the five honest clients; the attackers' own problem does not count."""
    honest = np.array(V[:5])
    run = fedsim.run({**quadratic, "attack": {"name": "zero", "attackers": [5, 6]}}, out=tmp_path / "run")
    x, last = run.params.numpy(), rows(run)[-1]
    assert last["train_loss"] == pytest.approx(0.5 * ((x - honest) ** 2).sum(1).mean(), abs=1e-12)
    assert last["optimum_distance"] == pytest.approx(np.linalg.norm(x - honest.mean(0)), abs=1e-12)


def test_what_is_written_down(quadratic: dict[str, Any], tmp_path: Path) -> None:
    cohorts = {"mode": "synchronous", "clients_per_round": 3}
    scenario = {**quadratic, "participation": cohorts, "attack": {"name": "ipm", "attackers": 2}}
    run = fedsim.run(scenario, out=tmp_path / "run")
    found = json.loads((run.dir / "attack.json").read_text())
    assert found == {
        "attackers": found["attackers"], "name": "ipm", "start": 1, "f": None, "delta_max": None, "honest_gap": None,
        "connected": None, "within_bound": None,
    }  # fmt: skip
    assert len(found["attackers"]) == 2
    for row in run.trace:
        assert row["attackers"] == sorted(set(row["clients"]) & set(found["attackers"]))
    again = fedsim.run(quadratic, out=run.dir)
    assert not (run.dir / "attack.json").exists()
    assert "attackers" not in again.trace[0]


@pytest.mark.parametrize("attackers", [0, []])
def test_nobody_attacks(quadratic: dict[str, Any], tmp_path: Path, attackers: Any) -> None:
    plain = fedsim.run(quadratic, out=tmp_path / "plain")
    run = fedsim.run({**quadratic, "attack": {"name": "alie", "attackers": attackers}}, out=tmp_path / "run")
    assert torch.equal(run.params, plain.params)
    assert rows(run) == rows(plain)
    assert run.trace == plain.trace


@pytest.mark.parametrize("name,keys", [("gaussian", {}), ("alie", {}), ("mimic", {}), ("backdoor", {"target": 3})])
def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path, name: str, keys: dict[str, Any]) -> None:
    scenario = {**DIGITS, "attack": {"name": name, "attackers": 2, **keys}}
    whole = fedsim.run({**scenario, "run": {**DIGITS["run"], "rounds": 4}}, out=tmp_path / "whole")
    fedsim.run(scenario, out=tmp_path / "half")
    rest = fedsim.run({**scenario, "run": {**DIGITS["run"], "rounds": 4}}, out=tmp_path / "half", resume=True)
    assert torch.equal(rest.params, whole.params)
    assert rows(rest) == rows(whole)


def test_start(quadratic: dict[str, Any], tmp_path: Path) -> None:
    """On a clock `start` is a round of the server too, though clients count their own jobs."""
    clock = {"mode": "fedbuff", "buffer": 3, "weights": "identical"}
    attack = {"name": "zero", "attackers": [5, 6]}
    for name, mode in (("synchronous", {}), ("fedbuff", {"participation": clock, "system": {"compute": 1.0}})):
        plain = fedsim.run({**quadratic, **mode}, out=tmp_path / f"{name}-plain")
        late = fedsim.run({**quadratic, **mode, "attack": {**attack, "start": 4}}, out=tmp_path / f"{name}-late")
        soon = fedsim.run({**quadratic, **mode, "attack": {**attack, "start": 3}}, out=tmp_path / f"{name}-soon")
        assert torch.equal(late.params, plain.params)
        assert not torch.equal(soon.params, plain.params)


# --- poisoned data ----------------------------------------------------------------------------------------------------


def test_labels_are_flipped_for_attackers_alone() -> None:
    plain = assemble(scenario_of(DIGITS)).task
    found = assemble(scenario_of({**DIGITS, "attack": {"name": "label_flip", "attackers": [1, 4]}})).task
    for client in range(6):
        x, y = own(plain, client)
        poisoned_x, poisoned_y = own(found, client)
        assert torch.equal(x, poisoned_x)
        expected = reference.reversed_labels(y.tolist(), 10) if client in (1, 4) else y.tolist()
        assert poisoned_y.tolist() == expected
    assert torch.equal(plain.test_targets, found.test_targets)


def test_labels_flipped_twice_are_what_they_were() -> None:
    part = scenario_of({**DIGITS, "attack": {"name": "label_flip", "attackers": 1}}).attack
    x, y = torch.zeros(7, 3), torch.tensor([0, 1, 2, 3, 9, 9, 4])
    once = part.rows(x, y, 10, 0, 0)
    assert once[1].tolist() == [9, 8, 7, 6, 0, 0, 5]
    assert torch.equal(part.rows(*once, 10, 0, 0)[1], y)


def test_a_backdoor_changes_a_share_of_the_rows() -> None:
    attack = {"name": "backdoor", "attackers": [2], "target": 7, "share": 0.25, "patch": 2, "value": 0.5}
    plain, found = (assemble(scenario_of({**DIGITS, **more})).task for more in ({}, {"attack": attack}))
    x, y = own(plain, 2)
    poisoned_x, poisoned_y = own(found, 2)
    changed = (x != poisoned_x).flatten(1).any(1)
    assert int(changed.sum()) == round(0.25 * len(y))
    assert (poisoned_y[changed] == 7).all()
    assert torch.equal(poisoned_y[~changed], y[~changed])
    image = poisoned_x[changed]
    assert (image[..., -2:, -2:] == 0.5).all() if image.dim() > 2 else (image[..., -2:] == 0.5).all()


def test_how_often_a_backdoor_opens(tmp_path: Path) -> None:
    """The share of test rows of other classes that the trigger turns into the target, counted by hand."""
    attack = {"name": "backdoor", "attackers": 3, "target": 7, "share": 1.0}
    run = fedsim.run({**DIGITS, "attack": attack, "run": {**DIGITS["run"], "rounds": 20}}, out=tmp_path / "run")
    honest = fedsim.run({**DIGITS, "run": {**DIGITS["run"], "rounds": 20}}, out=tmp_path / "honest")
    assert "attack_success" not in honest.metrics
    scenario = scenario_of({**DIGITS, "attack": attack})
    task = assemble(scenario).task
    hits = []
    for x, y in zip(task.test_inputs, task.test_targets.tolist(), strict=True):
        if y != 7:
            guess = task.kernel.outputs(run.params.unsqueeze(0), scenario.attack.triggered(x.unsqueeze(0)))
            hits.append(int(guess.argmax()) == 7)
    assert run.metrics["attack_success"].iloc[-1] == pytest.approx(np.mean(hits), abs=1e-12)
    assert np.mean(hits) > 0.5


def test_the_training_loss_is_that_of_clean_rows(tmp_path: Path) -> None:
    attacked = {**DIGITS, "attack": {"name": "label_flip", "attackers": [1, 4]}}
    run = fedsim.run(attacked, out=tmp_path / "run")
    task = assemble(scenario_of(DIGITS)).task
    honest = [own(task, client) for client in (0, 2, 3, 5)]
    x, y = (torch.cat([pair[i] for pair in honest]) for i in (0, 1))
    loss = torch.nn.functional.cross_entropy(task.kernel.outputs(run.params.unsqueeze(0), x)[0], y)
    assert run.metrics["train_loss"].iloc[-1] == pytest.approx(float(loss), abs=1e-12)


def test_boosted_messages() -> None:
    attack = {"name": "backdoor", "attackers": [1], "target": 0, "boost": 5.0}
    part = scenario_of({**DIGITS, "attack": attack}).attack
    one = np.ones(2, dtype=np.int64)
    messages = {"delta": torch.ones(2, 3), "steps": torch.ones(2, 1)}
    sent, _ = part.send(messages, {}, Job(np.array([0, 1]), one, one, {}), RunFacts(0, 6))
    assert sent["delta"].tolist() == [[1.0] * 3, [5.0] * 3]
    assert sent["steps"].tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize("client,poisoned", [(1, True), (2, False)])
def test_a_machine_of_a_deployment_poisons_its_own_rows(client: int, poisoned: bool) -> None:
    """A client of a deployment has its rows alone, and attacks where the scenario says that it does."""
    data = load_data(parse(DIGITS))
    sizes = np.full(6, len(data.train_y))
    scenario = parse({**DIGITS, "attack": {"name": "label_flip", "attackers": [1, 4]}})
    check_trust(scenario)
    _, labels = own(assemble(scenario, held=Held(data, client, sizes)).task, client)
    assert labels.tolist() == [9 - y if poisoned else y for y in data.train_y.tolist()]


@pytest.mark.parametrize(
    "attack", [{"name": "zero"}, {"name": "alie"}, {"name": "backdoor", "target": 1, "boost": 2.0}]
)
def test_machines_of_a_deployment_send_what_they_send(attack: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="poisoned data"):
        check_trust(parse({**DIGITS, "attack": {"attackers": 2, **attack}}))
    check_trust(parse({**DIGITS, "attack": {"attackers": 2, "name": "backdoor", "target": 1}}))


# --- on graphs --------------------------------------------------------------------------------------------------------


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
    rule, data = {"name": "test_attackers:Tolerates", "f": f}, {**DIGITS["data"], "clients": 8}
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


# --- what does not go together ----------------------------------------------------------------------------------------

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("edges under a server", {"attack": {"name": "dissensus"}}, "attack.name"),
    ("nothing to be made of", {"attack": {"name": "alie"}, "participation": {"mode": "asynchronous", "weights":
     "identical"}}, "participation.mode"),
    ("a cohort of one", {"attack": {"name": "ipm"}, "participation": {"clients_per_round": 1}},
     "participation.clients_per_round"),
    ("a small share", {"attack": {"name": "ipm"}, "participation": {"fraction": 0.1}}, "participation.fraction"),
    ("a buffer of one", {"attack": {"name": "ipm"}, "participation": {"mode": "fedbuff", "buffer": 1, "weights":
     "identical"}}, "participation.buffer"),
    ("what no mean survives", {"attack": {"name": "nan"}}, "aggregator.name"),
    ("everybody", {"attack": {"name": "zero", "attackers": 6}}, "attack.attackers"),
    ("an audit", {"attack": {"name": "zero"}, "audit": {"loss": {}}}, "attack"),
    ("an audit of poisoned data", {"attack": {"name": "label_flip"}, "audit": {"loss": {}}}, "attack"),
    ("a class that is not there", {"attack": {"name": "backdoor", "target": 10}}, "attack.target"),
    ("a trigger as large as the image", {"attack": {"name": "backdoor", "target": 1, "patch": 64}}, "attack.patch"),
    ("an algorithm beside aggregate", {"attack": {"name": "zero"}, "algorithm": {"name": "scaffold", "lr": 0.1}},
     "attack"),
    ("noise for a sum", {"attack": {"name": "zero"}, "participation": {"sampling": "poisson", "fraction": 0.5},
     "privacy": {"mechanism": "dp_fedavg", "epsilon": 2.0, "clip_norm": 1.0}}, "attack"),
]  # fmt: skip


@pytest.mark.parametrize("sections,key", [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_what_is_refused(sections: dict[str, Any], key: str, tmp_path: Path) -> None:
    scenario = {**DIGITS, **sections, "attack": {"attackers": 2, **sections["attack"]}}
    with pytest.raises(InputError) as caught:
        fedsim.run(scenario, out=tmp_path / "run")
    assert key in [p.key for p in caught.value.problems]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "sections,key",
    [
        ({"attack": {"name": "ipm"}, "participation": {"mode": "poisson"}, "algorithm": {"name": "dspodfl", "lr": 0.1}},
         "participation.mode"),
        ({"attack": {"name": "ipm", "knowledge": "all"}, "backend": {"name": "ray"}}, "attack.knowledge"),
        ({"attack": {"name": "spectral"}, "backend": {"name": "ray"}}, "attack.name"),
        ({"attack": {"name": "nan"}}, "aggregator.name"),
        ({"attack": {"name": "zero"}, "privacy": {"mechanism": "decor", "epsilon": 5.0, "clip_norm": 1.0}}, "attack"),
    ],
)  # fmt: skip
def test_what_is_refused_on_a_graph(
    dumbbell: dict[str, Any], sections: dict[str, Any], key: str, tmp_path: Path
) -> None:
    scenario = {**dumbbell, **sections, "attack": {"attackers": [6, 7], **sections["attack"]}}
    with pytest.raises(InputError) as caught:
        fedsim.run(scenario, out=tmp_path / "run")
    assert key in [p.key for p in caught.value.problems]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "sections",
    [
        {"algorithm": {"name": "scaffold", "lr": 0.1}},
        {"algorithm": {"name": "ef21", "lr": 0.1}, "compression": {"name": "top_k", "k": 10}},
        {"participation": {"sampling": "poisson", "fraction": 0.5},
         "privacy": {"mechanism": "dp_fedavg", "epsilon": 2.0, "clip_norm": 1.0}},
    ],
    ids=["scaffold", "ef21", "dp_fedavg"],
)  # fmt: skip
def test_what_boost_does_not_go_with_names_it(sections: dict[str, Any], tmp_path: Path) -> None:
    attack = {"name": "backdoor", "attackers": 2, "target": 1, "boost": 5.0}
    with pytest.raises(InputError) as caught:
        fedsim.run({**DIGITS, **sections, "attack": attack}, out=tmp_path / "run")
    (found,) = [p for p in caught.value.problems if p.key == "attack.boost"]
    assert "'backdoor' with boost 5 changes messages" in found.message
    assert "allowed: boost 1, " in found.message
    assert not (tmp_path / "run").exists()
    fedsim.plan({**DIGITS, **sections, "attack": {**attack, "boost": 1.0}})


def test_a_deployment_names_boost() -> None:
    attack = {"name": "backdoor", "attackers": 2, "target": 1, "boost": 5.0}
    with pytest.raises(InputError, match=r"attack\.boost: .*boost 5 changes messages.*allowed: boost 1, poisoned data"):
        check_trust(parse({**DIGITS, "attack": attack}))
    check_trust(parse({**DIGITS, "attack": {**attack, "boost": 1.0}}))


@pytest.mark.parametrize("placement", ["degree", "betweenness", "cut"])
def test_places_on_a_graph_where_everybody_may_meet_everybody(placement: str, tmp_path: Path) -> None:
    scenario = {**DIGITS, "algorithm": {"name": "dfedavg", "lr": 0.1}, "topology": {"graph": "random_peers"}}
    attack = {"name": "zero", "attackers": 2}
    message = refused({**scenario, "attack": {**attack, "placement": placement}}, tmp_path / "run")
    assert f"attack.placement: found '{placement}'" in message
    assert "allowed: random, or the attackers' numbers" in message
    facts = fedsim.plan({**scenario, "attack": attack})
    assert "notes" not in facts["network"]
    assert facts["network"]["link probability"] == "1 (sporadic)"


def test_plan_says_what_attackers_were_placed_by(tmp_path: Path) -> None:
    graph = nx.empty_graph(8)
    graph.add_edges_from(EDGES)
    nx.write_graphml(graph, tmp_path / "g.graphml")
    scenario = {
        **DIGITS, "data": {**DIGITS["data"], "clients": 8}, "algorithm": {"name": "dfedavg", "lr": 0.1},
        "topology": {"graph": "file", "path": str(tmp_path / "g.graphml")},
    }  # fmt: skip
    between = nx.betweenness_centrality(graph)
    for placement, said in (
        ("degree", "2 (degree 4), 3 (degree 4)"),
        ("betweenness", f"2 (betweenness {between[2]:.4g}), 3 (betweenness {between[3]:.4g})"),
    ):
        attack = {"name": "zero", "attackers": 2, "placement": placement, "allow_disconnected": True}
        assert fedsim.plan({**scenario, "attack": attack})["attack"]["their numbers"] == said


def test_plan_says_where_the_rule_has_no_f_what_too_many_are() -> None:
    attack = {"name": "zero", "attackers": 2}
    some = {**DIGITS, "participation": {"clients_per_round": 3}, "attack": attack}
    facts = fedsim.plan(some)["attack"]
    assert facts["the rule tolerates"] == "none: one attacker moves 'mean' anywhere"
    assert facts["chance of an attacker in a cohort"] == f"{reference.more_than(0, 6, 2, 3):.5f}"
    facts = fedsim.plan({**some, "aggregator": {"name": "median"}})["attack"]
    assert facts["the rule tolerates"] == "'median' is told no number f"
    assert facts["chance that half of a cohort of 3 or more attack"] == f"{reference.more_than(1, 6, 2, 3):.5f}"
    facts = fedsim.plan({**some, "aggregator": {"name": "trimmed_mean", "f": 1}})["attack"]
    assert facts["never more than it tolerates (within_bound)"] == "no"


@pytest.mark.parametrize("name", ["label_flip", "backdoor"])
def test_data_without_classes(quadratic: dict[str, Any], tmp_path: Path, name: str) -> None:
    attack = {"name": name, "attackers": 2, **({"target": 1} if name == "backdoor" else {})}
    assert "attack.name" in refused({**quadratic, "attack": attack}, tmp_path / "quadratic")
    x = np.arange(40.0).reshape(20, 2)
    np.savez(tmp_path / "r.npz", x=x, y=x[:, 0] / 7)
    data = {"dataset": "npz", "path": str(tmp_path / "r.npz"), "clients": 4, "task": "regression"}
    regression = {**DIGITS, "data": data, "attack": attack}
    assert "attack.name" in refused(regression, tmp_path / "regression")


@pytest.mark.parametrize(
    "more",
    [
        {"algorithm": {"name": "scaffold", "lr": 0.1}},
        {
            "participation": {"sampling": "poisson", "fraction": 0.5},
            "privacy": {"mechanism": "dp_fedavg", "epsilon": 2.0, "clip_norm": 1.0},
        },
    ],
)
def test_poisoned_data_go_with_every_algorithm_and_mechanism(more: dict[str, Any], tmp_path: Path) -> None:
    run = fedsim.run({**DIGITS, **more, "attack": {"name": "label_flip", "attackers": 2}}, out=tmp_path / "run")
    assert (run.dir / "attack.json").exists()


@pytest.mark.parametrize(
    "n,b,m,most,chance", [(100, 20, 10, 4, 0.02546), (100, 20, 10, 3, 0.10957)], ids=["4 of 10", "3 of 10"]
)
def test_how_likely_too_many_are_in_a_cohort(n: int, b: int, m: int, most: int, chance: float) -> None:
    assert reference.more_than(most, n, b, m) == pytest.approx(chance, abs=5e-6)
    scenario = {
        **DIGITS, "data": {"dataset": "digits", "clients": n}, "participation": {"clients_per_round": m},
        "attack": {"name": "zero", "attackers": b}, "aggregator": {"name": "test_attackers:Tolerates", "f": most},
    }  # fmt: skip
    facts = fedsim.plan(scenario)["attack"]
    assert facts[f"chance of more than {most} attackers in a cohort"] == f"{chance:.5f}"


def scenario_of(values: dict[str, Any]) -> Any:
    """The scenario, read as `fedsim.run` reads it."""
    return parse(values)


def own(task: Any, client: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows that a client trains on."""
    place = torch.as_tensor(task.indices[task.offsets[client] : task.offsets[client + 1]])
    return task.inputs[place], task.targets[place]
