"""Every privacy mechanism and Poisson clocks over 1, 2 and 5 Ray actors: the numbers and the ledger of one process."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killed_runs import CHECKPOINT, KILLED, ROUNDS, killed, move, rows, scenario
from test_ray_contract import ACTORS, ray_backend, same

import fedsim
from fedsim.backends import balance
from fedsim.backends.ray.nodes import RayNodes
from fedsim.engine.assembly import assemble
from fedsim.engine.loop import Simulation
from fedsim.engine.place import shards_mix
from fedsim.engine.run_directory import read_jsonl
from fedsim.reports.plan import plan
from fedsim.scenario.load import parse

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

Make = Callable[..., Any]
DIGITS: dict[str, Any] = {"data": {"dataset": "digits", "clients": 8, "limit": 120}, "model": {"name": "linear"}}
SERVER: dict[str, Any] = {
    **DIGITS,
    "algorithm": {"name": "fedavg", "lr": 0.1, "local_steps": 2, "batch_size": 8},
    "participation": {"sampling": "poisson", "fraction": 0.5},
}
DIFF2: dict[str, Any] = {
    **DIGITS,
    "algorithm": {"name": "diff2", "lr": 0.1, "restart_every": 3, "clip_norm": 0.5, "difference_clip": 1.0},
}
BVR = {"name": "diff2_bvr", "inner_steps": 4, "inner_batch": 4, "inner_clip": 1.0}
GRAPH: dict[str, Any] = {**DIGITS, "algorithm": {"name": "dfedavg", "lr": 0.1}, "topology": {"graph": "ring"}}
TRACKING = {"name": "gradient_tracking", "lr": 0.05}
CASES: dict[str, Any] = {
    "gaussian": (DIFF2, {"mechanism": "gaussian", "epsilon": 4.0}),
    "gaussian, shares of noise": (DIFF2, {"mechanism": "gaussian", "epsilon": 4.0, "trust": "secagg"}),
    "bvr": (
        {**DIFF2, "algorithm": {**DIFF2["algorithm"], **BVR}},
        {"mechanism": "gaussian_bvr", "noise_multiplier": 3.0},
    ),
    "dp_sgd": (SERVER, {"mechanism": "dp_sgd", "noise_multiplier": 1.0, "clip_norm": 0.5, "sampling_rate": 0.2}),
    "dp_fedavg": (
        SERVER,
        {"mechanism": "dp_fedavg", "epsilon": 8.0, "adaptive": {"initial": 0.3, "bit_noise": 2.0}},
    ),
    "dp_fedavg, shares of noise": (
        {**SERVER, "participation": {}},
        {"mechanism": "dp_fedavg", "noise_multiplier": 1.5, "clip_norm": 0.3, "trust": "secagg"},
    ),
    "dp_ftrl": (SERVER, {"mechanism": "dp_ftrl", "epsilon": 8.0, "clip_norm": 0.5, "restart_every": 4}),
    "local_dp": (SERVER, {"mechanism": "local_dp", "noise_multiplier": 1.0, "clip_norm": 0.5}),
    "decor": (GRAPH, {"mechanism": "decor", "epsilon": 8.0, "clip_norm": 0.5}),
    "decor, tracked gradients": (
        {**GRAPH, "algorithm": TRACKING},
        {"mechanism": "decor", "noise_multiplier": 1.0, "clip_norm": 0.5},
    ),
    "muffliato": (GRAPH, {"mechanism": "muffliato", "epsilon": 8.0, "clip_norm": 0.5, "gossip_steps": 3}),
    "muffliato, tracked gradients": (
        {**GRAPH, "algorithm": TRACKING},
        {"mechanism": "muffliato", "noise_multiplier": 1.0, "clip_norm": 0.5, "gossip_steps": 2},
    ),
}
RUN = {"rounds": 4, "eval_every": 2, "dtype": "float64", "device": "cpu", "trace": True}


@pytest.mark.parametrize("case", CASES)
def test_a_mechanism_spends_and_does_the_same(tmp_path: Path, case: str) -> None:
    base, privacy = CASES[case]
    scenario = {**base, "privacy": privacy, "run": RUN}
    alone = fedsim.run(scenario, tmp_path / "alone")
    assert any(row["epsilon"] for row in read_jsonl(alone.dir / "metrics.jsonl")[1:])
    for actors in ACTORS:
        other = fedsim.run({**scenario, "backend": ray_backend(actors)}, tmp_path / f"{actors}")
        same(alone, other)
        assert (alone.dir / "privacy.json").read_text() == (other.dir / "privacy.json").read_text()


def poisson(problem: Any, **algorithm: Any) -> dict[str, Any]:
    return {
        "data": problem.section(noise=0.1),
        "algorithm": {"name": "dspodfl", "lr": 0.05, **algorithm},
        "topology": {"graph": "random_geometric", "radius": 0.6},
        "participation": {"mode": "poisson", "compute": {"uniform": [0.3, 2.0]}, "links": 0.4, "window": 0.7},
    }


def test_clocks_on_nodes_and_links(quadratic: Make, run_scenario: Make) -> None:
    scenario = poisson(quadratic(n=9))
    alone = run_scenario(**scenario, run={"rounds": 12, "eval_every": 3})
    assert any(not row["events"] for row in alone.trace) or len({len(row["events"]) for row in alone.trace}) > 3
    for actors in ACTORS:
        same(alone, run_scenario(**scenario, run={"rounds": 12, "eval_every": 3}, backend=ray_backend(actors)))


def test_private_clocks_are_killed_and_resumed(quadratic: Make, tmp_path: Path, ray_cluster: Any) -> None:
    """Independent noise on a clock's ticks, an actor killed on the way, then other numbers of actors."""
    from test_ray_faults import run_and_kill

    privacy = {"mechanism": "decor", "noise_multiplier": 1.0, "clip_norm": 0.5, "correlation": 0.0}
    run = {**RUN, "rounds": 8, "eval_every": 4}
    scenario = {**poisson(quadratic(n=6)), "privacy": privacy, "run": run}
    whole = fedsim.run(scenario, tmp_path / "whole")
    on_ray = {**scenario, "backend": ray_backend(2)}
    same(whole, run_and_kill(ray_cluster, on_ray, tmp_path / "killed", (3,)))
    fedsim.run({**on_ray, "run": {**run, "rounds": 4}}, tmp_path / "parts")
    same(whole, fedsim.run({**scenario, "run": run, "backend": ray_backend(5)}, tmp_path / "parts", resume=True))


