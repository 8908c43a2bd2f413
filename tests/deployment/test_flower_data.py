"""Clients bring their own data: a local folder or file each, or their own copy of the scenario's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flower_loopback import Deployment

from fedsim.core.errors import RunError
from fedsim.data.partition_csv import read_partition
from fedsim.engine.assembly import Material, assemble
from fedsim.engine.loop import Simulation

pytest.importorskip("flwr")
N, SIZES = 3, (12, 30, 21)


def file_of(folder: Path, name: str, size: int, seed: int, width: int = 4) -> Path:
    random = np.random.default_rng(seed)
    y = np.arange(size) % 3
    x = (random.normal(size=(size, width)) + y[:, None]).astype(np.float32)
    np.savez(folder / f"{name}.npz", x_train=x, y_train=y, x_test=x[:6], y_test=y[:6])
    return folder / f"{name}.npz"


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., Deployment]:
    """Three clients with files of their own; the server has one with the test data."""

    def make(**more: Any) -> Deployment:
        server = file_of(tmp_path, "server", 40, seed=9)
        scenario = {
            "name": "own",
            "data": {"dataset": "npz", "path": str(server), "clients": N, "partition": {"scheme": "iid"}},
            "model": {"name": "linear"},
            "algorithm": {"name": "fedavg", "lr": 0.2, "local_epochs": 2, "batch_size": 8},
            "run": {"rounds": 3, "eval_every": 1, "dtype": "float64", "device": "cpu", "trace": True},
            **more,
        }
        app = Deployment(tmp_path / "app", scenario, N)
        for c, node in enumerate(app.grid.nodes.values()):
            node.config["own-data"] = str(file_of(tmp_path, f"client-{c}", SIZES[c], seed=c))
        return app

    return make


def test_every_client_learns_from_its_own_file(own: Callable[..., Deployment], tmp_path: Path) -> None:
    app = own()
    run = app.run()
    share = np.array(SIZES) / sum(SIZES)
    assert run.trace[0]["weights"] == pytest.approx(share)

    def theirs(made: Material) -> Material:
        files = [np.load(tmp_path / f"client-{c}.npz") for c in range(N)]
        x, y = (torch.from_numpy(np.concatenate([f[k] for f in files])) for k in ("x_train", "y_train"))
        starts = np.concatenate([[0], np.cumsum(SIZES)])
        rows = [np.arange(starts[c], starts[c + 1]) for c in range(N)]
        return replace(made, data=replace(made.data, train_x=x, train_y=y), rows=rows)

    simulated = Simulation(app.scenario, assemble(app.scenario, theirs), tmp_path / "simulated").run()
    assert float((run.params - simulated.params).abs().max()) < 1e-12
    assert run.metrics["test_loss"].tolist() == pytest.approx(simulated.metrics["test_loss"].tolist())
    assert "train_loss" not in run.metrics  # the server has none of the data that are learnt from
    assert read_partition(run.dir / "partition.csv")[0].tolist() == list(SIZES)


def texts_of(folder: Path, name: str, text: str) -> Path:
    rows = "".join(f'"{text[i:] + text[:i]}"\n' for i in range(12))
    (folder / f"{name}.csv").write_text(f"text\n{rows}", encoding="utf-8")
    return folder / f"{name}.csv"


def deployed_texts(tmp_path: Path, **data: Any) -> Deployment:
    """Rows of 9 tokens, of texts of different lengths."""
    tmp_path.mkdir(exist_ok=True)
    server = texts_of(tmp_path, "server", "to be or not to be")
    scenario = {
        "name": "texts",
        "data": {"dataset": "text", "path": str(server), "context": 9, "clients": N, **data},
        "model": {"name": "transformer", "width": 4, "heads": 2, "layers": 1},
        "algorithm": {"name": "fedavg", "lr": 0.2, "local_steps": 2, "batch_size": 4},
        "run": {"rounds": 2, "eval_every": 1, "dtype": "float64", "device": "cpu"},
    }
    return Deployment(tmp_path / "app", scenario, N)


def test_shares_of_tokens_stay_integers(tmp_path: Path) -> None:
    app = deployed_texts(tmp_path)
    run = app.run()
    simulated = Simulation(app.scenario, assemble(app.scenario), tmp_path / "simulated").run()
    assert float((run.params - simulated.params).abs().max()) < 1e-12
    assert run.metrics["perplexity"].tolist() == pytest.approx(simulated.metrics["perplexity"].tolist())


def test_texts_of_ones_own_need_tokens_that_all_agree_on(tmp_path: Path, caplog: Any) -> None:
    mine = texts_of(tmp_path, "mine", "that is the question")
    app = deployed_texts(tmp_path)
    for node in app.grid.nodes.values():
        node.config["own-data"] = str(mine)
    with pytest.raises(RunError, match="0 of 3 clients were connected"):
        app.run(**{"wait-seconds": 1.0})
    assert "found tokens of this client's own texts" in " ".join(r.message for r in caplog.records)
    agreed = deployed_texts(tmp_path / "agreed", tokens="abehinoqrstu ")
    for node in agreed.grid.nodes.values():
        node.config["own-data"] = str(mine)
    assert agreed.run().params.isfinite().all()


def test_data_of_another_form_are_refused(own: Callable[..., Deployment], tmp_path: Path, caplog: Any) -> None:
    app = own()
    app.grid.nodes[101].config["own-data"] = str(file_of(tmp_path, "wide", 20, seed=5, width=7))
    with pytest.raises(RunError, match="2 of 3 clients were connected"):
        app.run(**{"wait-seconds": 1.0})
    said = " ".join(r.message for r in caplog.records)
    assert "its own data have samples of shape 7 with 3 classes; the scenario's have 4 with 3" in said


def test_a_file_that_is_not_there_is_named(own: Callable[..., Deployment], caplog: Any) -> None:
    app = own()
    app.grid.nodes[100].config["own-data"] = "/nowhere/at/all.npz"
    with pytest.raises(RunError, match="2 of 3 clients were connected"):
        app.run(**{"wait-seconds": 1.0})
    said = " ".join(r.message for r in caplog.records)
    assert "own-data" in said
    assert "/nowhere/at/all.npz" in said


def test_all_have_to_say_how_much_they_have(own: Callable[..., Deployment]) -> None:
    app = own()
    app.grid.nodes[102].online = False
    with pytest.raises(RunError, match=r"clients \[2\] are not there: with data of their own, all have to say"):
        app.run(**{"min-clients": 2})


def test_a_copy_elsewhere_gives_the_same_share(own: Callable[..., Deployment], tmp_path: Path) -> None:
    app = own()
    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy" / "elsewhere.npz"
    copy.write_bytes((tmp_path / "server.npz").read_bytes())
    for node in app.grid.nodes.values():
        del node.config["own-data"]
    first = app.run()
    params, losses = first.params, first.metrics["train_loss"].tolist()
    for node in app.grid.nodes.values():
        node.config["data-path"] = str(copy)
    second = app.run(run="2")
    assert torch.equal(second.params, params)
    assert second.metrics["train_loss"].tolist() == losses


def test_weights_to_start_from_lie_elsewhere(
    own: Callable[..., Deployment], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = {
        "1.weight": torch.ones(3, 4),
        "1.bias": torch.zeros(3),
        "3.weight": torch.eye(3),
        "3.bias": torch.ones(3),
    }
    torch.save(weights, tmp_path / "w.pt")
    model = {"name": "mlp", "hidden": [3], "init": str(tmp_path / "w.pt"), "freeze": ["1.*"]}
    app = own(model=model)
    (tmp_path / "elsewhere").mkdir()
    for node in app.grid.nodes.values():
        (tmp_path / "elsewhere" / "copy.pt").write_bytes((tmp_path / "w.pt").read_bytes())
        node.config["model-init"] = str(tmp_path / "elsewhere" / "copy.pt")
    run = app.run()
    assert torch.equal(run.state_dict()["1.weight"], torch.ones(3, 4, dtype=torch.float64))
    assert not torch.equal(run.state_dict()["3.weight"], torch.eye(3, dtype=torch.float64))
    torch.save({**weights, "1.weight": torch.zeros(3, 4)}, tmp_path / "elsewhere" / "copy.pt")
    with pytest.raises(RunError):
        app.run(run="2", **{"timeout": 1, "attempts": 1, "on-failure": "stop"})
    assert "copy.pt has changed: its SHA-256 is" in " ".join(r.message for r in caplog.records)
