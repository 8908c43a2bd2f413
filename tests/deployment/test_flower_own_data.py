"""Clients' own files are numbered, ordered and scaled as all agree, and equal the simulation on the pooled rows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from flower_loopback import Deployment

import fedsim
from fedsim.core.errors import RunError
from fedsim.engine.run_directory import read_jsonl

pytest.importorskip("flwr")
N = 3
KINDS = ("lynx", "bear", "crow", "newt")
LABELS = (("newt", "bear"), ("crow", "lynx", "bear"), ("lynx", "newt", "crow"))
"""Every client's own, in the order in which its file has them first."""
SIZES = (10, 21, 15)


def table_of(labels: tuple[str, ...], size: int, seed: int) -> pandas.DataFrame:
    random = np.random.default_rng(seed)
    kind = [labels[i % len(labels)] for i in range(size)]
    centre = np.array([KINDS.index(k) for k in kind])
    return pandas.DataFrame({
        "weight": 1000.0 + 7 * random.normal(size=size) + 5 * centre,
        "colour": [("red", "green", "blue")[(c + (i % 5 == 0)) % 3] for i, c in enumerate(centre)],
        "height": random.normal(size=size) * 0.01 + 0.02 * centre,
        "kind": kind,
    })  # fmt: skip


def sections(folder: Path, **data: Any) -> dict[str, Any]:
    return {
        "name": "zoo",
        "data": {
            "dataset": "csv", "path": str(folder / "server.csv"), "target": "kind", "categorical": ["colour"],
            "clients": N, "partition": {"scheme": "iid"}, **data,
        },
        "model": {"name": "linear"},
        "algorithm": {"name": "fedavg", "lr": 0.1, "local_epochs": 1, "batch_size": 8},
        "run": {"rounds": 2, "eval_every": 1, "dtype": "float64", "device": "cpu"},
    }  # fmt: skip


Zoo = Callable[..., Deployment]
Change = Callable[[pandas.DataFrame], pandas.DataFrame]


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    """The server's small table of all kinds, and three clients with tables of their own, their columns in turn."""
    table_of(KINDS, 20, seed=9).to_csv(tmp_path / "server.csv", index=False)

    def make(change: dict[int, Change] | None = None, **more: Any) -> Deployment:
        data = more.pop("data", {})
        app = Deployment(tmp_path / "app", {**sections(tmp_path, **data), **more}, N)
        for c, node in enumerate(app.grid.nodes.values()):
            mine = table_of(LABELS[c], SIZES[c], seed=c)
            mine = mine[[*mine.columns[c:], *mine.columns[:c]]]
            (change or {}).get(c, lambda frame: frame)(mine).to_csv(tmp_path / f"client-{c}.csv", index=False)
            node.config["own-data"] = str(tmp_path / f"client-{c}.csv")
        return app

    return make


def pooled(folder: Path, keys: dict[str, Any]) -> dict[str, Any]:
    """The scenario in which one file has all clients' rows, and says whose they are; tested on the server's."""
    mine = [pandas.read_csv(folder / f"client-{c}.csv").assign(whose=c) for c in range(N)]
    order = ["weight", "colour", "height", "kind", "whose"]
    pandas.concat([m[order] for m in mine]).to_csv(folder / "pooled.csv", index=False)
    known = pandas.read_csv(folder / "server.csv")
    test = known.iloc[held_out(folder)].assign(whose=0)
    test[order].to_csv(folder / "tests.csv", index=False)
    whole = sections(folder, **keys)
    whole["data"] |= {
        "path": str(folder / "pooled.csv"), "test_path": str(folder / "tests.csv"),
        "partition": {"scheme": "natural_id", "partition_by": "whose"},
    }  # fmt: skip
    return whole


def held_out(folder: Path) -> list[int]:
    """Which rows of the server's table it tests on."""
    from fedsim.data.splits import Split, divide

    kinds = sorted(KINDS)
    frame = pandas.read_csv(folder / "server.csv")
    y = np.array([kinds.index(k) for k in frame.kind])
    return divide(Split(np.arange(len(y))[:, None].astype(np.float32), y, 4), 0.2)[1].x[:, 0].astype(int).tolist()