@pytest.mark.parametrize("case", ["decor", "muffliato"])
def test_private_nodes_stay_in_their_shards(tmp_path: Path, case: str) -> None:
    base, privacy = CASES[case]
    scenario = parse({**base, "privacy": privacy, "run": RUN, "backend": ray_backend(2)})
    assembly = assemble(scenario)
    assert shards_mix(scenario, assembly)
    rows = plan(scenario)["between processes"]
    times = privacy.get("gossip_steps", 1)
    assert rows["models between actors"].startswith(f"{4 * times}, ")  # a ring is cut twice, and both ends send
    simulation = Simulation(scenario, assembly, tmp_path)
    try:
        assert isinstance(simulation.backend, RayNodes)
        assert simulation.state == {}  # all nodes' models are in the actors
    finally:
        simulation.backend.close()


@pytest.mark.parametrize("case", ["local_dp-async", "muffliato"])
def test_a_resumed_run_that_goes_another_way_draws_other_noise(tmp_path: Path, case: str, ray_cluster: Any) -> None:
    """Every actor draws from the new keys, and one that takes a killed one's place, too: as one process does."""
    sections = scenario(case, noise=1.0)
    sections["run"] |= {"dtype": "float64", "trace": True}
    killed(sections, tmp_path / "alone")
    move(tmp_path / "alone")
    shutil.copytree(tmp_path / "alone", tmp_path / "actors")
    alone = fedsim.run(sections, tmp_path / "alone", resume=True)
    assert any("word" in row for row in rows(alone.dir))

    checked = parse({**sections, "backend": ray_backend(2)})
    simulation = Simulation(checked, assemble(checked), tmp_path / "actors", resume=True)
    backend: Any = simulation.backend

    def kill(number: int, _row: object) -> None:
        if number == ROUNDS - 2:
            os.kill(ray_cluster.get(backend.host[1].ready.remote(), timeout=240), signal.SIGKILL)

    try:
        other = simulation.run(kill)
    finally:
        backend.close()
    same(alone, other)
    words = [[(row.get("word"), row["charged"]) for row in rows(run.dir)] for run in (alone, other)]
    assert words[0] == words[1]
    assert (alone.dir / "privacy.json").read_text() == (other.dir / "privacy.json").read_text()


@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize("case", ["local_dp", "decor"])
def test_a_run_whose_clients_moved_draws_other_noise_when_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, moves: bool
) -> None:
    """Resumed, clients are where they were at first: the last bits of what was released may be others then."""
    sections = {**scenario(case, noise=1.0), "backend": ray_backend(2)}
    sections["run"] |= {"eval_every": 1}  # what nodes took is heard when they are asked for something
    due = [False]

    def judge(self: Any, _: Any) -> None:
        self.due = due[0]

    monkeypatch.setattr(balance.Balance, "judge", judge)
    monkeypatch.setattr(balance.Balance, "better", lambda _, owner, *__: owner[::-1].copy())
    owners = []

    def begun(folder: Path, until: int) -> None:
        checked = parse(sections)
        simulation = Simulation(checked, assemble(checked), folder, resume=folder.exists())
        backend: Any = simulation.backend
        due[0] = moves and until == KILLED

        def progress(number: int, _: object) -> None:
            owners.append(backend.owner.tolist())
            if number == CHECKPOINT == until:
                signal.raise_signal(signal.SIGINT)
            elif number == until:
                raise TimeoutError

        try:
            simulation.run(progress)
        finally:
            due[0] = False
            backend.close()

    with pytest.raises(KeyboardInterrupt):
        begun(tmp_path / "run", CHECKPOINT)
    with pytest.raises(TimeoutError):
        begun(tmp_path / "run", KILLED)
    assert any(owner != owners[0] for owner in owners) == moves
    begun(tmp_path / "run", -1)
    assert owners[-1] == owners[0]
    assert any("word" in row for row in rows(tmp_path / "run")) == moves
