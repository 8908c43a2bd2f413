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
from data_makers import pictures, png
from flower_loopback import Deployment
from own_tables import KINDS, LABELS, SIZES, Change, N, pooled, sections, table_of, write_own, write_server

import fedsim
from fedsim.core.errors import RunError
from fedsim.deployment.agreement import Agreement
from fedsim.engine.assembly import assemble
from fedsim.engine.elsewhere import Told
from fedsim.engine.run_directory import read_jsonl
from fedsim.objective.supervised import SupervisedTask
from fedsim.scenario.load import parse

pytest.importorskip("flwr")
Zoo = Callable[..., Deployment]


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    """The server's small table of all kinds, and three clients with tables of their own, their columns in turn."""
    write_server(tmp_path)

    def make(change: dict[int, Change] | None = None, **more: Any) -> Deployment:
        data = more.pop("data", {})
        app = Deployment(tmp_path / "app", {**sections(tmp_path, **data), **more}, N)
        for c, node in enumerate(app.grid.nodes.values()):
            node.config["own-data"] = str(write_own(tmp_path, c, (change or {}).get(c)))
        return app

    return make


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


def test_protected_rows_of_ones_own_are_evaluated_by_nobody(zoo: Zoo, caplog: pytest.LogCaptureFixture) -> None:
    """The server has not got them, and what clients would say of them no epsilon covers."""
    more, privacy = PRIVATE["client level"]
    with pytest.raises(RunError, match="0 of 3 clients were connected"):
        zoo(data={"normalize": "none", "local_test": 0.3}, **more, privacy=privacy).run(**{"wait-seconds": 1.0})
    assert "on which nobody may evaluate it, since the run's epsilon does not cover what is measured" in log_of(caplog)


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


def later(app: Deployment, client: int, round: int) -> dict[str, Any]:
    """`client` is not there before messages of `round` are sent; how a run takes it in."""
    app.grid.nodes[100 + client].online = False

    def comes(grid: Any, message: Any) -> None:
        grid.nodes[100 + client].online |= message.metadata.group_id == str(round)
        grid.clock.sleep(3.0)  # a look at the list of nodes is due

    app.grid.on_push = comes
    return {"min-clients": N - 1, "population": "connected", "settings": "run.rounds=5 run.trace=true"}


