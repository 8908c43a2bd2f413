"""One SuperLink and three SuperNodes as real processes on loopback: the bars of a deployment.

They speak TLS, and the SuperLink lets in SuperNodes with registered keys alone, as docs/deploy.md has it. All runs
share the processes, and those that only have to equal a simulation go on side by side: a message costs seconds of
polling, a SuperNode does one at a time.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flower_cluster import Cluster, is_gone, wait_for

import fedsim
from fedsim.deployment.app import deploy
from fedsim.deployment.keys import fingerprint, read_keys
from fedsim.engine.run_directory import Run, read_jsonl
from fedsim.scenario.load import parse

pytest.importorskip("flwr")
pytestmark = [pytest.mark.flower, pytest.mark.slow]

Make = Callable[..., Any]
N, SECONDS = 3, 400.0
NAMES = [*(f"client-{c}" for c in range(N)), "spare"]
LINES = {"timeout": SECONDS / 2, "wait_seconds": SECONDS / 2}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster"), names=NAMES)
    try:
        for client in range(N):
            made.supernode(client, N, delay=0.5 if client == 2 else 0.0)
        yield made
    finally:
        made.close()


def scenario(name: str, rounds: int = 2, **more: Any) -> dict[str, Any]:
    algorithm = {"name": name, "lr": 0.1, "local_epochs": 1, **more.pop("algorithm", {})}
    return {
        "name": f"deployed-{name}",
        "data": {"dataset": "digits", "clients": N, "partition": {"scheme": "dirichlet", "alpha": 0.5}},
        "model": {"name": "mlp", "hidden": [16]},
        "algorithm": {k: v for k, v in algorithm.items() if v is not None},
        "run": {"rounds": rounds, "eval_every": 1, "trace": True},
        **more,
    }


def complete(cluster: Cluster, sections: dict[str, Any], folder: Path, **config: Any) -> Run:
    """The run directory of a deployed scenario that came to its end."""
    deploy(parse(sections), folder)
    run = cluster.begin(folder, **{**LINES, **config})
    assert cluster.finish(run, SECONDS) == ("finished:completed", "N/A")
    return Run(folder / "results")


EQUAL = [
    scenario("fedavg", participation={"mode": "synchronous", "clients_per_round": 2}),
    scenario("fedspeed"),
    scenario(
        "diff2",
        participation={"mode": "synchronous"},
        privacy={"mechanism": "gaussian", "noise_multiplier": 0.0},
        algorithm={"local_epochs": None, "batch_size": "full", "clip_norm": 1.0, "difference_clip": 1.0},
    ),
    scenario(
        "dspodfl",
        topology={"graph": "ring"},
        participation={"mode": "gossip", "compute": 0.7, "links": 0.7},
        algorithm={"local_epochs": None},
    ),
]


NOT_USED = re.compile(r"SuperNode \d+ is not used: its key is not that of client 1 \(client-keys\)")


def _ended(cluster: Cluster) -> str:
    """What the SuperLink says of tasks that are over."""
    return "\n".join(re.findall(r"Finished task .*", cluster.log("superlink")))


@pytest.fixture(scope="module")
def finished(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[tuple[str, str], Run]]:
    """How each of `EQUAL` ended, and its run directory; in the first, somebody else says that it is client 1."""
    runs = {}
    cluster.supernode(1, N, name="spare")
    wait_for(lambda: "SuperNode ID" in cluster.log("spare"))  # before a run begins that may be over soon
    for sections in EQUAL:
        folder = tmp_path_factory.mktemp("apps") / "app"
        deploy(parse(sections), folder)
        run = cluster.begin(folder, **LINES, client_keys=str(cluster.folder))
        runs[sections["name"]] = folder, run
        if "spare" in cluster.processes:  # an answer of a node that is gone before the server has read it is lost
            wait_for(lambda run=run: NOT_USED.search(cluster.flwr_log(run)) or f"of run {run}" in _ended(cluster))
            cluster.end("spare")
    return {n: (cluster.finish(run, SECONDS), Run(folder / "results")) for n, (folder, run) in runs.items()}


@pytest.mark.parametrize("sections", EQUAL, ids=lambda s: s["algorithm"]["name"])
def test_a_deployment_equals_the_simulation(sections: dict[str, Any], finished: Any, tmp_path: Path) -> None:
    simulated = fedsim.run(sections, out=tmp_path / "simulated")
    ended, deployed = finished[sections["name"]]
    assert ended == ("finished:completed", "N/A")
    assert float((deployed.params - simulated.params).abs().max()) < 1e-6
    for row, other in zip(deployed.trace, simulated.trace, strict=True):
        assert {k: v for k, v in row.items() if k != "time"} == {k: v for k, v in other.items() if k != "time"}


@pytest.mark.parametrize("sections", EQUAL, ids=lambda s: s["algorithm"]["name"])
def test_a_place_belongs_to_a_key(sections: dict[str, Any], finished: Any, cluster: Cluster) -> None:
    deployed = finished[sections["name"]][1]
    facts = json.loads((deployed.dir / "deployment.json").read_text())
    keys = read_keys(cluster.folder, N)
    assert {c["client"]: c["key"] for c in facts["clients"]} == {c: fingerprint(keys[c]) for c in range(N)}
    if sections is EQUAL[0]:
        assert NOT_USED.search(cluster.flwr_log(facts["run"]))


def test_fedfix_takes_what_has_arrived(cluster: Cluster, tmp_path: Path) -> None:
    window = 10.0
    sections = scenario("fedavg", rounds=3, participation={"mode": "fixed_interval", "window": window})
    deployed = complete(cluster, sections, tmp_path / "app")
    late = [row["time"] - window * (i + 1) for i, row in enumerate(deployed.trace)]
    assert len(late) == 3
    assert min(late) >= 0.0  # never before the window is over; how soon after it is the machine's
    came = [c for row in deployed.trace for c in row["clients"]]
    assert came
    loss = deployed.metrics["train_loss"]
    assert loss.iloc[-1] < loss.iloc[0]


def test_a_killed_supernode_and_a_killed_worker_come_back(cluster: Cluster, tmp_path: Path) -> None:
    """Killed in the middle of a round: SCAFFOLD's state is on the disk, the numbers do not change."""
    sections = scenario("scaffold", rounds=3)
    simulated = fedsim.run(sections, out=tmp_path / "simulated")
    deploy(parse(sections), tmp_path / "app")
    run = cluster.begin(tmp_path / "app", **LINES)
    replies = tmp_path / "app" / "results" / "replies.jsonl"
    places = [cluster.folder / f"disk-{c}" / run / f"client-{c}" for c in range(N)]

    def worker(client: int) -> int:
        return int(json.loads((places[client] / "worker.json").read_text())["pid"])

    wait_for(lambda: replies.exists() and len(read_jsonl(replies)) >= N)  # until the first round is through
    beside = worker(1)
    cluster.end("client-1", signal.SIGKILL)
    wait_for(lambda: is_gone(beside))
    wait_for((places[2] / "round-2.safetensors").exists)  # its job waits for the node's `delay` now
    killed = worker(2)
    os.kill(killed, signal.SIGKILL)
    cluster.supernode(1, N, name="spare")  # a killed one's key is in use until Flower notices, after about a minute
    assert cluster.finish(run, SECONDS) == ("finished:completed", "N/A")
    deployed = Run(tmp_path / "app" / "results")
    assert float((deployed.params - simulated.params).abs().max()) < 1e-6
    troubles = [r for r in read_jsonl(replies) if r["status"] != "ok"]
    assert {r["client"] for r in troubles} == {1}
    facts = json.loads((deployed.dir / "deployment.json").read_text())
    assert len(facts["clients"]) == N
    assert worker(1) != beside
    assert worker(2) != killed
    for c in range(N):  # the workers of earlier runs ended when this one greeted
        names = list((cluster.folder / f"disk-{c}").glob("*/*/worker.json"))
        assert names == [places[c] / "worker.json"]
    last = [worker(c) for c in range(N)]
    cluster.close()
    for pid in last:
        wait_for(lambda pid=pid: is_gone(pid))  # type: ignore[misc]
