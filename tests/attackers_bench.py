"""What tests of attackers share: a graph with a bridge, problems whose numbers are known, and small helpers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch

import fedsim
from fedsim.core.errors import InputError
from fedsim.scenario.load import parse

EDGES = [(0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5), (2, 3), (2, 6), (3, 7)]
"""Two triangles with a bridge between 2 and 3, and at each of its ends an attacker, 6 and 7."""
V = [[1.0, 2, -1], [2, 1, 0], [0, 2, 1], [1, 0, -2], [3, 1, 1], [9, 9, 9], [9, 9, 9]]
DIGITS: dict[str, Any] = {
    "data": {"dataset": "digits", "clients": 6, "limit": 300},
    "model": {"name": "linear"},
    "algorithm": {"name": "fedavg", "lr": 0.2, "local_steps": 2, "batch_size": 16},
    "run": {"rounds": 2, "eval_every": 1, "dtype": "float64"},
}


@pytest.fixture
def seven(tmp_path: Path) -> dict[str, Any]:
    """Seven clients, of whom 5 and 6 attack; client i pulls towards row i of V."""
    np.savez(tmp_path / "q.npz", A=np.ones((7, 3)), b=np.array(V))
    return {
        "data": {"dataset": "quadratic", "file": str(tmp_path / "q.npz")},
        "algorithm": {"name": "fedavg", "lr": 1.0, "local_steps": 1, "weighting": "uniform"},
        "run": {"rounds": 3, "eval_every": 1, "dtype": "float64", "trace": True},
    }


@pytest.fixture
def dumbbell(tmp_path: Path) -> dict[str, Any]:
    """The graph of `EDGES`, on which nodes pull towards different places."""
    graph = nx.Graph()
    graph.add_nodes_from(range(8))
    graph.add_edges_from(EDGES)
    nx.write_graphml(graph, tmp_path / "g.graphml")
    return {
        "data": {"dataset": "digits", "clients": 8, "limit": 400}, "model": {"name": "linear"},
        "algorithm": {"name": "dpsgd", "lr": 0.1, "batch_size": 16}, "run": {**DIGITS["run"], "rounds": 3},
        "topology": {"graph": "file", "path": str(tmp_path / "g.graphml"), "weights": "metropolis"},
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Tolerates(fedsim.Aggregator):
    """The mean, which says that it tolerates `f` attackers."""

    f: int

    def __call__(self, values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return weights @ values


def rows(run: fedsim.Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "wall"} for row in run.metrics.to_dict("records")]


def refused(scenario: dict[str, Any], out: Path) -> str:
    with pytest.raises(InputError) as caught:
        fedsim.run(scenario, out=out)
    assert not out.exists()
    return str(caught.value)


def scenario_of(values: dict[str, Any]) -> Any:
    """The scenario, read as `fedsim.run` reads it."""
    return parse(values)


def rows_of(task: Any, client: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows that a client trains on."""
    place = torch.as_tensor(task.indices[task.offsets[client] : task.offsets[client + 1]])
    return task.inputs[place], task.targets[place]
