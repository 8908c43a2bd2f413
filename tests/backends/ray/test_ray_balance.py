"""Clients that cost more than predicted move to other actors; no number depends on it, whatever else happens."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import fedsim
from fedsim.backends import balance
from fedsim.core.arrays import Ints
from fedsim.engine import records
from fedsim.engine.assembly import assemble
from fedsim.engine.checkpoint import save_checkpoint
from fedsim.engine.loop import Simulation
from fedsim.scenario.load import parse

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

Make = Callable[..., Any]
ROUNDS, CLIENTS = 30, 8
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"algorithm": {"name": "balance_parts:DearFedAvg"}},
    "kept": {"algorithm": {"name": "balance_parts:DearScaffold"}},
    "compressed": {
        "algorithm": {"name": "balance_parts:DearFedAvg"},
        "compression": {"name": "top_k", "k": 2, "feedback": "ef14"},
    },
    "cohorts": {
        "algorithm": {"name": "balance_parts:DearScaffold"},
        "participation": {"mode": "synchronous", "clients_per_round": 6},
    },
    "rows": {"algorithm": {"name": "balance_parts:DearFedAvg"}, "aggregator": {"name": "median"}},
    "private clients": {
        "algorithm": {"name": "balance_parts:DearFedAvg"},
        "privacy": {"mechanism": "local_dp", "clip_norm": 1.0, "noise_multiplier": 0.1},
    },
    "private examples": {
        "algorithm": {"name": "balance_parts:DearFedAvg", "batch_size": "full"},
        "privacy": {"mechanism": "dp_sgd", "clip_norm": 1.0, "noise_multiplier": 0.1},
    },
    "asynchronous": {
        "algorithm": {"name": "balance_parts:DearFedAvg"},
        "participation": {"mode": "fedbuff", "buffer": 4},
        "system": {"compute": {"model": "uniform", "low": 0.5, "high": 1.0}},
    },
    "asynchronous and kept": {
        "algorithm": {"name": "balance_parts:DearFedAvg"},
        "compression": {"name": "top_k", "k": 2, "feedback": "ef14"},
        "participation": {"mode": "asynchronous"},
        "system": {"compute": {"model": "uniform", "low": 0.5, "high": 1.0}},
    },
}
GRAPHS: dict[str, dict[str, Any]] = {
    "links": {
        "algorithm": {"name": "balance_parts:DearNodes"},
        "participation": {"mode": "gossip", "compute": 0.9, "links": 0.6},
    },
    "copies": {
        "algorithm": {"name": "balance_parts:DearChoco", "batch_size": 1},
        "compression": {"name": "top_k", "k": 2},
    },
    "Poisson clocks": {
        "algorithm": {"name": "balance_parts:DearAcid"},
        "participation": {"mode": "poisson", "window": 1.0},
    },
}
NOISY = {
    "private nodes": {
        "algorithm": {"name": "balance_parts:DearNodes"},
        "privacy": {"mechanism": "decor", "clip_norm": 1.0, "noise_multiplier": 1e-3},
    },
}
"""Nodes that all take about as long, since making noise does: they only move where they are made to."""
SAID = [
    re.compile(
        rf"[1-8] of {CLIENTS} {who} moved to other actors, since the slowest took [12]\.\d\d times the mean of 2; "
        r"expected from now on: 1\.\d\d"
    )
    for who in ("clients", "nodes")
]
STATEFUL = ("kept", "compressed", "cohorts", "asynchronous and kept", *GRAPHS, *NOISY)
ATTEMPTS = 3


def dear(kind: str) -> Ints:
    """Who is dear: all that are placed on the first of two actors, since they look alike; blocks of a ring."""
    return np.arange(4) if kind in GRAPHS or kind in NOISY else np.arange(0, CLIENTS, 2)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of a second that is lost is enough: the runs are short."""
    monkeypatch.setattr(balance, "_WORTH", 0.1)
    monkeypatch.setattr(balance, "_LEAST", 0.002)


