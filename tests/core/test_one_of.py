"""One-of-many keys: both spellings say the same, the older one is noted, and what is wrong is said where it is."""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

import fedsim
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.work import LrDecay, Work
from fedsim.cli.app import main
from fedsim.core.errors import InputError
from fedsim.core.fields import make_part
from fedsim.devices.system import SystemSection
from fedsim.participation.clocked import Staleness
from fedsim.participation.gossip import Gossip
from fedsim.participation.laws import Law, RateLaw
from fedsim.scenario.load import given, load, parse
from fedsim.sweeps.axes import Axis
from fedsim.sweeps.files import points

SPELLINGS: list[tuple[Any, Any, dict[str, Any]]] = [
    (LrDecay, {"exponential": 0.9}, {"model": "exponential", "factor": 0.9}),
    (LrDecay, {"step": 0.1, "every": 30}, {"model": "step", "factor": 0.1, "every": 30}),
    (LrDecay, {"inverse": 0.1}, {"model": "inverse", "rate": 0.1}),
    (LrDecay, {"inverse_sqrt": 0.1}, {"model": "inverse_sqrt", "rate": 0.1}),
    (LrDecay, {"cosine": 50, "floor": 0.2}, {"model": "cosine", "rounds": 50, "floor": 0.2}),
    (LrDecay, {"cosine": 50}, {"model": "cosine", "rounds": 50}),
    (Work, {"fixed": 3}, {"model": "fixed", "value": 3}),
    (Work, {"per_client": [1, 2]}, {"model": "table", "values": [1, 2]}),
    (Work, {"uniform": [1, 5]}, {"model": "uniform", "low": 1, "high": 5}),
    (Staleness, {"polynomial": 0.5}, {"model": "polynomial", "power": 0.5}),
    (Staleness, {"hinge": [10.0, 4.0]}, {"model": "hinge", "a": 10.0, "b": 4.0}),
    (Axis, {"uniform": [1, 2.5]}, {"model": "uniform", "low": 1, "high": 2.5}),
    (Axis, {"log_uniform": [0.01, 1]}, {"model": "log_uniform", "low": 0.01, "high": 1}),
    (Axis, {"integers": [2, 4]}, {"model": "integers", "low": 2, "high": 4}),
    (Axis, {"choice": ["a", "b"]}, {"model": "choice", "values": ["a", "b"]}),
    *[
        (law, older, newer)
        for law in (Law, RateLaw)
        for older, newer in (
            ({"fixed": 0.5}, {"model": "fixed", "value": 0.5}),
            ({"per_item": [0.5, 1.0]}, {"model": "table", "values": [0.5, 1.0]}),
            ({"beta": [0.8, 0.6]}, {"model": "beta", "a": 0.8, "b": 0.6}),
            ({"uniform": [0.2, 0.4], "floor": 0.3}, {"model": "uniform", "low": 0.2, "high": 0.4, "floor": 0.3}),
            ({"bimodal": 0.3, "std": 0.2}, {"model": "bimodal", "mu": 0.3, "std": 0.2}),
        )
    ],
    (Law, {"beta": [0.8, 0.6], "redraw_every": 7}, {"model": "beta", "a": 0.8, "b": 0.6, "redraw_every": 7}),
]  # fmt: skip


@pytest.mark.parametrize("kind,older,newer", SPELLINGS)
def test_both_spellings_say_the_same(kind: Any, older: Any, newer: dict[str, Any]) -> None:
    read = TypeAdapter(kind).validate_python
    assert read(older) == read(newer)
    written = read(newer).model_dump(mode="json")
    assert written == read(older).model_dump(mode="json")
    assert "model" not in (written if isinstance(written, dict) else {})  # as run directories have always had it
    assert read(written) == read(newer)


@pytest.mark.parametrize(
    "kind,value,meant",
    [
        (LrDecay, 0.9, {"model": "exponential", "factor": 0.9}),
        (Work, 3, {"model": "fixed", "value": 3}),
        (Work, [1, 2], {"model": "table", "values": [1, 2]}),
        (Law, 1, {"model": "fixed", "value": 1.0}),
        (Law, [0.5, 1.0], {"model": "table", "values": [0.5, 1.0]}),
        (Law, "uniform", {"model": "uniform", "low": 0.0, "high": 1.0}),
        (RateLaw, 3.5, {"model": "fixed", "value": 3.5}),
        (RateLaw, {"uniform": [0.5, 3.0]}, {"model": "uniform", "low": 0.5, "high": 3.0}),
        (Staleness, "constant", {"model": "constant"}),
        (Staleness, {}, {"model": "constant"}),
    ],
)
def test_plain_values_stand_for_forms(kind: Any, value: Any, meant: dict[str, Any]) -> None:
    read = TypeAdapter(kind).validate_python
    assert read(value) == read(meant)


