"""What attackers tell the nodes of a graph: numbers by hand, against slow references, the same in shards."""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from reference import attacks as reference

from fedsim.backends.placement import place_graph, split
from fedsim.clients.mixing import Mixing
from fedsim.core.fields import part_from
from fedsim.core.job import Contribution, RunFacts
from fedsim.graphs.mixing import mixing_matrix
from fedsim.graphs.mixing_matrix import BaseMixing, MixingMatrix
from fedsim.messages.base import Pipeline
from fedsim.messages.edge_attacks import fiedler
from fedsim.messages.graph_rules import rule_of

CPU = torch.device("cpu")
EDGES = [(0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5), (2, 3), (2, 6), (3, 7)]
X = [0.0, 1, 3, 5, 6, 7, 100, 200]
ATTACKS: dict[str, dict[str, Any]] = {
    "dissensus": {}, "alie": {}, "ipm": {}, "min_max": {}, "mimic": {"who": 1}, "gaussian": {}, "random": {},
    "zero": {}, "sign_flip": {"of": "mean"}, "sign_flip of own": {}, "spectral": {"scale": 0.5},
    "backdoor": {"target": 1, "boost": 3.0}, "alie of all": {"knowledge": "all", "z": 1.0},
}  # fmt: skip
NEIGHBOURS = [name for name in ATTACKS if name not in ("spectral", "alie of all")]


def graph(edges: list[tuple[int, int]], n: int) -> BaseMixing:
    made = nx.empty_graph(n)
    made.add_edges_from(edges)
    return BaseMixing(mixing_matrix(made, "metropolis"), directed=False)


def pipeline(base: BaseMixing, attackers: list[int], name: str, keys: dict[str, Any] | None = None) -> Pipeline:
    found = {"name": name.split(" of ")[0], "attackers": attackers, **(ATTACKS[name] if keys is None else keys)}
    part = part_from("attack", "name", found)
    run = RunFacts(7, base.n, tuple(attackers), links=base.links)
    part.check({}, run)
    return Pipeline((part,), run)


def mixed(base: BaseMixing, values: Any, through: Pipeline, rule: dict[str, Any] | None = None, number: int = 1) -> Any:
    """One exchange of all nodes."""
    nodes = np.arange(base.n)
    how = Mixing(None if rule is None else rule_of(part_from("aggregator", "name", rule)))
    arrived = Contribution(number, nodes, np.full(base.n, number), np.ones(base.n, dtype=np.int64))
    rows = torch.as_tensor(np.array(values, dtype=np.float64).reshape(base.n, -1))
    return how.exchange(MixingMatrix(base.matrix, CPU), nodes, through, arrived)(rows).numpy()


@pytest.mark.parametrize(
    ("eps", "rule", "result"),
    [
        (1.0, None, 3.0), (1.5, None, 3.3), (1.5, {"name": "nna", "f": 1}, 2.25),
        (1.5, {"name": "clipped_gossip", "tau": 1.0}, 3.0), (1.5, {"name": "gts", "f": 1}, 2.4),
        (1.5, {"name": "cs_plus", "f": 1}, 3.0), (1.5, {"name": "cs_he", "f": 1}, 3.2246211251),
        (1.5, {"name": "bridge", "f": 1}, 3.0), (1.5, {"name": "ios", "f": 1}, 2.25),
    ],
)  # fmt: skip
def test_two_triangles_under_dissensus(eps: float, rule: dict[str, Any] | None, result: float) -> None:
    base = graph(EDGES, 8)
    found = mixed(base, X, pipeline(base, [6, 7], "dissensus", {"eps": eps}), rule)
    assert float(found[2, 0]) == pytest.approx(result, abs=5e-11)
    assert float(found[6, 0]) == pytest.approx(base_row(base, 6) @ np.array(X))


def base_row(base: BaseMixing, node: int) -> Any:
    return base.matrix.toarray()[node]


