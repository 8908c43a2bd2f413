"""What goes wrong on a cluster: killed actors, no room for new ones, poisoned clients, resources that are not there."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.backends.ray.cluster import Cluster
from fedsim.core.errors import InputError, RunError
from fedsim.engine.assembly import assemble
from fedsim.engine.loop import Simulation
from fedsim.engine.run_directory import read_jsonl
from fedsim.scenario.load import parse

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

Make = Callable[..., Any]
ROUNDS = 12


def scenario(problem: Any, kind: str, **backend: Any) -> dict[str, Any]:
    sections: dict[str, Any] = {
        "data": problem.section(noise=0.1),
        "algorithm": {"name": kind, "lr": 0.02, "local_steps": {"uniform": [1, 3]}},
        "run": {"rounds": ROUNDS, "eval_every": 4, "dtype": "float64", "device": "cpu", "trace": True},
        "backend": {"name": "ray", "actors": 2, **backend},
    }
    if kind == "gradient_tracking":
        del sections["algorithm"]["local_steps"]
    if kind in ("dspodfl", "gradient_tracking"):
        sections["topology"] = {"graph": "ring"}
    if kind == "dspodfl":
        sections["participation"] = {"mode": "gossip", "compute": 0.7, "links": 0.6}
    if kind == "fedavg":
        sections["participation"] = {"mode": "fedbuff", "buffer": 2}
        sections["system"] = {"compute": {"model": "linear", "slowest": 1.0, "fastest": 0.2}}
    return sections


def run_and_kill(
    ray: Any, sections: dict[str, Any], folder: Path, kill_after: tuple[int, ...], of: tuple[int, ...] = ()
) -> fedsim.Run:
    """Run, with SIGKILL to one of the actors (or to those of some shards) after some rounds."""
    checked = parse(sections)
    simulation = Simulation(checked, assemble(checked), folder)
    backend: Any = simulation.backend

    def progress(number: int, row: object) -> None:
        if number in kill_after and (row is None or number % 4 == 0):
            for k in of or (number % 2,):
                os.kill(ray.get(backend.host[k].ready.remote(), timeout=240), signal.SIGKILL)

    try:
        return simulation.run(progress)
    finally:
        backend.close()


def equal(one: fedsim.Run, other: fedsim.Run) -> None:
    assert torch.equal(one.params, other.params)
    assert one.metrics.drop(columns="wall").equals(other.metrics.drop(columns="wall"))
    assert one.trace == other.trace


@pytest.mark.parametrize("kind", ["scaffold", "fedavg", "dspodfl", "gradient_tracking"])
def test_a_killed_actor_changes_no_number(quadratic: Make, tmp_path: Path, ray_cluster: Any, kind: str) -> None:
    sections = scenario(quadratic(n=6), kind)
    whole = run_and_kill(ray_cluster, sections, tmp_path / "whole", ())
    equal(whole, run_and_kill(ray_cluster, sections, tmp_path / "killed", (3, 8)))


@pytest.mark.parametrize("kind", ["scaffold", "dspodfl"])
def test_without_room_the_others_take_over(
    quadratic: Make, tmp_path: Path, ray_cluster: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    import ray_reuse

    sections = scenario(quadratic(n=6), kind)
    whole = run_and_kill(ray_cluster, sections, tmp_path / "whole", ())
    start = ray_reuse.Reusing.start

    def only_the_first(self: Any, count: int, *arguments: Any, **keywords: Any) -> Any:
        if count == 1:
            raise RunError("no room for another actor")
        return start(self, count, *arguments, **keywords)

    monkeypatch.setattr(ray_reuse.Reusing, "start", only_the_first)
    equal(whole, run_and_kill(ray_cluster, sections, tmp_path / "killed", (5,)))


class _Stillborn:
    """An actor whose process ends while it starts, as one does that is killed for its memory."""

    def __init__(self, *_: Any) -> None:
        import os  # where the actor is made, this file is not

        os._exit(1)

    def ready(self) -> int:
        return 0


@pytest.mark.parametrize(("kind", "fates"), [("scaffold", ("lives", "stillborn")), ("dspodfl", ("lives", "killed"))])
def test_all_actors_lost_and_new_ones_too(
    quadratic: Make,
    tmp_path: Path,
    ray_cluster: Any,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    fates: tuple[str, ...],
) -> None:
    """The first new actor lives, the second one dies at its start or before it has its clients: both start again."""
    import ray_reuse

    ray_cluster.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    sections = scenario(quadratic(n=6), kind)
    whole = run_and_kill(ray_cluster, sections, tmp_path / "whole", ())
    waiting = list(fates)
    start = ray_reuse.Reusing.start

    def start_one(self: Any, count: int, *arguments: Any, **keywords: Any) -> Any:
        fate = waiting.pop(0) if count == 1 and waiting else "lives"
        if fate == "stillborn":
            with monkeypatch.context() as patch:
                patch.setattr("fedsim.backends.ray.cluster.Host", _Stillborn)
                return Cluster.start(self, 1, 0, 0, (1, False))
        hosts = start(self, count, *arguments, **keywords)
        if fate == "killed":
            os.kill(ray_cluster.get(hosts[0].ready.remote(), timeout=240), signal.SIGKILL)
        return hosts

    monkeypatch.setattr(ray_reuse.Reusing, "start", start_one)
    equal(whole, run_and_kill(ray_cluster, sections, tmp_path / "killed", (8,), of=(0, 1)))
    assert not waiting


def test_after_a_checkpoint_only_what_followed_is_done_again(
    quadratic: Make, tmp_path: Path, ray_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints are asked for when the log grows, and an actor that dies later starts from the last one."""
    monkeypatch.setattr("fedsim.backends.ray.calls._LOG_CALLS", 5)
    for kind in ("scaffold", "gradient_tracking"):
        sections = scenario(quadratic(n=6), kind)
        whole = run_and_kill(ray_cluster, sections, tmp_path / kind / "whole", ())
        killed = run_and_kill(ray_cluster, sections, tmp_path / kind / "killed", (10,))
        equal(whole, killed)


