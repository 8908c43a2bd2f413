"""Where clients are placed, what shards exchange, lazy rows, and files written by rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import sparse

from fedsim.backends import placement
from fedsim.backends.placement import cut_edges, place, place_graph, split
from fedsim.backends.ray.rows import Rows
from fedsim.core.row_files import RowStream, TensorFile, write_tensors
from fedsim.graphs.mixing import mixing_matrix
from fedsim.graphs.mixing_matrix import MixingMatrix

CPU = torch.device("cpu")


def test_loads_are_balanced() -> None:
    load = np.random.default_rng(0).pareto(1.5, 200) + 1
    totals = np.bincount(place(load, 4), load, minlength=4)
    assert totals.max() <= max(load.max(), 4 / 3 * load.sum() / 4)
    assert set(place(np.ones(3), 3)) == {0, 1, 2}


@pytest.mark.parametrize("degree", [3, 6, 60])
def test_neighbours_are_counted_alike(degree: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one, and as an array: where nodes go depends on the graph and the loads alone."""
    matrix = mixing_matrix(nx.random_regular_graph(degree, 300, seed=1), "metropolis")
    load = np.random.default_rng(0).random(300)
    owners = []
    for few in (0, 1000):
        monkeypatch.setattr(placement, "_FEW", few)
        owners += [place_graph(load, matrix, shards).tolist() for shards in (2, 3, 7)]
    assert owners[:3] == owners[3:]


@pytest.mark.parametrize("shards", [1, 2, 3, 5])
@pytest.mark.parametrize("graph", ["ring", "torus", "geometric", "complete", "pairs", "few pairs"])
def test_shards_mix_as_the_whole(graph: str, shards: int) -> None:
    """Bit for bit where rows are gathered; a dense product of another shape adds up in another order."""
    made = {
        "pairs": lambda: nx.from_edgelist([(i, i + 12) for i in range(12)]),
        "few pairs": lambda: nx.from_edgelist([(i, i + 3) for i in range(3)]),
        "ring": lambda: nx.cycle_graph(24),
        "torus": lambda: nx.convert_node_labels_to_integers(nx.grid_2d_graph(4, 6, periodic=True)),
        "geometric": lambda: nx.random_geometric_graph(24, 0.5, seed=3),
        "complete": lambda: nx.complete_graph(24),
    }[graph]()
    matrix = mixing_matrix(made, "metropolis")
    n = matrix.shape[0]
    owner = place_graph(np.ones(n), matrix, shards)
    assert np.bincount(owner, minlength=shards).min() > 0
    parts = split(matrix, owner, shards)
    x, mixing = torch.randn(n, 7, dtype=torch.float64), MixingMatrix(matrix, CPU)
    assert mixing.dense == (graph in ("geometric", "complete"))
    whole = mixing(x)
    nodes = [np.flatnonzero(owner == k) for k in range(shards)]
    crossing = 0
    for k, part in enumerate(parts):
        halo = [x[nodes[j]][parts[j].outgoing[k]] for j in range(shards)]
        assert [len(h) for h in halo] == part.incoming.tolist()
        crossing += int(part.incoming.sum())
        assert part.dense == mixing.dense
        mixed = MixingMatrix(part.matrix(), CPU, part.dense)(torch.cat([x[nodes[k]], *halo]))
        torch.testing.assert_close(mixed, whole[nodes[k]], rtol=1e-14, atol=1e-14)
        assert mixing.dense or torch.equal(mixed, whole[nodes[k]])
    assert crossing <= cut_edges(owner, matrix)  # a row crosses once, however many nodes want it


def test_shards_may_have_unequal_parts() -> None:
    """Of a graph whose shards' actors are of different speeds."""
    matrix = mixing_matrix(nx.cycle_graph(100), "metropolis")
    owner = place_graph(np.ones(100), matrix, 3, np.array([3.0, 1.0, 1.0]))
    assert np.abs(np.bincount(owner) - [60, 20, 20]).max() <= 3
    assert cut_edges(owner, matrix) == 6
    few = place_graph(np.ones(4), mixing_matrix(nx.cycle_graph(4), "metropolis"), 3, np.array([1e-6, 1.0, 1.0]))
    assert np.bincount(few, minlength=3).min() == 1


