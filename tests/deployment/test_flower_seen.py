"""What one sees of a deployment: its log while it goes on, loggers, parity, and the schedule that happened."""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flower_loopback import Deployment

import fedsim
from fedsim.core.errors import RunError
from fedsim.deployment.flower.failures import failure
from fedsim.engine.run_directory import Run, read_jsonl
from fedsim.reports.groups import read_run
from fedsim.reports.happened import happened
from fedsim.reports.report import write_report

pytest.importorskip("flwr")
Make = Callable[..., Any]
N = 3


@pytest.fixture
def sections(quadratic: Make) -> dict[str, Any]:
    return {
        "name": "seen",
        "data": quadratic(n=N, d=3).section(),
        "algorithm": {"name": "fedavg", "lr": 0.1},
        "run": {"rounds": 3, "eval_every": 1, "trace": True},
    }


def test_the_log_says_whom_a_round_waits_for(
    sections: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = Deployment(tmp_path / "app", sections, N, **{"poll": 0.5, "timeout": 100.0, "wait-seconds": 200.0})
    app.grid.nodes[101].delay, app.grid.nodes[102].online = 40.0, False
    with caplog.at_level("INFO", "flwr.fedsim"):
        app.run(**{"min-clients": 2, "settings": "run.rounds=2"})
    said = [r.message for r in caplog.records]
    assert "round 1: asked 0, 1, 2" in said
    assert any(re.fullmatch(r"round 1: client 0 answered after 0\.\d s \(0\.\d\d s of work\)", line) for line in said)
    assert any(re.fullmatch(r"round 1: client 1 answered after 40\.\d s \(.*\)", line) for line in said)
    waits = [line for line in said if "waiting for client" in line and line.startswith("round 1")]
    assert len(waits) == 3  # of 100 seconds one line every 30
    assert re.fullmatch(r"round 1: waiting for client 1 for 30 s, 2 \(not connected\) for 30 s", waits[0])
    assert re.fullmatch(r"round 1: waiting for client 2 \(not connected\) for 9\d s", waits[2])
    assert any(
        "client 2, round 1: no answer within 100 s; it is not waited for again until it is back" in s for s in said
    )


def test_the_log_says_who_is_not_there_and_why(
    sections: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = Deployment(tmp_path / "app", sections, N, **{"poll": 0.5, "wait-seconds": 100.0})
    app.grid.nodes[100].config["num-partitions"] = 7
    app.grid.nodes[101].delay = 1000.0
    app.grid.nodes[102].config["own-data"] = str(tmp_path / "nowhere.csv")
    fits = "SuperNode 100 is not used: its node config says partition-id=0 num-partitions=7, but the scenario has 3"
    with caplog.at_level("INFO", "flwr.fedsim"), pytest.raises(RunError) as raised:
        app.run(**{"min-clients": 2})
    said = [r.message for r in caplog.records if r.message.startswith("waiting")]
    assert len(said) == 3  # of 100 seconds one line every 30
    for line in (said[0], str(raised.value)):
        assert "0 of 2 clients" in line
        assert "missing: client 0, 1, 2; has not answered the greeting yet: SuperNode 101" in line
        assert fits in line
        assert "SuperNode 102 is not used: it answered with an error: " in line
    for node in app.grid.nodes.values():
        node.online = False
    with pytest.raises(RunError, match=r"0 of 3 clients were .*; missing: client 0, 1, 2; no SuperNode is connected"):
        app.run()


def test_an_error_of_a_client_is_told_as_a_sentence() -> None:
    flower = pytest.importorskip("flwr.app")
    ours = "<class 'fedsim.core.errors.InputError'>:<'own-data.classes: found label 'x'; allowed: y'>"
    for reason, told in (
        (ours, "own-data.classes: found label 'x'; allowed: y"),
        ("<class 'ValueError'>:<'two\nlines'>", "ValueError: two lines"),
        ("<class 'my.own.Error'>:<''>", "Error"),
        ("anything <else>", "anything <else>"),
        ("", "error 2"),
    ):
        assert failure(flower.Error(code=2, reason=reason), 100) == told


def test_the_last_line_names_the_results_or_how_to_go_on(
    sections: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = Deployment(tmp_path / "app", sections, N, **{"on-failure": "stop"})
    with caplog.at_level("INFO", "flwr.fedsim"):
        run = app.run()
    assert caplog.records[-1].message.startswith(f"fedsim: done after round 3; results are in {run.dir} ")
    app.grid.nodes[101].spoil = lambda message, reply: None if message.metadata.group_id == "2" else reply
    with caplog.at_level("INFO", "flwr.fedsim"), pytest.raises(RunError):
        app.run(timeout=5.0)
    last = caplog.records[-1].message
    assert last == f"fedsim: ended after round 1; the run goes on with flwr run ... -c 'resume=true out=\"{run.dir}\"'"


def test_rounds_with_nobody_have_the_time_at_which_they_were(sections: dict[str, Any], tmp_path: Path) -> None:
    sections["participation"] = {"mode": "synchronous", "sampling": "poisson", "fraction": 0.3}
    sections["run"]["rounds"] = 12
    app = Deployment(tmp_path / "app", sections, N, poll=0.05)
    for node in app.grid.nodes.values():
        node.delay = 5.0
    run = app.run()
    waits = [5.0 * (len(row["clients"]) > 0) for row in run.trace]
    assert 0.0 in waits
    assert [row["time"] for row in run.trace] == pytest.approx(np.cumsum(waits), abs=2.0)


def test_draws_of_flowers_threads_are_not_blamed_on_a_module(
    sections: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets_without_draws.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Linear):\n    def forward(self, x):\n"
        "        return super().forward(x.flatten(1))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    sections["data"] = {"dataset": "digits", "limit": 30, "clients": N}
    sections["model"] = {"name": "nets_without_draws:Net", "in_features": 64, "out_features": 10}
    app = Deployment(tmp_path / "app", sections, N)
    app.grid.on_push = lambda grid, message: random.random()  # noqa: ARG005 - as heartbeats do
    with caplog.at_level("WARNING"):
        app.run()
    assert "global generator" not in caplog.text


@pytest.mark.parametrize("name", ["csv", "tensorboard"])
def test_loggers_of_the_scenario_are_told(name: str, sections: dict[str, Any], tmp_path: Path) -> None:
    if name == "tensorboard":
        pytest.importorskip("tensorboard")
    before = Deployment(tmp_path / "without", sections, N).run()
    sections["run"]["loggers"] = [{"name": name}]
    run = Deployment(tmp_path / "app", sections, N).run()
    known = {file.relative_to(before.dir) for file in before.dir.rglob("*")}
    files = [f for f in run.dir.rglob("*") if f.is_file() and f.relative_to(run.dir) not in known]
    if name == "csv":
        rows = list(csv.DictReader(files[0].open()))
        assert [int(row["round"]) for row in rows] == [0, 1, 2, 3]
        assert float(rows[-1]["train_loss"]) == pytest.approx(run.metrics["train_loss"].iloc[-1])
    else:
        assert any(b"train_loss" in file.read_bytes() for file in files)


MODES: list[dict[str, Any]] = [
    {"mode": "synchronous"},
    {"mode": "fedbuff", "buffer": 2},
    {"mode": "fixed_interval", "window": 2.0},
    {"mode": "gossip"},
]


def deployed(sections: dict[str, Any], participation: dict[str, Any], folder: Path) -> Run:
    """A run with one slow client and, in its second job, one that answers wrongly."""
    sections = {**sections, "participation": participation, "run": {**sections["run"], "rounds": 6}}
    if participation["mode"] == "gossip":
        sections |= {"topology": {"graph": "complete"}, "algorithm": {"name": "dspodfl", "lr": 0.1}}
    app = Deployment(folder, sections, N, poll=0.05)
    for node, delay in zip(app.grid.nodes.values(), (1.0, 1.2, 3.0), strict=True):
        node.delay = delay
    garbled = iter([True])

    def garble(message: Any, reply: Any) -> Any:
        if message.metadata.group_id == "2" and next(garbled, False):
            reply.content["fedsim"]["number"] = 50
        return reply

    app.grid.nodes[101].spoil = garble
    return app.run()


@pytest.mark.parametrize("participation", MODES, ids=lambda p: p["mode"])
def test_the_schedule_is_the_one_that_happened(
    participation: dict[str, Any], sections: dict[str, Any], tmp_path: Path
) -> None:
    run = deployed(sections, participation, tmp_path / "app")
    timeline = happened(read_run(run.dir))
    replies = [r for r in read_jsonl(run.dir / "replies.jsonl") if r["status"] == "ok"]
    gossip = participation["mode"] == "gossip"
    came = [c for row in run.trace for c in row["compute" if gossip else "clients"]]
    assert timeline.times.tolist() == [row["time"] for row in run.trace]
    assert timeline.delivered.tolist() == [came.count(c) for c in range(N)]
    bars = [bar for bar in timeline.bars if bar.kind == "work"]
    assert len(bars) == len(replies)
    assert sum(bar.combined is not None for bar in bars) == len(came)
    for bar in bars:
        assert bar.end - bar.start == pytest.approx({0: 1.0, 1: 1.2, 2: 3.0}[bar.client], abs=0.2)
        assert bar.combined is None or bar.combined >= bar.end - 0.01
    (vain,) = (bar for bar in timeline.bars if bar.kind == "in vain")
    assert vain.client == 1
    assert timeline.in_vain[1] == pytest.approx((vain.end - vain.start) / timeline.end)
    for used in zip(timeline.busy, timeline.in_vain, timeline.waiting, timeline.idle, strict=True):
        assert sum(used) == pytest.approx(1.0, abs=0.02)


def test_a_resumed_run_has_one_clock(sections: dict[str, Any], tmp_path: Path) -> None:
    app = Deployment(tmp_path / "app", sections, N, poll=0.05)
    for node in app.grid.nodes.values():
        node.delay = 2.0
    app.run(settings="run.rounds=2")
    run = app.run(run="2", resume=True)
    assert run.resumed_at == 2
    times = [r["at"] for r in read_jsonl(run.dir / "replies.jsonl")]
    assert times == sorted(times)
    assert all(bar.combined is not None for bar in happened(read_run(run.dir)).bars)


def test_parity_has_the_simulation_and_the_run_of_the_fitted_scenario(sections: dict[str, Any], tmp_path: Path) -> None:
    app = Deployment(tmp_path / "deployed", sections, N, out=str(tmp_path / "runs" / "{run}"))
    app.grid.nodes[101].delay = 1.0
    run = app.run(run="77")
    simulated = fedsim.run(app.scenario, out=tmp_path / "simulated")
    fitted = fedsim.run(fedsim.load(run.dir / "fitted.yaml"), out=tmp_path / "fitted")
    other = fedsim.run(
        {**sections, "system": {"compute": {"model": "table", "values": [3.0] * N}}}, out=tmp_path / "other"
    )
    page = write_report([run.dir, simulated.dir, fitted.dir, other.dir], tmp_path / "report.html").read_text()
    parity = page[page.index("<h2>Parity") :]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", parity[: parity.index("</table>")])
    assert [cell for cell in cells if cell.startswith(str(tmp_path))] == [
        str(run.dir), str(simulated.dir), str(run.dir), f"{fitted.dir} (fitted.yaml)",
    ]  # fmt: skip
    plain = re.sub(r"<[^>]+>", "|", page)
    assert re.search(r"in [\d.]+ seconds\. The picture shows how it began\.", plain)
    for folder in ("77", "simulated", "fitted", "other"):
        assert f"|{folder}|" in plain
