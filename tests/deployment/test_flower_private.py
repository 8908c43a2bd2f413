"""Private runs as deployments: the noise is added where the trust model puts it, from secrets that stay there."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flower_loopback import Deployment
from typer.testing import CliRunner

import fedsim
from fedsim.cli.app import app as command
from fedsim.core.errors import InputError, RunError
from fedsim.deployment.app import deploy
from fedsim.engine.run_directory import read_jsonl
from fedsim.scenario.load import parse

pytest.importorskip("flwr")
N = 3


def private(**privacy: Any) -> dict[str, Any]:
    return {
        "name": "private",
        "data": {"dataset": "digits", "clients": N, "limit": 90, "partition": {"scheme": "iid"}},
        "model": {"name": "linear"},
        "algorithm": {
            "name": "diff2",
            "lr": 0.5,
            "batch_size": "full",
            "restart_every": 2,
            "clip_norm": 1.0,
            "difference_clip": 1.0,
        },
        "privacy": {"mechanism": "gaussian", **privacy},
        "run": {"rounds": 4, "eval_every": 1, "dtype": "float64", "device": "cpu", "trace": True},
    }


@pytest.fixture
def deployed(tmp_path: Path) -> Callable[..., Any]:
    def make(name: str, **privacy: Any) -> tuple[Deployment, dict[tuple[int, int], torch.Tensor]]:
        """A deployment, and a table that fills with what leaves each client in each round."""
        one = Deployment(tmp_path / name, private(**privacy), N)
        sent: dict[tuple[int, int], torch.Tensor] = {}

        def note(message: Any, reply: Any) -> Any:
            if message.metadata.group_id and "arrays" in reply.content:
                arrays = {k: torch.from_numpy(v.numpy()) for k, v in reply.content["arrays"].items()}
                place = (reply.content["fedsim"]["client"], int(message.metadata.group_id))
                sent[place] = torch.cat([arrays[k].flatten() for k in sorted(arrays)])
            return reply

        for node in one.grid.nodes.values():
            node.spoil = note
        return one, sent

    return make


def test_without_noise_it_is_the_simulation(deployed: Callable[..., Any], tmp_path: Path) -> None:
    one, _ = deployed("quiet", noise_multiplier=0.0)
    simulated = fedsim.run(private(noise_multiplier=0.0), out=tmp_path / "simulated")
    run = one.run()
    assert float((run.params - simulated.params).abs().max()) < 1e-12
    columns = ["train_loss", "epsilon"]
    assert run.metrics[columns].equals(simulated.metrics[columns])


def test_with_a_trusted_server_clients_send_no_noise(deployed: Callable[..., Any], tmp_path: Path) -> None:
    quiet, clean = deployed("quiet", noise_multiplier=0.0)
    quiet.run()
    one, sent = deployed("central", noise_multiplier=2.0)
    run = one.run()
    for c in range(N):
        assert torch.allclose(sent[c, 1], clean[c, 1], atol=1e-12)  # before noise ever reached the model
    simulated = fedsim.run(private(noise_multiplier=2.0), out=tmp_path / "simulated")
    assert float((run.params - simulated.params).abs().max()) > 1e-3  # another secret than the scenario's seed
    assert run.metrics["epsilon"].tolist() == simulated.metrics["epsilon"].tolist()
    key = run.dir / "noise.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    for file in run.dir.rglob("*"):
        if file.is_file() and file != key:
            assert key.read_bytes() not in file.read_bytes(), file


def test_a_start_that_is_refused_keeps_an_earlier_secret(deployed: Callable[..., Any], tmp_path: Path) -> None:
    one, _ = deployed("central", noise_multiplier=2.0)
    key = one.run().dir / "noise.key"
    before = key.read_text()
    with pytest.raises(InputError):
        one.run(run="2", **{"client-keys": str(tmp_path / "nowhere")})
    assert key.read_text() == before
    one.run(run="3")
    assert key.read_text() != before


def test_with_local_trust_every_message_has_noise_of_its_own(deployed: Callable[..., Any]) -> None:
    quiet, clean = deployed("quiet", noise_multiplier=0.0)
    quiet.run()
    one, sent = deployed("local", noise_multiplier=1.0, trust="local")
    one.run()
    noise = [sent[c, 1] - clean[c, 1] for c in range(N)]
    assert all(float(v.std()) > 0.01 for v in noise)
    assert len({round(float(v[0]), 9) for v in noise}) == N
    first = dict(sent)
    one.run(run="2")  # other secrets
    assert all(not torch.equal(first[c, 1], sent[c, 1]) for c in range(N))
    secrets = {(one.folder / f"disk-{c}" / "2" / f"client-{c}" / "noise.key").read_text() for c in range(N)}
    assert len(secrets) == N


def test_a_job_done_again_releases_nothing_new(deployed: Callable[..., Any]) -> None:
    one, sent = deployed("local", noise_multiplier=1.0, trust="local")
    note, seen = one.grid.nodes[101].spoil, []

    def stutter(message: Any, reply: Any) -> Any:
        note(message, reply)
        if message.metadata.group_id == "2":
            seen.append(sent[1, 2])
            if len(seen) < 3:
                reply.content["fedsim"]["number"] = 99
        return reply

    one.grid.nodes[101].spoil = stutter
    one.run()
    assert len(seen) == 3
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


def test_no_client_may_be_missing(deployed: Callable[..., Any]) -> None:
    one, _ = deployed("gap", noise_multiplier=1.0)
    one.config["timeout"] = 1.0
    one.grid.nodes[101].spoil = lambda m, r: None if m.metadata.group_id == "2" else r
    with pytest.raises(RunError, match=r"clients \[1\] are missing, and epsilon is stated for rounds in which all"):
        one.run()
    assert read_jsonl(one.folder / "results" / "metrics.jsonl")[-1]["round"] == 1


def test_secure_aggregation_is_refused(deployed: Callable[..., Any], tmp_path: Path) -> None:
    sections = private(noise_multiplier=1.0, trust="secagg")
    with pytest.raises(InputError, match=r"privacy.trust: found secagg: a deployment has no secure aggregation"):
        deploy(parse(sections), tmp_path / "app")
    assert not (tmp_path / "app").exists()
    one, _ = deployed("secagg", noise_multiplier=1.0, trust="secagg")
    with pytest.raises(InputError, match="no secure aggregation"):
        one.run()
    file = tmp_path / "secagg.yaml"
    file.write_text(parse(sections).to_yaml())
    result = CliRunner().invoke(command, ["deploy", str(file), str(tmp_path / "other")])
    assert isinstance(result.exception, InputError)
