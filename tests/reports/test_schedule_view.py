"""``fedsim plan --schedule``: what it counts, against a schedule done by hand, and how the command answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fedsim.cli.app import main
from fedsim.engine.run import run as simulate
from fedsim.figures.schedule import Bar, schedule_figure
from fedsim.reports.report import write_report
from fedsim.reports.timeline import follow
from fedsim.reports.timeline_tables import client_rows, combine_rows, headline, timeline_figure
from fedsim.scenario.load import parse

F_80: dict[str, Any] = {"compute": {"model": "linear", "slowest": 1.0, "fastest": 0.2}}


@pytest.fixture
def scenario(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """``scenario(n, participation, run, ...)``: n scalar clients with importance 1 to n over their sum."""

    def make(n: int, participation: dict[str, Any], run: dict[str, Any], **sections: Any) -> dict[str, Any]:
        file = tmp_path / f"q{n}.npz"
        np.savez(file, A=np.ones((n, 1)), b=np.ones((n, 1)), p=np.arange(1.0, n + 1))
        made: dict[str, Any] = {
            "name": "by-hand", "data": {"dataset": "quadratic", "file": str(file)},
            "algorithm": {"name": "fedavg", "lr": 0.1}, "participation": participation, "system": F_80, "run": run,
        }  # fmt: skip
        return made | sections

    return make


Make = Callable[..., dict[str, Any]]


def test_fedfix_by_hand(scenario: Make) -> None:
    """Four clients of F-80 take 1, 11/15, 7/15 and 1/5 s; with windows of 0.5 s: 2, 2, 1 and 1 windows."""
    t = follow(parse(scenario(4, {"mode": "fixed_interval", "window": 0.5}, {"rounds": 6})))
    assert (t.combines, t.end, t.mode, t.shortened) == (6, 3.0, "fixed_interval", False)
    assert t.delivered.tolist() == [3, 3, 6, 6]
    assert t.staleness.tolist() == [1, 1, 0, 0]
    assert t.busy == pytest.approx([1, 11 / 15, 14 / 15, 2 / 5], abs=1e-12)
    assert t.waiting == pytest.approx([0, 4 / 15, 1 / 15, 3 / 5], abs=1e-12)
    assert t.idle.tolist() == [0, 0, 0, 0]
    assert t.importance == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert t.weight == pytest.approx(t.importance, abs=1e-12)
    assert [c.clients for c in t.first] == [[2, 3], [0, 1, 2, 3]] * 3
    assert t.first[1].weights == pytest.approx([0.2, 0.4, 0.3, 0.4])
    assert [b for b in t.bars if b.client == 0] == [Bar(0, k, k + 1.0, k + 1.0) for k in (0.0, 1.0, 2.0)]


def test_asynchronous_clients_never_wait_and_their_last_job_is_cut(scenario: Make) -> None:
    """In 1.1 s the four deliver once, once, twice and five times, and all are at work to the end."""
    t = follow(parse(scenario(4, {"mode": "asynchronous"}, {"rounds": 100, "seconds": 1.1})))
    assert (t.combines, t.end) == (9, 1.1)
    assert t.delivered.tolist() == [1, 1, 2, 5]
    assert t.busy == pytest.approx([1, 1, 1, 1])
    assert t.waiting.tolist() == [0, 0, 0, 0]


def test_synchronous_clients_wait_for_the_slowest_of_their_cohort_and_others_are_idle(scenario: Make) -> None:
    t = follow(parse(scenario(4, {"mode": "synchronous"}, {"rounds": 5})))
    assert t.delivered.tolist() == [5] * 4
    assert t.busy == pytest.approx([1, 11 / 15, 7 / 15, 1 / 5])
    assert t.waiting == pytest.approx([0, 4 / 15, 8 / 15, 4 / 5])
    one = follow(parse(scenario(4, {"mode": "synchronous", "clients_per_round": 1}, {"rounds": 40})))
    lengths = np.array([1, 11 / 15, 7 / 15, 1 / 5])
    assert one.end == pytest.approx(float(one.delivered @ lengths))
    assert one.busy == pytest.approx(one.delivered * lengths / one.end)
    assert one.idle == pytest.approx(1 - one.busy)
    assert one.waiting.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "participation",
    [
        {"mode": "synchronous", "fraction": 0.5},
        {"mode": "asynchronous", "weights": "estimated", "pilot": 500},
        {"mode": "fedbuff", "buffer": 3, "concurrency": 5},
        {"mode": "fedbuff", "buffer": 3, "restart": "barrier"},
    ],
    ids=str,
)
def test_it_is_the_schedule_of_the_run(scenario: Make, tmp_path: Path, participation: dict[str, Any]) -> None:
    jitter = {"compute": {"model": "lognormal", "sigma": 1.0}, "jitter": {"model": "exponential", "mean": 0.1}}
    run = {"rounds": 15, "trace": True, "device": "cpu"}
    checked = parse(scenario(8, participation, run, system=jitter))
    t = follow(checked)
    lines = (simulate(checked, tmp_path / "run").dir / "trace.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [r["time"] for r in rows] == pytest.approx(t.times.tolist(), rel=1e-12)
    for row, combine in zip(rows, t.first, strict=True):
        assert row["clients"] == combine.clients
        assert row["staleness"] == combine.staleness
        assert row["weights"] == pytest.approx(combine.weights)
    assert (t.idle >= 0).all()
    delivered = [b for b in t.bars if b.combined is not None]
    assert len(delivered) == t.delivered.sum()
    assert all(b.start < b.end <= b.combined + 1e-9 for b in delivered if b.combined is not None)
    for c in range(8):  # nobody works on two jobs at once, and the shares are those of the bars
        jobs = sorted(b for b in t.bars if b.client == c)
        assert all(a.end <= b.start + 1e-9 for a, b in pairwise(jobs))
        assert sum(max(min(b.end, t.end) - b.start, 0) for b in jobs) == pytest.approx(t.busy[c] * t.end)


def test_tables(scenario: Make) -> None:
    t = follow(parse(scenario(4, {"mode": "fixed_interval", "window": 0.5}, {"rounds": 50})))
    _, rows = combine_rows(t)
    assert len(rows) <= 30
    assert rows[0][:4] == ("1", "0.5", "2, 3", "0, 0")
    header, clients = client_rows(t)
    assert len(clients) == 4
    assert dict(zip(header, clients[0], strict=True))["busy"] == "1"
    many = follow(parse(scenario(60, {"mode": "synchronous", "clients_per_round": 9}, {"rounds": 1})))
    header, clients = client_rows(many)
    assert [row[0] for row in clients] == ["smallest", "25 %", "median", "75 %", "largest"]
    assert "and 4 more" in combine_rows(many)[1][0][2]
    assert "60 clients, 1 combines of 9 results" in headline(many)


def test_a_client_without_delivery_has_no_staleness(scenario: Make) -> None:
    t = follow(parse(scenario(4, {"mode": "asynchronous"}, {"rounds": 1})))
    values = json.loads(json.dumps(t.to_json(), allow_nan=False))
    assert [c["staleness"] for c in values["clients"]] == [None, None, None, 0.0]


def test_the_figure_shows_what_is_there() -> None:
    bars = [Bar(c, float(k), k + 1 - c / 100, float(k + 1)) for k in range(9) for c in range(80)]
    figure = schedule_figure(bars, np.arange(1.0, 10.0), 80, 9.0)
    axes = figure.axes[0]
    assert axes.get_xlim() == (0.0, 3.0)  # three of the longest jobs
    assert axes.get_ylim() == (49.5, -0.5)
    labels = [int(label.get_text()) for label in axes.get_yticklabels()]
    assert labels == sorted(labels)  # slowest first
    assert "50 of 80" in axes.get_ylabel()
    few = schedule_figure(bars[:4], [1.0], 4, 0.5).axes[0]
    assert few.get_xlim() == (0.0, 0.5)
    assert [label.get_text() for label in few.get_yticklabels()] == ["0", "1", "2", "3"]


def test_report_makes_the_schedule_again_without_the_data(tmp_path: Path) -> None:
    rows = "\n".join(f"{i % 3},{i % 7},{i % 2}" for i in range(90))
    (tmp_path / "d.csv").write_text("a,b,label\n" + rows + "\n")
    made = {
        "data": {"dataset": "csv", "path": str(tmp_path / "d.csv"), "target": "label", "clients": 4},
        "model": {"name": "linear"}, "algorithm": {"name": "fedavg", "lr": 0.01, "local_steps": 2, "batch_size": 4},
        "participation": {"mode": "fixed_interval", "window": 0.5}, "run": {"rounds": 6, "trace": True},
        "system": {**F_80, "network": {"bandwidth": 1000.0}},
    }  # fmt: skip
    checked = parse(made)
    run = simulate(checked, tmp_path / "run").dir
    expected = headline(follow(checked))
    (tmp_path / "d.csv").unlink()
    page = write_report([run]).read_text()
    assert "<h2>Schedule</h2>" in page
    assert expected in page
    for name in ("schedule", "schedule-staleness"):
        assert (run / "figures" / f"{name}.png").stat().st_size > 1000
    (run / "params.safetensors").unlink()
    page = write_report([run]).read_text()
    assert "the schedule cannot be made again" in page


def test_a_graph_by_hand(scenario: Make, tmp_path: Path) -> None:
    """Nodes work 1, 11/15, 7/15 and 1/5 s and wait for the slowest of the round; the rest is the run's trace."""
    keys = {"algorithm": {"name": "dspodfl"}, "topology": {"graph": "ring"}}
    checked = parse(
        scenario(4, {"mode": "gossip", "compute": 0.5, "links": 0.5}, {"rounds": 12, "trace": True}, **keys)
    )
    t = follow(checked)
    rows = [json.loads(r) for r in (simulate(checked, tmp_path / "run").dir / "trace.jsonl").read_text().splitlines()]
    tau = [1, 11 / 15, 7 / 15, 1 / 5]
    assert [c.clients for c in t.first] == [r["compute"] for r in rows]
    assert [c.links for c in t.first] == [r["edges"] for r in rows]
    assert t.times == pytest.approx([r["time"] for r in rows])
    assert t.delivered.tolist() == [sum(i in r["compute"] for r in rows) for i in range(4)]
    assert t.messages.tolist() == [sum(i in edge for r in rows for edge in r["edges"]) for i in range(4)]
    assert t.busy == pytest.approx([sum(tau[i] for r in rows if i in r["compute"]) / t.end for i in range(4)])
    lengths = np.diff([0.0, *t.times])
    waits = [sum(x - tau[i] for r, x in zip(rows, lengths, strict=True) if i in r["compute"]) / t.end for i in range(4)]
    assert t.waiting == pytest.approx(waits)
    assert t.busy + t.waiting + t.idle == pytest.approx(np.ones(4))
    header, table = combine_rows(t)
    assert header == ["round", "time (s)", "nodes that compute", "links that fire"]
    assert table[0][2] == ", ".join(map(str, rows[0]["compute"]))
    assert "weight per combine" not in client_rows(t)[0]
    assert "4 nodes, 12 rounds" in headline(t)
    figure = timeline_figure(t)
    assert figure.axes[0].get_ylabel() == "node"
    assert "end of a round" in [label.get_text() for label in figure.legends[0].get_texts()]