@pytest.mark.parametrize("normalize", ["standard", "unit", "none"])
def test_labels_columns_and_scales_are_those_of_the_pooled_rows(zoo: Zoo, normalize: str, tmp_path: Path) -> None:
    app = zoo(data={"normalize": normalize})
    run = app.run()
    whole = pooled(tmp_path, {"normalize": normalize})
    simulated = fedsim.run(whole, out=tmp_path / "simulated")
    assert float((run.params - simulated.params).abs().max()) < 1e-12
    assert run.metrics["test_loss"].tolist() == pytest.approx(simulated.metrics["test_loss"].tolist(), rel=1e-12)
    about, wanted = (json.loads((r.dir / "data.json").read_text()) for r in (run, simulated))
    assert about["input"]["columns"] == wanted["input"]["columns"]
    assert about["target"]["classes"] == sorted(KINDS)
    agreed = json.loads((run.dir / "agreed.json").read_text())
    assert agreed["sizes"] == list(SIZES)  # all rows train
    if normalize == "none":
        assert agreed["scaling"] is None
        return
    rows = pandas.read_csv(tmp_path / "pooled.csv")[["weight", "height"]].to_numpy(np.float32).astype(np.float64)
    shift, scale = (rows.min(0), np.ptp(rows, 0)) if normalize == "unit" else (rows.mean(0), rows.std(0))
    np.testing.assert_allclose(np.ravel(agreed["scaling"]["shift"]), shift, rtol=1e-12)
    np.testing.assert_allclose(np.ravel(agreed["scaling"]["scale"]), scale, rtol=1e-12)


def log_of(caplog: pytest.LogCaptureFixture) -> str:
    return " ".join(r.message for r in caplog.records)


def test_what_the_server_does_not_know_by_name_keeps_a_client_out(zoo: Zoo, caplog: pytest.LogCaptureFixture) -> None:
    def odd(frame: pandas.DataFrame) -> pandas.DataFrame:
        return frame.assign(kind=["wolf", *frame.kind[1:]])

    app = zoo({1: odd})
    with pytest.raises(RunError, match="2 of 3 clients were connected"):
        app.run(**{"wait-seconds": 1.0})
    said = "--node-config: own-data.classes: found label 'wolf'; allowed: bear, crow, lynx, newt"
    assert said in log_of(caplog)
    assert not (app.folder / "results" / "agreed.json").exists()


def test_clients_have_to_have_as_many_samples_as_the_run_wants(zoo: Zoo, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RunError, match="2 of 3 clients were connected"):
        zoo().run(**{"wait-seconds": 1.0, "min-samples": 12, "max-samples": 21})
    assert "its own data have 10 samples; allowed: 12 to 21 (min-samples, max-samples)" in log_of(caplog)


def test_shares_and_own_data_are_not_scaled_apart(zoo: Zoo) -> None:
    app = zoo()
    del app.grid.nodes[101].config["own-data"]
    with pytest.raises(RunError, match=r"clients \[1\] train on shares of the scenario's data, which are scaled"):
        app.run()


def test_a_run_goes_on_with_what_was_agreed(zoo: Zoo, tmp_path: Path) -> None:
    """Also where a client's disk and worker are gone, so that it has to be told once more."""
    whole = zoo().run()
    app = Deployment(tmp_path / "again", {**sections(tmp_path), "run": {**sections(tmp_path)["run"], "rounds": 1}}, N)
    for c, node in enumerate(app.grid.nodes.values()):
        node.config["own-data"] = str(tmp_path / f"client-{c}.csv")
    app.run()
    shutil.rmtree(app.folder / "disk-1")
    asked = len(app.grid.pushed)
    run = app.run(run="2", resume=True, settings="run.rounds=2")
    assert torch.equal(run.params, whole.params)
    kinds = [m.metadata.message_type for m in app.grid.pushed[asked:]]
    assert kinds == ["query.hello"] * N + ["train"] * N  # greeted once: nothing is asked again
    changed = table_of(LABELS[2], 16, seed=2)
    changed.to_csv(tmp_path / "client-2.csv", index=False)
    shutil.rmtree(app.folder / "disk-2")
    with pytest.raises(RunError, match="2 of 3 clients were connected"):
        app.run(run="3", resume=True, settings="run.rounds=3", **{"wait-seconds": 1.0})


