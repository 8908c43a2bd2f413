"""Rules of a graph's nodes under attack give over 1, 2 and 5 actors the numbers of one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

Make = Callable[..., Any]
RULES: dict[str, dict[str, Any]] = {
    "nna": {"name": "nna", "f": 1},
    "clipped_gossip": {"name": "clipped_gossip"},
    "cs_plus": {"name": "cs_plus", "f": 1},
    "bridge": {"name": "bridge", "f": 1},
    "ios": {"name": "ios", "f": 1},
    "median": {"name": "median"},
    "mean": {"name": "mean"},
}


@pytest.mark.parametrize("rule", RULES)
def test_any_number_of_actors(quadratic: Make, run_scenario: Make, rule: str) -> None:
    quorum = rule == "nna"
    scenario = {
        "data": quadratic(n=11, d=4).section(noise=0.2),
        "algorithm": {"name": "monna", "lr": 0.1, "beta": 0.7, "exchanges": 2, "wait": "quorum" if quorum else "all"},
        "topology": {"graph": "random_geometric", "radius": 0.6},
        "aggregator": RULES[rule],
        "attack": {"name": "dissensus", "eps": 1.0, "attackers": [3, 7]},
        "seed": 4,
    }
    alone = run_scenario(**scenario, run={"rounds": 8, "eval_every": 4})
    for actors in (1, 2, 5):
        other = run_scenario(**scenario, run={"rounds": 8, "eval_every": 4}, backend={"name": "ray", "actors": actors})
        assert float((other.params - alone.params).abs().max()) <= 1e-12
        for column in alone.metrics.columns.drop("wall"):
            np.testing.assert_allclose(alone.metrics[column], other.metrics[column], rtol=1e-12, atol=1e-12)
