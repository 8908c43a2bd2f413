"""Every registered algorithm gives over 1, 2 and 5 Ray actors the numbers of one process, in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.algorithms.base import Algorithm
from fedsim.core.errors import InputError
from fedsim.core.fields import keys_of
from fedsim.core.registry import lookup, names
from fedsim.engine.assembly import assemble
from fedsim.scenario.load import parse

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

Make = Callable[..., Any]
ACTORS = (1, 2, 5)
SAME = 1e-12
ROUNDS = 8
ADVERSARIAL: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 8, "limit": 80},
    "model": {"name": "linear"},
    "adversary": {"eps": 0.1, "steps": 2, "random_start": True},
}


def sections(name: str, problem: Any) -> dict[str, Any]:
    """A scenario that asks much of the algorithm: noise, unequal work, changing cohorts or links, idle nodes."""
    kind = lookup("algorithm", name)
    rate = {"lr": 0.02} if "lr" in keys_of(kind) else {}
    algorithm: dict[str, Any] = {"name": name, **rate, "local_steps": {"uniform": [1, 3]}}
    try:
        kind(**rate, local_steps=_uniform()).check(problem.n)
    except InputError:
        del algorithm["local_steps"]  # it takes one step per round, say
    scenario = {"data": problem.section(noise=0.1), "algorithm": algorithm}
    if kind().needs.adversary:  # its inputs have to be images
        scenario |= ADVERSARIAL
    if kind.setting == "gossip" and kind().needs.flows:
        scenario["topology"] = {"graph": "random_geometric", "radius": 0.6}
        scenario["participation"] = {"mode": "poisson", "compute": 0.7, "window": 0.5}
    elif kind.setting == "gossip":
        scenario["topology"] = {"graph": "random_geometric", "radius": 0.6}
        scenario["participation"] = {"mode": "gossip", "compute": 0.7, "links": 0.6}
    elif kind().needs.modes == ("asynchronous",):
        weights = kind().needs.arrival_weights or "identical"
        scenario["participation"] = {"mode": "asynchronous", "weights": weights, "staleness": {"polynomial": 0.5}}
        scenario["system"] = {"compute": {"model": "uniform", "low": 0.5, "high": 2.0}}
    elif kind().tokens is not None:  # a chain is at one client at a time
        scenario["participation"] = {"mode": "synchronous", "clients_per_round": 1}
    else:
        scenario["participation"] = {"mode": "synchronous", "fraction": 0.6}
    try:
        assemble(parse(scenario))
    except InputError:
        del scenario["participation"]  # everybody has to take part in every round, say
    return scenario


def _uniform() -> Any:
    from fedsim.algorithms.work import Work

    return Work(uniform=[1, 3])


def same(one: fedsim.Run, other: fedsim.Run, tolerance: float = SAME) -> None:
    assert one.params.shape == other.params.shape
    scale = max(1.0, float(one.params.abs().max()))
    assert float((one.params - other.params).abs().max()) <= tolerance * scale
    assert list(one.metrics.columns) == list(other.metrics.columns)
    for column in one.metrics.columns.drop("wall"):
        ours, theirs = (run.metrics[column].astype(float) for run in (one, other))
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
    assert one.trace == other.trace


def ray_backend(actors: int, **keys: Any) -> dict[str, Any]:
    return {"name": "ray", "actors": actors, **keys}


@pytest.mark.parametrize("name", names("algorithm"))
def test_every_algorithm_over_any_number_of_actors(quadratic: Make, run_scenario: Make, name: str) -> None:
    scenario = sections(name, quadratic(n=8, d=5, importance=True))
    run = {"rounds": ROUNDS, "eval_every": 4}
    alone = run_scenario(**scenario, run=run)
    for actors in ACTORS:
        same(alone, run_scenario(**scenario, run=run, backend=ray_backend(actors)))


@pytest.mark.parametrize("algorithm", ["dfedavg", "gradient_tracking"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_peers_at_random_that_merge(quadratic: Make, run_scenario: Make, algorithm: str, symmetric: bool) -> None:
    if algorithm == "gradient_tracking" and not symmetric:
        pytest.skip("pulls are refused")
    scenario = {
        "data": quadratic(n=8).section(),
        "algorithm": {"name": algorithm, "lr": 0.02, "batch_size": "full"},
        "topology": {"graph": "random_peers", "peers": 0.8, "symmetric": symmetric},
        "participation": {"mode": "gossip", "merge": "final", "schedule": [{"from": 3, "until": 5, "merge": True}]},
    }
    if algorithm == "dfedavg" and symmetric:
        scenario["participation"]["schedule"].append({"from": 6, "until": 8, "links": 0.5})
    run = {"rounds": ROUNDS, "eval_every": 1}
    alone = run_scenario(**scenario, run=run)
    for actors in ACTORS:
        same(alone, run_scenario(**scenario, run=run, backend=ray_backend(actors)))


COMPRESSED: dict[str, dict[str, Any]] = {
    "ef21": {"participation": {"mode": "synchronous", "fraction": 0.6}},
    "ef21_w": {"participation": {"mode": "synchronous"}},
    "choco": {"topology": {"graph": "ring"}, "participation": {"mode": "gossip", "compute": 0.6}},
    "deepsqueeze": {"topology": {"graph": "ring"}, "participation": {"mode": "gossip", "compute": 0.6, "links": 0.7}},
    "beer": {"topology": {"graph": "ring"}},
}


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_messages_over_any_number_of_actors(quadratic: Make, run_scenario: Make, name: str) -> None:
    """What clients remember of what they sent lies with the actors; draws follow from keys."""
    compression = {"name": "qsgd", "levels": 3} if name != "deepsqueeze" else {"name": "rand_k", "k": 2}
    scenario = {
        "data": quadratic(n=7, d=5).section(noise=0.1), "algorithm": {"name": name, "lr": 0.02},
        "compression": compression, **COMPRESSED[name],
    }  # fmt: skip
    run = {"rounds": ROUNDS, "eval_every": 4}
    alone = run_scenario(**scenario, run=run)
    for actors in ACTORS:
        same(alone, run_scenario(**scenario, run=run, backend=ray_backend(actors)))


@pytest.mark.parametrize("topology", [None, "ring"])
def test_tokens_over_any_number_of_actors(tmp_path: Path, run_scenario: Make, topology: str | None) -> None:
    """Integers reach actors as integers, and rows weigh by their tokens also where a shard has none that is short."""
    draw = np.random.default_rng(3)
    ids = draw.integers(0, 7, (24, 7))
    ids[::5, 4:] = 7
    np.savez(tmp_path / "ids.npz", x=ids[:, :-1], y=ids[:, 1:])
    tokens = {"task": "tokens", "num_classes": 8, "ignore_index": 7}
    scenario = {
        "data": {"dataset": "npz", "path": str(tmp_path / "ids.npz"), "clients": 4, **tokens},
        "model": {"name": "transformer", "width": 4, "heads": 2, "layers": 1},
        "algorithm": {"name": "dpsgd" if topology else "fedavg", "lr": 0.1, "batch_size": 3},
        **({"topology": {"graph": topology}} if topology else {}),
    }
    alone = run_scenario(**scenario, run={"rounds": 3, "dtype": "float64"})
    assert "perplexity" in alone.metrics
    for actors in (1, 3):
        same(alone, run_scenario(**scenario, run={"rounds": 3, "dtype": "float64"}, backend=ray_backend(actors)))


def test_low_rank_over_any_number_of_actors(quadratic: Make, run_scenario: Make) -> None:
    algorithm = {"name": "powersgd", "lr": 0.05, "rank": 1, "shapes": [[5, 6], [4]]}
    scenario = {"data": quadratic(n=7, d=34).section(noise=0.1), "algorithm": algorithm}
    run = {"rounds": ROUNDS, "eval_every": 4}
    alone = run_scenario(**scenario, run=run)
    for actors in ACTORS:
        same(alone, run_scenario(**scenario, run=run, backend=ray_backend(actors)))


def test_nodes_that_come_and_go(run_scenario: Make) -> None:
    contacts = Path(__file__).parents[3] / "topologies" / "contacts.gexf"
    scenario = {
        "data": {"dataset": "digits", "clients": 12, "limit": 240}, "model": {"name": "linear"},
        "algorithm": {"name": "dfedavg", "lr": 0.1, "batch_size": 16},
        "topology": {"graph": "file", "path": str(contacts), "spells": {"unit": "rounds", "join": "average"}},
    }  # fmt: skip
    run = {"rounds": 60, "eval_every": 5}
    alone = run_scenario(**scenario, run=run)
    assert alone.metrics["nodes_there"].nunique() > 1
    for actors in ACTORS:
        same(alone, run_scenario(**scenario, run=run, backend=ray_backend(actors)))


@pytest.mark.parametrize("selection", [{"name": "power_of_choice", "candidates": 5}, {"name": "oort"}], ids=str)
def test_clients_that_are_chosen_by_what_they_lose(quadratic: Make, run_scenario: Make, selection: Any) -> None:
    scenario = {
        "data": quadratic(n=8).section(noise=0.1),
        "algorithm": {"name": "fedavg", "lr": 0.05, "local_steps": 3},
        "participation": {"clients_per_round": 3, "selection": selection},
    }
    alone = run_scenario(**scenario, run={"rounds": ROUNDS})
    assert alone.metrics["loss_evaluations"].iloc[-1] > 0
    same(alone, run_scenario(**scenario, run={"rounds": ROUNDS}, backend=ray_backend(2)))


CLOCKED: dict[str, dict[str, Any]] = {
    "asynchronous": {"mode": "asynchronous"},
    "fixed_interval": {"mode": "fixed_interval", "window": 0.8},
    "fedbuff": {"mode": "fedbuff", "buffer": 3, "concurrency": 5},
}


@pytest.mark.parametrize("mode", CLOCKED)
def test_modes_on_the_virtual_clock(quadratic: Make, run_scenario: Make, mode: str) -> None:
    scenario = {
        "data": quadratic(n=8).section(noise=0.1),
        "algorithm": {"name": "fedavg", "lr": 0.05, "local_steps": 3},
        "participation": CLOCKED[mode],
        "system": {"compute": {"model": "linear", "slowest": 1.0, "fastest": 0.2}},
    }
    alone = run_scenario(**scenario, run={"rounds": 30, "eval_every": 5})
    same(alone, run_scenario(**scenario, run={"rounds": 30, "eval_every": 5}, backend=ray_backend(3)))


ROBUST: list[dict[str, Any]] = [
    {"name": "median"}, {"name": "trimmed_mean", "trim": 0.2}, {"name": "meamed", "f": 2}, {"name": "krum", "f": 2},
    {"name": "multi_krum", "f": 2, "pre": "nnm"}, {"name": "bulyan", "f": 1}, {"name": "geometric_median"},
    {"name": "centered_clipping", "tau": 0.1, "iters": 2}, {"name": "fltrust", "root": 3},
    {"name": "median", "pre": [{"name": "arc", "f": 2}, {"name": "bucketing", "s": 2}]},
]  # fmt: skip


@pytest.mark.parametrize("aggregator", ROBUST, ids=str)
def test_aggregators_that_need_every_row(quadratic: Make, run_scenario: Make, aggregator: dict[str, Any]) -> None:
    scenario = {
        "data": quadratic(n=7).section(noise=0.1),
        "algorithm": {"name": "fednova", "lr": 0.05, "local_steps": {"model": "uniform", "low": 1, "high": 4}},
        "aggregator": aggregator,
    }
    alone = run_scenario(**scenario, run={"rounds": 10})
    for actors in ACTORS:
        other = run_scenario(**scenario, run={"rounds": 10}, backend=ray_backend(actors))
        assert np.array_equal(alone.params, other.params)


def test_contributions_that_are_superseded(quadratic: Make, run_scenario: Make) -> None:
    scenario = {
        "data": quadratic(n=7).section(noise=0.1),
        "algorithm": {"name": "fedavg", "lr": 0.05, "local_steps": 3},
        "aggregator": {"name": "median"},
        "participation": {"mode": "fedbuff", "buffer": 5},
        "system": {"compute": {"model": "table", "values": [0.1, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5]}},
    }
    alone = run_scenario(**scenario, run={"rounds": 10})
    assert any("superseded" in row for row in alone.trace)
    same(alone, run_scenario(**scenario, run={"rounds": 10}, backend=ray_backend(2)))


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold", "dspodfl"])
def test_supervised_data_in_shards(run_scenario: Make, algorithm: str) -> None:
    scenario: dict[str, Any] = {
        "data": {"dataset": "digits", "clients": 9, "partition": {"scheme": "dirichlet", "alpha": 0.3}},
        "model": {"name": "mlp", "hidden": [16]},
        "algorithm": {"name": algorithm, "lr": 0.1, "local_epochs": 1, "batch_size": 16},
    }
    if algorithm == "dspodfl":
        scenario["topology"] = {"graph": "ring"}
        scenario["participation"] = {"mode": "gossip", "compute": 0.5, "links": 0.5}
    run = {"rounds": 4, "eval_every": 2}
    alone = run_scenario(**scenario, run=run)
    same(alone, run_scenario(**scenario, run=run, backend=ray_backend(3)), 1e-10)


ADAPTED = {"name": "own_models:Whole", "lora": {"targets": ["body"], "rank": 2, "train": ["head"]}}


@pytest.mark.parametrize(
    "setting,model",
    [
        ("server", {"name": "own_models:NormedDropped"}),
        ("graph", {"name": "own_models:NormedDropped"}),
        ("server", ADAPTED),
        ("graph", ADAPTED),
        ("controls", {"name": "own_models:Attention"}),
        ("private", {"name": "own_models:Attention"}),
        ("tracking", {"name": "own_models:Recurrent"}),
    ],
    ids=["server", "graph", "server, adapters", "graph, adapters", "controls", "private", "tracking"],
)
def test_models_that_drop_and_count(run_scenario: Make, setting: str, model: dict[str, Any]) -> None:
    local = {"lr": 0.1, "local_steps": 2, "batch_size": 8}
    scenario: dict[str, Any] = {
        "data": {"dataset": "digits", "clients": 6, "limit": 120},
        "model": model,
        "algorithm": {"name": "fedavg", **local},
    }
    if setting == "graph":
        scenario |= {"algorithm": {"name": "dspodfl", **local}, "topology": {"graph": "ring"}}
        scenario["participation"] = {"mode": "gossip", "compute": 0.7, "links": 0.6}
    if setting == "tracking":
        scenario |= {"algorithm": {"name": "gradient_tracking", "lr": 0.1, "batch_size": 8}}
        scenario["topology"] = {"graph": "ring"}
    if setting == "controls":
        scenario["algorithm"]["name"] = "scaffold"
    if setting == "private":  # each sample has masks of its own
        scenario["algorithm"] = {"name": "fedavg", "lr": 0.1, "local_steps": 2}
        noise = {"clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-5, "sampling_rate": 0.2}
        scenario["privacy"] = {"mechanism": "dp_sgd", **noise}
    run = {"rounds": 4, "eval_every": 2}
    one = run_scenario(**scenario, run=run)
    other = run_scenario(**scenario, run=run, backend=ray_backend(2))
    same(one, other)
    assert all(np.allclose(v, other.state_dict()[k], rtol=0, atol=SAME) for k, v in one.state_dict().items())


SETTINGS: dict[str, dict[str, Any]] = {
    "scaffold": {},
    "gradient_tracking": {"topology": {"graph": "ring"}},
    "asynchronous fedavg": {"participation": {"mode": "asynchronous"}},  # jobs are under way at every checkpoint
    "fedbuff fedavg": {"participation": {"mode": "fedbuff", "buffer": 3}},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("first,then", [(2, 0), (0, 3), (5, 2)], ids=["leaves ray", "enters ray", "fewer actors"])
def test_a_run_goes_on_elsewhere(quadratic: Make, tmp_path: Path, name: str, first: int, then: int) -> None:
    """What one backend checkpointed, another continues."""
    problem, algorithm = quadratic(n=8), name.rpartition(" ")[2]
    common = {"data": problem.section(noise=0.1), "algorithm": {"name": algorithm, "lr": 0.02}, **SETTINGS[name]}
    if algorithm == "fedavg":
        common["system"] = {"compute": {"model": "linear", "slowest": 1.0, "fastest": 0.2}}

    def go(actors: int, rounds: int, out: str, resume: bool = False) -> fedsim.Run:
        run = {"rounds": rounds, "dtype": "float64", "device": "cpu", "eval_every": 3}
        backend = ray_backend(actors) if actors else {"name": "vectorized"}
        return fedsim.run({**common, "run": run, "backend": backend}, tmp_path / out, resume)

    whole = go(0, 12, "whole")
    go(first, 5, "parts")
    resumed = go(then, 12, "parts", resume=True)
    assert resumed.resumed_at == 5
    np.testing.assert_allclose(whole.params, resumed.params, rtol=SAME, atol=SAME)
    np.testing.assert_allclose(whole.metrics["train_loss"], resumed.metrics["train_loss"], rtol=SAME)


def test_a_run_stops_early_over_actors(tmp_path: Path, quadratic: Make) -> None:
    stop = {"metric": "optimum_distance", "patience": 2, "min_delta": 0.05}
    run = {"rounds": 40, "dtype": "float64", "eval_every": 1, "device": "cpu", "stop": stop}
    scenario = {**sections("fedavg", quadratic(n=4, d=3)), "run": run}
    here = fedsim.run(scenario, out=tmp_path / "here")
    there = fedsim.run({**scenario, "backend": {"name": "ray", "actors": 2}}, out=tmp_path / "there")
    assert here.stopped is not None
    assert there.stopped == here.stopped


PERSONAL: dict[str, dict[str, Any]] = {
    "fedrep": {
        "model": {"name": "own_models:Whole", "personal": ["head"]},
        "algorithm": {"train": [{"parameters": "personal", "steps": 2}, {"parameters": "shared", "steps": 1}]},
        "participation": {"mode": "synchronous", "fraction": 0.6},
    },
    "on the clock": {
        "model": {"name": "own_models:Whole", "personal": ["head"]},
        "participation": {"mode": "fedbuff", "buffer": 2},
    },
    "fedbn": {"model": {"name": "own_models:Normed", "batch_norm": "local"}},
    "fedbn on a graph": {
        "model": {"name": "own_models:Normed", "batch_norm": "local"}, "algorithm": {"name": "dspodfl"},
        "topology": {"graph": "ring"}, "participation": {"mode": "gossip", "compute": 0.7, "links": 0.7},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PERSONAL)
def test_what_stays_with_clients_lies_with_actors(tmp_path: Path, name: str) -> None:
    """One actor or two give the numbers of one process, also those of clients' own models, and where a run goes on."""
    more = dict(PERSONAL[name])
    scenario: dict[str, Any] = {
        "data": {"dataset": "digits", "clients": 5, "limit": 100, "local_test": 0.25},
        "algorithm": {"name": "fedavg", "lr": 0.1, "batch_size": 6, **more.pop("algorithm", {})},
        "run": {"rounds": 4, "eval_every": 2, "dtype": "float64", "eval_samples": 40, "device": "cpu", "trace": True},
        **more,
    }
    if "train" not in scenario["algorithm"]:
        scenario["algorithm"]["local_steps"] = 2
    alone = fedsim.run(scenario, out=tmp_path / "alone")
    same(alone, fedsim.run({**scenario, "backend": ray_backend(2)}, out=tmp_path / "two"))
    half = {**scenario, "run": {**scenario["run"], "rounds": 2}}
    fedsim.run({**half, "backend": ray_backend(2)}, out=tmp_path / "parts")
    same(alone, fedsim.run({**scenario, "backend": ray_backend(3)}, tmp_path / "parts", resume=True))
    assert len({round(v, 9) for v in alone.clients.query("round == 4")["loss"]}) > 1