PRIVATE = {
    "client level": (
        {"algorithm": {"name": "fedavg", "lr": 0.1, "local_steps": 2, "weighting": "uniform"}},
        {"mechanism": "dp_fedavg", "adaptive": {"bit_noise": 2.0}, "noise_multiplier": 1.0},
    ),
    "client level, by samples": (
        {"algorithm": {"name": "fedavg", "lr": 0.1, "local_steps": 2}},
        {"mechanism": "dp_ftrl", "clip_norm": 0.5, "noise_multiplier": 1.0},
    ),
    "example level": (
        {"algorithm": {"name": "diff2", "lr": 0.1, "batch_size": "full", "clip_norm": 1.0, "difference_clip": 1.0}},
        {"mechanism": "gaussian", "epsilon": 3.0},
    ),
    "example level, sampled": (
        {"algorithm": {
            "name": "diff2_bvr", "lr": 0.1, "batch_size": "full", "clip_norm": 1.0, "difference_clip": 1.0,
            "inner_batch": 3, "inner_clip": 1.0, "inner_steps": 2,
        }},
        {"mechanism": "gaussian_bvr", "noise_multiplier": 1.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PRIVATE)
def test_privacy_is_made_for_the_sizes_that_clients_report(
    name: str, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the server's noise drawn from the scenario's seed, the run is the simulation of the pooled rows."""
    monkeypatch.setattr("fedsim.deployment.noise.secrets", SimpleNamespace(randbits=lambda _: 0))
    more, privacy = PRIVATE[name]
    run = zoo(data={"normalize": "none"}, **more, privacy=privacy).run()
    whole = {**pooled(tmp_path, {"normalize": "none"}), **more, "privacy": privacy}
    simulated = fedsim.run(whole, out=tmp_path / "simulated")
    if name != "example level, sampled":  # whose walks draw at the client, from the client's secret
        assert float((run.params - simulated.params).abs().max()) < 1e-12
    assert run.metrics["epsilon"].equals(simulated.metrics["epsilon"])
    said = json.loads((run.dir / "privacy.json").read_text())["not_covered"]
    assert any("how many samples each client says it has" in words for words in said)


def test_scaling_by_statistics_is_not_private(zoo: Zoo, caplog: pytest.LogCaptureFixture) -> None:
    more, privacy = PRIVATE["client level"]
    with pytest.raises(RunError, match="0 of 3 clients were connected"):
        zoo(**more, privacy=privacy).run(**{"wait-seconds": 1.0})
    assert "whose statistics would scale them, and the run's epsilon covers no statistics" in log_of(caplog)


def test_statistics_of_other_columns_keep_a_client_out(zoo: Zoo, caplog: pytest.LogCaptureFixture) -> None:
    def shorter(_: Any, reply: Any) -> Any:
        from flwr.app import Array, ArrayRecord

        moments = reply.content["moments"]
        reply.content["moments"] = ArrayRecord({k: Array(v.numpy()[:1]) for k, v in moments.items()})
        return reply

    app = zoo()
    app.grid.nodes[101].spoil = shorter
    with pytest.raises(RunError, match="2 of 3 clients were connected"):
        app.run(**{"wait-seconds": 1.0})
    assert "found statistics of 1 features; its rows have 2" in log_of(caplog)


def test_own_data_that_come_after_the_first_round_stay_out(zoo: Zoo, caplog: pytest.LogCaptureFixture) -> None:
    """Weights are those of the scenario's shares by then."""
    app = zoo(data={"normalize": "none"})
    for node in (app.grid.nodes[100], app.grid.nodes[101]):
        del node.config["own-data"]
    app.grid.nodes[102].online = False

    def comes(grid: Any, message: Any) -> None:
        grid.nodes[102].online |= message.metadata.group_id == "1"
        grid.clock.sleep(3.0)  # a look at the list of nodes is due

    app.grid.on_push = comes
    run = app.run(**{"min-clients": 2, "on-failure": "drop"})
    assert "it trains on data of its own; the run began with a share of the scenario's data" in log_of(caplog)
    assert [row["client"] for row in json.loads((run.dir / "deployment.json").read_text())["clients"]] == [0, 1]
    assert {r["client"] for r in read_jsonl(run.dir / "replies.jsonl") if r["status"] == "ok"} == {0, 1}


def test_who_does_not_confirm_what_was_agreed_gets_no_job(zoo: Zoo) -> None:
    greeted: list[int] = []

    def fails(message: Any, reply: Any) -> Any:
        from flwr.app import Error, Message

        greeted.append(1)
        return reply if len(greeted) == 1 else Message(Error(code=2, reason="no disk"), reply_to=message)

    app = zoo()
    app.grid.nodes[101].spoil = fails
    with pytest.raises(RunError, match="2 of 3 clients were connected"):
        app.run(**{"wait-seconds": 3.0})
    assert {m.metadata.message_type for m in app.grid.pushed} == {"query.hello"}
