"""DECOR and Muffliato: what noise reveals on a graph, and that it is the noise of the run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dp_accounting
import networkx as nx
import numpy as np
import pytest
import torch

from fedsim.core.errors import InputError
from fedsim.engine.assembly import assemble
from fedsim.graphs.mixing import mixing_matrix
from fedsim.privacy.accounting import epsilon_closed_form
from fedsim.privacy.graph_noise import decor_leverage, gossip_leverage, laplacian, paper_leverage
from fedsim.privacy.oracle import Question
from fedsim.scenario.load import parse

Make = Callable[..., Any]
RING = nx.cycle_graph(12)


@pytest.fixture
def settings(quadratic: Make) -> Make:
    problem = quadratic(n=12)

    def make(privacy: Any, name: str = "dfedavg", rounds: int = 8, graph: Any = None, **more: Any) -> Any:
        return {
            "data": problem.section(), "algorithm": {"name": name, "lr": 0.1, **more.pop("keys", {})},
            "topology": graph or {"graph": "ring"}, "run": {"rounds": rounds}, **more,
            **({} if privacy is None else {"privacy": {"clip_norm": 0.5, **privacy}}),
        }  # fmt: skip

    return make


def bound(settings: Any) -> Any:
    return assemble(parse(settings)).privacy


# --- limit cases ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dfedavg", "dgd", "dspodfl", "gradient_tracking"])
def test_without_noise_and_clip_it_is_the_algorithm_itself(run_scenario: Make, settings: Make, name: str) -> None:
    plain = run_scenario(**settings(None, name)).params
    for privacy in ({"mechanism": "decor"}, {"mechanism": "muffliato", "gossip_steps": 1}):
        quiet = {**privacy, "noise_multiplier": 0.0, "clip_norm": 1e9}
        assert (run_scenario(**settings(quiet, name)).params - plain).abs().max() <= 1e-12


def test_without_correlation_decor_is_local_dp_and_muffliato_without_gossip(run_scenario: Make, settings: Make) -> None:
    local = settings({"mechanism": "decor", "epsilon": 5.0, "correlation": 0.0})
    gossip = settings({"mechanism": "muffliato", "epsilon": 5.0, "gossip_steps": 1})
    z = bound(local).z
    # local DP by hand: every release has z = std / (2 C), and 8 of them compose to one of z / sqrt(8)
    assert dp_accounting.get_epsilon_gaussian(z / math.sqrt(8), 1e-5) == pytest.approx(5.0, rel=1e-9)
    assert bound(gossip).z == z
    assert torch.equal(run_scenario(**local).params, run_scenario(**gossip).params)


def test_the_paper_formulas_at_no_correlation() -> None:
    """sigma_ldp = C sqrt(2 / e1): the RDP slope e1 = 2 C^2 / sigma^2, and mu^2 = (2 C)^2 / sigma^2 = 2 e1."""
    C, sigma = 0.7, 3.0
    leverage = decor_leverage(laplacian(RING), 0.0, False)
    e1 = 2 * C**2 * leverage / sigma**2
    assert sigma == pytest.approx(C * math.sqrt(2 / e1))
    assert (2 * C / sigma) ** 2 * leverage == pytest.approx(2 * e1)


# --- DECOR ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", [RING, nx.star_graph(5), nx.complete_graph(7), nx.barbell_graph(4, 2)], ids=str)
@pytest.mark.parametrize("ratio", [0.0, 0.5, 3.0, 1e4])
def test_leverage_of_correlated_noise(graph: Any, ratio: float) -> None:
    """Against the covariance of simulated edges, written edge by edge."""

    def direct(nodes: list[int]) -> float:
        covariance = np.eye(len(nodes))
        at = {node: k for k, node in enumerate(nodes)}
        for i, j in graph.edges:
            if i in at and j in at:
                v = np.zeros(len(nodes))
                v[at[i]], v[at[j]] = ratio, -ratio
                covariance += np.outer(v, v)
        return float(np.diag(np.linalg.inv(covariance)).max())

    nodes, L = list(graph), laplacian(graph)
    outside, inside = decor_leverage(L, ratio, False), decor_leverage(L, ratio, True)
    assert outside == pytest.approx(direct(nodes), rel=1e-6)
    assert inside == pytest.approx(max(direct([i for i in nodes if i != u]) for u in nodes), rel=1e-6)
    assert 1 / len(graph) - 1e-9 <= outside <= inside + 1e-9 <= 1 + 2e-6


def test_a_hub_that_knows_all_seeds_leaves_local_dp() -> None:
    L = laplacian(nx.star_graph(5))
    assert decor_leverage(L, 100.0, True) == pytest.approx(1.0)
    assert decor_leverage(L, 100.0, False) == pytest.approx(1 / 6, rel=1e-3)


def test_correlated_noise_cancels_and_has_the_covariance_that_is_accounted_for(settings: Make) -> None:
    private = bound(settings({"mechanism": "decor", "noise_multiplier": 2.0, "correlation": 3.0}))
    own = bound(settings({"mechanism": "decor", "noise_multiplier": 2.0, "correlation": 0.0}))
    like = torch.zeros(12, 50_000, dtype=torch.float64)
    who = Question(np.arange(12), np.full(12, 4), 0, 0)
    noise, alone = private.noise(who, like), own.noise(who, like)
    assert (noise.sum(0) - alone.sum(0)).abs().max() < 1e-9  # v_ij + v_ji = 0
    assert (noise - alone).abs().max() > 1.0
    expected = private.std**2 * (np.eye(12) + 9.0 * laplacian(RING))
    assert private.std == 2.0 * 2 * 0.5
    assert np.abs(np.cov(noise.numpy()) - expected).max() < 0.03 * expected.max()
    rows = np.array([7, 2])  # the same for any nodes in any order
    some = private.noise(Question(rows, np.full(2, 4), 0, 0), like[:2])
    assert torch.equal(some, noise[rows])


def test_decor_spends_what_its_covariance_says(settings: Make) -> None:
    privacy = {"mechanism": "decor", "epsilon": 3.0, "correlation": 2.0, "adversary": "eavesdropper"}
    private = bound(settings(privacy, rounds=20, keys={"local_steps": 2}))
    covariance = private.std**2 * (np.eye(12) + 4.0 * laplacian(RING))
    shift = 2 * 0.5  # one node's clipped gradient, replaced by its opposite
    mu = math.sqrt(40 * shift**2 * np.linalg.inv(covariance)[0, 0])
    assert dp_accounting.get_epsilon_gaussian(1 / mu, 1e-5) == pytest.approx(3.0, rel=1e-9)
    assert epsilon_closed_form(private.ledger.planned, 1e-5) == pytest.approx(3.0, rel=1e-9)
    worse = bound(settings({**privacy, "adversary": "participant"}, rounds=20, keys={"local_steps": 2}))
    assert worse.std > private.std


def test_examples_move_a_batch_by_their_share(settings: Make) -> None:
    digits = {"data": {"dataset": "digits", "clients": 4, "limit": 200}, "model": {"name": "linear"}}
    privacy = {"mechanism": "decor", "noise_multiplier": 1.0, "unit": "example"}
    for batch, smallest in ((8, 8), ("full", None)):
        a = assemble(parse({**settings(privacy, "dpsgd", keys={"batch_size": batch}), **digits}))
        assert a.privacy.std == pytest.approx(2 * 0.5 / (smallest or a.task.inner.sizes.min()))
        assert a.privacy.ledger.claim.unit == "example"


# --- Muffliato ------------------------------------------------------------------------------------


def view(W: Any, steps: int, observer: int) -> Any:
    """Everything an observer receives, as rows over the nodes' values."""
    n = len(W)
    near = [w for w in range(n) if w != observer and W[observer, w] > 0]
    return np.array([np.linalg.matrix_power(W, t)[w] for t in range(steps) for w in near])