BAD: list[tuple[Any, str, Any, str, str]] = [
    (FedAvg, "lr_decay", {"model": "stp", "factor": 0.1}, "lr_decay", "did you mean 'step'?"),
    (FedAvg, "lr_decay", {"model": "step", "factr": 0.1, "every": 3}, "lr_decay.factr", "did you mean 'factor'?"),
    (FedAvg, "lr_decay", {"model": "step", "factr": 0.1, "every": 3}, "lr_decay.factor", "missing"),
    (FedAvg, "lr_decay", {"model": "step", "factor": 0.1}, "lr_decay", "'step' and 'every' go together"),
    (FedAvg, "lr_decay", {"model": "step", "factor": 1.5, "every": 3}, "lr_decay.factor", "found 1.5"),
    (FedAvg, "lr_decay", {"modl": "step", "factor": 0.1}, "lr_decay.modl", "did you mean 'model'?"),
    (FedAvg, "lr_decay", {"step": 1.5, "every": 3}, "lr_decay.step", "found 1.5"),
    (FedAvg, "lr_decay", {"exponential": 0.9, "floor": 0.1}, "lr_decay.floor", "unknown key"),
    (FedAvg, "lr_decay", {"model": "cosine", "rounds": 5, "inverse": 1.0}, "lr_decay.inverse", "unknown key"),
    (FedAvg, "lr_decay", {"model": ["step"]}, "lr_decay", "unknown decay"),
    (FedAvg, "local_steps", {"model": "uniform", "low": 3, "high": 1}, "local_steps", "found low 3 above high 1"),
    (FedAvg, "local_steps", {"uniform": [1, "x"]}, "local_steps.uniform.1", "found 'x', allowed: a whole number"),
    (FedAvg, "local_steps", 1.5, "local_steps", "found 1.5, allowed: a whole number above 0"),
    (Gossip, "compute", {"model": "beta", "a": 1.0}, "compute.b", "missing"),
    (Gossip, "compute", {"beta": [0.5, 0.0]}, "compute.beta.1", "found 0.0, allowed: greater than 0"),
    (Gossip, "compute", {"beta": [0.5, 0.1, 2]}, "compute.beta", "at most 2"),
    (Gossip, "compute", {"beta": 3}, "compute.beta", "found 3, allowed: a list"),
    (Gossip, "compute", {"beta": [1.0, 1.0], "std": 0.2}, "compute.std", "unknown key"),
    (SystemSection, "compute", {"model": "lognorml", "sigma": 1.0}, "compute", "did you mean 'lognormal'?"),
    (SystemSection, "compute", {"model": "uniform", "low": 1.0, "hgh": 2.0}, "compute.hgh", "did you mean 'high'?"),
    (SystemSection, "compute", {"modl": "uniform"}, "compute.modl", "did you mean 'model'?"),
    (SystemSection, "availability", {"model": "onof"}, "availability", "did you mean 'on_off'?"),
    (SystemSection, "availability", 3, "availability", "found 3, allowed: {model: ..., ...}"),
    (SystemSection, "availability", {"model": "on_off", "on": {"model": "exponential", "mean": -1}, "off": 3},
        "availability.on.mean", "found -1, allowed: greater than 0"),
]  # fmt: skip


@pytest.mark.parametrize("part,key,value,where,says", BAD)
def test_what_is_wrong_is_said_where_it_is(part: Any, key: str, value: Any, where: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        make_part(part, {key: value})
    assert any(p.key == where and says in p.message for p in caught.value.problems), caught.value
    assert not any("Input " in p.message or "{message}" in p.message for p in caught.value.problems)


SCENARIO: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 4, "partition": {"scheme": "iid"}},
    "model": {"name": "linear"},
    "algorithm": {"name": "dspodfl", "lr_decay": {"step": 0.1, "every": 30}, "local_steps": {"uniform": [1, 3]}},
    "topology": {"graph": "ring"},
    "participation": {"compute": {"beta": [0.8, 0.8]}, "links": {"model": "beta", "a": 0.8, "b": 0.8}},
    "run": {"rounds": 2},
}
KEYS = ["algorithm.lr_decay", "algorithm.local_steps", "participation.compute"]


