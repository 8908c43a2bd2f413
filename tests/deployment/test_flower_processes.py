"""One SuperLink and four SuperNodes as real processes on loopback: the bars of a deployment.

They speak TLS, and the SuperLink lets in SuperNodes with registered keys alone, as docs/deploy.md has it. All runs
share the processes, and those that only have to equal a simulation go on two at a time: a message costs seconds of
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

import own_tables
import pandas
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
N, SECONDS = 4, 400.0
NAMES = [*(f"client-{c}" for c in range(N)), "spare"]
LINES = {"timeout": SECONDS / 2, "wait_seconds": SECONDS / 2}
AWAY = 2.0  # seconds that rounds wait for a client that is not connected


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster"), names=NAMES)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def gathering(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    """A run that begins with clients 0 and 3, is joined later by 1 and never by 2, and what its log says.

    It is stopped when it has shown that; after it all clients are there.
    """
    folder = tmp_path_factory.mktemp("gathering") / "app"
    for client in (0, 3):
        cluster.supernode(client, N)
    deploy(parse(scenario("fedavg", rounds=200)), folder)
    run = cluster.begin(folder, **LINES, min_clients=2, away_seconds=AWAY)
    trace = folder / "results" / "trace.jsonl"
    wait_for(lambda: trace.exists() and len(read_jsonl(trace)) >= 2, SECONDS)
    cluster.supernode(1, N)
    wait_for(lambda: any(1 in row["clients"] for row in read_jsonl(trace)), SECONDS)
    said = cluster.flwr_log(run)
    cluster.flwr("stop", run, cluster.name)
    wait_for(lambda: cluster.status(run)[0].startswith("finished"), SECONDS)
    cluster.supernode(2, N, delay=0.5)
    return Run(folder / "results"), said


def scenario(name: str, /, rounds: int = 2, **more: Any) -> dict[str, Any]:
    algorithm = {"name": name, "lr": 0.1, "local_epochs": 1, **more.pop("algorithm", {})}
    return {
        "name": f"deployed-{name}",
        "data": {
            "dataset": "digits", "clients": N, "partition": {"scheme": "dirichlet", "alpha": 0.5},
            **more.pop("data", {}),
        },
        "model": {"name": "mlp", "hidden": [16]},
        "algorithm": {k: v for k, v in algorithm.items() if v is not None},
        "run": {"rounds": rounds, "eval_every": 1, "trace": True, **more.pop("run", {})},
        **more,
    }  # fmt: skip


def complete(cluster: Cluster, sections: dict[str, Any], folder: Path, **config: Any) -> Run:
    """The run directory of a deployed scenario that came to its end."""
    deploy(parse(sections), folder)
    run = cluster.begin(folder, **{**LINES, **config})
    assert cluster.finish(run, SECONDS) == ("finished:completed", "N/A")
    return Run(folder / "results")


EQUAL = [
    scenario("fedavg", participation={"mode": "synchronous", "clients_per_round": 2}),
    scenario("fedspeed", run={"eval_clients": "all", "eval_every": 2}, data={"local_test": 0.25}),
    scenario(
        "fedavg",
        name="adaptive-clipping",
        participation={"mode": "synchronous"},
        privacy={
            "mechanism": "dp_fedavg",
            "noise_multiplier": 0.0,
            "adaptive": {"bit_noise": 1e-9, "rate": 1.0, "initial": 0.1},
        },
    ),
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


def shown(sections: dict[str, Any]) -> str:
    return str(sections["name"]).removeprefix("deployed-")


NOT_USED = re.compile(r"SuperNode \d+ is not used: its key is not that of client 1 \(client-keys\)")


def _ended(cluster: Cluster) -> str:
    """What the SuperLink says of tasks that are over."""
    return "\n".join(re.findall(r"Finished task .*", cluster.log("superlink")))


@pytest.fixture(scope="module")
def finished(
    cluster: Cluster, gathering: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[tuple[str, str], Run]]:
    """How each of `EQUAL` ended, and its run directory; in the first, somebody else says that it is client 1."""
    del gathering  # it is over, and all clients are there
    runs: dict[str, tuple[Path, str]] = {}
    ended: dict[str, tuple[str, str]] = {}

    def finish(name: str) -> None:
        ended[name] = cluster.finish(runs[name][1], SECONDS)

    cluster.supernode(1, N, name="spare")
    wait_for(lambda: "SuperNode ID" in cluster.log("spare"))  # before a run begins that may be over soon
    for sections in EQUAL:
        folder = tmp_path_factory.mktemp("apps") / "app"
        deploy(parse(sections), folder)
        asked = {"eval": "clients"} if "eval_clients" in sections["run"] else {}
        run = cluster.begin(folder, **LINES, client_keys=str(cluster.folder), **asked)
        runs[sections["name"]] = folder, run
        if "spare" in cluster.processes:  # an answer of a node that is gone before the server has read it is lost
            wait_for((folder / "results" / "environment.json").exists)  # asking for a log takes a process each time
            wait_for(
                lambda run=run: NOT_USED.search(cluster.flwr_log(run)) or f"of run {run}" in _ended(cluster), pause=2.0
            )
            cluster.end("spare")
        if len(runs) - len(ended) > 1:  # Flower gives a process 30 s to begin; in a crowd it takes longer
            finish(next(name for name in runs if name not in ended))
    for name in runs:
        if name not in ended:
            finish(name)
    return {name: (ended[name], Run(folder / "results")) for name, (folder, _) in runs.items()}


@pytest.mark.parametrize("sections", EQUAL, ids=shown)
def test_a_deployment_equals_the_simulation(sections: dict[str, Any], finished: Any, tmp_path: Path) -> None:
    simulated = fedsim.run(sections, out=tmp_path / "simulated")
    ended, deployed = finished[sections["name"]]
    assert ended == ("finished:completed", "N/A")
    assert float((deployed.params - simulated.params).abs().max()) < 1e-6
    for row, other in zip(deployed.trace, simulated.trace, strict=True):
        assert {k: v for k, v in row.items() if k != "time"} == {k: v for k, v in other.items() if k != "time"}


@pytest.mark.parametrize("sections", EQUAL, ids=shown)
def test_a_place_belongs_to_a_key(sections: dict[str, Any], finished: Any, cluster: Cluster) -> None:
    deployed = finished[sections["name"]][1]
    facts = json.loads((deployed.dir / "deployment.json").read_text())
    keys = read_keys(cluster.folder, N)
    assert {c["client"]: c["key"] for c in facts["clients"]} == {c: fingerprint(keys[c]) for c in range(N)}
    if sections is EQUAL[0]:
        assert NOT_USED.search(cluster.flwr_log(facts["run"]))


def test_clients_evaluate_on_their_own_rows(finished: Any, tmp_path: Path) -> None:
    """Asked over the network they say what the simulation measures."""
    (sections,) = (s for s in EQUAL if "eval_clients" in s["run"])
    deployed = finished[sections["name"]][1]
    asked = [r for r in read_jsonl(deployed.dir / "replies.jsonl") if r.get("what") == "evaluate"]
    assert sorted((r["client"], r["status"]) for r in asked) == [(c, "ok") for c in range(N) for _ in (0, 2)]
    simulated = fedsim.run(sections, out=tmp_path / "simulated")
    rows, wanted = (pandas.read_parquet(r.dir / "clients.parquet") for r in (deployed, simulated))
    pandas.testing.assert_frame_equal(rows, wanted, rtol=1e-5)


def test_clip_norms_adapt(finished: Any, tmp_path: Path) -> None:
    """The first norm for good gives another model: the norm has moved, here as in the simulation."""
    (sections,) = (s for s in EQUAL if "adaptive" in s.get("privacy", {}))
    fixed = {"mechanism": "dp_fedavg", "noise_multiplier": 0.0, "clip_norm": 0.1}
    other = fedsim.run({**sections, "privacy": fixed}, out=tmp_path / "fixed")
    assert float((finished[sections["name"]][1].params - other.params).abs().max()) > 1e-3


def test_who_joins_takes_part_and_who_never_comes_is_waited_for_once(gathering: tuple[Run, str]) -> None:
    run, said = gathering
    waits = re.findall(rf"client (\d), round (\d+): it was not connected for {AWAY:g} s; it is not waited for", said)
    assert sorted(waits) == [("1", "1"), ("2", "1")]
    joined = next(i for i, row in enumerate(run.trace) if 1 in row["clients"])
    assert joined >= 2
    assert [(row["clients"], row["missing"]) for row in run.trace[:joined]] == [([0, 3], [1, 2])] * joined
    assert (run.trace[joined]["clients"], run.trace[joined]["missing"]) == ([0, 1, 3], [2])
    replies = read_jsonl(run.dir / "replies.jsonl")
    assert {r["status"] for r in replies if r["client"] == 2} == {"away"}
    assert "timeout" not in {r["status"] for r in replies}


@pytest.mark.usefixtures("finished")
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


@pytest.mark.usefixtures("finished")
def test_a_killed_supernode_and_a_killed_worker_come_back(cluster: Cluster, tmp_path: Path) -> None:
    """Killed in the middle of a round: SCAFFOLD's state is on the disk, the numbers do not change."""
    sections = scenario("scaffold", rounds=3)
    simulated = fedsim.run(sections, out=tmp_path / "simulated")
    deploy(parse(sections), tmp_path / "app")
    run = cluster.begin(tmp_path / "app", **LINES)
    replies = tmp_path / "app" / "results" / "replies.jsonl"
    places = [cluster.folder / f"disk-{c}" / run / f"client-{c}" for c in range(N)]

    def started(client: int) -> list[int]:
        return [int(n) for n in re.findall(r"worker (\d+) starts", (places[client] / "worker.log").read_text())]

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
    assert beside in started(1)[:-1]
    assert killed in started(2)[:-1]
    for pid in [started(c)[-1] for c in range(N)]:  # workers end with the run
        wait_for(lambda pid=pid: is_gone(pid))  # type: ignore[misc]
    for c in range(N):  # and those of earlier runs did so
        assert not list((cluster.folder / f"disk-{c}").glob("*/*/worker.json"))


@pytest.mark.usefixtures("gathering")
def test_own_data_equal_the_simulation_of_the_pooled_rows(cluster: Cluster, tmp_path: Path) -> None:
    """Text labels in three orders and of different sets, columns in other orders, scaled by the pooled statistics."""
    for name in set(cluster.processes) - {"superlink"}:
        cluster.end(name)
    own_tables.write_server(tmp_path)
    for client, key in enumerate(("client-0", "spare", "client-2")):  # client 1's may be in use: it was killed
        own = own_tables.write_own(tmp_path, client)
        cluster.supernode(client, len(own_tables.SIZES), name=key, own_data=str(own))
    deployed = complete(cluster, own_tables.sections(tmp_path), tmp_path / "app")
    simulated = fedsim.run(own_tables.pooled(tmp_path, {}), out=tmp_path / "simulated")
    assert float((deployed.params - simulated.params).abs().max()) < 1e-12
    assert json.loads((deployed.dir / "data.json").read_text())["target"]["classes"] == sorted(own_tables.KINDS)
    assert json.loads((deployed.dir / "agreed.json").read_text())["sizes"] == list(own_tables.SIZES)
