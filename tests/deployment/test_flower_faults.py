"""Nodes that die, come back, answer late or send garbage: what the policy says happens, and the run ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flower_loopback import Deployment, LoopbackGrid

import fedsim
from fedsim.core.errors import InputError, RunError
from fedsim.deployment.flower.records import PROTOCOL, BadRecord, Greeting, Order, pack, unpack
from fedsim.deployment.node_config import NodeConfig
from fedsim.deployment.run_config import RunConfig
from fedsim.engine.run_directory import read_jsonl

pytest.importorskip("flwr")
Make = Callable[..., Any]
N = 3


@pytest.fixture
def deployment(tmp_path: Path, quadratic: Make) -> Make:
    """``deployment(algorithm, **config)``: five synchronous rounds of three clients."""

    def make(name: str = "fedavg", **config: Any) -> Deployment:
        gossip = name == "dspodfl"
        scenario: dict[str, Any] = {
            "name": name,
            "data": quadratic(n=N, d=3).section(),
            "algorithm": {"name": name, "lr": 0.1},
            "run": {"rounds": 5, "eval_every": 1, "trace": True, "dtype": "float64"},
        }
        if gossip:
            scenario["topology"] = {"graph": "ring"}
        keys = {k.replace("_", "-"): v for k, v in config.items()}
        return Deployment(tmp_path / name, scenario, N, **{"timeout": 5.0, **keys})

    return make


def replies(app: Deployment, *status: str) -> list[dict[str, Any]]:
    return [r for r in read_jsonl(app.folder / "results" / "replies.jsonl") if r["status"] in status]


def spoiled(change: Callable[[Any], None], rounds: tuple[str, ...] = ("2",)) -> Any:
    """Replies to jobs of these rounds, changed."""

    def spoil(message: Any, reply: Any) -> Any:
        if message.metadata.group_id in rounds and not reply.has_error():
            change(reply.content)
        return reply

    return spoil


def put(content: Any, name: str, value: Any) -> None:
    from flwr.app import Array

    content["arrays"][name] = Array(np.asarray(value))


def forged(content: Any) -> None:
    content["fedsim"]["number"] = 77


def stranger(content: Any) -> None:
    content["fedsim"]["extra"] = "x"


def pickled(content: Any) -> None:
    from flwr.app import Array

    content["arrays"]["delta"] = Array(dtype="float64", shape=(1, 3), stype="pickle", data=b"cos\nsystem\n")


GARBAGE: dict[str, tuple[Callable[[Any], None], str]] = {
    "shape": (lambda c: put(c, "delta", np.zeros((1, 4))), r"'delta' is [1, 4] float64, expected [1, 3] float64"),
    "rows": (lambda c: put(c, "delta", np.zeros((2, 3))), r"'delta' is [2, 3] float64"),
    "type": (lambda c: put(c, "delta", np.zeros((1, 3), np.float32)), "'delta' is [1, 3] float32"),
    "nan": (lambda c: put(c, "delta", [[0.0, np.nan, 0.0]]), "numbers that are not finite"),
    "infinity": (lambda c: put(c, "delta", [[0.0, np.inf, 0.0]]), "numbers that are not finite"),
    "foreign": (lambda c: put(c, "weights", np.zeros((1, 3))), "found the arrays ['delta', 'weights']"),
    "missing": (lambda c: c["arrays"].pop("delta"), "found the arrays [], expected ['delta']"),
    "no-arrays": (lambda c: c.pop("arrays"), "found the arrays []"),
    "forged": (forged, "it answers job 77 of client 1"),
    "stranger": (stranger, "found the keys ['client', 'extra', 'fresh', 'number', 'seconds']"),
    "pickled": (pickled, "an array cannot be read"),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_never_reaches_the_model(kind: str, deployment: Make, caplog: Any) -> None:
    change, says = GARBAGE[kind]
    app = deployment(on_failure="drop")
    app.grid.nodes[101].spoil = spoiled(change)
    run = app.run()
    (bad,) = replies(app, "garbage")
    assert (bad["client"], bad["round"]) == (1, 2)
    assert says in bad["reason"]
    assert any("client 1, round 2" in r.message and says in r.message for r in caplog.records)
    assert [row["clients"] for row in run.trace] == [[0, 1, 2], [0, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2]]
    assert run.trace[1]["missing"] == [1]
    assert bool(torch.isfinite(run.params).all())


def test_a_client_that_answers_wrongly_is_asked_again(deployment: Make) -> None:
    app = deployment(on_failure="retry")
    count = iter(range(2))
    app.grid.nodes[101].spoil = spoiled(
        lambda c: put(c, "delta", [[np.nan] * 3]) if next(count, None) is not None else None
    )
    run = app.run()
    assert len(replies(app, "garbage")) == 2
    assert torch.equal(run.params, fedsim.run(app.scenario, out=app.folder / "simulated").params)


def test_but_not_for_ever(deployment: Make) -> None:
    app = deployment(on_failure="retry", attempts=3)
    app.grid.nodes[101].spoil = spoiled(forged)
    run = app.run()
    assert [r["tries"] for r in replies(app, "garbage")] == [1, 2, 3]
    assert run.trace[1]["clients"] == [0, 2]


def test_stop_ends_the_run_and_names_who_and_why(deployment: Make) -> None:
    app = deployment(on_failure="stop")
    app.grid.nodes[101].spoil = spoiled(forged)
    with pytest.raises(RunError, match=r"client 1, round 2: its answer is not used: .* \(on-failure = stop\)"):
        app.run()
    assert [r["round"] for r in read_jsonl(app.folder / "results" / "metrics.jsonl")] == [0, 1]


def test_a_client_that_raises(deployment: Make) -> None:
    app = deployment(on_failure="drop")
    app.grid.nodes[102].config["delay"] = "soon"
    with pytest.raises(RunError, match="2 of 3 clients were connected after 1 s"):
        app.run(**{"wait-seconds": 1.0})
    run = app.run(**{"wait-seconds": 1.0, "min-clients": 2})
    assert [row["clients"] for row in run.trace] == [[0, 1]] * 5


@pytest.mark.parametrize("policy", ["drop", "retry"])
def test_silence_ends_at_the_timeout(policy: str, deployment: Make) -> None:
    app = deployment(on_failure=policy, timeout=0.5)
    app.grid.nodes[101].spoil = lambda m, r: None if m.metadata.group_id == "2" else r
    started = app.grid.clock.monotonic()
    run = app.run()
    assert app.grid.clock.monotonic() - started < 1.5
    assert [r["round"] for r in replies(app, "timeout")] == [2]
    assert run.trace[1]["missing"] == [1]


def test_when_nobody_answers_the_run_ends(deployment: Make) -> None:
    app = deployment(timeout=0.4)
    for node in app.grid.nodes.values():
        node.spoil = lambda m, r: None if m.metadata.group_id == "3" else r
    with pytest.raises(RunError, match="round 3: none of its 3 clients answered"):
        app.run()


@pytest.mark.parametrize("name", ["fedavg", "scaffold"])
def test_a_late_answer_is_not_used(name: str, deployment: Make, caplog: Any) -> None:
    """Its client's state goes back, too: the run is the one in which the client was not asked."""
    app = deployment(name, on_failure="drop", timeout=0.6)

    def slow(grid: LoopbackGrid, message: Any) -> None:
        late = message.metadata.dst_node_id == 101 and message.metadata.group_id == "2"
        grid.nodes[101].delay = 1.2 if late else 0.0
        if message.metadata.group_id == "4":
            grid.clock.sleep(0.5)

    app.grid.on_push = slow
    run = app.run()
    assert [r["round"] for r in replies(app, "late")] == [2]
    assert any("client 1 answered round 2 too late" in r.message for r in caplog.records)
    (app.folder / "results").rename(app.folder / "with-delay")

    app.grid.on_push = None
    app.grid.nodes[101].delay = 0.0
    app.grid.nodes[101].spoil = spoiled(forged)
    without = app.run(run="2")
    assert torch.equal(run.params, without.params)


