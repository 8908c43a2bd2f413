"""Nodes whose states flow between their events, in shards: the same vectors as in one process, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_ray_contract import ray_backend
from test_ray_faults import poisoned

import fedsim
from fedsim.backends.ray import calls
from fedsim.core.errors import RunError
from fedsim.core.row_files import TensorFile
from fedsim.engine.assembly import assemble
from fedsim.engine.loop import Simulation
from fedsim.engine.run_directory import read_jsonl
from fedsim.scenario.load import parse

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

Make = Callable[..., Any]
ACID = {"name": "acid", "lr": 0.05, "momentum": 0.9}
DSPODFL = {"name": "dspodfl", "lr": 0.05}
WINDOWS = [{"from": 2, "until": 5, "links": 2.5}]
CONTACTS = {"graph": "file", "path": str(Path(__file__).parents[3] / "topologies" / "contacts.gexf")}
CASES: dict[str, dict[str, Any]] = {
    "dadao": {"algorithm": {"name": "dadao"}},
    "acid": {"algorithm": ACID, "participation": {"links": 0.5}},
    "acid, merged": {"algorithm": ACID, "participation": {"links": 0.5, "merge": {"every": 4}, "schedule": WINDOWS}},
    "dspodfl, schedule": {
        "algorithm": DSPODFL,
        "topology": {"graph": "random_geometric", "radius": 0.7},
        "participation": {"schedule": [{"from": 0, "until": 2, "links": {"linear": [0.2, 3.0]}}, *WINDOWS]},
    },
    "dspodfl, merged": {
        "algorithm": DSPODFL,
        "participation": {"merge": "final", "schedule": [{"from": 2, "until": 3, "merge": True}]},
    },
    "dspodfl, peers": {"algorithm": DSPODFL, "topology": {"graph": "random_peers", "peers": 0.8}},
    "dspodfl, spells": {
        "algorithm": DSPODFL,
        "topology": {**CONTACTS, "spells": {"unit": "s", "scale": 0.1}},
    },
}  # fmt: skip


def scenario(problem: Any, case: str, rounds: int = 10) -> dict[str, Any]:
    sections = CASES[case]
    compute = {"model": "uniform", "low": 0.3, "high": 2.0}
    return {
        "data": problem.section(noise=0.1), "algorithm": sections["algorithm"],
        "topology": sections.get("topology", {"graph": "ring"}),
        "participation": {"mode": "poisson", "compute": compute, "window": 0.7, **sections.get("participation", {})},
        "run": {"rounds": rounds, "eval_every": 1, "dtype": "float64", "device": "cpu", "trace": True},
    }  # fmt: skip


def kept(run: Any) -> dict[str, torch.Tensor]:
    """The states of a checkpoint: as after every node's last event."""
    file = TensorFile(run.dir / "checkpoint" / "state.safetensors")
    return {name: file[name] for name in file}


def same(alone: Any, other: Any, tolerance: float) -> None:
    assert (alone.params - other.params).abs().max() <= tolerance
    assert alone.trace == other.trace
    states = kept(alone), kept(other)
    assert states[0].keys() == states[1].keys()
    assert all((rows - states[1][name]).abs().max() <= tolerance for name, rows in states[0].items())
    if len(states[0]) > 1:  # what is reported has flowed to the window's end
        assert not torch.equal(alone.params, states[0]["x"])
    for name in alone.metrics:
        if name != "wall":
            ours, theirs = (run.metrics[name].to_numpy(dtype=float) for run in (alone, other))
            assert ours == pytest.approx(theirs, abs=1e-12, nan_ok=True), name


@pytest.mark.parametrize("case", CASES)
def test_shards_change_nothing(quadratic: Make, tmp_path: Path, ray_cluster: Any, case: str) -> None:
    from test_ray_faults import run_and_kill

    settings = scenario(quadratic(n=12 if "spells" in case else 9), case)
    off = 1e-13 if "merged" in case else 0.0  # a mean of shards' sums is another one's by rounding
    alone = fedsim.run(settings, tmp_path / "alone")
    on_ray = {**settings, "backend": ray_backend(2)}
    if CASES[case]["algorithm"] is not DSPODFL:  # its nodes do not flow, so its runs go on and die as those of others
        same(alone, fedsim.run(on_ray, tmp_path / "2"), off)
        same(alone, run_and_kill(ray_cluster, on_ray, tmp_path / "killed", (4,)), off)
    same(alone, fedsim.run({**settings, "backend": ray_backend(3)}, tmp_path / "3"), off)
    fedsim.run({**on_ray, "run": {**settings["run"], "rounds": 5}}, tmp_path / "parts")
    same(alone, fedsim.run({**settings, "backend": ray_backend(3)}, tmp_path / "parts", resume=True), off)


@pytest.mark.parametrize("room", [True, False], ids=["replaced", "taken over"])
def test_an_actor_dies_while_others_need_its_rows(
    quadratic: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: bool
) -> None:
    """Many exchanges are handed out ahead; all of them fail with the actor, and all of them are made again."""
    settings = scenario(quadratic(n=9), "acid", rounds=24)
    settings["run"]["eval_every"] = 24  # until then the calling process asks for nothing
    alone = fedsim.run(settings, tmp_path / "alone")
    poison, deaths = tmp_path / "poison", (6, 15) if room else (6,)
    mortal = {**settings["algorithm"], "name": "ray_parts:Mortal", "dies_of": str(poison)}
    checked = parse({**settings, "algorithm": mortal, "backend": ray_backend(2)})
    simulation = Simulation(checked, assemble(checked), tmp_path / "killed")
    backend: Any = simulation.backend
    lost: list[int] = []
    recover = backend._recover

    def recovered() -> None:
        lost.append(1)
        assert not poison.exists()  # it died in the middle of a gradient, and of nothing else
        recover()

    def progress(number: int, _: object) -> None:
        if number in deaths:
            poison.touch()

    monkeypatch.setattr(backend, "_recover", recovered)
    monkeypatch.setattr(calls, "_ADOPTION_SECONDS", 100.0)  # a busy machine starts actors late
    if not room:
        monkeypatch.setattr(backend.cluster, "start", no_room)
    try:
        run = simulation.run(progress)
        assert len(set(backend.host.values())) == (2 if room else 1)
    finally:
        backend.close()
    assert len(lost) >= len(deaths)
    same(alone, run, 0.0)


def no_room(*_: Any) -> Any:
    raise RunError("no room for another actor")


@pytest.mark.parametrize("drop", [False, True], ids=["named", "dropped"])
def test_a_poisoned_node(quadratic: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, drop: bool) -> None:
    """It is named whatever was handed out with it, or its gradients are left out."""
    settings = scenario(poisoned(quadratic), "acid", rounds=6)
    settings |= {"algorithm": {**ACID, "name": "ray_parts:PickyAcid"}}
    settings["run"]["eval_every"] = 6
    settings["backend"] = ray_backend(3, client_errors="drop" if drop else "fail")
    if not drop:
        with pytest.raises(RunError, match=r"client 4: .*ValueError: these data are poison"):
            fedsim.run(settings, tmp_path)
        return
    run = fedsim.run(settings, tmp_path)
    assert float(run.params.abs().max()) < 100
    failed = [row["round"] for row in read_jsonl(tmp_path / "failures.jsonl") if row["client"] == 4]
    assert len(failed) > 3
    assert failed == [row["round"] for row in run.trace for node in row["compute"] if node == 4]
    assert sum("node 4 did not compute: " in record.message for record in caplog.records) == 3
