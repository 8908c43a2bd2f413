"""Clients that are there, that come later, that never come: what rounds do about them, and how long they wait."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flower_loopback import Deployment

import fedsim
from fedsim.core.errors import InputError, RunError
from fedsim.deployment.run_config import RunConfig
from fedsim.engine.run_directory import Run, read_jsonl

pytest.importorskip("flwr")
Make = Callable[..., Any]
N = 6
SAMPLING: list[dict[str, Any]] = [
    {"clients_per_round": 3},
    {"clients_per_round": 3, "sampling": "weighted"},
    {"fraction": 0.5, "sampling": "bernoulli"},
]


@pytest.fixture
def deployment(tmp_path: Path, quadratic: Make) -> Make:
    """``deployment(participation, online, **config)``: rounds of six clients, of whom `online` are there."""

    def make(participation: dict[str, Any], online: Any = range(N), **config: Any) -> Deployment:
        gossip = participation.get("mode") == "gossip"
        sections: dict[str, Any] = {
            "name": "population",
            "data": quadratic(n=N, d=3, importance=True).section(),
            "algorithm": {"name": "dspodfl" if gossip else "fedavg", "lr": 0.01},
            "participation": {"mode": "synchronous", **participation},
            "run": {"rounds": 8, "eval_every": 8, "trace": True, "dtype": "float64"},
            **({"topology": {"graph": "complete"}} if gossip else {}),
            **config.pop("sections", {}),
        }
        keys = {
            "timeout": 100.0,
            "poll": 0.1,
            "min-clients": len(list(online)),
            **{k.replace("_", "-"): v for k, v in config.items()},
        }
        app = Deployment(tmp_path / "app", sections, N, **keys)
        for client in range(N):
            app.grid.nodes[100 + client].online = client in online
        return app

    return make


def comes(app: Deployment, client: int, round: int) -> None:
    """`client` joins when messages of `round` are sent."""

    def on_push(grid: Any, message: Any) -> None:
        if message.metadata.group_id == str(round):
            grid.nodes[100 + client].online = True

    app.grid.on_push = on_push


def asked(run: Run) -> list[list[int]]:
    """Who was in each round, with those who did not answer."""
    return [sorted({*row["clients"], *row.get("missing", [])}) for row in run.trace]


def timeouts(run: Run) -> list[int]:
    return [r["client"] for r in read_jsonl(run.dir / "replies.jsonl") if r["status"] == "timeout"]


@pytest.mark.parametrize("population", ["scenario", "connected"])
@pytest.mark.parametrize("participation", SAMPLING, ids=lambda p: p.get("sampling", "uniform"))
def test_with_everybody_there_it_is_the_simulation(population: str, participation: Any, deployment: Make) -> None:
    app = deployment(participation, population=population)
    run = app.run()
    simulated = fedsim.run(app.scenario, out=app.folder / "simulated")
    assert torch.equal(run.params, simulated.params)
    assert [row["clients"] for row in run.trace] == [row["clients"] for row in simulated.trace]


@pytest.mark.parametrize("participation", SAMPLING, ids=lambda p: p.get("sampling", "uniform"))
def test_cohorts_are_drawn_among_the_connected(participation: Any, deployment: Make) -> None:
    app = deployment(participation, online=(0, 2, 3, 5), population="connected")
    started = app.grid.clock.monotonic()
    run = app.run()
    assert app.grid.clock.monotonic() - started < 50  # nobody was waited for
    rounds = asked(run)
    assert {c for row in rounds for c in row} == {0, 2, 3, 5}
    assert not any("missing" in row for row in run.trace)
    if participation.get("sampling") is None:
        assert [len(row) for row in rounds] == [3] * 8
    for row in run.trace:
        assert sum(row["weights"]) == pytest.approx(1.0)


def test_who_joins_later_takes_part_from_then_on(deployment: Make) -> None:
    app = deployment({}, online=(0, 1, 2, 3, 4), population="connected")
    app.grid.nodes[100].delay = 3.0  # a look at the list of nodes is due in every round
    comes(app, 5, round=3)
    rounds = asked(app.run())
    assert rounds[:3] == [[0, 1, 2, 3, 4]] * 3
    assert rounds[3:] == [[0, 1, 2, 3, 4, 5]] * 5


@pytest.mark.parametrize("policy", ["retry", "drop"])
@pytest.mark.parametrize("participation", [{}, {"mode": "gossip"}], ids=["synchronous", "gossip"])
def test_one_that_never_comes_costs_one_timeout(policy: str, participation: Any, deployment: Make) -> None:
    app = deployment(participation, online=(0, 1, 2, 3, 4), on_failure=policy)
    started = app.grid.clock.monotonic()
    run = app.run()
    took = app.grid.clock.monotonic() - started
    assert timeouts(run) == ([5] if policy == "retry" else [])
    assert took < (150 if policy == "retry" else 50)
    assert all(row["missing"] == [5] for row in run.trace)


def test_how_long_rounds_wait_for_one_that_is_not_connected_is_a_key_of_its_own(deployment: Make) -> None:
    """Answers take longer than that: who is connected has the whole timeout."""
    app = deployment({}, online=(0, 1, 2, 3), away_seconds=5.0, wait_seconds=60.0)
    for node in app.grid.nodes.values():
        node.delay = 30.0
    comes(app, 4, round=4)
    run = app.run()
    replies = [r for r in read_jsonl(run.dir / "replies.jsonl") if r["round"] == 1 and r["status"] != "ok"]
    rows = [(r["client"], r["round"], r["reason"]) for r in replies]
    waited = "it was not connected for 5 s; it is not waited for again until it is back"
    assert rows == [(c, 1, waited) for c in (4, 5)]
    assert not timeouts(run)
    assert [row.get("missing") for row in run.trace] == [[4, 5]] * 4 + [[5]] * 4


def test_one_that_leaves_is_waited_for_from_then_on(deployment: Make) -> None:
    app = deployment({}, away_seconds=8.0, wait_seconds=60.0, settings="run.rounds=3")
    app.grid.nodes[100].delay = 20.0
    app.grid.nodes[101].delay = 15.0
    left: list[float] = []

    def leave(grid: Any, message: Any) -> None:
        if message.metadata.group_id == "2" and message.metadata.dst_node_id == 105:
            grid.nodes[101].online = False
            left.append(grid.clock.seconds)

    app.grid.on_push = leave
    run = app.run()
    assert left
    rows = [r for r in read_jsonl(run.dir / "replies.jsonl") if r["client"] == 1 and r["round"] > 1]
    assert [(r["round"], r["status"]) for r in rows] == [(2, "gone"), (2, "away"), (3, "away")]
    assert 8.0 <= rows[1]["seconds"] < 15.0


def test_and_is_asked_when_it_comes_after_all(deployment: Make) -> None:
    app = deployment({}, online=(0, 1, 2, 3, 4))
    app.grid.nodes[100].delay = 3.0
    comes(app, 5, round=4)
    run = app.run()
    assert timeouts(run) == [5]
    assert [5 in row["clients"] for row in run.trace] == [False] * 4 + [True] * 4


@pytest.mark.parametrize("policy", ["retry", "drop"])
def test_a_silent_one_costs_one_timeout_and_is_asked_after_ever_longer_times(policy: str, deployment: Make) -> None:
    app = deployment({}, on_failure=policy, settings="run.rounds=18", wait_seconds=60.0)
    app.grid.nodes[100].delay = 50.0  # seconds of a round without it
    app.grid.nodes[101].spoil = silent
    run = app.run()
    assert timeouts(run) == [1]
    assert all(row["missing"] == [1] for row in run.trace)
    asked = [
        m.metadata.group_id for m in app.grid.pushed if m.metadata.dst_node_id == 101 and m.metadata.group_id.isdigit()
    ]
    assert asked == ["1", "2", "5", "10"]  # seconds 0, 100, and a rest of 100 after that, and one of 200


@pytest.mark.parametrize("delay", [0.0, 60.0], ids=["in-time", "late"])
def test_its_silence_ends_with_an_answer(delay: float, deployment: Make) -> None:
    """Silent in round 1, it answers when it is asked in round 2, in time or too late: then rounds wait for it again."""
    app = deployment({}, settings="run.rounds=6", wait_seconds=60.0)
    app.grid.nodes[100].delay = 50.0

    def slow(grid: Any, message: Any) -> None:
        if message.metadata.group_id.isdigit():
            grid.nodes[101].delay = delay

    app.grid.on_push = slow
    app.grid.nodes[101].spoil = lambda message, reply: None if message.metadata.group_id == "1" else reply
    run = app.run()
    here = [1 in row["clients"] for row in run.trace]
    assert here[:2] == [False, delay == 0.0]
    assert here[-2:] == [True, True]
    assert timeouts(run) == [1]


def test_nobody_is_passed_over_where_that_leaves_nobody(deployment: Make) -> None:
    """Cohorts of one: a round of a client that is away waits for it, and ends the run with what would help."""
    app = deployment({"clients_per_round": 1}, online=(0, 1, 2, 3, 4), settings="run.rounds=40")
    with pytest.raises(RunError, match="none of its 1 clients answered; population = connected"):
        app.run()


def garbled(message: Any, reply: Any) -> Any:
    if message.metadata.group_id.isdigit():
        reply.content["fedsim"]["number"] = 77
    return reply


def silent(message: Any, reply: Any) -> Any:
    return None if message.metadata.group_id.isdigit() else reply


@pytest.mark.parametrize("population", ["scenario", "connected"])
@pytest.mark.parametrize("participation", SAMPLING, ids=lambda p: p.get("sampling", "uniform"))
@pytest.mark.parametrize("failure", ["garbage", "silence", "away"])
def test_drop_draws_another_one(failure: str, participation: Any, population: str, deployment: Make) -> None:
    away = failure == "away"
    app = deployment(
        participation, [c for c in range(N) if c != 4 or not away], on_failure="drop", population=population
    )
    if not away:
        app.grid.nodes[104].spoil = garbled if failure == "garbage" else silent
    run = app.run()
    simulated = fedsim.run(app.scenario, out=app.folder / "simulated")
    assert not any(4 in row["clients"] for row in run.trace)
    for row, planned in zip(run.trace, simulated.trace, strict=True):
        if population == "scenario" and 4 in planned["clients"]:
            assert row["missing"] == [4]
            assert set(planned["clients"]) - {4} < set(row["clients"])
        if population == "scenario" or "sampling" not in participation:
            assert len(row["clients"]) == len(planned["clients"]) or len(row["clients"]) == N - 1
        assert sum(row["weights"]) == pytest.approx(1.0)
    assert bool(torch.isfinite(run.params).all())


def test_another_one_weighs_what_it_is_worth(deployment: Make) -> None:
    """The weights are those of a cohort in which it was from the beginning."""
    app = deployment({"clients_per_round": 3}, on_failure="drop")
    app.grid.nodes[104].spoil = garbled
    problem = np.load(app.scenario.resolved()["data"]["file"])["p"]
    run = app.run()
    assert any(row.get("missing") for row in run.trace)
    for row in run.trace:
        share = problem[row["clients"]]
        assert row["weights"] == pytest.approx(share / share.sum())


def test_no_other_one_where_a_round_needs_its_own(deployment: Make) -> None:
    """Everybody is in the round already; on a graph a node has its place."""
    for participation in ({}, {"mode": "gossip"}):
        app = deployment(participation, on_failure="drop")
        app.grid.nodes[104].spoil = garbled
        run = app.run(settings="run.rounds=2")
        assert all(row["missing"] == [4] for row in run.trace)


def test_a_round_waits_for_enough(deployment: Make, caplog: pytest.LogCaptureFixture) -> None:
    app = deployment({"clients_per_round": 2}, population="connected", min_available=5, wait_seconds=30.0)
    app.grid.nodes[100].delay = 3.0

    def leave(grid: Any, message: Any) -> None:
        if message.metadata.group_id == "3":
            grid.nodes[103].online = grid.nodes[104].online = False

    app.grid.on_push = leave
    with pytest.raises(RunError, match=r"4 of the 5 clients that a round needs \(min-available\) .* after 30 s"):
        app.run()
    assert any("4 clients are connected; a round needs 5: waiting" in r.message for r in caplog.records)
    app.grid.nodes[103].online = True
    app.grid.on_push = None
    run = app.run(run="2", resume=True, **{"min-clients": 5})
    assert 3 <= run.resumed_at <= 4
    assert len(run.trace) == 8


@pytest.mark.parametrize("population", ["scenario", "connected"])
def test_who_is_silent_is_connected(population: str, deployment: Make) -> None:
    """A client that rests after its silence is one of those that have to be connected: no round waits for its rest."""
    app = deployment({}, population=population, min_available=N, wait_seconds=30.0, settings="run.rounds=6")
    app.grid.nodes[101].spoil = silent
    run = app.run()
    assert timeouts(run) == [1]
    assert run.trace[-1]["time"] < 130.0


@pytest.mark.parametrize(("stragglers", "all_of_it"), [(0.0, True), (1.0, False)])
def test_another_one_does_as_much_as_the_one_that_failed(stragglers: float, all_of_it: bool, deployment: Make) -> None:
    work = {"algorithm": {"name": "fedavg", "lr": 0.01, "local_steps": 10}}
    app = deployment({"clients_per_round": 3, "stragglers": stragglers}, on_failure="drop", sections=work)
    app.grid.nodes[104].spoil = garbled
    run = app.run()
    planned = fedsim.run(app.scenario, out=app.folder / "simulated").trace
    replaced = [row for row in run.trace if row.get("missing")]
    assert replaced
    for row, plan in zip(run.trace, planned, strict=True):
        mine, wanted = (dict(zip(r["clients"], r["steps"], strict=True)) for r in (row, plan))
        others = [steps for client, steps in mine.items() if client not in wanted]
        assert others == [wanted[c] for c in row.get("missing", ())]
        assert all((steps == 10) == all_of_it for steps in others)


@pytest.mark.parametrize("fails", [False, True], ids=["completed", "failed"])
def test_who_is_not_in_the_last_round_is_told_that_the_run_is_over(fails: bool, deployment: Make) -> None:
    """Where a process stays beside the node; who has done the last job of the run's plan knows it from that."""

    def stays(message: Any, reply: Any) -> Any:
        if message.metadata.message_type == "query.hello":
            reply.content["fedsim"]["worker"] = message.metadata.dst_node_id != 105
        return garbled(message, reply) if fails and message.metadata.group_id == "4" else reply

    app = deployment({"clients_per_round": 2}, on_failure="stop")
    for node in app.grid.nodes.values():
        node.spoil = stays
    last: list[int] = []
    if fails:
        with pytest.raises(RunError, match="on-failure = stop"):
            app.run()
    else:
        last = app.run().trace[-1]["clients"]
    told = [m.metadata.dst_node_id - 100 for m in app.grid.pushed if m.metadata.message_type == "query.bye"]
    assert told == [c for c in range(5) if c not in last]
    ends = {m.metadata.group_id for m in app.grid.pushed if m.content["fedsim"]["ends"]}
    assert ends == (set() if fails else {"8"})


