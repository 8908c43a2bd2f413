"""Clients and nodes evaluated one by one have over any number of actors the numbers of one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

Make = Callable[..., Any]
BASE: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 7, "limit": 210, "local_test": 0.3, "partition": {"scheme": "linear"}},
    "model": {"name": "mlp", "hidden": [8]},
}
RUN = {"rounds": 4, "eval_every": 2, "metrics": [{"name": "macro_f1"}]}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "common": ({"algorithm": {"name": "fedavg", "lr": 0.1, "batch_size": 8}}, {"finetune": {"epochs": 1}}),
    "own": (
        {
            "algorithm": {"name": "own_clients:Keeps", "lr": 0.1, "batch_size": 8},
            "participation": {"mode": "asynchronous"},
            "system": {"compute": {"model": "linear", "slowest": 1.0, "fastest": 0.2}},
        },
        {"eval_clients": 5},
    ),
    "nodes": ({"algorithm": {"name": "dspodfl", "lr": 0.1, "batch_size": 8}, "topology": {"graph": "ring"}}, {}),
    "own nodes": (
        {"algorithm": {"name": "own_clients:KeepsNode", "lr": 0.1, "batch_size": 8}, "topology": {"graph": "ring"}},
        {"finetune": {"steps": 2}, "eval_clients": 5},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_any_number_of_actors(run_scenario: Make, case: str) -> None:
    sections, run = CASES[case]
    scenario = {**BASE, **sections}
    alone = run_scenario(**scenario, run={**RUN, **run})
    for actors in (1, 2):
        other = run_scenario(**scenario, run={**RUN, **run}, backend={"name": "ray", "actors": actors})
        assert len(other.clients) == 3 * run.get("eval_clients", 7)
        first = alone.clients["round"] == 0
        assert other.clients[first].equals(alone.clients[first]) or "finetune" in run  # of equal models bit for bit
        for column in alone.clients.columns:
            np.testing.assert_allclose(alone.clients[column], other.clients[column], rtol=1e-10, atol=1e-12)


def test_actors_have_their_threads_where_the_scenario_says(run_scenario: Make) -> None:
    """Within operators with `operator_threads`, each with one of PyTorch's with `threads`."""
    scenario = {**BASE, "model": {"name": "own_models:Threaded"}, "algorithm": {"name": "fedavg", "lr": 0.1}}
    found = []
    for threads in ({"threads": 3}, {"operator_threads": 3}):
        alone = run_scenario(**scenario, run={**RUN, **threads})
        other = run_scenario(**scenario, run={**RUN, **threads}, backend={"name": "ray", "actors": 2})
        np.testing.assert_allclose(other.params, alone.params, rtol=1e-10, atol=1e-12)
        found.append(alone.params.numpy())
    assert not np.allclose(found[0], found[1])
