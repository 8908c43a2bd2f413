"""Attackers over 1, 2 and 5 actors: the numbers of one process, and messages that nobody else needs stay in actors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.backends.ray.rows import Rows

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

Make = Callable[..., Any]
DIGITS: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 7, "limit": 350},
    "model": {"name": "linear"},
    "run": {"rounds": 3, "eval_every": 1, "dtype": "float64", "trace": True},
}
SERVER: dict[str, dict[str, Any]] = {
    "gaussian": {}, "sign_flip": {"scale": 2.0}, "zero": {"start": 2}, "alie": {}, "min_max": {},
    "label_flip": {}, "backdoor": {"target": 3, "boost": 2.0},
}  # fmt: skip
GRAPH: dict[str, dict[str, Any]] = {
    "dissensus": {}, "alie": {"z": 1.0}, "random": {}, "label_flip": {}, "backdoor": {"target": 3, "boost": 2.0},
}  # fmt: skip


def same(one: fedsim.Run, other: fedsim.Run) -> None:
    assert float((one.params - other.params).abs().max()) <= 1e-12
    assert list(one.metrics.columns) == list(other.metrics.columns)
    for column in one.metrics.columns.drop("wall"):
        np.testing.assert_allclose(one.metrics[column], other.metrics[column], rtol=1e-12, atol=1e-12)
    assert one.trace == other.trace
    assert (one.dir / "attack.json").read_text() == (other.dir / "attack.json").read_text()


@pytest.mark.parametrize("name", SERVER)
def test_under_a_server(run_scenario: Make, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = {
        **DIGITS, "algorithm": {"name": "fedavg", "lr": 0.2, "local_steps": 2, "batch_size": 16},
        "participation": {"clients_per_round": 5}, "attack": {"name": name, "attackers": 3, **SERVER[name]},
    }  # fmt: skip
    alone = run_scenario(**scenario)
    if name not in ("alie", "min_max"):  # nothing needs the rows in this process
        monkeypatch.setattr(Rows, "tensor", lambda self: pytest.fail("messages were fetched"))  # noqa: ARG005
    for actors in (1, 2, 5):
        same(alone, run_scenario(**scenario, backend={"name": "ray", "actors": actors}))


@pytest.mark.parametrize("name", GRAPH)
def test_on_a_graph(run_scenario: Make, name: str) -> None:
    """Five actors for seven nodes of which three attack: some have no honest node at all."""
    scenario = {
        **DIGITS, "algorithm": {"name": "dfedavg", "lr": 0.2, "local_steps": 2, "batch_size": 16},
        "topology": {"graph": "complete"}, "aggregator": {"name": "nna", "f": 1},
        "attack": {"name": name, "attackers": 3, **GRAPH[name]},
    }  # fmt: skip
    alone = run_scenario(**scenario)
    assert alone.metrics["node_accuracy_min"].iloc[-1] <= alone.metrics["node_accuracy"].iloc[-1]
    for actors in (1, 2, 5):
        same(alone, run_scenario(**scenario, backend={"name": "ray", "actors": actors}))
