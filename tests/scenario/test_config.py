"""Scenarios: what a file or mapping means, defaults written out, and the hash that names a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.fields import part_from
from fedsim.core.registry import names
from fedsim.scenario.load import load, parse
from fedsim.scenario.sections import Scenario

SERVER: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 4, "partition": {"scheme": "dirichlet", "alpha": 1}},
    "model": {"name": "mlp"},
    "algorithm": {"name": "fedavg"},
}
GOSSIP: dict[str, Any] = {
    "data": {"dataset": "quadratic", "file": "q.npz"},
    "algorithm": {"name": "dspodfl", "lr_decay": {"inverse": 0.1}, "local_steps": {"uniform": [1, 3]}},
    "topology": {"graph": "random_geometric", "radius": 0.6, "weights": "lazy"},
    "participation": {"compute": {"beta": [0.8, 0.8]}, "links": [0.5, 1]},
}
SEQUENCE = {
    **GOSSIP,
    "topology": {"graph": "sequence", "graphs": [{"graph": "file", "path": "g.csv"}, {"graph": "ring"}]},
}


def test_defaults_are_written_out() -> None:
    resolved = parse(SERVER).resolved()
    assert resolved["participation"] == {
        "mode": "synchronous", "sampling": "uniform", "stragglers": 0.0, "straggler_policy": "partial",
        "over_selection": 1.0, "dropout": 0.0,
    }  # fmt: skip
    assert resolved["aggregator"] == {"name": "mean"}
    assert resolved["model"] == {"name": "mlp", "init": "default", "hidden": [200], "activation": "relu"}
    assert resolved["data"]["partition"] == {
        "scheme": "dirichlet", "alpha": 1.0, "min_partition_size": 10, "self_balancing": False,
    }  # fmt: skip
    assert resolved["algorithm"]["lr_decay"] == 1.0
    assert resolved["run"]["rounds"] == 100
    assert "topology" not in resolved


@pytest.mark.parametrize("values", [SERVER, GOSSIP, SEQUENCE], ids=["server", "gossip", "sequence"])
def test_a_resolved_scenario_resolves_to_itself(values: dict[str, Any], tmp_path: Path) -> None:
    first = parse(values)
    (tmp_path / "again.yaml").write_text(first.to_yaml())
    again = load(tmp_path / "again.yaml")  # in another folder: its paths are absolute
    assert again.resolved() == first.resolved()
    assert again.hash() == first.hash()
    assert again.to_yaml() == first.to_yaml()


def test_relative_paths_are_relative_to_the_scenario_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "s.yaml").write_text(yaml.safe_dump(SEQUENCE))
    monkeypatch.chdir(tmp_path)
    resolved = load("deep/s.yaml").resolved()
    assert resolved["data"]["file"] == str(tmp_path / "deep" / "q.npz")
    assert resolved["topology"]["graphs"][0]["path"] == str(tmp_path / "deep" / "g.csv")


def changed(values: dict[str, Any], **sections: Any) -> Scenario:
    return parse({k: {**v, **sections.pop(k, {})} if isinstance(v, dict) else v for k, v in values.items()} | sections)


def test_the_hash_follows_what_decides_the_numbers_not_how_it_is_written() -> None:
    base = parse(SERVER).hash()
    assert changed(SERVER, model={"hidden": [200]}).hash() == base  # the default, written out
    assert parse(dict(reversed(SERVER.items()))).hash() == base
    different = [
        changed(SERVER, model={"hidden": [201]}), changed(SERVER, seed=1), changed(SERVER, algorithm={"lr": 0.2}),
        changed(SERVER, run={"rounds": 5}), changed(SERVER, aggregator={"name": "median"}),
    ]  # fmt: skip
    assert len({base, *(s.hash() for s in different)}) == 6


def test_the_participation_mode_follows_the_algorithm() -> None:
    assert parse(SERVER).resolved()["participation"]["mode"] == "synchronous"
    assert parse(GOSSIP).resolved()["participation"]["mode"] == "gossip"


def test_mappings_of_python_are_not_changed_and_may_hold_numpy_numbers() -> None:
    values = {**SERVER, "algorithm": {"name": "fedavg", "lr": np.float64(0.25)}}
    copy = repr(values)
    scenario = parse(values)
    assert scenario.algorithm.lr == 0.25
    assert yaml.safe_load(scenario.to_yaml())["algorithm"]["lr"] == 0.25
    assert repr(values) == copy


def test_load_takes_settings(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(SERVER))
    scenario = fedsim.load(tmp_path / "s.yaml", ["algorithm.lr=1e-2", "run.rounds=7", "name=other"])
    assert (scenario.algorithm.lr, scenario.run.rounds, scenario.name) == (0.01, 7, "other")


def test_all_problems_of_a_mapping_are_reported_with_their_keys() -> None:
    values = {
        "seed": -1, "data": {"dataset": "digts", "clients": 0}, "model": {"name": "mlp", "hiden": []},
        "algorithm": {"name": "fedavg", "lr": "x"}, "run": {"device": "tpu"}, "participation": {"fraction": 2},
    }  # fmt: skip
    with pytest.raises(InputError) as caught:
        parse(values)
    assert sorted(str(p.key) for p in caught.value.problems) == [
        "algorithm.lr", "data.clients", "data.dataset", "model.hiden", "participation.fraction", "run.device", "seed",
    ]  # fmt: skip
    assert all(p.file is None and p.line is None for p in caught.value.problems)


@pytest.mark.parametrize("kind", ["algorithm", "aggregator", "participation", "model", "graph", "partition", "dataset"])
def test_every_registered_part_refuses_an_unknown_key(kind: str) -> None:
    for name in names(kind):
        with pytest.raises(InputError) as caught:
            part_from(kind, "called", {"called": name, "no_such_key": 1})
        assert "no_such_key" in [p.key for p in caught.value.problems]
        assert "unknown key" in str(caught.value)


def test_a_part_of_somebody_s_own_is_found_beside_the_scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_parts_of_test_config.py").write_text(
        "from dataclasses import dataclass\nfrom fedsim.algorithms.fedavg import FedAvg\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Mine(FedAvg):\n    extra: float = 2.0\n"
    )
    algorithm = {"name": "own_parts_of_test_config:Mine", "extra": 3.5}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**SERVER, "algorithm": algorithm}))
    resolved = load(tmp_path / "s.yaml").resolved()
    assert resolved["algorithm"]["name"] == "own_parts_of_test_config:Mine"
    assert resolved["algorithm"]["extra"] == 3.5
