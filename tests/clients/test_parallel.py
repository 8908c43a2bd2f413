"""Chunks side by side: the numbers are those of one thread, bit for bit, for any number of threads."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fedsim
from fedsim.clients import parallel
from fedsim.clients.parallel import InTurn
from fedsim.core import crew
from fedsim.core.types import State

CLIENTS = 11


class Residual(nn.Module):
    """No chain: it runs under vmap."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(144, 300), nn.Linear(300, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.first(x.flatten(1)))
        out: torch.Tensor = self.last(h + torch.sin(h))
        return out


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("images") / "images.npz"
    x, y = random.normal(size=(1500, 1, 12, 12)).astype(np.float32), random.integers(0, 10, 1500)
    np.savez(file, x_train=x, y_train=y, x_test=x[:1100], y_test=y[:1100])
    return file


MLP: dict[str, Any] = {"name": "mlp", "hidden": [300]}
CASES: dict[str, dict[str, Any]] = {
    "mlp": {"model": MLP, "algorithm": {"name": "fedavg", "local_epochs": 1}},
    "ragged": {
        "model": MLP,
        "algorithm": {"name": "fedavg", "local_steps": {"uniform": [1, 6]}, "momentum": 0.5},
        "partition": {"scheme": "dirichlet", "alpha": 0.5},
    },
    "state": {"model": MLP, "algorithm": {"name": "scaffold", "local_steps": 2}},
    "state on disk": {
        "model": MLP,
        "algorithm": {"name": "scaffold", "local_steps": 2},
        "run": {"client_state": "disk"},
    },
    "roles": {"model": MLP, "algorithm": {"name": "fedamd", "local_steps": 2, "anchor_probability": 0.5}},
    "cnn": {
        "model": {"name": "cnn", "channels": [4, 8], "hidden": 32},
        "algorithm": {"name": "fedavg", "local_steps": 2, "batch_size": 60},
    },
    "cnn in chunks": {
        "model": {"name": "cnn", "channels": [16, 32], "hidden": 256},
        "algorithm": {"name": "fedavg", "local_steps": 1},
        "run": {"chunk_rows": 4},
    },
    "vmap": {"model": {"name": f"{__name__}:Residual"}, "algorithm": {"name": "fedavg", "local_steps": 2}},
    "vmap per sample": {
        "model": {"name": f"{__name__}:Residual"},
        "algorithm": {"name": "fedavg", "local_steps": 2, "batch_size": 16},
        "privacy": {"mechanism": "dp_sgd", "noise_multiplier": 1.0, "clip_norm": 1.0, "sampling_rate": 0.05},
    },
    "one client": {
        "model": {"name": "cnn", "channels": [16, 32], "hidden": 1500},
        "algorithm": {"name": "fedavg", "local_steps": 2, "batch_size": 60},
        "clients": 1,
    },
    "one client, ragged": {
        "model": {"name": "cnn", "channels": [16, 32], "hidden": 1500},
        "algorithm": {"name": "fedavg", "local_epochs": 1, "batch_size": 1001, "momentum": 0.5},
        "clients": 1,
    },
    "softmax on a graph": {
        "model": {"name": "mlp", "hidden": [1500]},
        "algorithm": {"name": "dpsgd", "batch_size": 8},
        "topology": {"graph": "ring"},
        "run": {"chunk_rows": 100},
    },
}


def settings(images: Path, case: dict[str, Any], threads: int) -> dict[str, Any]:
    algorithm = {"lr": 0.05, "batch_size": 32, **case["algorithm"]}
    if "privacy" in case:
        del algorithm["batch_size"]
    return {
        "data": {
            "dataset": "npz",
            "path": str(images),
            "clients": case.get("clients", CLIENTS),
            **({"partition": case["partition"]} if "partition" in case else {}),
        },
        "model": case["model"],
        "algorithm": algorithm,
        **{k: case[k] for k in ("topology", "privacy") if k in case},
        "run": {
            "rounds": 3,
            "eval_every": 1,
            "chunk_rows": 8,
            "device": "cpu",
            "threads": threads,
            **case.get("run", {}),
        },
    }


def outcome(run: Any) -> tuple[list[dict[str, Any]], torch.Tensor]:
    lines = (run.dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{k: v for k, v in json.loads(line).items() if k != "wall"} for line in lines]
    return rows, run.params