TAKES: dict[str, dict[str, Any]] = {
    "powersgd": {"model": {"name": "mlp", "hidden": [8]}},
    "ef21": {"compression": {"name": "top_k", "k": 9}, "algorithm": {"step_size": "theory_new"}},
    "ef21_w": {"compression": {"name": "top_k", "k": 9}, "algorithm": {"step_size": "theory_new"}},
    "fsgld": {"participation": {"mode": "synchronous", "clients_per_round": 1}, "algorithm": {"lr": 1e-4}},
}
"""Algorithms that take something from the data, with what has them do it."""


@pytest.mark.parametrize(
    "name", [n for n in names("algorithm") if lookup("algorithm", n).settled is not Algorithm.settled]
)
def test_what_an_algorithm_takes_from_the_data_reaches_the_actors(run_scenario: Make, name: str) -> None:
    case = {**TAKES[name]}
    scenario = {
        "data": {"dataset": "digits", "clients": 5, "limit": 100}, "model": {"name": "linear"}, **case,
        "algorithm": {"name": name, **({"lr": 0.05} if name == "powersgd" else {}), **case.get("algorithm", {})},
    }  # fmt: skip
    alone = run_scenario(**scenario, run={"rounds": 4, "eval_every": 2})
    same(alone, run_scenario(**scenario, run={"rounds": 4, "eval_every": 2}, backend=ray_backend(2)))
