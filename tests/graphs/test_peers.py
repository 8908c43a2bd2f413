"""Peers at random: what a round's matrix is, what it is on average, and what it does to the distance from consensus."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.core.errors import InputError
from fedsim.graphs.mixing import is_doubly_stochastic, is_symmetric
from fedsim.graphs.peers import RandomPairs, RandomPulls

Make = Callable[..., Any]


def rounds(mixing: Any, count: int, chance: float = 1.0) -> list[np.ndarray]:
    always = np.full(len(mixing.links), chance)
    return [mixing.realised(mixing.fires(always, 3, k)).toarray() for k in range(1, count + 1)]


@pytest.mark.parametrize("n", [2, 7, 16])
@pytest.mark.parametrize("peers", [0.2, 1.0])
def test_pairs_meet_and_average(n: int, peers: float) -> None:
    matrices = rounds(RandomPairs(n, peers), 200)
    for matrix in matrices:
        assert is_doubly_stochastic(matrix)
        assert is_symmetric(matrix)
        assert set(np.unique(matrix)) <= {0.0, 0.5, 1.0}
        assert (matrix > 0).sum(1).max() <= 2
    pairs = np.mean([(m == 0.5).sum() / 4 for m in matrices])
    bound = 4 * np.sqrt((n // 2) * peers * (1 - peers) / 200)
    assert pairs == pytest.approx(peers * (n // 2), abs=bound + 1e-12)


@pytest.mark.parametrize("peers", [0.2, 1.0, 2.5, 5.0])
def test_nodes_pull_from_as_many_as_they_are_told(peers: float) -> None:
    n = 6
    matrices = rounds(RandomPulls(n, peers), 400)
    heard = np.array([(m > 0).sum(1) - 1 for m in matrices])
    assert set(np.unique(heard)) == {int(peers), int(np.ceil(peers))}
    assert heard.mean() == pytest.approx(peers, abs=4 * 0.5 / np.sqrt(heard.size))
    for matrix, counts in zip(matrices, heard, strict=True):
        assert matrix.sum(1) == pytest.approx(1)
        assert np.allclose(matrix[matrix > 0], np.repeat(1 / (1 + counts), 1 + counts))


@pytest.mark.parametrize("mixing", [RandomPairs(7, 0.6), RandomPulls(6, 0.2), RandomPulls(6, 2.5)])
def test_the_matrix_is_that_of_the_rounds_on_average(mixing: Any) -> None:
    matrices = np.array(rounds(mixing, 4000))
    error = matrices.std(0) / np.sqrt(len(matrices))
    assert (np.abs(matrices.mean(0) - mixing.matrix.toarray()) <= 4.5 * error + 1e-12).all()
    assert is_doubly_stochastic(mixing.matrix)


def test_links_that_may_not_fire_do_not() -> None:
    for mixing in (RandomPairs(8, 1.0), RandomPulls(8, 3.0)):
        assert all((m == np.eye(8)).all() for m in rounds(mixing, 5, chance=0.0))
        some = np.mean([(m > 0).sum() - 8 for m in rounds(mixing, 400, chance=0.25)])
        every = np.mean([(m > 0).sum() - 8 for m in rounds(mixing, 400)])
        assert some / every == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize(
    ("n", "peers", "factor"), [(16, 0.2, 0.893333), (16, 1.0, 1 - 8 / 15), (7, 0.5, 1 - 0.5 * 3 / 6)]
)
def test_pairs_bring_nodes_together_as_fast_as_they_should(n: int, peers: float, factor: float) -> None:
    """E D' = D (1 - q floor(n/2) / (n - 1)), and the mean stays where it is."""
    x = np.random.default_rng(0).standard_normal((n, 3))
    before = ((x - x.mean(0)) ** 2).sum(1).mean()
    after = []
    for matrix in rounds(RandomPairs(n, peers), 2000):
        y = matrix @ x
        assert np.abs(y.mean(0) - x.mean(0)).max() < 1e-15
        after.append(((y - y.mean(0)) ** 2).sum(1).mean() / before)
    assert np.mean(after) == pytest.approx(factor, abs=4 * np.std(after) / np.sqrt(2000) + 1e-6)


