"""Virtual time of gossip rounds: the slowest computation, then the slowest link that fires."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim

EDGES = {(0, 1): (10.0, 1.0), (1, 2): (30.0, 0.001), (2, 3): (20.0, 1.0), (0, 3): (5.0, 10.0)}  # ms, Mbit/s
TAU = [1.0, 11 / 15, 7 / 15, 0.2]


def run(tmp_path: Path, again: bool = False, **changes: Any) -> Any:
    random = np.random.default_rng(0)
    np.savez(tmp_path / "q.npz", A=random.uniform(0.5, 2, (4, 3)), b=random.normal(size=(4, 3)))
    lines = [f"{i},{j},{latency},{bandwidth}" for (i, j), (latency, bandwidth) in EDGES.items()]
    (tmp_path / "net.csv").write_text("source,target,latency_ms,bandwidth_mbps\n" + "\n".join(lines) + "\n")
    scenario = {
        "data": {"dataset": "quadratic", "file": str(tmp_path / "q.npz")},
        "algorithm": {"name": "dspodfl", "lr": 0.1},
        "topology": {"graph": "file", "path": str(tmp_path / "net.csv")},
        "participation": {"mode": "gossip", "compute": 0.5, "links": 0.5},
        "system": {"compute": {"model": "linear", "slowest": 1.0, "fastest": 0.2}},
        "run": {"rounds": 30, "eval_every": 10, "dtype": "float64", "trace": True},
    }
    scenario = {k: v for k, v in {**scenario, **changes}.items() if v is not None}
    return fedsim.run(scenario, out=tmp_path / "run", resume=again)


def lengths(trace: list[dict[str, Any]], tau: list[float], message: int) -> list[float]:
    def link(i: int, j: int) -> float:
        latency, bandwidth = EDGES[i, j]
        return latency / 1e3 + 8 * message / (bandwidth * 1e6)

    return [
        max((tau[i] for i in row["compute"]), default=0.0) + max((link(i, j) for i, j in row["edges"]), default=0.0)
        for row in trace
    ]


def test_a_round_is_its_slowest_node_and_then_its_slowest_link(tmp_path: Path) -> None:
    done = run(tmp_path)
    expected = np.cumsum(lengths(done.trace, TAU, message=3 * 8))
    np.testing.assert_allclose([row["time"] for row in done.trace], expected, rtol=1e-9)
    assert len({round(t, 6) for t in lengths(done.trace, TAU, 24)}) > 4  # the rounds do differ


def test_latencies_of_the_graph_start_the_clock_without_a_system(tmp_path: Path) -> None:
    done = run(tmp_path, system=None)
    expected = np.cumsum(lengths(done.trace, [1.0] * 4, message=24))
    np.testing.assert_allclose([row["time"] for row in done.trace], expected, rtol=1e-9)


def test_without_either_a_round_is_a_second(tmp_path: Path) -> None:
    done = run(tmp_path, system=None, topology={"graph": "ring"})
    assert [row["time"] for row in done.trace] == [float(k) for k in range(1, 31)]


@pytest.mark.parametrize("system", [None, {"compute": {"model": "lognormal", "sigma": 1.0}}])
def test_a_resumed_run_keeps_the_time(tmp_path: Path, system: dict[str, Any] | None) -> None:
    whole = run(tmp_path, system=system).trace
    run(tmp_path, system=system, run={"rounds": 17, "eval_every": 10, "dtype": "float64", "trace": True})
    assert run(tmp_path, system=system, again=True).trace == whole


def test_compute_speeds_do_not_change_the_numbers(tmp_path: Path) -> None:
    slow = run(tmp_path).params
    fast = run(tmp_path, system={"compute": 0.001}).params
    assert slow.equal(fast)
