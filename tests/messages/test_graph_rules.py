"""Rules of a graph's nodes: numbers by hand, against a slow reference, in shards, with messages that are not finite."""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from reference import graph_rules as slow
from scipy import sparse

from fedsim.backends.placement import place_graph, split
from fedsim.clients.mixing import Mixing
from fedsim.core.fields import part_from
from fedsim.core.job import Contribution
from fedsim.graphs.mixing import mixing_matrix
from fedsim.graphs.mixing_matrix import BaseMixing, MixingMatrix
from fedsim.messages import heard as heard_module
from fedsim.messages.base import Pipeline
from fedsim.messages.graph_rules import EachNode, GraphRule, rule_of
from fedsim.messages.heard import Heard

CPU = torch.device("cpu")
RULES = sorted(slow.RULES)
DUMBBELL = [(0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5), (2, 3), (2, 6), (3, 7)]


def rule(name: str, f: int = 1, **keys: Any) -> GraphRule:
    own = {} if name in ("clipped_gossip", "median") else {"f": f}
    found = rule_of(part_from("aggregator", "name", {"name": name, **own, **keys}))
    assert found is not None
    return found


def matrix_of(graph: nx.Graph) -> sparse.csr_array:
    return BaseMixing(mixing_matrix(graph, "metropolis"), directed=False).matrix


def heard(values: Any, matrix: sparse.csr_array) -> Heard:
    n = matrix.shape[0]
    return Heard(torch.as_tensor(values), np.arange(n), matrix, np.arange(n))


def expected(name: str, values: Any, matrix: sparse.csr_array, f: int) -> Any:
    W, result = matrix.toarray(), []
    for i in range(len(W)):
        near = [j for j in range(len(W)) if j != i and W[i, j] > 0]
        given = {j: values[j] for j in near}
        result.append(slow.RULES[name](values[i], given, {j: W[i, j] for j in near}, f) if near else values[i])
    return np.stack(result)


def lonely_graph() -> nx.Graph:
    """Degrees from 0 to 11."""
    graph = nx.random_geometric_graph(24, 0.3, seed=4)
    graph.remove_edges_from(list(graph.edges(3)))
    assert graph.degree(3) == 0
    assert len({d for _, d in graph.degree}) > 5
    return graph


@pytest.mark.parametrize(
    ("name", "keys", "result"),
    [
        ("nna", {}, 2.25), ("clipped_gossip", {"tau": 1.0}, 3.0), ("clipped_gossip", {}, 3.0), ("gts", {}, 2.4),
        ("cs_plus", {}, 3.0), ("cs_he", {}, 3.2246211251), ("bridge", {}, 3.0), ("ios", {}, 2.25),
    ],
)  # fmt: skip
def test_two_triangles_under_dissensus(name: str, keys: dict[str, Any], result: float) -> None:
    """Node 2 of two triangles that hang together by 2-3; attacker 6 at node 2 sends 7.5, which dissensus 1.5 gives."""
    values = np.array([[0.0], [1], [3], [5], [6], [7], [7.5], [0]])
    graph = nx.empty_graph(8)
    graph.add_edges_from(DUMBBELL)
    matrix = matrix_of(graph)
    assert np.allclose(matrix.toarray()[2, [0, 1, 2, 3, 6]], 0.2)
    assert float(rule(name, **keys).mix(heard(values, matrix))[2]) == pytest.approx(result, abs=5e-11)
    gossip = MixingMatrix(matrix, CPU)(torch.as_tensor(values))
    assert float(gossip[2]) == pytest.approx(3.3)


@pytest.mark.parametrize("f", [0, 1, 2, 5])
@pytest.mark.parametrize("name", RULES)
def test_every_rule_against_its_reference(name: str, f: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heard_module, "PART_BYTES", 2000)  # several parts of each degree
    matrix = matrix_of(lonely_graph())
    values = np.random.default_rng(f).standard_normal((24, 4)) * np.geomspace(0.1, 30, 24)[:, None]
    values[5] = values[9]  # ties
    found = rule(name, f).mix(heard(values, matrix)).numpy()
    assert np.abs(found - expected(name, values, matrix, f)).max() < 1e-12
    assert np.array_equal(found[3], values[3])