def sections(quadratic: Make, kind: str, **backend: Any) -> dict[str, Any]:
    """Quadratics whose last curvature is next to nothing, and whose last entry of b tells who is dear."""
    random = np.random.default_rng(5)
    A, b = random.uniform(0.5, 2.0, (CLIENTS, 5)), random.standard_normal((CLIENTS, 5))
    A[:, -1], b[:, -1] = 1e-3, 0.0
    graph = kind in GRAPHS or kind in NOISY
    b[dear(kind), -1] = 1e3
    problem = quadratic(n=CLIENTS, d=5, dense=False, A=A, b=b)
    made = {"data": problem.section(noise=0.05), **{**KINDS, **GRAPHS, **NOISY}[kind]}
    made["algorithm"] = {"lr": 0.02, **({} if graph else {"local_steps": 2}), **made["algorithm"]}
    if graph:
        made["topology"] = {"graph": "ring"}
    return {
        **made,
        "run": {
            "rounds": 5 * ROUNDS if kind == "asynchronous and kept" else ROUNDS,
            "eval_every": 10,
            "dtype": "float64",
            "device": "cpu",
            "trace": True,
        },
        "backend": {"name": "ray", "actors": 2, **backend} if backend.get("name") != "vectorized" else backend,
    }


class Watched:
    """A run of which it is known when its clients moved, and in which something happens some rounds later."""

    def __init__(self, ray: Any, scenario: dict[str, Any], folder: Path, kill_after: tuple[int, ...] = ()) -> None:
        checked = parse(scenario)
        simulation = Simulation(checked, assemble(checked), folder)
        backend: Any = simulation.backend
        first, since = backend.owner.copy(), 0
        self.with_first = np.flatnonzero(first == first[0]).tolist()
        self.moved_at = 0

        def progress(number: int, row: object) -> None:
            nonlocal since
            if not self.moved_at and not np.array_equal(backend.owner, first):
                self.moved_at = number
            if self.moved_at and (row is None or number % 10 == 0):
                if since in kill_after:
                    host = backend.host[since % 2]
                    os.kill(ray.get(host.ready.remote(), timeout=240), signal.SIGKILL)
                since += 1

        try:
            self.run = simulation.run(progress)
            self.owner = backend.owner.copy()
        finally:
            backend.close()


def watched(ray: Any, scenario: dict[str, Any], folder: Path, kill_after: tuple[int, ...] = ()) -> Watched:
    """A run in which clients moved: on a crowded machine an actor may have to wait so long that nobody lags."""
    for attempt in range(ATTEMPTS):
        found = Watched(ray, scenario, folder / str(attempt), kill_after)
        if found.moved_at:
            return found
    pytest.fail(f"nobody moved in {ATTEMPTS} runs")


def same(one: fedsim.Run, other: fedsim.Run) -> None:
    """As over any number of actors."""
    scale = max(1.0, float(one.params.abs().max()))
    assert float((one.params - other.params).abs().max()) <= 1e-12 * scale
    for column in one.metrics.columns.drop("wall"):
        ours, theirs = (run.metrics[column].astype(float) for run in (one, other))
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    assert one.trace == other.trace


