"""The worker beside a SuperNode as a real process: what it computes, how it is replaced, when it ends."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from flower_cluster import is_gone, wait_for

import fedsim
from fedsim.core.errors import RunError
from fedsim.deployment import link as deploy_link
from fedsim.deployment.flower.records import Order
from fedsim.deployment.link import NAME, Spec, ask, release, retire
from fedsim.deployment.node_config import NodeConfig
from fedsim.deployment.work import Client
from fedsim.scenario.load import parse

Make = Callable[..., Any]
ORDER = Order("1", 0, 5, 1, 1, 0, 0)


@pytest.fixture
def supernode() -> Iterator[subprocess.Popen[bytes]]:
    """A process whose end is the workers' too."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def spec(tmp_path: Path, quadratic: Make, supernode: subprocess.Popen[bytes]) -> Spec:
    scenario = {
        "data": quadratic(n=2, d=3).section(),
        "algorithm": {"name": "scaffold", "lr": 0.1},
        "run": {"dtype": "float64", "device": "cpu"},
    }
    file = tmp_path / "scenario.yaml"
    file.write_text(parse(scenario).to_yaml())
    node = {"partition-id": 0, "num-partitions": 2, "state-dir": str(tmp_path / "disk")}
    return Spec(str(file), [], node, "1", [os.getpid(), supernode.pid], fedsim.__version__)


def folder(spec: Spec) -> Path:
    return NodeConfig.read(spec.node).folder(spec.run)


def pid(spec: Spec) -> int:
    return int(json.loads((folder(spec) / NAME).read_text())["pid"])


def sent(x: float = 1.0) -> dict[str, Any]:
    return {"x": np.full(3, x), "c": np.zeros(3)}


def work(spec: Spec, order: Order = ORDER, **node: Any) -> dict[str, Any]:
    keys = {k.replace("_", "-"): v for k, v in node.items()}
    return ask(replace(spec, node={**spec.node, **keys}), "train", order, sent())[1]


def in_this_process(spec: Spec, tmp_path: Path, order: Order = ORDER) -> dict[str, Any]:
    node = NodeConfig.read({**spec.node, "state-dir": str(tmp_path / "another")})
    return Client(fedsim.load(spec.scenario), node, "1").work(order, sent())[1]


def start(spec: Spec, **node: Any) -> int:
    """A worker without a job: it does not import torch before the first one."""
    keys = {k.replace("_", "-"): v for k, v in node.items()}
    place = folder(spec)
    place.mkdir(parents=True, exist_ok=True)
    connection, name = deploy_link._connected(place, replace(spec, node={**spec.node, **keys}))
    connection.close()
    return int(name["pid"])


def test_its_numbers_are_those_of_the_work_done_here(spec: Spec, tmp_path: Path) -> None:
    greeting, nothing = ask(spec, "hello", replace(ORDER, client=-1), {})
    assert nothing == {}
    assert (greeting["client"], greeting["clients"], greeting["scenario"]) == (0, 2, fedsim.load(spec.scenario).hash())
    first = pid(spec)
    record, made = ask(spec, "train", ORDER, sent())
    assert (record["client"], record["number"]) == (0, 5)
    here = in_this_process(spec, tmp_path)
    assert set(made) == set(here)
    for name, value in made.items():
        assert value.dtype == np.float64
        assert np.array_equal(value, here[name])
    assert pid(spec) == first
    assert sorted(f.name for f in folder(spec).glob("round-*")) == ["round-1.safetensors"]


def test_only_its_owner_can_reach_it(spec: Spec) -> None:
    number = start(spec)
    name = json.loads((folder(spec) / NAME).read_text())
    assert stat.S_IMODE((folder(spec) / NAME).stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(name["address"]).parent.stat().st_mode) == 0o700
    with deploy_link.Client(name["address"]) as connection:  # and not without the key
        connection.send_bytes(json.dumps({"what": "train", "order": asdict(ORDER), "key": "0" * 64}).encode())
        with pytest.raises(EOFError):
            connection.recv_bytes()
    with deploy_link.Client(name["address"]) as connection:
        connection.send_bytes(b"rubbish")
        with pytest.raises(EOFError):
            connection.recv_bytes()
    assert start(spec) == number