CLOCKED: list[dict[str, Any]] = [
    {"mode": "asynchronous"},
    {"mode": "fixed_interval", "window": 5.0},
    {"mode": "fedbuff", "buffer": 2},
    {"mode": "fedbuff", "buffer": 2, "concurrency": 3},
    {"mode": "fedbuff", "buffer": 2, "concurrency": 6},
    {"mode": "fedbuff", "buffer": 2, "restart": "barrier"},
]


@pytest.mark.parametrize("participation", CLOCKED, ids=lambda p: "-".join(map(str, p.values())))
def test_without_rounds_who_comes_later_starts_then(participation: Any, deployment: Make) -> None:
    app = deployment(participation, online=(0, 1), settings="run.rounds=14")
    for node in app.grid.nodes.values():
        node.delay = 1.5
    arrived: list[float] = []

    def on_push(grid: Any, message: Any) -> None:  # from the second's third round on two more are there
        if message.metadata.dst_node_id == 101 and message.metadata.group_id == "3" and not arrived:
            arrived.append(grid.clock.seconds)
            grid.nodes[104].online = grid.nodes[105].online = True

    app.grid.on_push = on_push
    run = app.run()
    assert arrived
    assert timeouts(run) == []  # nobody was waited for
    came = [c for row in run.trace for c in row["clients"]]
    assert {0, 1, 4, 5} == set(came)