def test_dissensus_undoes_gossip() -> None:
    """With eps 1 and no rule every node that hears an attacker stays where it is."""
    made = nx.random_geometric_graph(20, 0.45, seed=2)
    base = BaseMixing(mixing_matrix(made, "metropolis"), directed=False)
    values = np.random.default_rng(0).standard_normal((20, 3))
    found = mixed(base, values, pipeline(base, [3, 8, 11], "dissensus", {"eps": 1.0}))
    W = base.matrix.toarray()
    hit = [i for i in range(20) if i not in (3, 8, 11) and W[i, [3, 8, 11]].any()]
    assert len(hit) > 5
    assert np.abs(found[hit] - values[hit]).max() < 1e-12
    others = [i for i in range(20) if i not in hit]
    assert np.abs(found[others] - (W @ values)[others]).max() < 1e-12


@pytest.mark.parametrize(("name", "eps"), [("dissensus", 1.5), ("dissensus", 0.3), ("alie", 1.0), ("ipm", 0.5)])
def test_what_every_neighbour_is_told(name: str, eps: float) -> None:
    """Against a loop over nodes: every attacker of a node's neighbours tells it the same, made of its neighbourhood."""
    made = nx.random_geometric_graph(16, 0.5, seed=5)
    base = BaseMixing(mixing_matrix(made, "metropolis"), directed=False)
    values, evil = np.random.default_rng(1).standard_normal((16, 4)), [0, 7, 12]
    key = {"dissensus": "eps", "alie": "z", "ipm": "eps"}[name]
    found = mixed(base, values, pipeline(base, evil, name, {key: eps}))
    W = base.matrix.toarray()
    expected = W @ values
    for i in set(range(16)) - set(evil):
        near = [j for j in range(16) if j != i and W[i, j] > 0]
        bad, good = [j for j in near if j in evil], [j for j in near if j not in evil]
        if bad:
            if name == "dissensus":
                told = reference.dissensus(values[i], {j: values[j] for j in good}, dict(enumerate(W[i])), bad, eps)
            else:
                told = getattr(reference, name)(values[sorted([i, *good])], eps)
            heard = {j: told if j in bad else values[j] for j in near}
            expected[i] = W[i, i] * values[i] + sum(W[i, j] * v for j, v in heard.items())
    assert np.abs(found - expected).max() < 1e-12


def test_attackers_that_know_all_tell_all_the_same() -> None:
    """ALIE of everything that honest nodes send: the number by hand at every honest neighbour of 6 and 7."""
    base, values = graph(EDGES, 8), np.array(X)
    found = mixed(base, X, pipeline(base, [6, 7], "alie", {"z": 1.0, "knowledge": "all"}))
    told = values[:6].mean() - values[:6].std(ddof=1)
    assert float(found[2, 0]) == pytest.approx(0.2 * (0 + 1 + 3 + 5 + told), abs=1e-12)
    assert float(found[0, 0]) == pytest.approx(base_row(base, 0) @ values, abs=1e-12)


def test_spectral_pushes_along_the_slowest_direction() -> None:
    base, values = graph(EDGES, 8), np.random.default_rng(3).standard_normal((8, 2))
    honest = nx.empty_graph(8)
    honest.add_edges_from(EDGES)
    honest.remove_nodes_from([6, 7])
    v = np.linalg.eigh(nx.laplacian_matrix(honest, nodelist=range(6)).toarray().astype(float))[1][:, 1]
    found = mixed(base, values, pipeline(base, [6, 7], "spectral", {"scale": 2.0}))
    told = values[2] + 2.0 * v[2] * (v @ values[:6])
    W = base.matrix.toarray()
    assert found[2] == pytest.approx(W[2, :6] @ values[:6] + 0.2 * told, abs=1e-12)
    assert fiedler(base.links.tobytes(), 8, (6, 7))[6:].tolist() == [0, 0]