@pytest.mark.parametrize("name", CASES)
def test_numbers_do_not_depend_on_the_number_of_threads(
    name: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: set[int] = set()
    monkeypatch.setattr(parallel, "_LEAST_BYTES", 2**16)  # these chunks are small
    monkeypatch.setattr(crew, "SHARE", 2**16)
    each = crew.each

    def noted(jobs: Any) -> Any:
        jobs = [_noting(job, shared) for job in jobs]
        if len(shared) < 2 <= min(len(jobs), crew.size()) and crew.free():  # a busy machine may wake nobody in time
            meet = threading.Barrier(2, timeout=240)
            jobs[:2] = [_meeting(job, meet) for job in jobs[:2]]
        return each(jobs)

    monkeypatch.setattr(crew, "each", noted)
    one = outcome(fedsim.run(settings(images, CASES[name], 1), out=tmp_path / "one"))
    assert shared == {threading.get_ident()}
    for threads in (2, 3):
        folder = tmp_path / str(threads)
        found = outcome(fedsim.run(settings(images, CASES[name], threads), out=folder))
        assert found[0] == one[0]
        assert torch.equal(found[1], one[1])
        for file in ("clients.safetensors", "state.safetensors"):
            there = [place / "checkpoint" / file for place in (tmp_path / "one", folder)]
            assert there[0].exists() == there[1].exists()
            if there[0].exists():
                assert there[0].read_bytes() == there[1].read_bytes()
    assert len(shared) > 1


@pytest.mark.parametrize("name", CASES)
def test_threads_within_operators_give_the_same_numbers_to_rounding(name: str, images: Path, tmp_path: Path) -> None:
    one = fedsim.run(settings(images, CASES[name], 1), out=tmp_path / "one")
    given = settings(images, CASES[name], 1)
    given["run"].pop("threads")
    before = torch.get_num_threads()
    two = fedsim.run({**given, "run": {**given["run"], "operator_threads": 2}}, out=tmp_path / "two")
    assert torch.get_num_threads() == before
    torch.testing.assert_close(two.params, one.params, rtol=1e-4, atol=1e-5)
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["threads"] == 2


def _meeting(job: Callable[[], Any], meet: threading.Barrier) -> Callable[[], Any]:
    """The job, begun when another thread has begun one, too."""

    def meeting() -> Any:
        meet.wait()
        return job()

    return meeting


def _noting(job: Callable[[], Any], into: set[int]) -> Callable[[], Any]:
    def noting() -> Any:
        into.add(threading.get_ident())
        return job()

    return noting


class _Store:
    def __init__(self) -> None:
        self.written: list[int] = []

    def gather(self, clients: Any) -> State:
        return {"c": torch.as_tensor(clients).double().unsqueeze(1)}

    def scatter(self, clients: Any, rows: State) -> None:
        assert torch.equal(rows["c"][:, 0], torch.as_tensor(clients).double())
        self.written += list(clients)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_state_is_written_in_the_order_of_the_chunks(threads: int) -> None:
    store = _Store()
    shared = InTurn(store)

    def chunk(number: int) -> None:
        clients = np.array([2 * number, 2 * number + 1])
        with shared.turn(number) as own:
            threading.Event().wait(0.002 * (number % 3 == 0))
            own.scatter(clients, own.gather(clients))

    with crew.working(threads):
        parallel.share(chunk, 20, 20 * 2**21, torch.device("cpu"))
    assert store.written == list(range(40))


def test_a_chunk_that_raises_lets_nobody_wait() -> None:
    store = _Store()
    shared = InTurn(store)

    def chunk(number: int) -> None:
        with shared.turn(number) as own:
            if number == 1:
                raise ValueError(number)
            own.scatter(np.array([number]), own.gather(np.array([number])))

    with crew.working(3), pytest.raises(ValueError, match="1"):
        parallel.share(chunk, 9, 9 * 2**21, torch.device("cpu"))
    assert store.written in ([], [0])


@pytest.mark.parametrize("rows,most,megabytes,device,sizes", [
    (10, 8, 2.1, "cpu", [5, 5]),  # and not 8 and 2
    (20, 8, 2.1, "cpu", [5, 5, 5, 5]),
    (8, 8, 2.1, "cpu", [4, 4]),  # enough for two threads
    (4, 8, 2.1, "cpu", [4]),
    (100, 1000, 0.5, "cpu", [33, 33, 34]),
    (100, 100, 100.0, "cpu", [6, 6, 6, 7] * 4),
    (100, 86, 0.19, "cpu", [50, 50]),  # more than fit
    (100, 170, 0.19, "cpu", [100]),  # of small models halves do not pay
    (3, 1, 0.001, "cpu", [1, 1, 1]),  # never an empty one
    (1, 8, 1000.0, "cpu", [1]),
    (10, 8, 2.1, "cuda", [5, 5]),
    (100, 1000, 100.0, "cuda", [100]),  # chunks would follow each other
])  # fmt: skip
def test_chunks_are_even_and_enough(rows: int, most: int, megabytes: float, device: str, sizes: list[int]) -> None:
    found = parallel.divided(rows, most, int(megabytes * 2**20), torch.device(device))
    assert [part.stop - part.start for part in found] == sizes
    assert [part.start for part in found] == [0, *np.cumsum(sizes)[:-1]]
