"""Whatever one SuperNode sends, it ends nothing but its own part; and nobody takes what is another's."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flower_loopback import Deployment, LoopbackGrid
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_flower_data import file_of

import fedsim
from fedsim.core.errors import InputError, RunError
from fedsim.deployment.flower.arrays import check_message, to_tensors
from fedsim.deployment.flower.records import BadRecord, Greeting, Order, Receipt, pack, unpack, unpack_arrays
from fedsim.deployment.flower.roster import Roster
from fedsim.deployment.keys import read_keys
from fedsim.deployment.run_config import RunConfig
from fedsim.engine.run_directory import read_jsonl

pytest.importorskip("flwr")
N = 3
Make = Callable[..., Any]
FUZZ = settings(
    derandomize=True, max_examples=200, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


@pytest.fixture
def deployment(tmp_path: Path, quadratic: Make) -> Make:
    def make(name: str = "fedavg", rounds: int = 3, **config: Any) -> Deployment:
        scenario = {
            "data": quadratic(n=N, d=3).section(),
            "algorithm": {"name": name, "lr": 0.1},
            "run": {"rounds": rounds, "eval_every": 1, "trace": True, "dtype": "float64"},
        }
        keys = {k.replace("_", "-"): v for k, v in config.items()}
        return Deployment(tmp_path / name, scenario, N, **{"timeout": 5.0, "on-failure": "drop", **keys})

    return make


def raw(data: bytes, stype: str = "numpy.ndarray", dtype: str = "float64", shape: tuple[int, ...] = (1, 3)) -> Any:
    from flwr.app import Array

    return Array(dtype=dtype, shape=shape, stype=stype, data=data)


def saved(save: Callable[..., None], *arrays: Any, **named: Any) -> bytes:
    file = io.BytesIO()
    save(file, *arrays, **named)
    return file.getvalue()


def header(text: str, content: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    line = (text + " " * 80 + "\n").encode()
    size = len(line).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + size + line + content


NINE = np.arange(3.0)[None]
UNREADABLE: dict[str, Any] = {
    "npz": lambda: raw(saved(np.savez, delta=NINE)),
    "nothing": lambda: raw(b""),
    "cut": lambda: raw(saved(np.save, NINE)[:-1]),
    "more": lambda: raw(saved(np.save, NINE) + b"x"),
    "huge": lambda: raw(header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}")),
    "overflow": lambda: raw(header("{'descr': '<f8', 'fortran_order': False, 'shape': (2**62, 8)}")),
    "wraps": lambda: raw(header("{'descr': '<f8', 'fortran_order': False, 'shape': (4611686018427387904, 8)}")),
    "negative": lambda: raw(header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -3)}", NINE.tobytes())),
    "object": lambda: raw(header("{'descr': '|O', 'fortran_order': False, 'shape': (1, 3)}", NINE.tobytes())),
    "fields": lambda: raw(header("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (3,)}", NINE.tobytes())),
    "date": lambda: raw(saved(np.save, np.zeros((1, 3), "M8[s]"))),
    "complex": lambda: raw(saved(np.save, np.zeros((1, 3), complex))),
    "text": lambda: raw(saved(np.save, np.full((1, 3), "x" * 2))),
    "version": lambda: raw(header("{'descr': '<f8', 'fortran_order': False, 'shape': (1, 3)}", version=b"\x09\x00")),
    "code": lambda: raw(header("__import__('os').abort()")),
    "pickle": lambda: raw(b"cos\nabort\n(tR.", stype="pickle"),
    "long double": lambda: raw(saved(np.save, NINE.astype(np.longdouble))),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNREADABLE)
def test_arrays_that_cannot_be_read_are_garbage(kind: str, deployment: Make) -> None:
    app = deployment()

    def spoil(message: Any, reply: Any) -> Any:
        if message.metadata.group_id == "2":
            reply.content["arrays"]["delta"] = UNREADABLE[kind]()
        return reply

    app.grid.nodes[101].spoil = spoil
    run = app.run()
    assert [row["clients"] for row in run.trace] == [[0, 1, 2], [0, 2], [0, 1, 2]]
    (bad,) = [r for r in read_jsonl(run.dir / "replies.jsonl") if r["status"] != "ok"]
    assert bad["status"] == "garbage"
    assert bad["reason"].isprintable()
    assert len(bad["reason"]) < 1200


@pytest.mark.parametrize("change", ["byte order", "columns first", "version 2"])
def test_arrays_of_another_machine_are_read(change: str, deployment: Make) -> None:
    app = deployment()

    def spoil(message: Any, reply: Any) -> Any:
        if message.metadata.group_id:
            array = reply.content["arrays"]["delta"].numpy()
            data = {
                "byte order": lambda: saved(np.save, array.astype(">f8")),
                "columns first": lambda: saved(np.save, np.asfortranarray(array)),
                "version 2": lambda: saved(lambda f: np.lib.format.write_array(f, array, version=(2, 0))),
            }[change]()
            reply.content["arrays"]["delta"] = raw(data)
        return reply

    for node in app.grid.nodes.values():
        node.spoil = spoil
    assert torch.equal(app.run().params, fedsim.run(app.scenario, out=app.folder / "simulated").params)


def test_an_answer_that_flower_cannot_read_ends_nothing(deployment: Make) -> None:
    app = deployment(timeout=1.0)
    pull = app.grid.pull_messages
    broken: set[str] = set()

    def hostile(ids: Any) -> Any:
        ids = list(ids)
        broken.update(m.metadata.message_id for m in app.grid.pushed
                      if m.metadata.group_id == "2" and m.metadata.dst_node_id == 101)  # fmt: skip
        if broken & set(ids):
            raise ValueError("Object content is invalid")
        return pull(ids)

    app.grid.pull_messages = hostile
    assert [row["clients"] for row in app.run().trace] == [[0, 1, 2], [0, 2], [0, 1, 2]]


# --- samples ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> Deployment:
    server = file_of(tmp_path, "server", 40, seed=9)
    scenario = {
        "data": {"dataset": "npz", "path": str(server), "clients": N, "partition": {"scheme": "iid"}},
        "model": {"name": "linear"},
        "algorithm": {"name": "fedavg", "lr": 0.2},
        "run": {"rounds": 1, "eval_every": 1, "device": "cpu", "trace": True},
    }
    app = Deployment(tmp_path / "app", scenario, N)
    for c, node in enumerate(app.grid.nodes.values()):
        node.config["own-data"] = str(file_of(tmp_path, f"client-{c}", 10 * (c + 1), seed=c))
    return app


def says(samples: int) -> Any:
    def spoil(message: Any, reply: Any) -> Any:
        if not message.metadata.group_id:
            reply.content["fedsim"]["samples"] = samples
        return reply

    return spoil


@pytest.mark.parametrize("samples", [10**9, 2**63 - 1, 2**62, 1_000_001, 0, -5, -(2**63)])
def test_nobody_takes_over_the_weights(samples: int, own: Deployment, caplog: Any) -> None:
    own.grid.nodes[101].spoil = says(samples)
    with pytest.raises(RunError, match="2 of 3 clients were connected"):
        own.run(**{"wait-seconds": 1.0})
    said = " ".join(r.message for r in caplog.records)
    assert f"it says that its own data have {samples} samples; allowed: 1 to 1000000 (max-samples)" in said


def test_a_large_client_is_allowed_by_name_and_summed_exactly(own: Deployment) -> None:
    for node in own.grid.nodes.values():
        node.spoil = says(2**62)
    (row,) = own.run(**{"max-samples": 2**62}).trace
    assert row["weights"] == [1 / 3] * 3


def test_a_share_has_the_samples_it_has(own: Deployment, caplog: Any) -> None:
    for node in own.grid.nodes.values():
        del node.config["own-data"]
    own.grid.nodes[102].spoil = says(900)
    with pytest.raises(RunError, match="2 of 3 clients were connected"):
        own.run(**{"wait-seconds": 1.0})
    assert "it says 900 samples; its share has 13" in " ".join(r.message for r in caplog.records)


# --- places -----------------------------------------------------------------------------------------------------------


def test_a_place_is_not_taken_from_who_has_it(deployment: Make, caplog: Any) -> None:
    app = deployment("scaffold", rounds=4, on_failure="retry")

    def claim(grid: LoopbackGrid, message: Any) -> None:
        if message.metadata.group_id == "2" and 555 not in grid.nodes:
            grid.nodes[555] = app.node(1, N, **{"state-dir": str(app.folder / "elsewhere")})

    app.grid.on_push = claim
    app.grid.nodes[100].delay = 1.2  # long enough for another look at who is there
    run = app.run()
    assert torch.equal(run.params, fedsim.run(app.scenario, out=app.folder / "simulated").params)
    assert not [m for m in app.grid.pushed if m.metadata.dst_node_id == 555 and m.metadata.group_id]
    assert "it says that it is client 1, which SuperNode 101 is" in " ".join(r.message for r in caplog.records)


def key(folder: Path, name: str, kind: str = "ecdsa") -> Path:
    command = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(folder / name)]
    subprocess.run(command, check=True, timeout=240)
    return folder / f"{name}.pub"


def test_a_place_belongs_to_a_key(deployment: Make, tmp_path: Path, caplog: Any) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    for client in range(N):
        key(keys, f"client-{client}")
    app = deployment(client_keys=str(keys))
    known = read_keys(keys, N)
    for client in (0, 2):
        app.grid.nodes[100 + client].key = known[client]
    app.grid.nodes[101].key = known[2]
    with pytest.raises(RunError, match="2 of 3 clients were connected"):
        app.run(**{"wait-seconds": 1.0})
    assert "SuperNode 101 is not used: its key is not that of client 1 (client-keys)" in caplog.text
    app.grid.nodes[101].key = known[1]
    run = app.run()
    written = json.loads((run.dir / "deployment.json").read_text())["clients"]
    assert len({client["key"] for client in written}) == N


def test_keys_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"client-keys: run config: .*client-0\.pub cannot be read \(No such file"):
        read_keys(tmp_path, 1)
    (tmp_path / "client-0.pub").write_text("nothing")
    with pytest.raises(InputError, match=r"found no NIST EC key in .*client-0\.pub"):
        read_keys(tmp_path, 1)
    (tmp_path / "client-0.pub").unlink()
    key(tmp_path, "client-0", "ed25519")
    with pytest.raises(InputError, match="found no NIST EC key"):
        read_keys(tmp_path, 1)
    same = key(tmp_path, "client-1")
    (tmp_path / "client-0.pub").write_bytes(same.read_bytes())
    with pytest.raises(InputError, match="found the key of client 0 in"):
        read_keys(tmp_path, 2)
    with pytest.raises(InputError, match="max-samples: run config: found 0, allowed: a whole number above 0"):
        RunConfig.read({"max-samples": 0})


# --- anything ---------------------------------------------------------------------------------------------------------

KINDS: dict[type, Any] = {
    Receipt: Receipt(1, 2, 0.5),
    Greeting: Greeting(1, N, 30, 0, False, "64", 10, "abc", "0.1.0"),
    Order: Order("1", 1, 2, 3, 1, 0, 0),
}
VALUES = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.floats(), st.booleans(), st.text(max_size=400), st.binary(max_size=20),
    st.lists(st.integers(0, 9), max_size=3),
    st.sampled_from([2**63 - 1, -1, 10**9, float("nan"), "\x1b[2J", "\u202e", "a\nb"]),
)  # fmt: skip


@st.composite
def contents(draw: Any, kind: type) -> Any:
    """A record of `kind` of which something was changed, left out or added; sometimes no such record at all."""
    from flwr.app import ConfigRecord, MetricRecord, RecordDict

    content = pack(KINDS[kind])
    if draw(st.booleans()) and draw(st.booleans()):
        return draw(st.sampled_from([RecordDict(), RecordDict({"fedsim": MetricRecord({"client": 1})})]))
    names = st.sampled_from([*content["fedsim"], "extra"])
    record = dict(content["fedsim"])
    for name in draw(st.lists(names, max_size=3)):
        if draw(st.booleans()):
            record.pop(name, None)
        else:
            record[name] = draw(VALUES)
    with suppress(TypeError, ValueError):  # what Flower itself refuses
        content["fedsim"] = ConfigRecord(record)
    return content


@st.composite
def arrays(draw: Any) -> Any:
    """An ArrayRecord as another machine could send it."""
    from flwr.app import ArrayRecord

    good = saved(np.save, NINE)
    made = {}
    for name in draw(st.lists(st.sampled_from(["delta", "x", "\x1b[2J"]), max_size=2)):
        data = draw(st.one_of(
            st.just(good), st.binary(max_size=150), st.sampled_from([build().data for build in UNREADABLE.values()]),
            st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)).map(
                lambda change: good[: change[0]] + bytes([change[1]]) + good[change[0] + 1 :]
            ),
        ))  # fmt: skip
        made[name] = raw(data, stype=draw(st.sampled_from(["numpy.ndarray"] * 5 + ["", "pickle"])))
    return ArrayRecord(made)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_a_record_is_right_or_refused(kind: type) -> None:
    @FUZZ
    @given(contents(kind))
    def check(content: Any) -> None:
        try:
            found: Any = unpack(kind, content)
        except BadRecord as refused:
            said = str(refused)
        else:
            said = ""
        assert said.isprintable()
        if said:
            return
        json.dumps(vars(found), allow_nan=False)
        assert all(v.isprintable() for v in vars(found).values() if isinstance(v, str))
        assert found == unpack(kind, pack(found))

    check()


@FUZZ
@given(arrays())
def test_arrays_are_right_or_refused(record: Any) -> None:
    expected = {"delta": torch.zeros(1, 3, dtype=torch.float64)}
    try:
        message = to_tensors(unpack_arrays(record), torch.device("cpu"))
        check_message(message, expected)
    except BadRecord as refused:
        said = str(refused)
    else:
        said = ""
    assert said.isprintable()
    if said:
        return
    assert message["delta"].shape == (1, 3)
    assert bool(torch.isfinite(message["delta"]).all())


class _Silent:
    """A grid in which nothing happens: what a roster hears is handed to it."""

    def get_nodes(self) -> list[Any]:
        from flwr.proto.node_pb2 import NodeInfo

        return [NodeInfo(node_id=7), NodeInfo(node_id=8)]

    def push_messages(self, messages: Any) -> list[str]:
        return [f"hello-{m.metadata.dst_node_id}" for m in messages]


@FUZZ
@given(contents(Greeting))
def test_a_greeting_seats_its_node_or_nobody(content: Any) -> None:
    from types import SimpleNamespace as Plain

    roster = Roster(_Silent(), N, "1", lambda _: None)
    roster.refresh()
    reply = Plain(metadata=Plain(reply_to_message_id="hello-7"), has_error=lambda: False, content=content)
    assert roster.hear(reply)
    seats = [c for c in range(N) if roster.node_of(c) is not None]
    assert len(seats) <= 1
    assert all(roster.node_of(c) == 7 and roster.greetings[c].client == c for c in seats)


def test_a_run_survives_a_client_that_sends_anything(deployment: Make) -> None:
    """Forty rounds in which one of three clients answers with whatever the fuzzer makes."""
    made: list[tuple[Any, Any]] = []

    @settings(FUZZ, max_examples=40)
    @given(contents(Receipt), arrays())
    def collect(content: Any, record: Any) -> None:
        made.append((content, record))

    collect()
    app = deployment(rounds=len(made))

    def spoil(message: Any, reply: Any) -> Any:
        if message.metadata.group_id:
            content, record = made[int(message.metadata.group_id) - 1]
            reply.content["fedsim"] = content.get("fedsim", reply.content["fedsim"])
            if int(message.metadata.group_id) % 2:
                reply.content["fedsim"] = pack(Receipt(1, message.content["fedsim"]["number"], 0.1))["fedsim"]
            reply.content["arrays"] = record
        return reply

    app.grid.nodes[101].spoil = spoil
    run = app.run()
    assert len(run.trace) == len(made) >= 30
    assert all({0, 2} <= set(row["clients"]) for row in run.trace)
    assert bool(torch.isfinite(run.params).all())
    statuses = {r["status"] for r in read_jsonl(run.dir / "replies.jsonl") if r["client"] == 1}
    assert "garbage" in statuses
