"""Rules of a graph's nodes under attack: the same numbers in any number of shards."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.backends.placement import place_graph, split
from fedsim.backends.shard import Shard
from fedsim.clients.worker import Worker
from fedsim.core.errors import InputError
from fedsim.core.job import Job
from fedsim.core.oracle import CARRIED
from fedsim.engine.assembly import assemble
from fedsim.participation.base import Arrival, Dispatch
from fedsim.scenario.load import parse

Make = Callable[..., Any]
ROUNDS = 6
SAME = 1e-12
RULES: dict[str, dict[str, Any]] = {
    "nna": {"name": "nna", "f": 1},
    "clipped_gossip": {"name": "clipped_gossip"},
    "cs_he": {"name": "cs_he", "f": 1},
    "cs_plus": {"name": "cs_plus", "f": 1},
    "gts": {"name": "gts", "f": 2},
    "bridge": {"name": "bridge", "f": 1},
    "ios": {"name": "ios", "f": 1},
    "median": {"name": "median"},
    "mean": {"name": "mean"},
}


@pytest.fixture
def attacked(quadratic: Make) -> Make:
    """A scenario on an irregular graph of eleven nodes, two of them attackers."""
    data = quadratic(n=11, d=4).section(noise=0.2)

    def scenario(rule: str, attack: str = "dissensus", algorithm: Any = None, **sections: Any) -> dict[str, Any]:
        return {
            "data": data,
            "algorithm": {"name": "monna", "lr": 0.1, "beta": 0.7, "exchanges": 2, **(algorithm or {})},
            "topology": {"graph": "random_geometric", "radius": 0.6},
            "aggregator": RULES[rule],
            "attack": {"name": attack, "attackers": [3, 7]},
            "seed": 4,
            **sections,
        }

    return scenario


def in_shards(values: dict[str, Any], number: int, name: str = "x") -> Any:
    """The nodes' parameters after some rounds in that many shards, which send each other rows as actors do."""
    shards, members = computed(values, number)
    rows = [shard.state[name].numpy() for shard in shards]
    found = np.empty((sum(map(len, members)), rows[0].shape[1]))
    for mine, values_there in zip(members, rows, strict=True):
        found[mine] = values_there
    return found


def computed(values: dict[str, Any], number: int) -> tuple[list[Shard], list[Any]]:
    """The shards after some rounds, and the nodes that each has."""
    s = parse({**values, "run": {"rounds": ROUNDS, "dtype": "float64", "device": "cpu"}})
    a = assemble(s)
    assert a.network is not None
    n = a.task.num_clients
    owner = place_graph(np.ones(n), a.network.mixings[0].matrix, number)
    members = [np.flatnonzero(owner == k) for k in range(number)]
    build = partial(Worker, algorithm=s.algorithm, pipeline=a.pipeline)
    shards = [Shard(a.task.shard(mine), build, mine, False, a.mixing(s)) for mine in members]
    for shard in shards:
        shard.start()
    job: Dispatch | None = None
    for event in s.participation.events(a.setting(s)):
        if isinstance(event, Dispatch):
            job = event
            continue
        assert isinstance(event, Arrival)
        if event.number > ROUNDS:
            break
        assert job is not None
        parts = split(event.mixing.matrix, owner, number, event.clients)
        out = [
            shard.begin(event.number, job.rounds[mine], job.steps[mine], part)
            for shard, mine, part in zip(shards, members, parts, strict=True)
        ]
        while not out[0][-1][0]:
            rows = {}
            for j in range(number):
                peers = [k for k in range(number) if len(parts[j].outgoing[k])]
                rows |= {(j, k): out[j][i] for i, k in enumerate(peers)}
            out = [
                shards[k].resume(*(rows[j, k] for j in range(number) if parts[k].incoming[j])) for k in range(number)
            ]
    return shards, members


@pytest.mark.parametrize("rule", RULES)
def test_any_number_of_shards(attacked: Make, run_scenario: Make, rule: str) -> None:
    values = attacked(rule)
    whole = run_scenario(**values, run={"rounds": ROUNDS}).params.numpy()
    assert np.ptp(whole, axis=0).max() > 1e-2
    for number in (1, 2, 3):
        assert np.abs(in_shards(values, number) - whole).max() <= SAME