def poisoned(quadratic: Make) -> Any:
    problem = quadratic(n=6)
    problem.b[4] = 1e6
    np.savez(problem.file, A=problem.A, b=problem.b, x0=problem.x0)
    return problem


def failed(folder: Path) -> list[tuple[int, int]]:
    """Round and client of every failure that a run recorded."""
    return [(row["round"], row["client"]) for row in read_jsonl(folder / "failures.jsonl")]


def left_out_in_every_round(run: Any, caplog: pytest.LogCaptureFixture, what: str) -> None:
    """Client 4 was: every time is in the file, few are told, and the sum is."""
    assert failed(run.dir) == [(number, 4) for number in range(1, ROUNDS + 1)]
    told = [m for m in caplog.messages if what in m]
    assert len(told) == 3
    assert all("ValueError: these data are poison" in m for m in told)
    (said,) = (m for m in run.warnings if "raised" in m)
    assert said.startswith("the local work of 1 ")
    assert f"raised {ROUNDS} times and was left out; each is in {run.dir / 'failures.jsonl'}" in said
    assert said in caplog.messages


def test_a_poisoned_client_is_named(quadratic: Make, tmp_path: Path) -> None:
    sections = scenario(poisoned(quadratic), "ray_parts:Picky")
    with pytest.raises(RunError, match=r"client 4: .*ValueError: these data are poison.*client_errors: drop"):
        fedsim.run(sections, tmp_path)


def test_or_left_out_of_the_cohort(quadratic: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sections = scenario(poisoned(quadratic), "ray_parts:Picky", client_errors="drop")
    run = fedsim.run(sections, tmp_path)
    left_out_in_every_round(run, caplog, "left out of the cohort")
    assert run.metrics["round"].iloc[-1] == ROUNDS
    for row in run.trace:
        assert row["clients"] == [0, 1, 2, 3, 5]
        assert sum(row["weights"]) == pytest.approx(1.0)
    assert float(run.params.abs().max()) < 100


def test_where_all_are_poisoned_the_run_says_where_their_errors_are(quadratic: Make, tmp_path: Path) -> None:
    """Nobody took part, but not for its participation."""
    problem = poisoned(quadratic)
    problem.b[:] = 1e6
    np.savez(problem.file, A=problem.A, b=problem.b, x0=problem.x0)
    run = fedsim.run(scenario(problem, "ray_parts:Picky", client_errors="drop"), tmp_path)
    first, second = run.warnings
    assert first.endswith(
        f"in any of the {ROUNDS} rounds: look first at why clients' local work raised, in failures.jsonl"
    )
    assert second.startswith("the local work of 6 clients raised")


def test_a_poisoned_node_does_not_compute(quadratic: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sections = scenario(poisoned(quadratic), "ray_parts:PickyNode", client_errors="drop")
    sections["topology"] = {"graph": "ring"}
    run = fedsim.run(sections, tmp_path)
    left_out_in_every_round(run, caplog, "did not compute")
    assert torch.isfinite(run.params).all()
    assert float(run.params.abs().max()) < 100


def test_work_that_is_done_again_fails_once(quadratic: Make, tmp_path: Path, ray_cluster: Any) -> None:
    """An actor that is lost takes back what it did since the last checkpoint, failures included."""
    for kind, more in (("ray_parts:Picky", {}), ("ray_parts:PickyNode", {"topology": {"graph": "ring"}})):
        sections = {**scenario(poisoned(quadratic), kind, client_errors="drop"), **more}
        run_and_kill(ray_cluster, sections, tmp_path / kind, (3, 10))
        assert failed(tmp_path / kind) == [(number, 4) for number in range(1, ROUNDS + 1)]


def test_a_resumed_run_has_every_failure_once(quadratic: Make, tmp_path: Path) -> None:
    sections = scenario(poisoned(quadratic), "ray_parts:Picky", client_errors="drop")
    shorter = {**sections, "run": {**sections["run"], "rounds": ROUNDS // 2}}
    fedsim.run(shorter, tmp_path)
    with (tmp_path / "failures.jsonl").open("a") as file:  # of a round after the checkpoint, which is done again
        file.write(json.dumps({"round": ROUNDS, "client": 4, "why": "as before"}) + "\n")
    run = fedsim.run(sections, tmp_path, resume=True)
    assert failed(tmp_path) == [(number, 4) for number in range(1, ROUNDS + 1)]
    assert f"raised {ROUNDS} times" in "".join(run.warnings)
    fedsim.run(shorter, tmp_path)  # and a new one has its own alone
    assert failed(tmp_path) == [(number, 4) for number in range(1, ROUNDS // 2 + 1)]


@pytest.mark.parametrize(
    "backend,key,says",
    [
        ({"gpus_per_actor": 0.5}, "backend.gpus_per_actor", "0 GPUs (0 free) on 1 node"),
        ({"cpus_per_actor": 64, "address": "auto"}, "backend.cpus_per_actor", "10 CPUs"),
    ],
)
def test_resources_that_are_not_there_are_an_error_at_once(
    quadratic: Make, tmp_path: Path, backend: dict[str, Any], key: str, says: str
) -> None:
    sections = scenario(quadratic(n=6), "scaffold", **backend)
    with pytest.raises(InputError) as caught:
        fedsim.run(sections, tmp_path)
    assert [p.key for p in caught.value.problems] == [key]
    assert says in str(caught.value)
