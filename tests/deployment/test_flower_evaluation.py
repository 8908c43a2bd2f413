"""Federated evaluation: clients say what a model is worth on test rows of their own, and the server sums it up."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from flower_loopback import Deployment

import fedsim
from fedsim.core.errors import InputError, RunError
from fedsim.deployment.flower.records import EXAM, EXAMPLES, BadRecord, Order
from fedsim.deployment.node_config import NodeConfig
from fedsim.deployment.work import Client
from fedsim.engine.replies import accounts
from fedsim.engine.run_directory import Run, read_jsonl

pytest.importorskip("flwr")
N = 4
SERVER: dict[str, Any] = {
    "name": "evaluated",
    "data": {"dataset": "digits", "clients": N, "limit": 160, "local_test": 0.25},
    "model": {"name": "linear"},
    "algorithm": {"name": "fedavg", "lr": 0.2, "local_steps": 2, "batch_size": 8},
    "run": {"rounds": 3, "eval_every": 1, "dtype": "float64", "device": "cpu", "threads": 1},
}
Spoil = Callable[[Any], None]


def scenario(**sections: Any) -> dict[str, Any]:
    return {**SERVER, **{k: {**SERVER.get(k, {}), **v} for k, v in sections.items()}}


def pair(folder: Path, clients: str = "clients", **sections: Any) -> tuple[Run, Run, Deployment]:
    """The deployment, and the simulation of the same scenario."""
    values = scenario(**sections)
    app = Deployment(folder / "app", values, N, eval=clients)
    return app.run(), fedsim.run(values, out=folder / "simulated"), app


def asked(app: Deployment) -> list[Any]:
    return [m for m in app.grid.pushed if m.metadata.message_type == EXAM]


def same(deployed: Run, simulated: Run, name: str = "accuracy") -> None:
    """Every number of every client and every column that sums them up: counts to the bit, losses but for rounding.

    The simulation takes the rows of all clients in one pass.
    """
    counted = [c for c in simulated.clients if c != "loss"]
    pd.testing.assert_frame_equal(deployed.clients[counted], simulated.clients[counted], check_exact=True)
    assert deployed.clients.loss.tolist() == pytest.approx(simulated.clients.loss.tolist(), rel=1e-12)
    summed = [c for c in simulated.metrics if c.startswith("client_")]
    assert f"client_{name}_mean" in summed
    pd.testing.assert_frame_equal(deployed.metrics[summed], simulated.metrics[summed], rtol=1e-12)


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run, Deployment]:
    more = {"run": {"metrics": [{"name": "macro_f1"}], "eval_clients": 3}}
    return pair(tmp_path_factory.mktemp("twins"), **more)


def test_clients_say_what_the_simulation_says(twins: tuple[Run, Run, Deployment]) -> None:
    deployed, simulated, app = twins
    same(deployed, simulated)
    assert len(asked(app)) == 4 * 3  # rounds 0 to 3, three clients each
    assert "macro_f1" in deployed.clients
    assert deployed.columns["client_macro_f1_worst"].larger_is_better


def test_replies_tell_evaluations_from_work(twins: tuple[Run, Run, Deployment]) -> None:
    rows = read_jsonl(twins[0].dir / "replies.jsonl")
    assert sum(row.get("what") == EXAM for row in rows) == 12
    assert [a.good for a in accounts(rows, N)] == [3] * N  # evaluations are no work that a system model is made of


@pytest.mark.parametrize(
    "sections",
    [
        {"run": {"finetune": {"steps": 2}}},
        {"data": {"local_test": None}, "run": {"eval_clients": "all"}},
        {"algorithm": {"name": "scaffold"}},
        {"algorithm": {"name": "dspodfl"}, "topology": {"graph": "ring"}},
        {"model": {"name": "mlp", "hidden": [8]}, "participation": {"mode": "synchronous", "clients_per_round": 2}},
    ],
    ids=["finetune", "common rows", "scaffold", "graph", "sampled cohort"],
)
def test_other_runs_are_evaluated_alike(tmp_path: Path, sections: dict[str, Any]) -> None:
    sections = {k: {key: v for key, v in s.items() if v is not None} for k, s in sections.items()}
    values = scenario(**{k: s for k, s in sections.items() if k != "algorithm"})
    if "run" in sections and "eval_clients" in sections["run"]:
        values["data"] = {k: v for k, v in values["data"].items() if k != "local_test"}
    if "algorithm" in sections:
        values["algorithm"] = {"lr": 0.05, "batch_size": 8, **sections["algorithm"]}
    values["run"] = {**values["run"], "rounds": 2}
    app = Deployment(tmp_path / "app", values, N, eval="clients")
    deployed = app.run()
    same(deployed, fedsim.run(values, out=tmp_path / "simulated"))
    assert len(asked(app)) == 3 * N


@pytest.mark.parametrize(
    "sections",
    [
        {"algorithm": {"name": "ditto", "lr": 0.05, "local_steps": 2}},
        {"algorithm": {"name": "apfl", "lr": 0.05, "local_steps": 2}, "participation": {"clients_per_round": 2}},
        {"model": {"name": "mlp", "hidden": [8], "personal": ["*1*"]}},
        {"algorithm": {"name": "ifca", "lr": 0.05, "local_steps": 2}},
    ],
    ids=["ditto", "apfl sampled", "personal layers", "clusters"],
)
def test_models_of_their_own_are_evaluated_where_they_are(tmp_path: Path, sections: dict[str, Any]) -> None:
    values = {**SERVER, **sections}
    app = Deployment(tmp_path / "app", values, N)
    same(app.run(), fedsim.run(values, out=tmp_path / "simulated"))
    assert len(asked(app)) == 4 * N
    with pytest.raises(InputError, match="clients keep models of their own, which only they can evaluate"):
        app.run(eval="server", out=str(tmp_path / "refused"))
    assert not list((tmp_path / "refused").rglob("*.jsonl"))


def test_a_clocked_run_loses_no_answer_to_an_evaluation(tmp_path: Path) -> None:
    values = scenario(run={"rounds": 6})
    values["participation"] = {"mode": "fedbuff", "buffer": 2, "concurrency": N}
    app = Deployment(tmp_path / "app", values, N, eval="clients")
    for c, node in enumerate(app.grid.nodes.values()):
        node.delay = 0.5 + c
    run = app.run()
    assert run.clients.groupby("round").loss.count().tolist() == [N] * 7
    work = [row for row in read_jsonl(run.dir / "replies.jsonl") if row.get("what") != EXAM]
    assert {row["status"] for row in work} == {"ok"}
    assert len(work) >= 12


def test_clients_of_quadratics_are_asked_too(tmp_path: Path, quadratic: Callable[..., Any]) -> None:
    values = {
        "data": quadratic(n=N, d=3).section(),
        "algorithm": {"name": "fedavg", "lr": 0.1},
        "run": {"rounds": 1, "eval_clients": "all", "device": "cpu", "dtype": "float64"},
    }
    app = Deployment(tmp_path / "app", values, N, eval="clients")
    same(app.run(), fedsim.run(values, out=tmp_path / "simulated"), "loss")
    assert len(asked(app)) == 2 * N


def test_the_server_evaluates_by_itself_where_it_can(tmp_path: Path) -> None:
    deployed, simulated, app = pair(tmp_path, "auto")
    same(deployed, simulated)
    assert not asked(app)


# --- data of their own ------------------------------------------------------------------------------------------------


def own(folder: Path, sizes: tuple[int, ...] = (12, 30, 21, 8), **data: Any) -> Deployment:
    """Clients with files of their own."""
    for name, size in (("server", 40), *((f"client-{c}", n) for c, n in enumerate(sizes))):
        random = np.random.default_rng(size)
        y = np.arange(size) % 3
        x = (random.normal(size=(size, 4)) + y[:, None]).astype(np.float32)
        np.savez(folder / f"{name}.npz", x_train=x, y_train=y, x_test=x[:6] + 1, y_test=y[:6])
    given = {"dataset": "npz", "path": str(folder / "server.npz"), "clients": N, "partition": {"scheme": "iid"}, **data}
    app = Deployment(folder / "app", {**SERVER, "data": given}, N)
    for c, node in enumerate(app.grid.nodes.values()):
        node.config["own-data"] = str(folder / f"client-{c}.npz")
    return app


def test_clients_hold_out_rows_of_their_own_data(tmp_path: Path) -> None:
    run = own(tmp_path, local_test=0.25).run()
    last = run.clients[run.clients["round"] == 3]
    assert last.test_samples.tolist() == [3, 8, 5, 2]
    assert last.train_samples.tolist() == [9, 22, 16, 6]
    assert run.metrics.client_loss_mean.iloc[-1] < run.metrics.client_loss_mean.iloc[0]
    row = run.metrics.iloc[-1]
    assert row.client_accuracy_weighted_mean == pytest.approx(np.average(last.accuracy, weights=last.test_samples))


def test_without_a_share_their_own_test_file_is_used(tmp_path: Path) -> None:
    app = own(tmp_path)
    text = app.grid.scenario_file.read_text()
    app.grid.scenario_file.write_text(text.replace("eval_every: 1", "eval_every: 1\n  eval_clients: all"))
    run = app.run()
    last = run.clients[run.clients["round"] == 3]
    assert last.test_samples.tolist() == [6] * N
    model = run.model().double().eval()
    for client, row in last.set_index("client").iterrows():
        with np.load(tmp_path / f"client-{client}.npz") as file:
            x, y = torch.from_numpy(file["x_test"]).double(), torch.from_numpy(file["y_test"])
        with torch.no_grad():
            losses = torch.nn.functional.cross_entropy(model(x), y)
        assert row.loss == pytest.approx(float(losses), rel=1e-6)


def test_rows_that_only_a_client_has_are_not_evaluated_by_the_server(tmp_path: Path, caplog: Any) -> None:
    with pytest.raises(RunError, match="0 of 4 clients were connected"):
        own(tmp_path, local_test=0.25).run(**{"eval": "server", "wait-seconds": 1.0})
    assert "which only it can evaluate a model on" in " ".join(r.message for r in caplog.records)


# --- clients that are away, or lie ------------------------------------------------------------------------------------


def metrics_of(reply: Any, **changes: Any) -> None:
    reply.content["metrics"].update(changes)


LIES: dict[str, tuple[Spoil, str]] = {
    "nan": (lambda r: metrics_of(r, accuracy=math.nan), "'accuracy' is nan, expected a finite number"),
    "infinite": (lambda r: metrics_of(r, loss=math.inf), "'loss' is inf, expected a finite number"),
    "no share": (lambda r: metrics_of(r, accuracy=1.5), "'accuracy' is 1.5, expected a share, 0 to 1"),
    "too many samples": (lambda r: metrics_of(r, **{EXAMPLES: 10**9}), "it says 1000000000 test samples"),
    "half a sample": (lambda r: metrics_of(r, **{EXAMPLES: 2.5}), "'num-examples' is 2.5, expected int"),
    "too many targets": (lambda r: r.content["fedsim"].update(targets=10**9), "it says 1000000000 targets"),
    "a list": (lambda r: metrics_of(r, loss=[0.1, 0.2]), r"'loss' is \[0.1, 0.2\], expected a number"),
    "another metric": (lambda r: metrics_of(r, bonus=1.0), "found the metrics"),
    "no loss": (lambda r: r.content["metrics"].pop("loss"), "found the metrics"),
    "no metrics": (lambda r: r.content.pop("metrics"), "found the metrics"),
    "no record": (lambda r: r.content.pop("fedsim"), "found the keys"),
    "another client": (lambda r: r.content["fedsim"].update(client=2), "it answers round 0 of client 2"),
    "negative time": (lambda r: r.content["fedsim"].update(seconds=-1.0), "'seconds' is -1.0"),
}


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Run:
    values = scenario(run={"rounds": 1})
    return Deployment(tmp_path_factory.mktemp("honest") / "app", values, N, eval="clients").run()


@pytest.mark.parametrize("lie", LIES)
def test_what_a_client_makes_up_is_left_out(honest: Run, tmp_path: Path, caplog: Any, lie: str) -> None:
    app = Deployment(tmp_path / "app", scenario(run={"rounds": 1}), N, **{"eval": "clients", "on-failure": "stop"})

    def spoil(message: Any, reply: Any) -> Any:
        if message.metadata.message_type == EXAM:
            LIES[lie][0](reply)
        return reply

    app.grid.nodes[101].spoil = spoil
    run = app.run()
    left_out(run, honest, 1)
    assert re.search(LIES[lie][1], " ".join(r.message for r in caplog.records))
    bad = [row for row in read_jsonl(run.dir / "replies.jsonl") if row["status"] == "garbage"]
    assert {(row["client"], row["what"]) for row in bad} == {(1, EXAM)}


def left_out(run: Run, honest: Run, client: int) -> None:
    """One client has no values, the others have those of the honest run, and so have the sums."""
    mine, theirs = run.clients, honest.clients
    assert mine[mine.client == client][["accuracy", "loss"]].isna().all(axis=None)
    pd.testing.assert_frame_equal(mine[mine.client != client], theirs[theirs.client != client], check_exact=True)
    for number, part in theirs[theirs.client != client].groupby("round"):
        row = run.metrics.set_index("round").loc[number]
        assert row.client_accuracy_mean == pytest.approx(part.accuracy.mean(), rel=1e-15)
        assert row.client_loss_worst == part.loss.max()
    assert torch.equal(run.params, honest.params)


def test_silence_costs_one_timeout_and_ends_nothing(honest: Run, tmp_path: Path) -> None:
    app = Deployment(tmp_path / "app", scenario(run={"rounds": 1}), N, eval="clients", timeout=30.0)
    app.grid.nodes[102].spoil = lambda message, reply: None if message.metadata.message_type == EXAM else reply
    begun = app.grid.clock.seconds
    run = app.run()
    left_out(run, honest, 2)
    assert 60.0 < app.grid.clock.seconds - begun < 90.0  # two evaluations
    late = [row for row in read_jsonl(run.dir / "replies.jsonl") if row["status"] == "timeout"]
    assert [row["what"] for row in late] == [EXAM, EXAM]


def test_that_a_node_is_unavailable_is_no_sign_of_life(tmp_path: Path) -> None:
    """Flower answers for a SuperNode that is gone: its client has cost its timeout, and costs no other one."""
    from flwr.app import Error, Message

    def gone(message: Any, reply: Any) -> Any:
        if message.metadata.message_type == EXAM and message.metadata.group_id != "0":
            return Message(Error(5, "node unavailable"), reply_to=message)
        return None if message.metadata.message_type == "train" else reply

    app = Deployment(tmp_path / "app", scenario(), N, eval="clients", timeout=30.0)
    app.grid.nodes[102].spoil = gone
    run = app.run()
    ends = [(row["round"], row["status"]) for row in read_jsonl(run.dir / "replies.jsonl") if row["client"] == 2]
    assert [round for round, status in ends if status == "timeout"] == [1]
    assert (1, "gone") in ends


def test_an_error_at_the_client_is_left_out(honest: Run, tmp_path: Path) -> None:
    from flwr.app import Error, Message

    app = Deployment(tmp_path / "app", scenario(run={"rounds": 1}), N, **{"eval": "clients", "on-failure": "stop"})

    def broken(message: Any, reply: Any) -> Any:
        return Message(Error(2, "no memory"), reply_to=message) if message.metadata.message_type == EXAM else reply

    app.grid.nodes[103].spoil = broken
    left_out(app.run(), honest, 3)


def test_who_is_away_is_not_asked(tmp_path: Path) -> None:
    app = Deployment(tmp_path / "app", scenario(run={"rounds": 2}), N, **{"eval": "clients", "on-failure": "drop"})

    def leave(grid: Any, message: Any) -> None:
        if message.metadata.message_type == EXAM and message.metadata.group_id == "1":
            grid.nodes[100].online = False

    app.grid.on_push = leave
    run = app.run()
    assert run.clients[run.clients.client == 0].loss.isna().tolist()[-1]
    assert run.clients[run.clients.client == 1].loss.notna().all()
    assert len(run.clients) == 3 * N


def test_where_nobody_answers_columns_are_empty_and_the_run_goes_on(tmp_path: Path) -> None:
    app = Deployment(tmp_path / "app", scenario(run={"rounds": 1}), N, eval="clients", timeout=5.0)
    for node in app.grid.nodes.values():
        node.spoil = lambda message, reply: None if message.metadata.message_type == EXAM else reply
    run = app.run()
    assert run.clients.loss.isna().all()
    rows = [json.loads(line) for line in (run.dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["client_loss_mean"] for row in rows] == [None, None]
    resumed = app.run(resume=True, settings="run.rounds=2")
    assert len(resumed.clients) == 3 * N


# --- what is refused --------------------------------------------------------------------------------------------------


def private() -> dict[str, Any]:
    values = scenario()
    values["algorithm"] = {"name": "fedavg", "lr": 0.2, "local_steps": 2}
    privacy = {"mechanism": "dp_sgd", "clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-3, "sampling_rate": 0.2}
    return {**values, "privacy": privacy}


def test_nothing_is_asked_of_clients_whose_rows_are_protected(tmp_path: Path) -> None:
    app = Deployment(tmp_path / "app", private(), N, eval="clients")
    with pytest.raises(InputError, match="no epsilon covers what clients would measure of the rows"):
        app.run()
    assert not list((tmp_path / "app" / "results").rglob("metrics.jsonl"))


def test_such_a_client_says_nothing_whoever_asks(tmp_path: Path) -> None:
    app = Deployment(tmp_path / "app", private(), N)
    client = Client(fedsim.load(app.grid.scenario_file), NodeConfig.read(app.grid.nodes[101].config), "1")
    x = client.assembly.task.initial().numpy()
    with pytest.raises(RunError, match="this client says nothing of its rows"):
        client.evaluate(Order("1", 1, 0, 0, 0, 0, 0), {"x": x})


def test_orders_for_others_are_refused(tmp_path: Path) -> None:
    app = Deployment(tmp_path / "app", scenario(), N)
    client = Client(fedsim.load(app.grid.scenario_file), NodeConfig.read(app.grid.nodes[101].config), "1")
    with pytest.raises(BadRecord, match="a job of client 2 was sent to client 1"):
        client.evaluate(Order("1", 2, 0, 0, 0, 0, 0), {})
    with pytest.raises(BadRecord, match="'x' was sent with numbers that are not finite"):
        client.evaluate(Order("1", 1, 0, 0, 0, 0, 0), {"x": np.full(650, np.nan)})


@pytest.mark.parametrize(
    ("data", "said", "match"),
    [
        ({"local_test": None}, "clients", "found clients, but the scenario evaluates none"),
        ({}, "everybody", "found 'everybody', allowed: auto, server, clients"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, data: dict[str, Any], said: str, match: str) -> None:
    values = scenario()
    values["data"] = {k: v for k, v in {**values["data"], **data}.items() if v is not None}
    with pytest.raises(InputError, match=match):
        Deployment(tmp_path / "app", values, N, eval=said).run()
