"""A deployment's rounds are the simulation's: every algorithm, through Flower's records and the client's disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flower_loopback import Deployment

import fedsim
from fedsim.core.registry import lookup, names
from fedsim.engine.run_directory import read_jsonl

pytest.importorskip("flwr")
Make = Callable[..., Any]
N = 4
DIGITS = {"dataset": "digits", "clients": N, "limit": 400, "partition": {"scheme": "dirichlet", "alpha": 0.5}}


def sections(name: str, data: dict[str, Any], rounds: int = 5, **more: Any) -> dict[str, Any]:
    """A scenario in which clients work unequally and not all of them in every round."""
    kind = lookup("algorithm", name)
    gossip = kind.setting == "gossip"
    made: dict[str, Any] = {
        "name": name,
        "data": data,
        "algorithm": {"name": name, "lr": 0.05, "batch_size": 8},
        "participation": {"mode": "synchronous", "clients_per_round": 3},
        "run": {"rounds": rounds, "dtype": "float64", "eval_every": 2, "trace": True, "device": "cpu"},
    }
    if name == "ef21_w":  # a client does not know the data of the others
        made["algorithm"]["smoothness"] = [1.0, 2.0, 0.5, 1.5]
    if kind().needs.adversary:  # its inputs have to be images
        made |= {
            "data": {"dataset": "digits", "clients": N, "limit": 60},
            "adversary": {"eps": 0.1, "steps": 2, "random_start": True, "attack_on": "received"},
        }
    if gossip:
        links = 1.0 if kind.needs.compression == "copies" else 0.7  # copies that neighbours keep need every message
        made |= {"topology": {"graph": "ring"}, "participation": {"mode": "gossip", "compute": 0.6, "links": links}}
    if "file" not in made["data"]:
        made["model"] = {"name": "mlp", "hidden": [6]}
    return {**made, **more}


def fits(name: str) -> bool:
    """Whether the algorithm runs in synchronous rounds of some clients; others have tests of their own."""
    algorithm = lookup("algorithm", name)()
    needs = algorithm.needs
    if needs.alone is not None:  # chains stay in one process, and baselines send nothing
        return False
    return (needs.modes is None or "synchronous" in needs.modes) and needs.everyone is None and not needs.flows


@pytest.mark.parametrize("name", [n for n in names("algorithm") if fits(n)])
def test_every_algorithm_deploys(name: str, tmp_path: Path, quadratic: Make) -> None:
    scenario = sections(name, quadratic(n=N, d=3).section(noise=0.2))
    simulated = fedsim.run(scenario, out=tmp_path / "simulated")
    deployed = Deployment(tmp_path / "app", scenario, N).run()
    assert torch.equal(deployed.params, simulated.params)
    assert bool((deployed.params != simulated.params[0]).any())
    for row, other in zip(deployed.trace, simulated.trace, strict=True):
        assert {k: v for k, v in row.items() if k != "time"} == {k: v for k, v in other.items() if k != "time"}
    clocks = ["time", "wall"]
    assert deployed.metrics.drop(columns=clocks).equals(simulated.metrics.drop(columns=clocks))


@pytest.mark.parametrize("algorithm", [{"name": "dadao"}, {"name": "acid", "lr": 0.05, "momentum": 0.5}], ids=str)
def test_nodes_that_flow_deploy(algorithm: dict[str, Any], tmp_path: Path, quadratic: Make) -> None:
    scenario = {
        **sections("dspodfl", quadratic(n=N, d=3).section(noise=0.2)),
        "algorithm": algorithm, "participation": {"mode": "poisson"},
    }  # fmt: skip
    simulated = fedsim.run(scenario, out=tmp_path / "simulated")
    deployed = Deployment(tmp_path / "app", scenario, N).run()
    assert torch.equal(deployed.params, simulated.params)
    assert [row["events"] for row in deployed.trace] == [row["events"] for row in simulated.trace]


@pytest.mark.parametrize("name", ["fedavg", "scaffold", "feddyn", "dspodfl"])
def test_on_data_each_client_reads_its_own_share(name: str, tmp_path: Path) -> None:
    scenario = sections(name, DIGITS)
    simulated = fedsim.run(scenario, out=tmp_path / "simulated")
    app = Deployment(tmp_path / "app", scenario, N)
    deployed = app.run()
    assert float((deployed.params - simulated.params).abs().max()) < 1e-12
    for c in range(N):
        held = app.folder / f"disk-{c}" / "1" / f"client-{c}" / "data.safetensors"
        assert held.stat().st_size < 400 * 65 * 8 * 0.8  # a share, not the whole set


@pytest.mark.parametrize(
    ("algorithm", "attack"),
    [("fedavg", {"name": "backdoor", "attackers": [1, 2], "target": 3}), ("dspodfl", {"name": "label_flip",
     "attackers": [2]})],
)  # fmt: skip
def test_clients_that_poison_their_data(algorithm: str, attack: dict[str, Any], tmp_path: Path) -> None:
    """Deployed attackers change their own rows, and what is measured is what the simulation measures of the honest."""
    scenario = sections(algorithm, DIGITS, attack=attack)
    simulated = fedsim.run(scenario, out=tmp_path / "simulated")
    deployed = Deployment(tmp_path / "app", scenario, N).run()
    assert torch.equal(deployed.params, simulated.params)
    assert not torch.equal(fedsim.run(sections(algorithm, DIGITS), out=tmp_path / "honest").params, simulated.params)
    assert [row["attackers"] for row in deployed.trace] == [row["attackers"] for row in simulated.trace]
    for column in {"test_accuracy", "test_loss", "attack_success", "node_accuracy_min"} & set(simulated.metrics):
        assert deployed.metrics[column].equals(simulated.metrics[column])


@pytest.mark.parametrize("name,files", [("fedavg", 0), ("scaffold", 1)])
def test_state_stays_on_the_clients_disk(name: str, files: int, tmp_path: Path, quadratic: Make) -> None:
    scenario = sections(name, quadratic(n=N, d=3).section(), participation={"mode": "synchronous"})
    app = Deployment(tmp_path / "app", scenario, N)
    app.run()
    for c in range(N):
        folder = app.folder / f"disk-{c}" / "1" / f"client-{c}"
        kept = sorted(f.name for f in folder.glob("round-*"))
        assert kept == (["round-4.safetensors", "round-5.safetensors"] if files else [])
    sent = {k for m in app.grid.pushed for k in m.content.get("arrays", {})}
    assert sent == ({"x", "c"} if files else {"x"})  # what clients keep never travels


@pytest.mark.parametrize("name,sent", [("dspodfl", {"delta"}), ("dfedavg", {"x"}), ("gradient_tracking", {"x", "y"})])
def test_a_node_sends_nothing_that_it_was_just_sent(name: str, sent: set[str], tmp_path: Path, quadratic: Make) -> None:
    """One array of d numbers per vector that is new, and none of what the server sent."""
    mode = {"mode": "gossip"} if name == "gradient_tracking" else {"mode": "gossip", "compute": 0.6, "links": 0.7}
    scenario = sections(name, quadratic(n=N, d=3).section(noise=0.2), participation=mode)
    app = Deployment(tmp_path / "app", scenario, N)
    answers: list[dict[str, int]] = []

    def measure(message: Any, reply: Any) -> Any:
        if message.metadata.group_id:
            answers.append({k: v.numpy().nbytes for k, v in reply.content["arrays"].items()})
        return reply

    for node in app.grid.nodes.values():
        node.spoil = measure
    deployed = app.run()
    assert len(answers) >= N
    assert {k for answer in answers for k in answer} == sent
    assert {size for answer in answers for size in answer.values()} == {3 * 8}
    assert torch.equal(deployed.params, fedsim.run(scenario, out=tmp_path / "simulated").params)


def test_a_run_is_continued_where_its_checkpoint_is(tmp_path: Path, quadratic: Make) -> None:
    scenario = sections("scaffold", quadratic(n=N, d=3).section(noise=0.2), rounds=8)
    simulated = fedsim.run(scenario, out=tmp_path / "simulated")
    app = Deployment(tmp_path / "app", scenario, N)
    app.run(settings="run.rounds=3")
    # Two rounds after the checkpoint are lost with the server; the clients have done them.
    checkpoint = {f: f.read_bytes() for f in (app.folder / "results" / "checkpoint").iterdir()}
    app.run(run="2", settings="run.rounds=5 run.checkpoint_seconds=1e6", checkpoint="seconds", resume=True)
    for file, content in checkpoint.items():
        file.write_bytes(content)
    (app.folder / "results" / "params.safetensors").unlink()
    resumed = app.run(run="3", settings="run.rounds=8", resume=True)
    assert resumed.resumed_at == 3
    assert torch.equal(resumed.params, simulated.params)
    assert {f.name for f in (app.folder / "disk-0").iterdir()} == {"1"}  # one run, whatever Flower calls it


def test_lost_state_is_refused_unless_told_otherwise(
    tmp_path: Path, quadratic: Make, caplog: pytest.LogCaptureFixture
) -> None:
    scenario = sections("scaffold", quadratic(n=N, d=3).section(), participation={"mode": "synchronous"})
    app = Deployment(tmp_path / "app", scenario, N)

    def forget(message: Any) -> None:
        if message.metadata.dst_node_id == 102 and message.metadata.group_id == "3":
            for file in app.folder.glob("disk-2/*/client-2/round-*"):
                file.unlink()

    app.grid.on_push = lambda grid, message: forget(message)  # noqa: ARG005
    app.config["on-failure"] = "drop"
    app.run()
    rows = read_jsonl(app.folder / "results" / "replies.jsonl")
    bad = [r for r in rows if r["status"] == "error"]
    assert [r["round"] for r in bad] == [3, 4, 5]
    assert "state after round 2 is lost" in bad[0]["reason"]
    app.grid.nodes[102].config["lost-state"] = "fresh"
    assert "began anew" not in caplog.text
    app.run(run="9")
    assert all(r["status"] == "ok" for r in read_jsonl(app.folder / "results" / "replies.jsonl"))
    anew = [r.getMessage() for r in caplog.records if "began anew" in r.getMessage()]
    assert anew == ["round 3: client 2 lost what it kept and began anew (its lost-state is fresh)"]


def test_what_the_run_directory_says_of_the_deployment(tmp_path: Path, quadratic: Make) -> None:
    scenario = sections("fedavg", quadratic(n=N, d=3).section(), rounds=2)
    run = Deployment(tmp_path / "app", scenario, N).run()
    facts = json.loads((run.dir / "deployment.json").read_text())
    assert [c["client"] for c in facts["clients"]] == list(range(N))
    rows = read_jsonl(run.dir / "replies.jsonl")
    assert [(r["round"], r["client"]) for r in rows] == [(t["round"], c) for t in run.trace for c in t["clients"]]
    assert all(0 < r["work"] <= r["seconds"] for r in rows)
    assert np.all(np.diff(run.metrics["time"]) > 0)