def test_few_edges_are_cut() -> None:
    """A ring whose nodes are numbered at random is cut where it is cheap: twice, in both directions."""
    order = np.random.default_rng(1).permutation(60)
    ring = nx.relabel_nodes(nx.cycle_graph(60), dict(enumerate(order.tolist())))
    matrix = mixing_matrix(nx.from_scipy_sparse_array(nx.to_scipy_sparse_array(ring, nodelist=range(60))), "metropolis")
    owner = place_graph(np.ones(60), matrix, 2)
    assert cut_edges(owner, matrix) <= 4
    assert abs(np.bincount(owner) - 30).max() <= 2


def rows(values: torch.Tensor, calls: list[str]) -> Rows:
    def reduce(weights: torch.Tensor) -> torch.Tensor:
        calls.append("reduce")
        return weights @ values

    def fetch() -> torch.Tensor:
        calls.append("fetch")
        return values

    return Rows((len(values), values.shape[1]), values[:1], reduce, fetch)


LINEAR = {
    "weights @ rows": lambda r, w: w @ r,
    "weighted sum": lambda r, w: (w[:, None] * r).sum(-2),
    "the other way round": lambda r, w: (r * w[:, None]).sum(dim=0),
    "twice": lambda r, w: (w[:, None] * (w[:, None] * r)).sum(0),
    "sum": lambda r, _: torch.sum(r, 0),
}
OTHER = {
    "sort": lambda r, _: r.sort(dim=0).values,
    "index": lambda r, _: r[1:3],
    "difference": lambda r, _: r - 2 * r,
    "norm": lambda r, _: torch.linalg.vector_norm(r, dim=-1, keepdim=True),
    "stack": lambda r, _: torch.stack([r, r]),
    "sum over parameters": lambda r, _: r.sum(-1),
    "product of all": lambda r, _: (r * r).mean(0),
}


@pytest.mark.parametrize("name", [*LINEAR, *OTHER])
def test_rows_are_reduced_where_they_are_or_fetched(name: str) -> None:
    values, w = torch.randn(5, 3, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    calls: list[str] = []
    operation: Any = LINEAR.get(name) or OTHER[name]
    torch.testing.assert_close(operation(rows(values, calls), w), operation(values, w), rtol=1e-14, atol=1e-14)
    assert calls == (["reduce"] if name in LINEAR else ["fetch"])


def test_files_by_rows_are_safetensors(tmp_path: Path) -> None:
    x, y = torch.randn(6, 4), torch.randn(6, 2, dtype=torch.float64)
    parts = [np.array([0, 2, 3]), np.array([1, 4, 5])]
    stream = RowStream((6, 4), x.dtype, lambda _: iter([(p, x[p].numpy()) for p in parts]))
    write_tensors(tmp_path / "f.safetensors", {"x": stream, "y": y}, {"layout": "[]"})
    found = load_file(tmp_path / "f.safetensors")
    assert torch.equal(found["x"], x)
    assert torch.equal(found["y"], y)
    file = TensorFile(tmp_path / "f.safetensors")
    assert list(file) == ["x", "y"]
    assert torch.equal(file["y"], y)
    some = np.array([5, 0, 1])
    assert np.array_equal(file.place("x").read(some), x[some].numpy())


def test_an_asymmetric_matrix_is_split_too() -> None:
    matrix = sparse.csr_array(np.array([[0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5], [0.5, 0, 0, 0.5]]))
    parts = split(matrix, np.array([0, 1, 0, 1]), 2)
    assert [p.incoming.tolist() for p in parts] == [[0, 2], [2, 0]]
