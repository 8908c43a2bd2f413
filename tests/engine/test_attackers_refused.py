"""What attackers do not go together with, and what a plan says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from attackers_bench import DIGITS, EDGES, refused
from reference import attacks as reference

import fedsim
from fedsim.core.errors import InputError
from fedsim.deployment.noise import check_trust
from fedsim.scenario.load import parse

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
def test_data_without_classes(seven: dict[str, Any], tmp_path: Path, name: str) -> None:
    attack = {"name": name, "attackers": 2, **({"target": 1} if name == "backdoor" else {})}
    assert "attack.name" in refused({**seven, "attack": attack}, tmp_path / "quadratic")
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
        "attack": {"name": "zero", "attackers": b}, "aggregator": {"name": "attackers_bench:Tolerates", "f": most},
    }  # fmt: skip
    facts = fedsim.plan(scenario)["attack"]
    assert facts[f"chance of more than {most} attackers in a cohort"] == f"{chance:.5f}"
