"""Models with dropout, buffers and tokens deploy: the numbers are those of the simulation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flower_loopback import Deployment

import fedsim
from fedsim.core.oracle import CARRIED
from fedsim.deployment.app import deploy
from fedsim.scenario.load import parse

pytest.importorskip("flwr")
N = 3
SOME: dict[str, Any] = {"participation": {"mode": "synchronous", "clients_per_round": 2}}
RING: dict[str, Any] = {
    "topology": {"graph": "ring"},
    "participation": {"mode": "gossip", "compute": 0.6, "links": 0.7},
}
MODES: dict[str, dict[str, Any]] = {
    "fedavg": SOME,
    "fedadam": SOME,
    "scaffold": SOME,
    "dspodfl": RING,
    "gradient_tracking": {"topology": {"graph": "ring"}},
}
MODELS: dict[str, dict[str, Any]] = {
    "dropout": {"name": "own_models:Recurrent"},
    "dropout, together": {"name": "own_models:Attention"},
    "batch norm and dropout": {"name": "own_models:NormedDropped"},
    "own buffers": {"name": "own_models:Counting"},
    "frozen norm": {"name": "own_models:Normed", "batch_norm": "frozen"},
    "group norm": {"name": "own_models:Normed", "batch_norm": "group"},
    "tokens": {"name": "char_lstm", "embedding": 3, "hidden": 5},
    "tokens and adapters": {
        "name": "transformer",
        "width": 8,
        "heads": 2,
        "layers": 1,
        "lora": {"targets": ["wide", "0"], "rank": 2},
    },
    "adapters and dropout": {
        "name": "own_models:Whole",
        "lora": {"targets": ["body"], "dropout": 0.3, "train": ["head"]},
    },
    "tokens and dropout": {"name": "transformer", "width": 8, "heads": 2, "layers": 1, "dropout": 0.2},
}


def sections(folder: Path, model: str, algorithm: str, rounds: int = 3, **more: Any) -> dict[str, Any]:
    data: dict[str, Any] = {"dataset": "digits", "clients": N, "limit": 60}
    if model.startswith("tokens"):
        file, draw = folder / "tokens.npz", np.random.default_rng(1)
        x, ends = draw.integers(0, 7, (40, 5)), draw.integers(2, 5, (40, 1))
        y = np.where(np.arange(5) < ends, np.roll(x, -1, 1), 7)  # as many targets count as a row is long
        np.savez(file, x_train=x[:30], y_train=y[:30], x_test=x[30:], y_test=y[30:])
        data = {"dataset": "npz", "path": str(file), "task": "tokens", "num_classes": 8, "ignore_index": 7}
        data["clients"] = N
    local = {"name": algorithm, "lr": 0.05, "batch_size": 6, "local_steps": 2}
    if algorithm == "gradient_tracking":
        del local["local_steps"]
    run = {"rounds": rounds, "dtype": "float64", "eval_every": 1, "eval_samples": 30, "device": "cpu"}
    return {"data": data, "model": MODELS[model], "algorithm": local, "run": run, **MODES[algorithm], **more}


def same(deployed: fedsim.Run, simulated: fedsim.Run, model: str) -> None:
    if model in (
        "dropout, together",
        "tokens and dropout",
        "tokens and adapters",
        "adapters and dropout",
    ):  # sums of several clients' matrix products are rounded
        assert float((deployed.params - simulated.params).abs().max()) < 1e-13
        return
    assert torch.equal(deployed.params, simulated.params)
    found, wanted = deployed.state_dict(), simulated.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(v, wanted[k]) for k, v in found.items())
    clocks = ["time", "wall"]
    assert deployed.metrics.drop(columns=clocks).equals(simulated.metrics.drop(columns=clocks))


@pytest.mark.parametrize(
    "model,algorithm",
    [
        *((model, algorithm) for model in MODELS for algorithm in ("fedavg", "dspodfl")),
        *((model, "scaffold") for model in ("dropout", "own buffers", "tokens")),
        ("batch norm and dropout", "fedadam"),
        ("batch norm and dropout", "gradient_tracking"),
    ],
)
def test_the_numbers_are_those_of_the_simulation(model: str, algorithm: str, tmp_path: Path) -> None:
    scenario = sections(tmp_path, model, algorithm)
    simulated = fedsim.run(scenario, out=tmp_path / "simulated")
    app = Deployment(tmp_path / "app", scenario, N)
    same(app.run(), simulated, model)
    buffers = {"batch norm and dropout", "own buffers"}
    sent = {k for m in app.grid.pushed for k in m.content.get("arrays", {})}
    assert (CARRIED in sent) == (model in buffers)


def test_clients_have_their_threads_where_the_scenario_says(tmp_path: Path) -> None:
    found = []
    for key in ("threads", "operator_threads"):
        scenario = {**sections(tmp_path, "dropout", "fedavg"), "model": {"name": "own_models:Threaded"}}
        scenario["run"][key] = 3
        simulated = fedsim.run(scenario, out=tmp_path / f"simulated-{key}")
        deployed = Deployment(tmp_path / f"app-{key}", scenario, N).run()
        torch.testing.assert_close(deployed.params, simulated.params, rtol=1e-10, atol=1e-12)
        found.append(deployed.params)
    assert not torch.allclose(found[0], found[1])


def test_a_run_is_continued_with_its_buffers(tmp_path: Path) -> None:
    scenario = sections(tmp_path, "batch norm and dropout", "scaffold")
    simulated = fedsim.run(scenario, out=tmp_path / "simulated")
    app = Deployment(tmp_path / "app", scenario, N)
    app.run(settings="run.rounds=2")
    same(app.run(run="2", settings="run.rounds=3", resume=True), simulated, "")


def test_buffers_of_another_form_are_not_used(tmp_path: Path) -> None:
    """A client whose answer lacks them, or has others, is told so; the run goes on without it."""
    from flwr.app import Array, ArrayRecord

    scenario = sections(tmp_path, "own buffers", "fedavg", rounds=2, participation={"mode": "synchronous"})
    app = Deployment(tmp_path / "app", scenario, N, **{"on-failure": "drop"})

    def spoiled(change: Any) -> Any:
        def spoil(message: Any, reply: Any) -> Any:
            if message.metadata.group_id:
                reply.content["arrays"] = ArrayRecord(change(dict(reply.content["arrays"])))
            return reply

        return spoil

    app.grid.nodes[100].spoil = spoiled(lambda a: {k: v for k, v in a.items() if k != CARRIED})
    app.grid.nodes[101].spoil = spoiled(lambda a: {**a, CARRIED: Array(np.zeros((1, 3)))})
    run = app.run()
    rows = (run.dir / "replies.jsonl").read_text()
    assert "found the arrays ['delta'], expected" in rows
    assert f"'{CARRIED}' is [1, 3] float64, expected [1, 65] float64" in rows
    assert run.metrics["test_loss"].notna().all()


@pytest.mark.parametrize("model", ["batch norm and dropout", "dropout"])
def test_an_app_is_made(model: str, tmp_path: Path) -> None:
    names = deploy(parse(sections(tmp_path, model, "fedavg")), tmp_path / "app")
    assert "fedsim_deployment/scenario.yaml" in names
