"""What clients keep between rounds: in memory and in a file, saved, resumed and killed."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

import fedsim
from fedsim.algorithms.base import ServerAlgorithm
from fedsim.clients import store as stores
from fedsim.clients.store import AUTO_BYTES, FILE, ClientStore, FileTable, state_place
from fedsim.core.errors import InputError, RunError
from fedsim.core.types import State
from fedsim.engine.run_directory import read_jsonl
from fedsim.reports.plan import plan

D = 3
RECORD = 8 * (D + 1)
PLACES = ["memory", "disk"]


class Remembering(ServerAlgorithm):
    """Keeps rows of two widths, whose first value is not zero."""

    def init_client(self, params: Any) -> Any:
        return {"last": torch.full_like(params, 0.5), "times": torch.zeros_like(params[..., :1])}


def made(place: Literal["auto", "memory", "disk"], folder: Path, clients: int = 10) -> ClientStore:
    return ClientStore(
        Remembering().fresh_client(torch.zeros(1, D, dtype=torch.float64)), torch.device("cpu"), clients, place, folder
    )


def random_rows(count: int) -> State:
    return {"last": torch.randn(count, D).double(), "times": torch.randn(count, 1).double()}


def assert_holds(store: ClientStore, known: dict[int, State], clients: int) -> None:
    got = store.gather(np.arange(clients))
    for c in range(clients):
        expected = known.get(c, {"last": torch.full((D,), 0.5).double(), "times": torch.zeros(1).double()})
        assert all(torch.equal(got[k][c], v) for k, v in expected.items()), c


def test_a_file_is_used_where_asked_for(tmp_path: Path) -> None:
    made("disk", tmp_path).scatter(np.array([1]), random_rows(1))
    assert (tmp_path / FILE).stat().st_size == RECORD
    made("memory", tmp_path / "no folder").scatter(np.array([1]), random_rows(1))
    made("auto", tmp_path / "no folder").scatter(np.array([1]), random_rows(1))


@pytest.mark.parametrize("place", PLACES)
def test_the_store_gives_back_what_it_was_given(place: Any, tmp_path: Path) -> None:
    store = made(place, tmp_path, 1000)
    fresh = store.gather(np.array([5, 900]))
    assert {k: v.shape for k, v in fresh.items()} == {"last": (2, D), "times": (2, 1)}
    random = np.random.default_rng(0)
    known: dict[int, State] = {}
    for turn in range(30):
        clients = random.choice(1000, size=random.integers(1, 60), replace=False)
        rows = random_rows(len(clients))
        store.scatter(clients, rows)
        known |= {int(c): {k: v[i].clone() for k, v in rows.items()} for i, c in enumerate(clients)}
        if turn % 7 == 3:
            store.save()
        asked = random.choice(1000, size=80, replace=False)
        got = store.gather(asked)
        for i, c in enumerate(asked):
            expected = known.get(int(c), {k: v[0] for k, v in fresh.items()})
            assert all(torch.equal(v[i], expected[k]) for k, v in got.items())
    assert_holds(store, known, 1000)


@pytest.mark.parametrize("place", PLACES)
def test_what_is_gathered_is_a_copy(place: Any, tmp_path: Path) -> None:
    store = made(place, tmp_path)
    for clients in (np.array([1]), np.array([1, 2])):
        store.gather(clients)["last"].add_(1.0)
        assert (store.gather(clients)["last"] == 0.5).all()
        store.scatter(np.array([1]), {"last": torch.full((1, D), 0.5).double(), "times": torch.zeros(1, 1).double()})


def test_only_clients_that_worked_take_room(tmp_path: Path) -> None:
    rows, clients = random_rows(2), np.array([999_999, 3])
    store, filed = made("memory", tmp_path, 10**6), made("disk", tmp_path, 10**6)
    store.scatter(clients, rows)
    filed.scatter(clients, rows)
    assert sum(v.numel() for v in store.save().values()) == 2 * (D + 1) + 2
    assert sum(v.numel() for v in filed.save().values()) == 4
    assert (tmp_path / FILE).stat().st_size == 2 * RECORD


@pytest.mark.parametrize("before", PLACES)
@pytest.mark.parametrize("after", PLACES)
def test_a_saved_store_loads_again(before: Any, after: Any, tmp_path: Path) -> None:
    """Rows in a file stay there; tables go wherever the resumed run keeps its rows."""
    store = made(before, tmp_path, 300)
    clients = np.random.default_rng(0).permutation(300)[:200]
    rows = random_rows(200)
    store.scatter(clients, rows)
    again = made(after, tmp_path, 300)
    again.load({k: v.clone() for k, v in store.save().items()})
    known = {int(c): {k: v[i] for k, v in rows.items()} for i, c in enumerate(clients)}
    assert_holds(again, known, 300)
    assert isinstance(again._table, FileTable) == ("disk" in (before, after))


@pytest.mark.parametrize("place", PLACES)
def test_no_state_takes_no_room(place: Any, tmp_path: Path) -> None:
    store = ClientStore({}, torch.device("cpu"), 10, place, tmp_path)
    store.scatter(np.arange(3), {})
    store.load(store.save())
    assert store.gather(np.arange(10)) == {}
    assert list(tmp_path.iterdir()) == []


def test_whatever_is_written_after_a_checkpoint_the_checkpoint_stays_whole(tmp_path: Path) -> None:
    """At every moment of a random history, the file and the last checkpoint give the rows of that checkpoint."""
    clients, random = 12, np.random.default_rng(1)
    (tmp_path / "live").mkdir()
    store = made("disk", tmp_path / "live", clients)
    known: dict[int, State] = {}
    saved: dict[str, torch.Tensor] | None = None
    at_save: dict[int, State] = {}
    for turn in range(80):
        cohort = random.choice(clients, size=random.integers(1, 6), replace=False)
        rows = random_rows(len(cohort))
        store.scatter(cohort, rows)
        known |= {int(c): {k: v[i].clone() for k, v in rows.items()} for i, c in enumerate(cohort)}
        if random.random() < 0.3:
            saved, at_save = store.save(), dict(known)
        if saved is not None:
            killed = tmp_path / f"killed-{turn}"
            shutil.copytree(tmp_path / "live", killed)
            again = made("disk", killed, clients)
            again.load(saved)
            assert_holds(again, at_save, clients)
            again.scatter(cohort, rows)  # the resumed run goes on writing
            assert_holds(again, at_save | {int(c): known[int(c)] for c in cohort}, clients)
    assert_holds(store, known, clients)


def test_slots_are_used_again(tmp_path: Path) -> None:
    store = made("disk", tmp_path, 20)
    for _ in range(30):
        store.scatter(np.arange(20), random_rows(20))
        store.scatter(np.arange(20), random_rows(20))
        store.save()
    assert (tmp_path / FILE).stat().st_size == 2 * 20 * RECORD


def test_a_file_that_lost_rows_is_named(tmp_path: Path) -> None:
    store = made("disk", tmp_path)
    store.scatter(np.arange(4), random_rows(4))
    saved = store.save()
    with (tmp_path / FILE).open("r+b") as file:
        file.truncate(4 * RECORD - 1)
    with pytest.raises(RunError, match=rf"{FILE} is shorter than its index says"):
        store.gather(np.arange(4))
    with pytest.raises(RunError, match=rf"{FILE} lacks rows that the checkpoint refers to"):
        made("disk", tmp_path).load(saved)
    (tmp_path / FILE).unlink()
    with pytest.raises(RunError, match="lacks rows"):
        made("disk", tmp_path).load(saved)


def test_a_full_disk_is_a_failed_run(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    (tmp_path / FILE).symlink_to("/dev/full")
    with pytest.raises(RunError, match=rf"cannot keep clients' state in .*{FILE}: No space left on device"):
        made("disk", tmp_path).scatter(np.array([1]), random_rows(1))
    with pytest.raises(RunError, match=r"cannot keep clients' state in .*: No such file or directory"):
        made("disk", tmp_path / "missing").scatter(np.array([1]), random_rows(1))


def test_where_state_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert state_place("auto", AUTO_BYTES, cpu) == "device"
    assert state_place("auto", AUTO_BYTES + 1, cpu) == "disk"
    assert state_place("memory", 2**40, cpu) == "device"
    assert state_place("disk", 1, cpu) == "disk"
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**34, 2**36))
    assert state_place("auto", 2**32, gpu) == "device"
    assert state_place("auto", 2**32 + 1, gpu) == "disk"
    assert state_place("memory", 2**32 + 1, gpu) == "host"
    assert state_place("disk", 1, gpu) == "disk"


# --- whole runs ---------------------------------------------------------------------------------------------------


def scenario(**run: Any) -> dict[str, Any]:
    return {
        "data": {"dataset": "digits", "clients": 6, "limit": 300},
        "model": {"name": "linear"},
        "algorithm": {"name": "scaffold", "lr": 0.05, "local_steps": 3, "batch_size": 8},
        "participation": {"fraction": 0.5},
        "run": {"rounds": 12, "eval_every": 5, "device": "cpu", "threads": 1, **run},
    }


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "wall"} for row in read_jsonl(folder / "metrics.jsonl")]


def test_numbers_do_not_depend_on_the_place_nor_on_interruptions(tmp_path: Path) -> None:
    whole = fedsim.run(scenario(client_state="memory"), out=tmp_path / "memory")
    settings = scenario(client_state="disk", checkpoint_seconds=1e-9)
    again = fedsim.run(settings, out=tmp_path / "disk")
    for after in (4, 9):
        stop = lambda number, _, at=after: os.kill(os.getpid(), signal.SIGTERM) if number == at else None  # noqa: E731
        with pytest.raises(KeyboardInterrupt):
            fedsim.run(settings, out=tmp_path / "parts", resume=after > 4, progress=stop)
    resumed = fedsim.run(settings, out=tmp_path / "parts", resume=True)
    for run in (again, resumed):
        assert torch.equal(run.params, whole.params)
        assert rows_of(run.dir) == rows_of(whole.dir)
    record = 8 * (64 * 10 + 10) // 2  # float32
    assert 6 * record <= (tmp_path / "disk" / FILE).stat().st_size <= 12 * record
    assert not (tmp_path / "memory" / FILE).exists()
    fedsim.run(scenario(client_state="memory"), out=tmp_path / "disk")
    assert not (tmp_path / "disk" / FILE).exists()


def test_another_place_is_another_scenario(tmp_path: Path) -> None:
    fedsim.run(scenario(), out=tmp_path)
    with pytest.raises(InputError, match=r"run.client_state: found 'disk', but the run in .* has 'auto'"):
        fedsim.run(scenario(client_state="disk"), out=tmp_path, resume=True)
    with pytest.raises(InputError, match=r"run.client_state: found 'tape', allowed: 'auto', 'memory' or 'disk'"):
        fedsim.run(scenario(client_state="tape"), out=tmp_path)


def test_the_plan_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = plan(fedsim.scenario.load.parse(scenario()))["memory"]
    assert memory["state of all clients"] == "15.23 KiB once every client took part"
    assert memory["kept"] == "in memory"
    monkeypatch.setattr(stores, "AUTO_BYTES", 1000)
    kept = plan(fedsim.scenario.load.parse(scenario()))["memory"]["kept"]
    assert kept == f"in {FILE} of the run directory, up to twice that size between checkpoints"