@pytest.mark.parametrize("normalize", ["standard", "none"])
def test_own_data_may_come_later_where_cohorts_are_of_the_connected(
    normalize: str, zoo: Zoo, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights follow from its size then, the scaling stays, and a resumed run knows both."""
    app = zoo(data={"normalize": normalize})
    run = app.run(**later(app, 2, round=2))
    asked = [row["clients"] for row in run.trace]
    assert asked[:2] == [[0, 1]] * 2
    assert asked[3:] == [[0, 1, 2]] * 2
    for row in run.trace:
        sizes = np.array([SIZES[c] for c in row["clients"]])
        assert row["weights"] == pytest.approx((sizes / sizes.sum()).tolist())
    agreed = json.loads((run.dir / "agreed.json").read_text())
    assert agreed["sizes"] == list(SIZES)
    kept = "features stay scaled by the statistics of those" if normalize == "standard" else "no statistics scale them"
    assert f"client 2 joins with {SIZES[2]} samples of its own; {kept}" in log_of(caplog)
    if normalize == "standard":
        first = np.concatenate([pandas.read_csv(tmp_path / f"client-{c}.csv")["weight"] for c in (0, 1)])
        assert agreed["scaling"]["shift"][0][0] == pytest.approx(first.mean(), rel=1e-7)
    again = app.run(run="2", resume=True, settings="run.rounds=7 run.trace=true", population="connected")
    assert [row["clients"] for row in again.trace[5:]] == [[0, 1, 2]] * 2
    assert torch.isfinite(again.params).all()


def test_a_share_that_comes_later_stays_out(zoo: Zoo, caplog: pytest.LogCaptureFixture) -> None:
    """Who is away at the start is taken for one with data of its own, and the reason says so."""
    app = zoo(data={"normalize": "none"})
    del app.grid.nodes[102].config["own-data"]
    run = app.run(**later(app, 2, round=2))
    why = "it was not there at the start and trains on a share of the scenario's data; "
    assert f"SuperNode 102 is not used: {why}who comes later brings data of its own (own-data)" in log_of(caplog)
    assert [row["clients"] for row in run.trace] == [[0, 1]] * 5


def test_own_data_may_come_while_a_resumed_run_gathers(zoo: Zoo, caplog: pytest.LogCaptureFixture) -> None:
    """It is there before the first round that goes on, whose weights know its size."""
    app = zoo()
    app.grid.nodes[102].online = False
    begun = {"min-clients": 2, "population": "connected", "settings": "run.rounds=1 run.trace=true"}
    assert json.loads((app.run(**begun).dir / "agreed.json").read_text())["sizes"] == [*SIZES[:2], 0]
    with pytest.raises(RunError, match=r"clients \[2\] are not there: .* since cohorts are drawn among all clients"):
        app.run(**{**begun, "population": "scenario"}, run="2", resume=True)
    app.grid.nodes[102].online = True
    run = app.run(**{**begun, "min-clients": N, "settings": "run.rounds=2 run.trace=true"}, run="3", resume=True)
    assert [row["clients"] for row in run.trace] == [[0, 1], [0, 1, 2]]
    assert run.trace[1]["weights"] == pytest.approx((np.array(SIZES) / sum(SIZES)).tolist())
    assert json.loads((run.dir / "agreed.json").read_text())["sizes"] == list(SIZES)
    assert f"client 2 joins with {SIZES[2]} samples" in log_of(caplog)


def test_what_was_agreed_is_whole_where_writing_it_again_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, write = Agreement(sizes=(10, 0)), Path.write_text
    before.write(tmp_path)

    def full(file: Path, text: str, **how: Any) -> int:
        write(file, text[:20], **how)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        Agreement(sizes=(10, 4)).write(tmp_path)
    assert Agreement.of(tmp_path) == before


def test_a_label_that_nobody_knows_keeps_one_that_comes_later_out(zoo: Zoo, caplog: pytest.LogCaptureFixture) -> None:
    app = zoo({2: lambda frame: frame.assign(kind=["wolf", *frame.kind[1:]])})
    run = app.run(**later(app, 2, round=2))
    assert [row["clients"] for row in run.trace] == [[0, 1]] * 5
    assert "own-data.classes: found label 'wolf'; allowed: bear, crow, lynx, newt" in log_of(caplog)


@pytest.mark.parametrize("keys,population,why", [
    ({"name": "fedavg"}, "scenario", "cohorts are drawn among all clients"),
    ({"name": "scaffold"}, "connected", "what clients of scaffold keep is weighted by all clients' sizes"),
    ({"name": "afl", "weighting": "samples"}, "connected", "the weights that afl begins with are made of"),
])  # fmt: skip
def test_elsewhere_own_data_all_have_to_be_there_at_the_start(
    keys: dict[str, Any], population: str, why: str, zoo: Zoo
) -> None:
    app = zoo(algorithm={"lr": 0.1, "local_epochs": 1, **keys})
    with pytest.raises(RunError, match=rf"clients \[2\] are not there: .* since {why}"):
        app.run(**{**later(app, 2, round=2), "population": population})


@pytest.fixture
def pictured(tmp_path: Path) -> Deployment:
    """The server has a folder of images of all kinds, every client one of some of them."""
    rows: dict[str, list[tuple[bytes, str, int]]] = {"train": [], "test": []}
    for whose, kinds in {"server": KINDS, **dict(enumerate(LABELS))}.items():
        folder, number = tmp_path / f"photos-{whose}", 0 if whose == "server" else int(whose) + 1
        for k, kind in enumerate(sorted(kinds)):
            (folder / kind).mkdir(parents=True)
            for i, image in enumerate(pictures(3 + number, (4, 4, 3), seed=10 * number + k)):
                (folder / kind / f"{i}.png").write_bytes(png(image))
                rows["test" if whose == "server" else "train"].append((png(image), kind, max(0, number - 1)))
    (tmp_path / "pooled").mkdir()
    for split, found in rows.items():
        columns = {"image": [{"bytes": b, "path": None} for b, _, _ in found]}
        columns |= {"kind": [k for _, k, _ in found], "whose": [w for _, _, w in found]}
        write_table(tmp_path / "pooled" / f"{split}.parquet", columns)
    data = {"dataset": "image_folder", "path": str(tmp_path / "photos-server"), "clients": N}
    made = sections(tmp_path)
    made |= {"data": data, "model": {"name": "cnn", "channels": [2], "hidden": 4}}
    app = Deployment(tmp_path / "app", made, N)
    for c, node in enumerate(app.grid.nodes.values()):
        node.config["own-data"] = str(tmp_path / f"photos-{c}")
    return app


def write_table(file: Path, columns: dict[str, Any]) -> None:
    import datasets

    datasets.disable_progress_bars()
    kinds = {"image": datasets.Image(), "kind": datasets.Value("string"), "whose": datasets.Value("int64")}
    datasets.Dataset.from_dict(columns, features=datasets.Features(kinds)).to_parquet(str(file))


def test_folders_of_images_are_the_pooled_images(pictured: Deployment, tmp_path: Path) -> None:
    """Of different sets of classes, by the names of folders, with the channels' statistics of all clients' images."""
    run = pictured.run()
    assert json.loads((run.dir / "data.json").read_text())["target"]["classes"] == sorted(KINDS)
    whole = sections(tmp_path)
    whole |= {
        "data": {
            "dataset": "parquet", "path": str(tmp_path / "pooled"), "target": "kind", "image": "image",
            "partition": {"scheme": "natural_id", "partition_by": "whose"}, "clients": N,
        },
        "model": {"name": "cnn", "channels": [2], "hidden": 4},
    }  # fmt: skip
    simulated = fedsim.run(whole, out=tmp_path / "simulated")
    assert json.loads((run.dir / "agreed.json").read_text())["sizes"] == [(4 + c) * len(LABELS[c]) for c in range(N)]
    assert float((run.params - simulated.params).abs().max()) < 1e-9


def test_images_of_another_form_keep_a_client_out(pictured: Deployment, caplog: pytest.LogCaptureFixture) -> None:
    for kind, image in (("crow", (5, 4, 3)), ("wolf", (4, 4, 3))):
        folder = pictured.folder.parent / f"odd-{kind}" / kind
        folder.mkdir(parents=True)
        (folder / "0.png").write_bytes(png(pictures(1, image)[0]))
    pictured.grid.nodes[100].config["own-data"] = str(pictured.folder.parent / "odd-crow")
    pictured.grid.nodes[101].config["own-data"] = str(pictured.folder.parent / "odd-wolf")
    with pytest.raises(RunError, match="1 of 3 clients were connected"):
        pictured.run(**{"wait-seconds": 1.0})
    said = log_of(caplog)
    assert "its own data have samples of shape 3x5x4 with 4 classes; the scenario's have 3x4x4 with 4" in said
    assert "found label 'wolf'; allowed: bear, crow, lynx, newt" in said


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


def test_nobody_has_a_weight_where_nobody_has_a_sample() -> None:
    scenario = {
        "data": {"dataset": "digits", "clients": 3},
        "model": {"name": "linear"},
        "algorithm": {"name": "fedavg"},
    }
    task = assemble(parse(scenario)).task
    assert isinstance(task, SupervisedTask)
    Told((0, 0, 0)).tell(task)
    assert task.importance.tolist() == [0.0, 0.0, 0.0]
    Told((0, 3, 1)).tell(task)
    assert task.importance.tolist() == [0.0, 0.75, 0.25]