@pytest.mark.parametrize("moment", ["before", "during"])
def test_killed_it_is_replaced_and_the_job_done_again(moment: str, spec: Spec, tmp_path: Path) -> None:
    expected = in_this_process(spec, tmp_path)
    slow = replace(spec, node={**spec.node, "delay": 0.0 if moment == "before" else 4.0})
    if moment == "before":
        work(slow)
        first = pid(slow)
        os.kill(first, signal.SIGKILL)
    else:
        code = "import sys, time, os, json, signal, pathlib\nname = pathlib.Path(sys.argv[1])\n"
        code += "while not (name.parent / 'round-1.safetensors').exists(): time.sleep(0.01)\n"
        code += "found = json.loads(name.read_text())['pid']; print(found); os.kill(found, signal.SIGKILL)"
        killer = subprocess.Popen(
            [sys.executable, "-c", code, str(folder(slow) / NAME)], stdout=subprocess.PIPE, text=True
        )
    made = ask(slow, "train", ORDER, sent())[1]
    if moment == "during":
        first = int(killer.communicate(timeout=240)[0])
    assert pid(slow) != first
    assert is_gone(first)
    assert all(np.array_equal(made[k], expected[k]) for k in expected)
    places = [f"worker {n} starts" for n in (first, pid(slow))]
    log = (folder(slow) / "worker.log").read_text()
    assert all(p in log for p in places)


