"""Trace files in FedScale's schema: what a client gets from them, and what is wrong with them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.core.clock import TICKS_PER_SECOND, ticks
from fedsim.core.errors import InputError
from fedsim.core.fields import make_part
from fedsim.devices.system import Durations, SystemSection
from fedsim.devices.traces import read_devices, rows_of_clients

DEVICES: dict[str, dict[str, Any]] = {
    "1": {"computation": 20.0, "communication": 8000, "duration": 99, "model": "phone",
          "active": [0, 30], "inactive": [10, 50], "finish_time": 60},
    "2": {"computation": 50, "communication": 400.0, "active": [5], "inactive": [25], "finish_time": 30},
    "3": {"computation": 10.5, "communication": 1600.0, "active": [], "inactive": [], "finish_time": 30},
}  # fmt: skip
LINES = """computation,communication,active,inactive,finish_time
20.0,8000,0;30,10;50,60
50,400.0,5,25,30
10.5,1600.0,,,30
"""
FORMATS = {"object.json": json.dumps(DEVICES), "list.json": json.dumps(list(DEVICES.values())), "d.csv": LINES}


@pytest.fixture(params=FORMATS)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    path = tmp_path / request.param
    path.write_text(FORMATS[request.param])
    return str(path)


def test_fedscales_formulas(file: str) -> None:
    """3 batch steps ms / 1000 to compute, (down + up) bits over kbit/s to communicate."""
    section = make_part(
        SystemSection,
        {
            "compute": {"model": "trace", "file": file, "shuffle": False},
            "network": {"model": "trace", "file": file, "shuffle": False, "latency": 0.5},
        },
    )
    made = Durations(section, 4, 0, down=30_000, up=20_000, samples=np.array([32, 32, 16, 8]))
    seconds = [made.of(c, 0, 5) / TICKS_PER_SECOND for c in range(4)]
    compute = [3.0 * samples * 5 * ms / 1000 for samples, ms in ((32, 20.0), (32, 50.0), (16, 10.5), (8, 20.0))]
    transfer = [8 * 50_000 / (kbit * 1000) for kbit in (8000, 400, 1600, 8000)]
    assert seconds == pytest.approx([c + t + 1.0 for c, t in zip(compute, transfer, strict=True)], rel=1e-12)


def test_activity_repeats_after_finish_time(file: str) -> None:
    section = make_part(SystemSection, {"availability": {"model": "trace", "file": file, "shuffle": False}})
    made = Durations(section, 3, 0)
    on = [[s for s in range(60) if made.ready(c, ticks(s)) == ticks(s)] for c in range(3)]
    assert on == [[*range(10), *range(30, 50)], [*range(5, 25), *range(35, 55)], []]
    assert made.ready(0, ticks(115)) == ticks(120)
    assert made.ready(2, 0) is None


def test_clients_get_rows_for_good_and_every_row_before_any_twice() -> None:
    first = rows_of_clients(10, 4, seed=3, shuffle=True)
    assert sorted(first[:4]) == sorted(first[4:8]) == [0, 1, 2, 3]
    assert rows_of_clients(7, 4, seed=3, shuffle=True) == first[:7]
    assert rows_of_clients(10, 4, seed=4, shuffle=True) != first
    assert rows_of_clients(6, 4, seed=3, shuffle=False) == [0, 1, 2, 3, 0, 1]


def test_a_device_keeps_its_columns_together(file: str) -> None:
    """The same shuffled record serves compute, network and availability."""
    both = {"model": "trace", "file": file}
    section = make_part(SystemSection, {"compute": {**both, "factor": 1.0}, "network": both, "availability": both})
    made = Durations(section, 3, 5, down=1000, samples=np.ones(3, dtype=np.int64))
    devices = list(DEVICES.values())
    for client, row in enumerate(rows_of_clients(3, 3, 5, True)):
        expected = devices[row]["computation"] / 1000 + 8 / devices[row]["communication"]
        assert made.of(client, 0, 1) / TICKS_PER_SECOND == pytest.approx(expected)
        assert (made.ready(client, 0) is None) == (devices[row]["active"] == [])


def test_a_scenario_finds_its_trace_beside_it(tmp_path: Path) -> None:
    (tmp_path / "devices.json").write_text(json.dumps(DEVICES))
    np.savez(tmp_path / "q.npz", A=np.ones((3, 2)), b=np.ones((3, 2)))
    (tmp_path / "s.yaml").write_text(
        "data: {dataset: quadratic, file: q.npz}\nalgorithm: {name: fedavg, lr: 0.1}\nrun: {rounds: 2, trace: true}\n"
        "system: {compute: {model: trace, file: devices.json}, network: {model: trace, file: devices.json}}\n"
    )
    run = fedsim.run(fedsim.load(tmp_path / "s.yaml"), out=tmp_path / "run")
    transfer = 8 * 2 * 2 * 4 / (400 * 1000)  # two float32 numbers down and up
    assert run.trace[0]["time"] == pytest.approx(3.0 * 50 / 1000 + transfer)
    again = fedsim.run(fedsim.load(run.dir / "scenario.yaml"), out=tmp_path / "again")
    assert again.trace == run.trace


BAD: list[tuple[str, str, tuple[str, ...], str]] = [
    ("no.json", "", ("computation",), "cannot be read: No such file"),
    ("a.json", "{", ("computation",), "is not JSON"),
    ("a.json", "3", ("computation",), "holds int, allowed: a list or an object of devices"),
    ("a.json", "[]", ("computation",), "has no devices"),
    ("a.json", "[3]", ("computation",), "device 0: found 3, allowed: an object with computation"),
    ("a.json", '{"x": {"communication": 3}}', ("computation",), "device 'x': 'computation' is missing; it has comm"),
    ("a.json", '[{"computation": 0}]', ("computation",), "device 0: found computation 0, allowed: above 0 ms"),
    ("a.json", '[{"computation": "5"}]', ("computation",), "found computation '5', allowed: above 0 ms"),
    ("a.json", '[{"computation": NaN}]', ("computation",), "found computation nan, allowed: above 0 ms"),
    ("a.json", '[{"active": [1], "inactive": [], "finish_time": 3}]', ("finish_time", "active", "inactive"),
     "found 1 times of coming on and 0 of going off"),
    ("a.json", '[{"active": [1], "inactive": [4], "finish_time": 3}]', ("finish_time", "active", "inactive"),
     "times do not ascend"),
    ("a.json", '[{"active": 1, "inactive": [4], "finish_time": 3}]', ("finish_time", "active", "inactive"),
     "found active 1, allowed: a list of seconds"),
    ("a.csv", "speed\n3\n", ("computation",), "has no header with any of the columns computation"),
    ("a.csv", "computation\nfast\n", ("computation",), "device 0: computation: found 'fast', allowed: a number"),
    ("a.csv", "computation,finish_time\n3\n", ("computation",), "device 0 has not as many columns as the header"),
]  # fmt: skip


@pytest.mark.parametrize("name,text,columns,message", BAD, ids=[row[3][:30] for row in BAD])
def test_bad_files(name: str, text: str, columns: tuple[str, ...], message: str, tmp_path: Path) -> None:
    if name != "no.json":
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as error:
        read_devices(str(tmp_path / name), columns)
    assert message in str(error.value)
    assert error.value.problems[0].key == "file"


@pytest.mark.parametrize("name", ["client_device_capacity", "d.pkl"])
def test_pickles_are_not_loaded(name: str, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (tmp_path.joinpath("loaded").write_text, ("x",))

    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match="is a pickle, and loading one runs whatever code"):
        read_devices(str(tmp_path / name), ("computation",))
    assert not (tmp_path / "loaded").exists()


@pytest.mark.parametrize(
    "system,message",
    [
        ({"compute": {"model": "trace"}}, "file: missing"),
        (
            {"jitter": {"model": "trace", "file": "d.json"}},
            "jitter: found .*drawn anew for every job",
        ),
        ({"network": {"model": "table", "file": "d.json"}}, "network: found .*allowed: trace, or latency"),
        ({"network": {"model": "trace", "file": "d.json", "bandwidth": 3.0}}, "found both model: trace and bandwidth"),
        ({"compute": {"model": "trace", "file": 3}}, "compute.file: found 3, allowed: text"),
    ],
    ids=str,
)
def test_wrong_sections(system: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_part(SystemSection, system)


def test_traces_have_no_latency(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(json.dumps(DEVICES))
    section = make_part(SystemSection, {"network": {"latency": {"model": "trace", "file": str(tmp_path / "d.json")}}})
    with pytest.raises(InputError, match=r"network\.latency: found a trace, which has computation"):
        Durations(section, 3, 0)