def test_without_rounds_who_was_left_out_comes_back_as_another_node(deployment: Make) -> None:
    app = deployment({"mode": "asynchronous"}, online=(0, 1), settings="run.rounds=20")
    app.grid.nodes[100].delay = 1.0
    app.grid.nodes[101].spoil = garbled
    pushes: list[int] = []

    def on_push(grid: Any, message: Any) -> None:
        pushes.append(message.metadata.dst_node_id)
        if pushes.count(100) == 8:
            grid.nodes[101].online = False
            grid.nodes[555] = app.node(1, N)

    app.grid.on_push = on_push
    run = app.run(**{"on-failure": "drop"})
    assert pushes.count(101) == 4  # its greeting and three jobs
    assert {c for row in run.trace for c in row["clients"]} == {0, 1}


def test_without_rounds_a_run_that_nobody_can_go_on_with_ends(deployment: Make) -> None:
    app = deployment({"mode": "fedbuff", "buffer": 2, "restart": "barrier"}, online=(0,), wait_seconds=50.0)
    started = app.grid.clock.monotonic()
    with pytest.raises(RunError, match="round 1: too few clients are left to fill the buffer"):
        app.run()
    assert app.grid.clock.monotonic() - started < 80


@pytest.mark.parametrize(
    "sections,says",
    [
        ({"participation": {"mode": "gossip"}}, "with participation.mode gossip every client is in every round"),
        (
            {"privacy": {"mechanism": "dp_fedavg", "clip_norm": 0.5, "noise_multiplier": 1.0}},
            "epsilon is stated for cohorts that are drawn among all clients",
        ),
        (
            {"system": {"departure": {"model": "table", "values": [5.0] * N}}},
            "the scenario says itself who is there (system.availability, system.departure)",
        ),
    ],
)
def test_where_cohorts_cannot_be_those_of_the_connected(sections: Any, says: str, deployment: Make) -> None:
    app = deployment(sections.pop("participation", {}), population="connected", sections=sections)
    with pytest.raises(InputError) as caught:
        app.run()
    assert str(caught.value) == f"population: run config: found connected, but {says}; allowed: scenario"
    assert not (app.folder / "results" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    "config,says",
    [
        ({"population": "all"}, "population: run config: found 'all', allowed: scenario, connected"),
        ({"checkpoint": "never"}, "checkpoint: run config: found 'never', allowed: round, seconds"),
        ({"min-available": -1}, "min-available: run config: found -1, allowed: a whole number >= 0"),
    ],
)
def test_wrong_values(config: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        RunConfig.read(config)
    assert str(caught.value) == says


def test_more_available_than_there_are(deployment: Make) -> None:
    with pytest.raises(InputError, match=r"min-available: run config: found 7, allowed: at most data\.clients = 6"):
        deployment({}, min_available=7).run()