def test_one_that_is_silent_is_replaced(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    work(spec)
    first = pid(spec)
    os.kill(first, signal.SIGSTOP)
    start = deploy_link._start

    def patient(*given: Any) -> None:
        monkeypatch.setattr(deploy_link, "_SILENCE", 120.0)
        start(*given)

    monkeypatch.setattr(deploy_link, "_start", patient)
    monkeypatch.setattr(deploy_link, "_SILENCE", 3.0)
    made = work(spec)
    assert set(made)
    assert is_gone(first)
    assert pid(spec) != first


def test_one_that_always_dies_is_an_error_that_names_its_log(
    spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sockets").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "sockets"))
    (tmp_path / "deadly.py").write_text(
        "import os, sys\nfrom dataclasses import dataclass\nfrom fedsim.algorithms.fedavg import FedAvg\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Deadly(FedAvg):\n    def direction(self, *a):\n"
        "        print('goodbye', file=sys.stderr, flush=True)\n        os._exit(7)\n"
    )
    document = yaml.safe_load(Path(spec.scenario).read_text())
    Path(spec.scenario).write_text(yaml.safe_dump({**document, "algorithm": {"name": "deadly:Deadly", "lr": 0.1}}))
    with pytest.raises(RunError, match=r"the worker of client 0 ended twice at this job; its log .*: .*goodbye"):
        ask(spec, "train", ORDER, {"x": np.ones(3)})
    assert list(tmp_path.glob("sockets/*")) == []


def test_errors_come_back_with_their_type_and_the_next_job_is_done(spec: Spec) -> None:
    with pytest.raises(RunError) as caught:
        work(spec, replace(ORDER, round=9, builds_on=8))
    assert str(type(caught.value)) == "<class 'fedsim.core.errors.RunError'>"
    assert "this client's state after round 8 is lost" in str(caught.value)
    assert "_restore" in caught.value.__notes__[0]
    number = pid(spec)
    with pytest.raises(RunError, match="a job of client 1 was sent to client 0") as caught:
        work(spec, replace(ORDER, client=1))
    assert str(type(caught.value)) == "<class 'fedsim.deployment.flower.records.BadRecord'>"
    work(spec)
    assert pid(spec) == number


def test_wrong_input_is_named_as_without_a_worker(spec: Spec) -> None:
    with pytest.raises(RunError, match=r"--node-config: own-data.file: no file or folder /nowhere$") as caught:
        work(spec, own_data="/nowhere")
    assert str(type(caught.value)) == "<class 'fedsim.core.errors.InputError'>"


def test_it_ends_with_its_supernode(spec: Spec, supernode: subprocess.Popen[bytes]) -> None:
    number, place = start(spec), Path(json.loads((folder(spec) / NAME).read_text())["address"]).parent
    supernode.kill()  # nobody takes note of its end before the test is over
    wait_for(lambda: is_gone(number))
    assert not (folder(spec) / NAME).exists()
    assert not place.exists()


def test_it_ends_when_nothing_is_asked(spec: Spec) -> None:
    number = start(spec, idle_seconds=5)
    wait_for(lambda: is_gone(number))
    first, last = (folder(spec) / "worker.log").read_text().splitlines()
    assert last.endswith(f"worker {number} ends: no job for 5 s")
    begun, ended = (datetime.fromisoformat(line[:19]) for line in (first, last))
    assert (ended - begun).seconds >= 4
    assert start(spec, idle_seconds=5) != number


def test_it_ends_when_its_folder_goes(spec: Spec) -> None:
    number = start(spec)
    folder(spec).rename(folder(spec).with_name("elsewhere"))
    wait_for(lambda: is_gone(number))


def test_it_ends_when_who_asked_is_gone(spec: Spec) -> None:
    """As without a worker: the work of a message ends with its process."""
    code = (
        "import sys, json, numpy as np; from fedsim.deployment.link import Spec, ask; "
        "from fedsim.deployment.flower.records import Order; "
        "ask(Spec(**json.loads(sys.argv[1])), 'train', Order('1', 0, 5, 1, 1, 0, 0), "
        "{'x': np.ones(3), 'c': np.zeros(3)})"
    )
    slow = replace(spec, node={**spec.node, "delay": 60.0})
    asker = subprocess.Popen([sys.executable, "-c", code, json.dumps(asdict(slow))])
    wait_for(lambda: (folder(spec) / "round-1.safetensors").exists())
    number = pid(slow)
    asker.kill()
    asker.wait()
    wait_for(lambda: is_gone(number))


@pytest.mark.parametrize(
    "change",
    [{"settings": ["algorithm.lr=0.7"]}, {"version": "0.0"}, {"scenario": "other.yaml"}],
    ids=lambda c: next(iter(c)),
)
def test_for_something_else_it_is_replaced(change: dict[str, Any], spec: Spec) -> None:
    number = start(spec)
    assert start(spec) == number
    assert start(replace(spec, **change)) != number
    wait_for(lambda: is_gone(number))


def test_settings_count(spec: Spec) -> None:
    other = replace(spec, settings=["algorithm.lr=0.7"])
    expected = fedsim.load(spec.scenario, ["algorithm.lr=0.7"]).hash()
    assert ask(other, "hello", ORDER, {})[0]["scenario"] == expected != fedsim.load(spec.scenario).hash()


def test_messages_at_the_same_time_start_one_worker(spec: Spec) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: start(spec), range(4)))) == 1
    assert (folder(spec) / "worker.log").read_text().count("starts") == 1