def test_the_slowest_direction_of_a_large_graph() -> None:
    """Beyond 1,500 nodes by iterations: the residual of the eigenvector is next to nothing."""
    made = nx.random_regular_graph(6, 1600, seed=1)
    links = np.sort(np.array(made.edges(), dtype=np.int64), axis=1)
    v = fiedler(links.tobytes(), 1600, ())
    L = nx.laplacian_matrix(made, nodelist=range(1600)).astype(float)
    value = v @ (L @ v)
    assert np.abs(L @ v - value * v).max() < 1e-8
    assert abs(v.sum()) < 1e-6
    assert value > 0.1


@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("name", NEIGHBOURS)
def test_shards_are_told_the_same(name: str, shards: int) -> None:
    made = nx.random_geometric_graph(18, 0.5, seed=6)
    base = BaseMixing(mixing_matrix(made, "metropolis"), directed=False)
    evil = [2, 9, 14]
    through, values = pipeline(base, evil, name), np.random.default_rng(4).standard_normal((18, 3))
    whole = mixed(base, values, through, {"name": "nna", "f": 1}, number=5)
    owner = place_graph(np.ones(18), base.matrix, shards)
    for k, part in enumerate(split(base.matrix, owner, shards)):
        mine = np.flatnonzero(owner == k)
        arrived = Contribution(5, mine, np.full(len(mine), 5), np.ones(len(mine), dtype=np.int64))
        how = Mixing(rule_of(part_from("aggregator", "name", {"name": "nna", "f": 1})))
        exchange = how.exchange(MixingMatrix(part.matrix(), CPU), part.nodes, through, arrived)
        found = exchange(torch.as_tensor(values[part.nodes])).numpy()
        assert np.abs(found - whole[mine]).max() < 1e-12


@pytest.mark.parametrize("name", list(ATTACKS))
def test_attackers_own_states_are_honest(name: str) -> None:
    base, values = graph(EDGES, 8), np.random.default_rng(5).standard_normal((8, 3))
    found = mixed(base, values, pipeline(base, [6, 7], name))
    honest = base.matrix.toarray() @ values
    assert np.abs(found[[0, 1, 4, 5, 6, 7]] - honest[[0, 1, 4, 5, 6, 7]]).max() < 1e-12
    assert np.abs(found[[2, 3]] - honest[[2, 3]]).max() > 1e-3
    late = pipeline(base, [6, 7], name, {**ATTACKS[name], "start": 3}) if name != "backdoor" else None
    if late is not None:
        assert np.abs(mixed(base, values, late, number=2) - honest).max() < 1e-12
        assert np.abs(mixed(base, values, late, number=3) - honest).max() > 1e-3


def test_two_clusters() -> None:
    """21 of 26 nodes are honest, at 0 and 1; after one round of nna against dissensus 0.45."""
    base = BaseMixing(mixing_matrix(nx.complete_graph(26), "metropolis"), directed=False)
    values, evil = [0.0] * 10 + [1.0] * 11 + [0.0] * 5, list(range(21, 26))
    through = pipeline(base, evil, "dissensus", {"eps": 0.45})
    found = mixed(base, values, through, {"name": "nna", "f": 5})
    assert found[[0, 20], 0] == pytest.approx([0.05, 0.9761904762], abs=5e-11)
    assert mixed(base, values, through)[[0, 20], 0] == pytest.approx([0.2326923077, 0.7884615385], abs=5e-11)


def test_a_target_whose_own_weight_is_nought() -> None:
    """Attackers know what a node has although it does not count for itself."""
    base = BaseMixing(mixing_matrix(nx.complete_graph(3), "metropolis"), directed=False)
    base.matrix.data[:] = [0.0, 0.5, 0.5, 0.5, 0.0, 0.5, 0.5, 0.5, 0.0]
    found = mixed(base, [1.0, 3.0, 50.0], pipeline(base, [2], "ipm", {"eps": 1.0}))
    assert found[:2, 0].tolist() == [0.5 * 3 + 0.5 * -2, 0.5 * 1 + 0.5 * -2]