@pytest.mark.parametrize(("n", "moves", "factor"), [(16, 0.005956, 0.887378), (32, 0.002893, 0.893881)])
def test_pulls_move_the_mean_as_far_as_they_should(n: int, moves: float, factor: float) -> None:
    """E |move of the mean|^2 = D (p/(2(n-1)) - p^2 n/(4(n-1)^2)); E D' = D (1 - (p/2) n/(n-1)) minus that."""
    p = 0.2
    assert moves == pytest.approx(p / (2 * (n - 1)) - p**2 * n / (4 * (n - 1) ** 2), abs=1e-6)
    assert factor == pytest.approx(1 - p / 2 * n / (n - 1) - moves, abs=1e-6)
    x = np.random.default_rng(1).standard_normal((n, 3))
    before = ((x - x.mean(0)) ** 2).sum(1).mean()
    moved, after = [], []
    for matrix in rounds(RandomPulls(n, p), 2000):
        y = matrix @ x
        moved.append(((y.mean(0) - x.mean(0)) ** 2).sum() / before)
        after.append(((y - y.mean(0)) ** 2).sum(1).mean() / before)
    for found, expected in ((moved, moves), (after, factor)):
        assert np.mean(found) == pytest.approx(expected, abs=4 * np.std(found) / np.sqrt(2000))


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def go(quadratic: Make, tmp_path: Path) -> Make:
    problem = quadratic(n=6, d=3, dense=False, A=np.tile([1.0, 2.0, 0.5], (6, 1)), x0=np.ones(3))

    def run(
        out: str = "run", algorithm: str = "dfedavg", resume: bool = False, rounds: int = 40, **topology: Any
    ) -> Any:
        sections = {
            "data": problem.section(), "topology": {"graph": "random_peers", **topology},
            "algorithm": {"name": algorithm, "lr": 0.1, "batch_size": "full"},
            "run": {"rounds": rounds, "dtype": "float64", "trace": True},
        }  # fmt: skip
        return fedsim.run(sections, out=tmp_path / out, resume=resume)

    run.problem = problem  # type: ignore[attr-defined]
    return run


def parallel(problem: Any, rounds: int) -> np.ndarray:
    x = np.ones(3)
    for _ in range(rounds):
        x = x - 0.1 * np.array([1.0, 2.0, 0.5]) * (x - problem.optimum())
    return x


@pytest.mark.parametrize("algorithm", ["dfedavg", "dspodfl", "dpsgd"])
def test_pairs_keep_the_mean_model_that_of_one_node_with_all_data(go: Make, algorithm: str) -> None:
    run = go(algorithm=algorithm, peers=0.6)
    assert np.abs(run.params.numpy().mean(0) - parallel(go.problem, 40)).max() < 1e-12  # type: ignore[attr-defined]
    met = np.array([len(row["edges"]) for row in run.trace])
    assert met.max() <= 3
    assert 0.3 * 3 < met.mean() < 0.9 * 3
    assert len({tuple(map(tuple, row["edges"])) for row in run.trace}) > 20


def test_pulls_do_not(go: Make) -> None:
    run = go(peers=0.2, symmetric=False)
    assert np.abs(run.params.numpy().mean(0) - parallel(go.problem, 40)).max() > 0.01  # type: ignore[attr-defined]
    assert run.metrics["bytes_sent"].iloc[-1] == sum(len(row["edges"]) for row in run.trace) * 3 * 8


def test_a_resumed_run_meets_the_same_peers(go: Make) -> None:
    whole = go("whole", peers=0.5)
    go("parts", peers=0.5, rounds=17)
    parts = go("parts", peers=0.5, resume=True)
    assert (parts.params == whole.params).all()
    assert [row["edges"] for row in parts.trace] == [row["edges"] for row in whole.trace]