def test_a_node_that_dies_and_comes_back_takes_its_place(deployment: Make, caplog: Any) -> None:
    app = deployment("scaffold", on_failure="retry", timeout=30.0)

    def die(grid: LoopbackGrid, message: Any) -> None:
        if message.metadata.group_id == "3" and message.metadata.dst_node_id == 101:
            grid.nodes[101].online = False
            grid.nodes[555] = app.node(1, N)  # a restarted SuperNode has another number and the same disk

    app.grid.on_push = die
    run = app.run()
    assert torch.equal(run.params, fedsim.run(app.scenario, out=app.folder / "simulated").params)
    assert any("client 1 left" in r.message for r in caplog.records)


def test_a_node_that_stays_away_is_left_out_from_then_on(deployment: Make) -> None:
    app = deployment(on_failure="drop", timeout=30.0)

    def die(grid: LoopbackGrid, message: Any) -> None:
        if message.metadata.group_id == "3":
            grid.nodes[101].online = False

    app.grid.on_push = die
    started = app.grid.clock.monotonic()
    run = app.run()
    assert app.grid.clock.monotonic() - started < 5  # nobody waits for a client that is known to be gone
    assert [row["clients"] for row in run.trace] == [[0, 1, 2]] * 2 + [[0, 2]] * 3
    assert {r["status"] for r in replies(app, "gone", "away")} == {"gone", "away"} or replies(app, "away")