@pytest.mark.parametrize("kind", [*KINDS, *GRAPHS])
def test_dear_clients_move_and_no_number_changes(
    quadratic: Make, tmp_path: Path, ray_cluster: Any, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    with caplog.at_level(logging.WARNING, "fedsim"):
        moved = watched(ray_cluster, sections(quadratic, kind), tmp_path / "moved")
    assert moved.with_first == dear(kind).tolist()
    with_first = int((moved.owner[dear(kind)] == moved.owner[0]).sum())
    assert 1 <= with_first <= 3
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert any(SAID[kind in GRAPHS].fullmatch(line) for line in lines)
    stays = Watched(ray_cluster, sections(quadratic, kind, rebalance=False), tmp_path / "stays")
    assert not stays.moved_at
    same(stays.run, moved.run)
    alone = fedsim.run(sections(quadratic, kind, name="vectorized"), tmp_path / "alone")
    same(alone, moved.run)


def test_the_command_line_says_who_moved(quadratic: Make, tmp_path: Path) -> None:
    """Once in a run that takes long enough; with the thresholds of a run of anybody's."""
    made = sections(quadratic, "plain")
    made["algorithm"]["local_steps"] = 10
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(made))
    command = [sys.executable, "-m", "fedsim.cli.app", "run", str(tmp_path / "s.yaml"), "--out"]
    modules = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": modules, "RAY_memory_monitor_refresh_ms": "0"}
    for attempt in range(ATTEMPTS):  # see `watched`
        called = [*command, str(tmp_path / str(attempt))]
        done = subprocess.run(called, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        assert "moved" not in done.stdout
        if any(map(SAID[0].fullmatch, done.stderr.splitlines())):
            return
    pytest.fail(done.stderr)


@pytest.mark.parametrize("kind", ["plain", "kept", "private clients", "private examples", "links", *NOISY])
def test_nobody_moves_where_no_work_follows(
    quadratic: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """An actor lags in every round, the last one too; and what a move costs is with the checkpoint that it needs."""
    moves: list[int] = []
    rounds: list[int] = []

    def better(_: Any, owner: Ints, *__: Any) -> Ints:
        moves.append(len(rounds))
        return np.roll(owner, 1)

    def judge(self: Any, _: Any) -> None:
        self.due = True

    def slowly(*given: Any) -> Any:
        time.sleep(1.0)
        return save_checkpoint(*given)

    monkeypatch.setattr(balance.Balance, "better", better)
    monkeypatch.setattr(balance.Balance, "judge", judge)
    monkeypatch.setattr(records, "save_checkpoint", slowly)
    made = sections(quadratic, kind)
    made["run"] |= {"rounds": 6, "eval_every": 1}
    checked = parse(made)
    simulation = Simulation(checked, assemble(checked), tmp_path / "run")
    backend: Any = simulation.backend
    try:
        run = simulation.run(lambda number, _: rounds.append(number))
    finally:
        backend.close()
    assert moves
    assert max(moves) < len(rounds)
    assert (backend.balance._price > 1.0) == (kind in STATEFUL)  # of what they keep a checkpoint has to be written
    same(fedsim.run({**made, "backend": {"name": "vectorized"}}, tmp_path / "alone"), run)


@pytest.mark.parametrize("kind", ["plain", "cohorts", "asynchronous and kept", *GRAPHS])
def test_actors_that_die_after_clients_moved(quadratic: Make, tmp_path: Path, ray_cluster: Any, kind: str) -> None:
    """In the round of the move, and some rounds later the other one: what follows the move is done again."""
    killed = watched(ray_cluster, sections(quadratic, kind), tmp_path / "killed", (0, 3))
    same(fedsim.run(sections(quadratic, kind, name="vectorized"), tmp_path / "alone"), killed.run)


@pytest.mark.parametrize("kind", ["plain", "cohorts", "links"])
def test_an_actor_that_dies_while_clients_move(
    quadratic: Make, tmp_path: Path, ray_cluster: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from fedsim.backends.ray.clients import RayBackend

    adopt = RayBackend._adopt
    killed: list[Any] = []

    def dying(self: Any, shards: list[int]) -> None:
        if self.balance is not None and self.balance.due and not killed:
            killed.append(self.host[shards[0]])
            os.kill(ray_cluster.get(killed[0].ready.remote(), timeout=240), signal.SIGKILL)
        adopt(self, shards)

    monkeypatch.setattr(RayBackend, "_adopt", dying)
    moved = watched(ray_cluster, sections(quadratic, kind), tmp_path / "killed")
    assert killed
    same(fedsim.run(sections(quadratic, kind, name="vectorized"), tmp_path / "alone"), moved.run)


@pytest.mark.parametrize("kind", [kind for kind in STATEFUL if kind not in NOISY])
def test_a_run_goes_on_after_clients_moved(quadratic: Make, tmp_path: Path, kind: str) -> None:
    """Stopped after the move, and continued with clients where they were at first."""
    first = sections(quadratic, kind)

    def stopped(folder: Path) -> bool:
        """Whether clients moved in a run, which was stopped then."""
        checked = parse(first)
        simulation = Simulation(checked, assemble(checked), folder)
        backend: Any = simulation.backend
        owner = backend.owner.copy()

        def progress(_: int, __: object) -> None:
            if not np.array_equal(backend.owner, owner):
                signal.raise_signal(signal.SIGINT)

        try:
            simulation.run(progress)
        except KeyboardInterrupt:
            assert 0 < simulation.round < first["run"]["rounds"]
            return True
        finally:
            backend.close()
        return False

    folder = next((f for f in map(str, range(ATTEMPTS)) if stopped(tmp_path / f)), None)
    assert folder is not None, f"nobody moved in {ATTEMPTS} runs"
    on = fedsim.run(first, tmp_path / folder, resume=True)
    same(fedsim.run(sections(quadratic, kind, name="vectorized"), tmp_path / "alone"), on)