@pytest.mark.parametrize("graph", [RING, nx.path_graph(6), nx.hypercube_graph(3), nx.complete_graph(5)], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_leverage_is_the_divergence_of_what_an_observer_sees(graph: Any, steps: int) -> None:
    """A shift e_u of the values moves the view by M e_u; its noise has covariance M M^T, without the observer's own."""
    graph = nx.convert_node_labels_to_integers(graph)
    W = mixing_matrix(graph, "metropolis").toarray()
    for v in range(len(graph)):
        M = view(W, steps, v)
        M[:, v] = 0.0
        inverse = np.linalg.pinv(M @ M.T, rcond=1e-9)
        expected = np.einsum("iu,ij,ju->u", M, inverse, M)
        assert np.abs(gossip_leverage(W, steps, v) - expected).max() < 1e-6


def test_an_observer_can_subtract_what_it_has_seen() -> None:
    """Two hops away on a ring: y_2 = 3 (second message) - y_0 - y_1, although the paper's sum says 1/3."""
    W = mixing_matrix(RING, "metropolis").toarray()
    y = np.random.default_rng(0).normal(size=12)
    assert 3 * (W @ y)[1] - y[0] - y[1] == pytest.approx(y[2])
    exact, summed = gossip_leverage(W, 2, 0), paper_leverage(W, 2, 0)
    assert exact[2] == pytest.approx(1.0)
    assert summed[2] == pytest.approx(1 / 3)
    assert exact[3] == summed[3] == 0.0
    assert gossip_leverage(W, 1, 0)[1] == paper_leverage(W, 1, 0)[1] == 1.0


def test_on_a_complete_graph_everybody_sees_everything() -> None:
    W = mixing_matrix(nx.complete_graph(6), "metropolis").toarray()
    assert np.allclose(np.delete(gossip_leverage(W, 3, 0), 0), 1.0)


def test_network_dp_is_reported_by_distance(run_scenario: Make, settings: Make) -> None:
    privacy = {"mechanism": "muffliato", "noise_multiplier": 2.0, "gossip_steps": 2}
    run = run_scenario(**settings(privacy, rounds=1))
    seen = json.loads((run.dir / "privacy.json").read_text())["network_dp_of_one_release"]
    local = dp_accounting.get_epsilon_gaussian(2.0, 1e-5)
    assert seen["by_distance"] == {
        "1": pytest.approx(local), "2": pytest.approx(local), "3": 0.0, "4": 0.0, "5": 0.0, "6": 0.0
    }  # fmt: skip
    assert seen["max"] == pytest.approx(run.metrics["epsilon"].iloc[-1]) == pytest.approx(local)
    assert seen["mean"] == pytest.approx(local * 4 / 11)
    assert (
        run.metrics["bytes_sent"].iloc[-1]
        == 2 * run_scenario(**settings(None, rounds=1)).metrics["bytes_sent"].iloc[-1]
    )


# --- what is refused ------------------------------------------------------------------------------

DECOR = {"mechanism": "decor", "epsilon": 3.0}


def test_every_exchange_takes_its_time(run_scenario: Make, settings: Make, tmp_path: Path) -> None:
    """Five mixing steps take five times as long as one over links of 20 ms, with a mechanism as with an algorithm."""
    file = tmp_path / "ring.graphml"
    graph = nx.cycle_graph(12)
    nx.set_edge_attributes(graph, 20.0, "latency_ms")
    nx.write_graphml(graph, file)
    sections: dict[str, Any] = {"topology": {"graph": "file", "path": str(file)}}
    times = {}
    for steps in (1, 5):
        muffliato = settings({"mechanism": "muffliato", "noise_multiplier": 2.0, "gossip_steps": steps}, rounds=3)
        times[steps] = run_scenario(**{**muffliato, **sections}).metrics["time"].iloc[-1]
    monna = {"algorithm": {"name": "monna", "lr": 0.1, "exchanges": 5}}
    alike = run_scenario(**{**settings(None, rounds=3), **sections, **monna}).metrics["time"].iloc[-1]
    work = times[1] - 3 * 0.02
    assert times[5] == pytest.approx(3 * 5 * 0.02 + work)
    assert times[5] == pytest.approx(alike)


MUFFLIATO = {"mechanism": "muffliato", "epsilon": 3.0}


@pytest.mark.parametrize(
    ("privacy", "more", "key", "words"),
    [
        (DECOR, {"name": "dspodfl", "participation": {"compute": 0.5}}, "participation.compute", "cancels"),
        (DECOR, {"keys": {"local_steps": {"uniform": [1, 2]}}}, "participation.compute", "cancels"),
        (DECOR, {"name": "dgd", "graph": {"graph": "exponential"}}, "topology.graph", "a directed"),
        (DECOR, {"name": "dspodfl", "participation": {"mode": "poisson"}}, "participation.mode", "gossip"),
        (MUFFLIATO, {"name": "dspodfl", "participation": {"mode": "poisson"}}, "participation.mode", "gossip"),
        (MUFFLIATO, {"name": "dspodfl", "participation": {"links": 0.5}}, "participation.links", "links that fail"),
        ({**MUFFLIATO, "trust": "central"}, {}, "privacy.trust", "local"),
        ({**DECOR, "clip_norm": -1.0}, {}, "privacy.clip_norm", "greater than 0"),
        ({**DECOR, "unit": "example"}, {"keys": {"local_epochs": 1}}, "algorithm.local_epochs", "smaller"),
        ({**DECOR, "unit": "edge"}, {}, "privacy.unit", "node"),
        ({"mechanism": "local_dp", "epsilon": 1.0}, {}, "privacy.mechanism", "decor"),
        ({"mechanism": "dp_fedavg", "epsilon": 1.0}, {}, "privacy.mechanism", "muffliato"),
    ],
)
def test_refusals(settings: Make, privacy: Any, more: Any, key: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        assemble(parse(settings(privacy, **more)))
    assert key in str(error.value)
    assert words in str(error.value)


def test_a_server_has_no_graph(settings: Make) -> None:
    values = settings(DECOR, "fedavg")
    del values["topology"]
    with pytest.raises(InputError, match="nodes of a graph"):
        assemble(parse(values))