def _file(folder: Path, name: str = "s.yaml") -> Path:
    file = folder / name
    file.write_text(yaml.safe_dump(SCENARIO, sort_keys=False))
    return file


def test_the_older_spelling_is_noted_once_per_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="fedsim"):
        load(_file(tmp_path))
    notes = [r.getMessage() for r in caplog.records]
    assert len(notes) == len(KEYS)
    for key, note in zip(KEYS, notes, strict=True):
        assert f" {key}: found the older spelling" in note
        assert "s.yaml:" in note
    assert "{step: 0.1, every: 30}, which is now {model: step, factor: 0.1, every: 30}" in notes[0]


def test_a_sweep_notes_each_key_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _file(tmp_path)
    random = {"algorithm.lr": {"log_uniform": [0.01, 0.5]}}
    sweep = {"name": "x", "scenario": "s.yaml", "grid": {"seed": [0, 1, 2]}, "random": random}
    (tmp_path / "w.yaml").write_text(yaml.safe_dump(sweep))
    with caplog.at_level(logging.WARNING, logger="fedsim"):
        assert len(points(tmp_path / "w.yaml")[1]) == 3
    notes = [r.getMessage() for r in caplog.records]
    assert len(notes) == len(KEYS) + 1
    assert " random.algorithm.lr: found the older spelling" in notes[0]


def test_notes_of_long_lists_are_short(caplog: pytest.LogCaptureFixture) -> None:
    data = {"dataset": "digits", "clients": 400, "partition": {"scheme": "iid"}}
    keys = {"name": "dspodfl", "local_steps": {"per_client": list(range(1, 401))}}
    with caplog.at_level(logging.WARNING, logger="fedsim"):
        given({**SCENARIO, "data": data, "algorithm": keys, "participation": {}})
    assert [len(r.getMessage()) < 300 for r in caplog.records] == [True]


def test_what_fedsim_wrote_itself_is_not_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "environment.json").write_text("{}")
    with caplog.at_level(logging.WARNING, logger="fedsim"):
        load(_file(tmp_path, "scenario.yaml"))
        load(_file(tmp_path), notes=False)
        parse(SCENARIO)
    assert not caplog.records


def test_a_resumed_run_does_not_note_what_it_wrote_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    schedule = {"model": "cosine", "rounds": 4, "warm_up": 2}
    values = {
        "data": {"dataset": "digits", "clients": 4, "limit": 80},
        "model": {"name": "linear"},
        "algorithm": {"name": "fedavg", "lr_decay": schedule, "local_steps": {"model": "uniform", "low": 1, "high": 3}},
    }
    with caplog.at_level(logging.WARNING, logger="fedsim"):
        fedsim.run({**values, "run": {"rounds": 1}}, out=tmp_path / "run")
        fedsim.run({**values, "run": {"rounds": 2}}, out=tmp_path / "run", resume=True)
    assert "cosine: 4" in (tmp_path / "run" / "scenario.yaml").read_text()
    assert not caplog.records


def test_notes_stay_out_of_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["fedsim", "plan", str(_file(tmp_path)), "--json"])
    with contextlib.suppress(SystemExit):
        main()
    assert isinstance(json.loads(capfd.readouterr().out), dict)


def test_both_spellings_resolve_to_the_same_scenario_and_hash() -> None:
    newer: dict[str, Any] = {
        **SCENARIO,
        "algorithm": {
            "name": "dspodfl",
            "lr_decay": {"model": "step", "factor": 0.1, "every": 30},
            "local_steps": {"model": "uniform", "low": 1, "high": 3},
        },
        "participation": {"compute": {"model": "beta", "a": 0.8, "b": 0.8}, "links": {"beta": [0.8, 0.8]}},
    }
    first, second = parse(SCENARIO), parse(newer)
    assert first.to_yaml() == second.to_yaml()
    assert first.hash() == second.hash()
    assert first.resolved()["participation"]["compute"] == {"beta": [0.8, 0.8], "floor": 0.001}