@pytest.mark.parametrize(
    ("algorithm", "topology", "key", "words"),
    [
        ("dfedavg", {"peers": 1.5}, "topology.peers", "at most 1"),
        ("dfedavg", {"peers": 6, "symmetric": False}, "topology.peers", "at most 5"),
        ("dfedavg", {"peers": 0}, "topology.peers", "greater than 0"),
        ("dfedavg", {"graph": "ring", "peers": 1}, "topology.peers", "unknown key"),
        ("dfedavg", {"peers": 0.5, "weights": "metropolis"}, "topology.weights", "has weights of its own"),
        ("gradient_tracking", {"peers": 1, "symmetric": False}, "topology.symmetric", "move the mean of all models"),
        ("dspodfl", {"peers": 1, "symmetric": False}, "topology.symmetric", "both ways"),
    ],
)
def test_what_cannot_be_is_refused(
    go: Make, tmp_path: Path, algorithm: str, topology: Any, key: str, words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        go(algorithm=algorithm, **topology)
    assert key in [p.key for p in caught.value.problems]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mechanism", ["muffliato", "decor"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_noise_that_counts_on_neighbours_needs_some_that_stay(
    quadratic: Make, tmp_path: Path, mechanism: str, symmetric: bool
) -> None:
    sections = {
        "data": quadratic(n=6).section(), "topology": {"graph": "random_peers", "symmetric": symmetric},
        "algorithm": {"name": "dfedavg", "lr": 0.1, "batch_size": "full"}, "run": {"rounds": 3},
        "privacy": {"mechanism": mechanism, "noise_multiplier": 1.0, "clip_norm": 1.0},
    }  # fmt: skip
    with pytest.raises(InputError, match="one undirected graph"):
        fedsim.run(sections, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("algorithm", ["choco", "beer"])
@pytest.mark.parametrize("topology", [
    {"graph": "random_peers"}, {"graph": "k_regular", "degree": 3, "redraws": 2},
    {"graph": "sequence", "graphs": [{"graph": "ring"}, {"graph": "path"}]},
])  # fmt: skip
def test_copies_of_neighbours_need_neighbours_that_stay(
    quadratic: Make, tmp_path: Path, algorithm: str, topology: Any
) -> None:
    sections = {
        "data": quadratic(n=6).section(), "topology": topology, "run": {"rounds": 3},
        "algorithm": {"name": algorithm, "lr": 0.1, "batch_size": "full"}, "compression": {"name": "top_k", "k": 1},
    }  # fmt: skip
    with pytest.raises(InputError, match="neighbours that change"):
        fedsim.run(sections, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def ticking(quadratic: Make, tmp_path: Path) -> Make:
    """``ticking(out, n, topology, participation)``: a run on Poisson clocks."""

    def run(out: str, topology: Any, n: int = 6, algorithm: Any = None, **participation: Any) -> Any:
        sections = {
            "data": quadratic(n=n, d=3, x0=np.zeros(3)).section(), "topology": topology,
            "algorithm": algorithm or {"name": "dspodfl", "lr": 0.1},
            "participation": {"mode": "poisson", "window": 2, **participation},
            "run": {"rounds": 10, "dtype": "float64", "device": "cpu", "trace": True, "eval_every": 10},
        }  # fmt: skip
        return fedsim.run(sections, out=tmp_path / out)

    return run


@pytest.mark.parametrize("n", [6, 7])
def test_peers_in_continuous_time_are_a_complete_graph_of_slow_links(ticking: Make, n: int) -> None:
    """A second has as many meetings as a round of gossip mode: n // 2 pairs, each with probability `peers`."""
    rate = 0.8 * (n // 2) / (n * (n - 1) / 2)
    schedule = [{"from": 5, "until": 8, "links": 3.0}, {"from": 15, "until": 16, "links": 0, "merge": True}]
    peers = ticking("peers", {"graph": "random_peers", "peers": 0.8}, n, links=2.0, schedule=schedule)
    scaled = [{**w, "links": w["links"] * rate} for w in schedule]  # type: ignore[operator]
    links = ticking("links", {"graph": "complete"}, n, links=2.0 * rate, schedule=scaled, pair_weight="half")
    found, expected = ([e for row in run.trace for e in row["events"]] for run in (peers, links))
    assert [e[1:] for e in found] == [e[1:] for e in expected]
    assert [e[0] for e in found] == pytest.approx([e[0] for e in expected], abs=1e-9)
    assert (peers.params - links.params).abs().max() < 1e-12
    mean = 2.0 * 0.8 * (n // 2) * 20 + 0.8 * (n // 2) * (3 - 2 * 1)
    assert sum(len(e) == 3 for e in found) == pytest.approx(mean, abs=4 * mean**0.5)
    two = ticking("half", {"graph": "random_peers", "peers": 0.8}, n, links=2.0, schedule=schedule, pair_weight="half")
    assert (two.params == peers.params).all()


def test_accelerated_gossip_knows_how_often_peers_meet(ticking: Make) -> None:
    peers = ticking("peers", {"graph": "random_peers", "peers": 0.5}, algorithm={"name": "dadao"})
    whole = ticking("whole", {"graph": "complete"}, algorithm={"name": "dadao"})
    met = [sum(len(e) == 3 for row in run.trace for e in row["events"]) for run in (peers, whole)]
    rates = [fedsim.load(run.dir / "scenario.yaml").resolved()["participation"]["links"] for run in (peers, whole)]
    assert rates[0] * 0.5 / 5 == pytest.approx(rates[1], rel=1e-12)
    assert met[0] == met[1]
    assert (peers.params - whole.params).abs().max() < 1e-9


def test_pulls_have_no_clocks(ticking: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="links that work both ways, found pulls; allowed: symmetric: true") as caught:
        ticking("run", {"graph": "random_peers", "symmetric": False}, algorithm={"name": "dspodfl"})
    assert caught.value.problems[0].key == "topology.symmetric"
    assert not (tmp_path / "run").exists()