def test_a_quorum_is_the_same_in_shards(attacked: Make, run_scenario: Make) -> None:
    values = attacked("nna", "alie", {"wait": "quorum"})
    whole = run_scenario(**values, run={"rounds": ROUNDS}).params.numpy()
    everybody = run_scenario(**attacked("nna", "alie"), run={"rounds": ROUNDS}).params.numpy()
    assert np.abs(whole - everybody).max() > 1e-4
    for number in (2, 3):
        assert np.abs(in_shards(values, number) - whole).max() <= SAME


def test_an_attackers_own_state_follows_the_honest_protocol(attacked: Make, run_scenario: Make) -> None:
    """Its row of the matrix: attackers that hear nobody but each other stay where plain gossip has them."""
    values = attacked("nna", "nan", {"exchanges": 1, "beta": 0.0})
    run = run_scenario(**values, run={"rounds": 1})
    plain = run_scenario(**{k: v for k, v in values.items() if k not in ("attack", "aggregator")}, run={"rounds": 1})
    assert torch.allclose(run.params[[3, 7]], plain.params[[3, 7]], rtol=0, atol=1e-14)
    assert bool(run.params.isfinite().all())


def test_pulling_from_nodes_drawn_anew(attacked: Make, run_scenario: Make) -> None:
    """RPEL (arXiv 2510.08311): every node pulls from a few others, and averages the nearest."""
    values = attacked("nna", "alie", {"exchanges": 1})
    values["topology"] = {"graph": "random_peers", "symmetric": False, "peers": 5.0}
    whole = run_scenario(**values, run={"rounds": ROUNDS})
    assert [len(row["edges"]) for row in whole.trace] == [5 * 11] * ROUNDS
    for number in (2, 3):
        assert np.abs(in_shards(values, number) - whole.params.numpy()).max() <= SAME
    with pytest.raises(InputError, match="node 0 has its own message and hears 5: Krum with f = 2"):
        run_scenario(**{**values, "aggregator": {"name": "krum", "f": 2}}, run={"rounds": 1})


COUNTING: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 7, "limit": 120},
    "model": {"name": "own_models:NormedDropped"},
    "topology": {"graph": "ring"},
    "algorithm": {"name": "dspodfl", "lr": 0.1, "local_steps": 2, "batch_size": 6},
}


@pytest.mark.parametrize("number", [1, 3])
def test_models_that_drop_and_count(run_scenario: Make, number: int) -> None:
    whole = run_scenario(**COUNTING, run={"rounds": ROUNDS, "eval_every": ROUNDS})
    shards, members = computed(COUNTING, number)
    for shard, mine in zip(shards, members, strict=True):
        assert np.abs(shard.state["x"].numpy() - whole.params[mine].numpy()).max() <= SAME
        for i, node in enumerate(mine):
            mean = whole.state_dict(int(node))["norm.running_mean"]
            assert torch.allclose(shard.state[CARRIED][i, :12], mean, rtol=0, atol=SAME)
    centre = np.concatenate([sum(shard.node_sum(k) for shard in shards) / 7 for k in ("x", CARRIED)])
    facts = [shard.node_facts(centre) for shard in shards]
    last = whole.metrics.iloc[-1]
    assert sum(f.distance for f in facts) / 7 == pytest.approx(last["consensus_distance"], rel=1e-9)
    assert sum(f.accuracies for f in facts if f.accuracies is not None) / 7 == pytest.approx(last["node_accuracy"])


def test_a_server_gets_their_sum_from_shards() -> None:
    values = {k: v for k, v in COUNTING.items() if k != "topology"}
    values["algorithm"] = {**COUNTING["algorithm"], "name": "fedavg"}
    s = parse({**values, "run": {"rounds": 1, "dtype": "float64", "device": "cpu"}})
    a = assemble(s)
    received = {"x": a.task.initial(), **a.task.carried}
    clients, one, steps = np.arange(7), np.ones(7, dtype=np.int64), np.full(7, 2)
    weights = np.linspace(0.1, 0.2, 7)
    alone = Worker(a.task, s.algorithm).run(Job(clients, one, steps, received))
    build = partial(Worker, algorithm=s.algorithm, pipeline=a.pipeline)
    parts = []
    for mine in (np.array([0, 3, 4]), np.array([1, 2, 5, 6])):
        shard = Shard(a.task.shard(mine), build, mine, False)
        shard.dispatch(mine, one[mine], steps[mine], mine, {k: v.numpy() for k, v in received.items()})
        shard.collect(mine, {})
        parts.append({k: shard.reduce(k, weights[mine]) for k in shard.collected().widths})
    for k, v in alone.items():
        assert np.abs(parts[0][k] + parts[1][k] - weights @ v.numpy()).max() <= SAME