@pytest.mark.parametrize("name", ["cs_he", "cs_plus", "gts", "ios"])
def test_tolerating_nobody_is_gossip(name: str) -> None:
    matrix = matrix_of(lonely_graph())
    values = torch.randn((24, 5), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gossip = MixingMatrix(matrix, CPU)(values)
    assert (rule(name, 0).mix(heard(values, matrix)) - gossip).abs().max() < 1e-12
    assert (rule("clipped_gossip", tau=float("inf")).mix(heard(values, matrix)) - gossip).abs().max() < 1e-12


def test_nearest_neighbours_without_attackers_are_uniform_mixing() -> None:
    matrix = matrix_of(nx.complete_graph(7))
    values = torch.randn((7, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = rule("nna", 0).mix(heard(values, matrix))
    assert (found - values.mean(0)).abs().max() < 1e-12


@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("name", RULES)
def test_shards_combine_as_the_whole(name: str, shards: int) -> None:
    matrix = matrix_of(lonely_graph())
    n = matrix.shape[0]
    values = torch.randn((n, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    whole = rule(name, 2).mix(heard(values, matrix))
    owner = place_graph(np.ones(n), matrix, shards)
    for k, part in enumerate(split(matrix, owner, shards)):
        mine = np.flatnonzero(owner == k)
        everybody = np.arange(len(mine), dtype=np.int64)
        arrived = Contribution(1, mine, everybody, everybody)
        mixed = Mixing(rule(name, 2)).exchange(MixingMatrix(part.matrix(), CPU), part.nodes, Pipeline(), arrived)
        assert np.array_equal(part.nodes[: len(mine)], mine)
        assert (mixed(values[torch.as_tensor(part.nodes)]) - whole[torch.as_tensor(mine)]).abs().max() < 1e-12


@pytest.mark.parametrize("name", RULES)
def test_what_is_not_finite_is_dropped_and_counts(name: str) -> None:
    """A neighbour that sends NaN or infinity is as one that is not there, where f is one less."""
    matrix = matrix_of(nx.complete_graph(8))
    values = np.random.default_rng(0).standard_normal((8, 3))
    broken = values.copy()
    broken[3, 1], broken[6, 0] = np.nan, np.inf
    found = rule(name, 3).mix(heard(broken, matrix)).numpy()
    left = [i for i in range(8) if i not in (3, 6)]
    W = matrix.toarray()
    for i in left:
        near = [j for j in left if j != i]
        given = {j: values[j] for j in near}
        assert np.abs(found[i] - slow.RULES[name](values[i], given, {j: W[i, j] for j in near}, 1)).max() < 1e-12


def test_hearing_another_message_over_one_link() -> None:
    """`told` and `without`, which attacks and slow senders use, change what one receiver hears and nothing else."""
    matrix = matrix_of(nx.cycle_graph(5))
    values = torch.arange(10.0, dtype=torch.float64).reshape(5, 2)
    said = heard(values, matrix)
    entry = np.flatnonzero((said.rows == 1) & (said.senders == 2))
    told = said.told(entry, torch.full((1, 2), 100.0, dtype=torch.float64))
    assert told.matrix.shape == (5, 6)
    assert told.nodes.tolist() == [0, 1, 2, 3, 4, 2]
    mixed, before = (MixingMatrix(h.matrix, CPU)(h.values) for h in (told, said))
    changed = (mixed - before).abs().sum(1)
    assert changed[1] > 10
    assert torch.equal(changed[[0, 2, 3, 4]], torch.zeros(4, dtype=torch.float64))
    alone = said.without(np.flatnonzero((said.rows == 1) & (said.senders != 1)))
    assert torch.allclose(MixingMatrix(alone.matrix, CPU)(values)[1], values[1])
    assert np.allclose(alone.matrix.toarray().sum(1), 1)
    some = told.only(np.array([1, 3]))
    assert some.receivers.tolist() == [1, 3]
    assert torch.equal(MixingMatrix(some.matrix, CPU)(some.values), mixed[[1, 3]])


@pytest.mark.parametrize(
    ("name", "keys"),
    [("krum", {"f": 1}), ("trimmed_mean", {"f": 1}), ("geometric_median", {}), ("multi_krum", {"f": 1})],
)
def test_a_servers_rule_at_every_node(name: str, keys: dict[str, Any]) -> None:
    """On the rows of the node and its neighbours in the order of their numbers; a row that is not finite counts."""
    matrix = matrix_of(nx.complete_graph(8))
    values = torch.randn((8, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    part = part_from("aggregator", "name", {"name": name, **keys})
    everywhere = EachNode(part).mix(heard(values, matrix))
    assert (everywhere - part.of(values)).abs().max() < 1e-12
    values[4] = torch.nan
    left = [0, 1, 2, 3, 5, 6, 7]
    expected = part.of(values)
    found = EachNode(part).mix(heard(values, matrix))[left]
    assert (found - expected).abs().max() < 1e-12


def test_buckets_differ_from_node_to_node() -> None:
    part = part_from("aggregator", "name", {"name": "median", "pre": {"name": "bucketing", "s": 2}})
    matrix = matrix_of(nx.complete_graph(8))
    values = torch.randn((8, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    found = EachNode(part).mix(heard(values, matrix))
    assert len({tuple(row) for row in found.tolist()}) > 3
    again = Heard(values, np.arange(8), matrix, np.arange(8), round=2)
    assert not torch.equal(EachNode(part).mix(again), found)


def test_who_hears_too_few_keeps_its_own() -> None:
    matrix = matrix_of(nx.path_graph(6))
    values = torch.arange(6.0, dtype=torch.float64).reshape(6, 1) ** 2
    found = rule("trimmed_mean", 1).mix(heard(values, matrix))  # the ends hear one, and three are needed
    assert torch.equal(found[[0, 5]], values[[0, 5]])
    assert torch.equal(found[1:5], values[1:5])  # the middle of three