def test_a_new_run_ends_the_workers_of_others_and_forgets_the_oldest(spec: Spec) -> None:
    node = NodeConfig.read({**spec.node, "keep-runs": 2})
    for run in ("1", "2", "3", "4"):
        one = node.folder(run)
        one.mkdir(parents=True)
        (one / "data.safetensors").write_bytes(b"x")
        (one / "round-3.safetensors").write_bytes(b"x")
    (node.folder("2") / "mine.txt").write_text("not fedsim's")
    (node.state_dir / "3" / "client-1").mkdir()
    number = start(spec)
    for run in ("1", "2", "3", "4"):
        os.utime(node.folder(run), (int(run), int(run)))
    retire(node, "5")
    left = {f.name: sorted(g.name for g in (f / "client-0").glob("*")) for f in node.state_dir.iterdir()}
    assert set(left) == {"1", "2", "3", "4", "5"}
    assert left["2"] == ["mine.txt"]
    assert left["3"] == left["4"] == ["data.safetensors", "round-3.safetensors"]
    assert "round-3.safetensors" in left["1"]  # its worker was alive a moment ago
    wait_for(lambda: is_gone(number))
    os.utime(node.folder("1"), (1, 1))
    (node.folder("5") / "noise.key").write_text("7")
    retire(node, "6")
    assert {f.name for f in node.state_dir.iterdir()} == {"2", "3", "4", "5", "6"}
    assert [f.name for f in (node.state_dir / "3").iterdir()] == ["client-1"]


def test_a_worker_ends_with_the_last_job_of_its_client(spec: Spec, tmp_path: Path) -> None:
    """Its answer is that of any job; one that comes after all finds another worker, and the state on the disk."""
    number = start(spec)
    assert pid(spec) == number
    answer = work(spec, replace(ORDER, ends=True))
    assert not (folder(spec) / NAME).exists()
    wait_for(lambda: is_gone(number))
    for k, v in in_this_process(spec, tmp_path).items():
        assert np.array_equal(answer[k], v)
    again = work(spec, replace(ORDER, ends=True))
    assert all(np.array_equal(again[k], v) for k, v in answer.items())
    assert (folder(spec) / "worker.log").read_text().count("starts") == 2


def test_a_worker_ends_when_the_run_is_over(spec: Spec) -> None:
    number = start(spec)
    release(NodeConfig.read(spec.node), "another")
    assert pid(spec) == number
    release(NodeConfig.read(spec.node), spec.run)
    wait_for(lambda: is_gone(number))
    release(NodeConfig.read(spec.node), spec.run)


def test_a_message_finds_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from fedsim.deployment.client import make_client_app; make_client_app('x.yaml'); "
        "print([m for m in ('torch', 'pandas', 'networkx', 'yaml', 'scipy', 'ray') if m in sys.modules])"
    )
    pytest.importorskip("flwr")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]"


def test_a_worker_evaluates_its_client(tmp_path: Path, supernode: subprocess.Popen[bytes]) -> None:
    scenario = {
        "data": {"dataset": "digits", "clients": 2, "limit": 60, "local_test": 0.3},
        "model": {"name": "linear"},
        "algorithm": {"name": "fedavg", "lr": 0.1},
        "run": {"dtype": "float64", "device": "cpu", "metrics": [{"name": "auc"}]},
    }
    (tmp_path / "scenario.yaml").write_text(parse(scenario).to_yaml())
    node = {"partition-id": 1, "num-partitions": 2, "state-dir": str(tmp_path / "disk")}
    keepers = [os.getpid(), supernode.pid]
    spec = Spec(str(tmp_path / "scenario.yaml"), [], node, "1", keepers, fedsim.__version__)
    order, x = Order("1", 1, 0, 0, 0, 0, 0), {"x": np.random.default_rng(0).normal(size=650)}
    told, arrays = ask(spec, "evaluate", order, x)
    here = NodeConfig.read({**node, "state-dir": str(tmp_path / "another")})
    verdict, samples, values = Client(fedsim.load(spec.scenario), here, "1").evaluate(order, x)
    assert (told["samples"], arrays) == (samples, {}) == (9, {})
    assert told["metrics"] == pytest.approx(values, nan_ok=True)
    assert {k: told["verdict"][k] for k in ("client", "round", "targets")} == {"client": 1, "round": 0, "targets": 9}
    assert verdict.targets == 9
