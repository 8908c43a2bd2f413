"""Deployments in reports: beside their simulation, with what went wrong; and the system model they measured."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flower_loopback import Deployment

import fedsim
from fedsim.engine.replies import accounts, fitted_system
from fedsim.reports.groups import find_runs, group_runs, metrics_of
from fedsim.reports.report import write_report

pytest.importorskip("flwr")
Make = Callable[..., Any]
N = 3


@pytest.fixture
def pair(tmp_path: Path, quadratic: Make) -> tuple[Path, Path]:
    """Run directories of a deployment in which client 1 missed round 2, and of the simulation."""
    scenario = {
        "name": "pair",
        "data": quadratic(n=N, d=3).section(),
        "algorithm": {"name": "fedavg", "lr": 0.1},
        "run": {"rounds": 4, "eval_every": 1, "trace": True},
    }
    simulated = fedsim.run(scenario, out=tmp_path / "simulated")
    app = Deployment(tmp_path / "app", scenario, N, **{"on-failure": "drop"})
    app.grid.nodes[102].delay = 0.15

    def garble(message: Any, reply: Any) -> Any:
        if message.metadata.group_id == "2":
            reply.content["fedsim"]["number"] = 50
        return reply

    app.grid.nodes[101].spoil = garble
    return app.run().dir, simulated.dir


def test_the_page_compares_and_shows_the_gap(pair: tuple[Path, Path], tmp_path: Path) -> None:
    text = write_report(list(pair), tmp_path / "report.html").read_text()
    plain = re.sub(r"<[^>]+>", " ", text)
    assert "Parity" in plain
    assert "Rounds with a gap: 2 (without 1)." in plain
    assert "it answers job 50 of client 1" in plain
    assert "flower" in plain
    assert "vectorized" in plain


def test_a_deployment_is_no_second_seed_of_the_simulation(pair: tuple[Path, Path]) -> None:
    groups, differing = group_runs(find_runs(list(pair)))
    assert len(groups) == 2
    assert differing == ["backend.name"]


def test_time_is_virtual_in_simulations_alone(pair: tuple[Path, Path], tmp_path: Path) -> None:
    deployed, simulated = pair
    for runs, words in (
        ([deployed], "time"),
        ([simulated], "virtual time"),
        ([deployed, simulated], "time (virtual, of deployments real)"),
    ):
        assert metrics_of(find_runs(runs))[0]["time"].words == words
        text = write_report(runs, tmp_path / "report.html").read_text()
        assert f"{words} (s)" in text
        assert ("virtual time" in text) == (words == "virtual time")


def test_equal_runs_differ_by_nothing(tmp_path: Path, quadratic: Make) -> None:
    scenario = {
        "data": quadratic(n=N, d=3).section(),
        "algorithm": {"name": "scaffold", "lr": 0.1},
        "run": {"rounds": 2, "eval_every": 1},
    }
    simulated = fedsim.run(scenario, out=tmp_path / "simulated")
    run = Deployment(tmp_path / "app", scenario, N).run()
    text = write_report([run.dir, simulated.dir], tmp_path / "report.html").read_text()
    parity = text[text.index("<h2>Parity") :]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", parity[: parity.index("</table>")])
    assert cells[2:-2] == ["3", "0", "0", "0"]  # rounds, train loss, distance to the optimum, parameters


def test_the_measured_system_runs_as_a_simulation(pair: tuple[Path, Path], tmp_path: Path) -> None:
    fitted = fedsim.load(pair[0] / "fitted.yaml")
    latency = fitted.system.network.latency.values  # type: ignore[union-attr]
    assert latency[2] - latency[0] == pytest.approx(0.075, abs=0.005)  # half of the delay each way
    run = fedsim.run(fitted, out=tmp_path / "fitted")
    deployed = fedsim.engine.run_directory.Run(pair[0])
    assert run.metrics["time"].iloc[-1] == pytest.approx(deployed.metrics["time"].iloc[-1], rel=0.1)


def test_what_is_fitted() -> None:
    replies = [
        {"client": 0, "status": "ok", "work": 1.0, "seconds": 3.0},
        {"client": 0, "status": "ok", "work": 2.0, "seconds": 6.0},
        {"client": 0, "status": "ok", "work": 9.0, "seconds": 20.0},
        {"client": 0, "status": "late", "seconds": 90.0},
        {"client": 2, "status": "ok", "work": 4.0, "seconds": 6.0},
    ]
    assert fitted_system(replies, 3, gossip=False) == {
        "compute": {"model": "table", "values": [2.0, 3.0, 4.0]},  # client 1 never answered: the others' median
        "network": {"latency": {"model": "table", "values": [2.0, 1.5, 1.0]}},
    }
    assert fitted_system(replies, 3, gossip=True) == {"compute": {"model": "table", "values": [6.0, 6.0, 6.0]}}
    assert fitted_system(replies[3:4], 3, gossip=False) is None
    first, second, _ = accounts(replies, 3)
    assert (first.good, first.work, first.rest, len(first.troubles)) == (3, 2.0, 4.0, 1)
    assert (second.good, second.work) == (0, None)