def test_work_in_vain_is_not_idle(scenario: Make) -> None:
    """Clients of 1, 11/15, 7/15 and 1/5 s with a deadline of half a second: the first two work in vain to the end."""
    t = follow(parse(scenario(4, {"mode": "synchronous", "deadline": 0.5}, {"rounds": 6})))
    assert t.end == 3.0
    assert t.in_vain.tolist() == [1, 1, 0, 0]
    assert t.busy == pytest.approx([0, 0, 14 / 15, 2 / 5])
    assert t.waiting == pytest.approx([0, 0, 1 / 15, 3 / 5])
    assert t.idle.tolist() == [0, 0, 0, 0]
    assert sum(b.kind == "in vain" for b in t.bars) == 12
    figure = schedule_figure(t.bars, t.times, t.clients, t.bars_until)
    assert "at work in vain" in [label.get_text() for label in figure.legends[0].get_texts()]


def test_devices_that_are_off_and_clients_that_left(scenario: Make) -> None:
    """Client 0 is on in the first half of every 2 s, client 1 leaves after 3 s; jobs of half a second."""
    system = {
        "compute": 0.5, "departure": {"model": "table", "values": [100.0, 3.0]},
        "availability": {"model": "table", "active": [[[0.0, 1.0]], [[0.0, 2.0]]], "repeat": 2.0},
    }  # fmt: skip
    participation = {"mode": "asynchronous", "weights": "identical"}
    t = follow(parse(scenario(2, participation, {"rounds": 1000, "seconds": 12.0}, system=system)))
    assert t.delivered.tolist() == [12, 6]
    assert t.busy == pytest.approx([0.5, 0.25])
    assert t.off == pytest.approx([0.5, 0.75])
    assert t.idle.tolist() == [0, 0]
    assert t.times_off(0, 4.5) == [(1.0, 2.0), (3.0, 4.0)]
    assert t.times_off(1, 4.5) == [(3.0, 4.5)]
    legend = timeline_figure(t).legends[0].get_texts()
    assert "device off or gone" in [label.get_text() for label in legend]


def test_command(
    scenario: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump(scenario(4, {"mode": "fixed_interval", "window": 0.5}, {"rounds": 6})))

    def call(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedsim", "plan", str(file), *argv])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    monkeypatch.setenv("COLUMNS", "150")
    code, out, _ = call("--schedule", "--out", str(tmp_path / "s.png"))
    assert code == 0
    assert "6 combines of 18 results in 3 virtual seconds" in out
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = call("--schedule", "--json")
    assert code == 0
    assert [c["delivered"] for c in json.loads(out)["clients"]] == [3, 3, 6, 6]
    code, _, err = call("--out", str(tmp_path / "t.png"))
    assert code == 2
    assert "--schedule" in err
    code, _, err = call("--schedule", "--out", str(tmp_path / "no" / "t.png"))
    assert code == 2
    assert "cannot be written" in err
    code, _, err = call("--schedule", "--set", "system.jitter=0.1", "--set", "participation.window=-1")
    assert code == 2
    assert "participation.window" in err
