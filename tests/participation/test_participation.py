"""Who takes part, how often and how much: cohorts, stragglers, sporadic nodes and links, probability laws."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from scipy import stats

from fedsim.algorithms.dspodfl import DGD, DSpodFL, PeriodicGossip
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.work import Work
from fedsim.core.errors import InputError
from fedsim.data.sets import Quadratic
from fedsim.graphs.network import build_network
from fedsim.graphs.topology import Topology
from fedsim.messages.aggregators import Mean
from fedsim.objective.quadratic import QuadraticTask
from fedsim.participation.base import Arrival, Dispatch, Setting
from fedsim.participation.gossip import Gossip
from fedsim.participation.laws import Law, ProbabilityLaw
from fedsim.participation.record import trace_row
from fedsim.participation.synchronous import Synchronous, _somebody

LAW = TypeAdapter(ProbabilityLaw)
ROUNDS = 3000


def task_of(n: int, p: Any = None) -> QuadraticTask:
    p = np.ones(n) if p is None else np.asarray(p, dtype=float)
    arrays = (np.ones((n, 1)), np.zeros((n, 1)), np.zeros(1), p / p.sum())
    return QuadraticTask(Quadratic(*(torch.as_tensor(a) for a in arrays)), 0, torch.device("cpu"), torch.float64)


def rounds_of(
    mode: Any, task: Any, algorithm: Any, count: int, seed: int = 0, start: int = 0, network: Any = None
) -> list[Any]:
    """The first `count` (Dispatch, Arrival) pairs; every mode here alternates them."""
    setting = Setting(seed, count, task, algorithm, mode, Mean(), network)
    events: Iterator[Any] = mode.events(setting, start)
    pairs = [(next(events), next(events)) for _ in range(count)]
    for dispatch, arrival in pairs:
        assert isinstance(dispatch, Dispatch)
        assert isinstance(arrival, Arrival)
        assert np.array_equal(dispatch.clients, arrival.clients)
        assert np.array_equal(dispatch.steps, arrival.steps)
    return pairs


def arrivals(mode: Any, task: Any, count: int = ROUNDS, algorithm: Any = None, **more: Any) -> list[Arrival]:
    return [a for _, a in rounds_of(mode, task, algorithm or FedAvg(), count, **more)]


# --- cohorts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode,size",
    [
        (Synchronous(), 10),
        (Synchronous(fraction=1.0), 10),
        (Synchronous(fraction=0.3), 3),
        (Synchronous(fraction=0.25), 2),  # Python rounds halves to even
        (Synchronous(fraction=0.01), 1),
        (Synchronous(clients_per_round=7), 7),
    ],
)
def test_cohorts_have_the_size_asked_for(mode: Synchronous, size: int) -> None:
    assert mode.cohort_size(10) == size
    for number, arrival in enumerate(arrivals(mode, task_of(10), 50), 1):
        assert len(arrival.clients) == size
        assert np.array_equal(arrival.clients, np.unique(arrival.clients))
        assert arrival.number == arrival.time == number
        assert (arrival.rounds == number).all()
        assert not arrival.staleness.any()
        assert arrival.sends == size
        assert (arrival.steps == 1).all()


def test_uniform_cohorts_are_uniform_in_pairs_too() -> None:
    together = np.zeros((8, 8))
    for a in arrivals(Synchronous(clients_per_round=3), task_of(8)):
        together[np.ix_(a.clients, a.clients)] += 1 / ROUNDS
    p, q = 3 / 8, 3 * 2 / (8 * 7)
    off = ~np.eye(8, dtype=bool)
    assert np.abs(np.diag(together) - p).max() < 5 * np.sqrt(p * (1 - p) / ROUNDS)
    assert np.abs(together[off] - q).max() < 5 * np.sqrt(q * (1 - q) / ROUNDS)


@pytest.mark.parametrize("n,fraction", [(20, 0.3), (4, 0.1)])
def test_bernoulli_cohorts(n: int, fraction: float) -> None:
    """Each client with probability `fraction`, independently, given that somebody takes part."""
    mode = Synchronous(fraction=fraction, sampling="bernoulli")
    member = np.zeros((ROUNDS, n))
    for row, a in zip(member, arrivals(mode, task_of(n)), strict=True):
        assert len(a.clients) >= 1
        row[a.clients] = 1
    sizes = np.arange(n + 1)
    law = stats.binom.pmf(sizes, n, fraction)
    law[0] = 0.0
    law /= law.sum()
    mean = law @ sizes
    var = law @ (sizes - mean) ** 2
    count = member.sum(1)
    assert abs(count.mean() - mean) < 5 * np.sqrt(var / ROUNDS)
    fourth = law @ (sizes - mean) ** 4
    assert abs(count.var() - var) < 5 * np.sqrt((fourth - var**2) / ROUNDS)
    p = mean / n
    assert np.abs(member.mean(0) - p).max() < 5 * np.sqrt(p * (1 - p) / ROUNDS)
    observed = np.bincount(count.astype(int), minlength=n + 1)
    seen = law * ROUNDS > 5
    assert ((observed[seen] - law[seen] * ROUNDS) ** 2 / (law[seen] * ROUNDS)).sum() < stats.chi2.ppf(
        1 - 1e-6, seen.sum()
    )


def test_weighted_sampling_is_unbiased() -> None:
    """Scheme I of arXiv 1907.02189: K draws with probability p_i and weight 1 / K each, so E[w_i] = p_i."""
    p, K = np.array([0.05, 0.4, 0.1, 0.25, 0.2]), 3
    weights = np.zeros((ROUNDS, 5))
    for row, a in zip(
        weights, arrivals(Synchronous(clients_per_round=K, sampling="weighted"), task_of(5, p)), strict=True
    ):
        assert np.array_equal(a.clients, np.unique(a.clients))
        row[a.clients] = a.weights
        assert a.weights.sum() == pytest.approx(1, abs=1e-15)
        assert np.allclose(a.weights * K, np.round(a.weights * K), atol=1e-12)
    assert np.abs(weights.mean(0) - p).max() < 5 * np.sqrt(0.25 / (K * ROUNDS))
    assert np.abs(weights.var(0) - p * (1 - p) / K).max() < 0.1 * (p * (1 - p) / K).max()
    assert (weights > 0).sum(1).min() < K  # a client drawn twice weighs twice


def test_a_weight_of_nearly_zero_is_hardly_ever_drawn() -> None:
    p = np.array([1e-9, 1.0, 1.0])
    drawn = [a.clients for a in arrivals(Synchronous(clients_per_round=1, sampling="weighted"), task_of(3, p), 500)]
    assert 0 not in np.concatenate(drawn)


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
def test_weights_sum_to_one_over_the_cohort(weighting: Any) -> None:
    p = np.array([1.0, 2.0, 3.0, 4.0])
    for a in arrivals(Synchronous(clients_per_round=2), task_of(4, p), 20, FedAvg(weighting=weighting)):
        share = p[a.clients] if weighting == "samples" else np.ones(2)
        assert np.allclose(a.weights, share / share.sum(), rtol=1e-15)
        assert np.array_equal(trace_row([a])["weights"], a.weights)
        assert np.array_equal(trace_row([a])["clients"], a.clients)


@pytest.mark.parametrize(
    "mode",
    [
        Synchronous(clients_per_round=3),
        Synchronous(fraction=0.4, sampling="bernoulli"),
        Synchronous(clients_per_round=3, sampling="weighted"),
        Synchronous(clients_per_round=4, stragglers=0.5),
    ],
    ids=str,
)
def test_any_round_can_be_had_without_those_before_it(mode: Synchronous) -> None:
    algorithm = FedAvg(local_steps=Work(uniform=[1, 9]))
    whole = arrivals(mode, task_of(9), 12, algorithm)
    rest = arrivals(mode, task_of(9), 5, algorithm, start=7)
    for one, other in zip(whole[7:], rest, strict=True):
        for key in ("clients", "steps", "weights", "rounds"):
            assert np.array_equal(getattr(one, key), getattr(other, key))
        assert one.number == other.number
    different = arrivals(mode, task_of(9), 12, algorithm, seed=1)
    assert any(not np.array_equal(a.clients, b.clients) for a, b in zip(whole, different, strict=True))


# --- stragglers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("share,cohort,slow", [(0.5, 10, 5), (0.9, 10, 9), (0.25, 4, 1), (1.0, 4, 4), (0.1, 4, 0)])
def test_stragglers_do_part_of_their_work(share: float, cohort: int, slow: int) -> None:
    """round(S (1 - share)) of the cohort do all 6 steps, the others 1 to 5, uniformly (FedProx's drop_percent)."""
    mode = Synchronous(clients_per_round=cohort, stragglers=share)
    found = arrivals(mode, task_of(12), 800, FedAvg(local_steps=Work(fixed=6)))
    steps = np.stack([a.steps for a in found])
    assert ((steps < 6).sum(1) == slow).all()
    partial = steps[steps < 6]
    if slow:
        counts = np.bincount(partial, minlength=6)[1:]
        expected = len(partial) / 5
        assert ((counts - expected) ** 2 / expected).sum() < stats.chi2.ppf(1 - 1e-6, 4)
        who = np.bincount(np.concatenate([a.clients[a.steps < 6] for a in found]), minlength=12)
        assert who.min() > 0


def test_dropped_stragglers_leave_the_cohort_and_the_weights() -> None:
    p = np.arange(1.0, 11.0)
    mode = Synchronous(clients_per_round=6, stragglers=0.5, straggler_policy="drop")
    for dispatch, a in rounds_of(mode, task_of(10, p), FedAvg(local_steps=Work(fixed=4)), 60):
        assert len(dispatch.clients) == 3
        assert (a.steps == 4).all()
        assert np.allclose(a.weights, p[a.clients] / p[a.clients].sum())


def test_somebody_always_reports() -> None:
    mode = Synchronous(clients_per_round=1, stragglers=0.9, straggler_policy="drop")
    assert all(len(a.clients) == 1 for a in arrivals(mode, task_of(5), 50, FedAvg(local_steps=Work(fixed=3))))


def test_one_unit_of_work_cannot_be_divided() -> None:
    found = arrivals(Synchronous(stragglers=0.8), task_of(5), 20)
    assert all((a.steps == 1).all() for a in found)


@pytest.mark.parametrize(
    "mode,key",
    [
        (Synchronous(fraction=0.5, clients_per_round=2), "fraction"),
        (Synchronous(clients_per_round=11), "clients_per_round"),
        (Synchronous(stragglers=1.0, straggler_policy="drop"), "stragglers"),
    ],
)
def test_modes_that_do_not_fit(mode: Synchronous, key: str) -> None:
    with pytest.raises(InputError) as error:
        mode.check(10)
    assert [p.key for p in error.value.problems] == [key]


# --- sporadic nodes and links ---------------------------------------------------------------------

GRAPH = nx.Graph([(0, 1), (0, 2), (0, 3), (3, 4)])
D, B = [1.0, 0.0, 0.5, 0.9, 0.1], [0.8, 0.05, 1.0, 0.3]


def sporadic(count: int = ROUNDS, algorithm: Any = None, **more: Any) -> list[Arrival]:
    algorithm = algorithm or DSpodFL()
    network = build_network(Topology((GRAPH,)), "metropolis", type(algorithm).__name__, algorithm.needs.symmetric)
    mode = Gossip(compute=LAW.validate_python(D), links=LAW.validate_python(B))
    return arrivals(mode, task_of(5), count, algorithm, network=network, **more)


def test_nodes_and_links_fire_as_often_as_they_should() -> None:
    found = sporadic()
    compute = np.zeros((ROUNDS, 5))
    links = np.zeros((ROUNDS, 4))
    order = [(0, 1), (0, 2), (0, 3), (3, 4)]
    for r, a in enumerate(found):
        compute[r, a.compute] = 1
        assert np.array_equal(a.clients, np.arange(5))
        assert np.array_equal((a.steps > 0).nonzero()[0], a.compute)
        for e in a.edges.tolist():
            links[r, order.index(tuple(e))] = 1
        assert a.sends == 2 * len(a.edges)
    for observed, p in ((compute, np.array(D)), (links, np.array(B))):
        assert (np.abs(observed.mean(0) - p) <= 5 * np.sqrt(p * (1 - p) / ROUNDS)).all()
    joint = np.hstack([compute[:, [2, 3, 4]], links[:, [0, 1, 3]]])
    off = np.corrcoef(joint.T)[~np.eye(6, dtype=bool)]
    assert np.abs(off).max() < 5 / np.sqrt(ROUNDS)  # nodes and links are independent
    assert np.abs(np.corrcoef(links[1:, 0], links[:-1, 0])[0, 1]) < 5 / np.sqrt(ROUNDS)  # and so are rounds


def test_the_realised_matrix_belongs_to_the_edges_of_the_trace() -> None:
    for a in sporadic(60):
        P = a.mixing.matrix.toarray()
        fired = {tuple(e) for e in a.edges.tolist()}
        found = {(i, j) for i, j in itertools.combinations(range(5), 2) if P[i, j] > 0}
        assert found == fired
        for i, j in fired:
            assert P[i, j] == P[j, i] == pytest.approx(1 / (1 + max(GRAPH.degree[i], GRAPH.degree[j])))
        assert np.abs(P.sum(0) - 1).max() < 1e-15


def test_rounds_of_a_graph_can_be_had_without_those_before() -> None:
    algorithm = DSpodFL(local_steps=Work(uniform=[1, 4]))
    for one, other in zip(sporadic(12, algorithm)[7:], sporadic(5, algorithm, start=7), strict=True):
        assert np.array_equal(one.steps, other.steps)
        assert np.array_equal(one.edges, other.edges)
        assert one.delays == other.delays


def test_dgd_always_computes_and_mixes() -> None:
    for a in sporadic(20, DGD()):
        assert len(a.compute) == 5
        assert len(a.edges) == 4
        assert a.delays == pytest.approx((1.0, 1.0), abs=1e-15)


def test_periodic_gossip_mixes_in_every_third_round() -> None:
    for a in sporadic(20, PeriodicGossip(every=3)):
        assert len(a.edges) == (4 if a.number % 3 == 0 else 0)
        assert a.delays == pytest.approx((1.0, 1.0 if a.number % 3 == 0 else 0.0), abs=1e-15)


def test_redrawn_probabilities_are_used_from_their_round_on() -> None:
    """A node's frequency follows the draw in force."""
    law = LAW.validate_python({"uniform": [0.0, 1.0], "redraw_every": 400})
    algorithm = DSpodFL()
    network = build_network(Topology((GRAPH,)), "metropolis", type(algorithm).__name__, algorithm.needs.symmetric)
    found = arrivals(Gossip(compute=law), task_of(5), 1200, algorithm, network=network)
    compute = np.array([[i in a.compute for i in range(5)] for a in found])
    for block in range(3):
        p = law.draw(5, 0, "node", 400 * block + 1)
        observed = compute[400 * block : 400 * (block + 1)].mean(0)
        assert (np.abs(observed - p) <= 5 * np.sqrt(p * (1 - p) / 400) + 1e-12).all()


def test_both_directions_of_a_link_fire_together_and_directed_edges_alone() -> None:
    directed = nx.DiGraph([(0, 1), (1, 0), (1, 2), (2, 1), (0, 2), (2, 0)])
    network = build_network(Topology((directed,)), "uniform", "DGD", DGD.needs.symmetric)
    assert len(network.mixings[0].links) == 6
    assert arrivals(Gossip(), task_of(3), 1, DGD(), network=network)[0].sends == 6
    pair = build_network(Topology((nx.complete_graph(3),)), "metropolis", "DSpodFL", DSpodFL.needs.symmetric)
    assert len(pair.mixings[0].links) == 3
    for a in arrivals(Gossip(links=Law(fixed=0.5)), task_of(3), 30, DSpodFL(), network=pair):
        P = a.mixing.matrix.toarray()
        assert np.array_equal(P, P.T)


@pytest.mark.parametrize("rate", [1e-300, 1e-6, 0.1, 0.7])
def test_a_cohort_with_somebody_follows_the_binomial_given_that(rate: float) -> None:
    generator, n, draws = np.random.default_rng(0), 5, 20_000
    found = np.bincount([_somebody(generator, n, rate) for _ in range(draws)], minlength=n + 1) / draws
    law = stats.binom(n, rate)
    wanted = np.array([0.0, 1.0, *[0.0] * (n - 1)]) if rate < 1e-9 else law.pmf(np.arange(n + 1)) / law.sf(0)
    wanted[0] = 0.0
    assert np.abs(found - wanted).max() < 4 * np.sqrt(0.25 / draws)