def test_a_missing_node_of_a_graph_keeps_its_model(deployment: Make) -> None:
    app = deployment("dspodfl", on_failure="drop")
    app.grid.nodes[101].spoil = spoiled(forged, ("1", "2", "3", "4", "5"))
    run = app.run()
    assert all(1 not in row["compute"] and row["missing"] == [1] for row in run.trace)
    start = np.load(app.scenario.resolved()["data"]["file"])["x0"]
    assert run.params[1].numpy() == pytest.approx(start)
    assert not np.allclose(run.params[0].numpy(), start)


def test_nodes_that_do_not_fit_are_named(deployment: Make, caplog: Any) -> None:
    app = deployment()
    app.grid.nodes[101].config["num-partitions"] = 8
    app.grid.nodes[102].config["partition-id"] = 0
    with pytest.raises(RunError, match=r"1 of 3 clients were connected"):
        app.run(**{"wait-seconds": 1.0})
    said = " ".join(r.message for r in caplog.records)
    assert "its node config says partition-id=1 num-partitions=8, but the scenario has 3 clients" in said
    assert "it says that it is client 0, which SuperNode 100 is, as long as that is connected" in said


@pytest.mark.parametrize(
    "config,says",
    [
        ({}, "partition-id: --node-config: found 'nothing', allowed: a whole number"),
        ({"partition-id": 1, "num-partitions": "3"}, "num-partitions: --node-config: found '3'"),
        (
            {"partition-id": 1, "num-partitions": 3, "delay": -1},
            "delay: --node-config: found -1, allowed: seconds >= 0",
        ),
        (
            {"partition-id": True, "num-partitions": 3},
            "partition-id: --node-config: found True, allowed: a whole number",
        ),
        ({"partition-id": 1, "num-partitions": 3, "idle-seconds": 0.5}, "found 0.5, allowed: 0 (no worker) or at"),
        ({"partition-id": 1, "num-partitions": 3, "idle-second": 1}, "unknown key (did you mean 'idle-seconds'?)"),
        ({"partition-id": 1, "num-partitions": 3, "keep-runs": 1.5}, "found 1.5, allowed: a whole number >= 0"),
        ({"partition-id": 1, "num-partitions": 3, "lost-state": "x"}, "found 'x', allowed: refuse, fresh"),
        ({"partition-id": 1, "num-partitions": 3, "state-dir": 5}, "found 5, allowed: text in quotes"),
        ({"partition-id": 1, "num-partitions": 3, "partition": 3}, "unknown key (did you mean 'partition-id'?)"),
        ({"partition-id": 1, "num-partitions": 3, "own-data": "a", "data-path": "b"}, "found both"),
    ],
)
def test_wrong_node_configs(config: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        NodeConfig.read(config)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "config,says",
    [
        ({"on-failure": "ignore"}, "on-failure: run config: found 'ignore', allowed: retry, drop, stop"),
        ({"timeout": 0}, "timeout: run config: found 0.0, allowed: a number above 0"),
        ({"timeout": "10"}, "found '10', allowed: a number >= 0"),
        ({"resume": 1}, "resume: run config: found 1, allowed: true or false"),
        ({"attempts": 0}, "attempts: run config: found 0, allowed: a whole number above 0"),
        ({"min-clients": -1}, "found -1, allowed: a whole number >= 0"),
        ({"settings": "name='a b"}, "in which a quotation mark is not closed"),
    ],
)
def test_wrong_run_configs(config: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        RunConfig.read(config)
    assert says in str(caught.value)


def test_settings_are_parted_as_in_a_shell(deployment: Make) -> None:
    app = deployment()
    run = app.run(settings="run.rounds=2 'participation={mode: synchronous, clients_per_round: 2}'")
    assert [len(row["clients"]) for row in run.trace] == [2, 2]


def test_more_clients_than_there_are(deployment: Make) -> None:
    with pytest.raises(InputError, match=r"min-clients: run config: found 4, allowed: at most data\.clients = 3"):
        deployment().run(**{"min-clients": 4})


def test_records_of_another_version_are_refused_by_name() -> None:
    order = Order("1", 0, 0, 1, 1, 0, 0)
    content = pack(order)
    assert unpack(Order, content) == order
    content["fedsim"]["protocol"] = PROTOCOL + 1
    with pytest.raises(BadRecord, match=f"the other side speaks protocol {PROTOCOL + 1}, this side {PROTOCOL}"):
        unpack(Order, content)
    with pytest.raises(BadRecord, match="found the keys"):
        unpack(Greeting, pack(order))
    content = pack(order)
    content["fedsim"]["steps"] = 1.5
    with pytest.raises(BadRecord, match=r"'steps' is 1\.5, expected int"):
        unpack(Order, content)
