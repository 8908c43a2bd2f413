"""MoNNA: exact numbers of whole runs under attack, the methods it contains, and who waits for whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.core.errors import InputError

Make = Callable[..., Any]
A = [[1.0, 2], [2, 1], [1, 1], [3, 1], [1, 2], [1, 1]]
B = [[1.0, 0], [0, 1], [2, 2], [1, -1], [0, 0], [9, 9]]
OPTIMUM = [0.74999999969694, 0.28571428587036]  # but for 3e-10, which are left after 400 rounds, that of honest clients
NNA = {"name": "nna", "f": 1}
ALIE, FLIP = {"name": "alie", "z": 1.0}, {"name": "sign_flip", "of": "mean"}


@pytest.fixture
def attacked(quadratic: Make, run_scenario: Make) -> Make:
    """Parameters of six nodes on a complete graph, the last of them an attacker."""
    problem = quadratic(A=A, b=B, x0=[0.0, 0.0], n=6, d=2)

    def params(rounds: int, rule: Any, attack: Any = None, name: str = "monna", **keys: Any) -> Any:
        evil = None if attack is None else {"attackers": [5], **attack}
        return run_scenario(
            data=problem.section(),
            algorithm={"name": name, "lr": 0.2, "batch_size": "full", **keys},
            topology={"graph": "complete"},
            aggregator=rule,
            **({} if evil is None else {"attack": evil}),
            run={"rounds": rounds, "eval_every": rounds, "dtype": "float64"},
        ).params.numpy()

    return params


@pytest.mark.parametrize(
    ("rule", "attack", "keys", "expected"),
    [
        (NNA, ALIE, {"beta": 0.9}, {1: (0.0115846381, 0.0090392983), 3: (0.0703548744, 0.0462997508),
                                    400: (0.4994761718, -0.0024716632)}),
        (NNA, FLIP, {"beta": 0.9}, {1: (0.024, 0.008), 3: (0.1094172134, 0.0451754957), 400: OPTIMUM}),
        ({"name": "clipped_gossip", "tau": 0.5}, ALIE, {"beta": 0.9},
         {1: (0.0196538651, 0.0041994152), 3: (0.107400614, 0.0229859235), 400: (0.6172197177, 0.1095276561)}),
        ({"name": "bridge", "f": 1}, ALIE, {"name": "dgd"},
         {1: (0.2, 0.0), 3: (0.4007737002, 0.0145730894), 400: (0.6470522568, 0.0237637963)}),
        ({"name": "cs_plus", "f": 1}, ALIE, {"beta": 0.9},
         {1: (0.0159784204, 0.002974267), 3: (0.0846029426, 0.0189558114), 400: (0.5705559941, 0.0651531735)}),
        ({"name": "mean"}, ALIE, {"beta": 0.9}, {400: (0.6330293341, 0.1466221196)}),
        ({"name": "mean"}, FLIP, {"beta": 0.9}, {400: (0.2926829268, 0.1025641026)}),
    ],
    ids=["nna alie", "nna flip", "clipped alie", "bridge alie", "cs_plus alie", "mean alie", "mean flip"],
)  # fmt: skip
def test_first_node_under_attack(attacked: Make, rule: Any, attack: Any, keys: Any, expected: Any) -> None:
    for rounds, x in expected.items():
        assert attacked(rounds, rule, attack, **keys)[0] == pytest.approx(x, abs=6e-11)


def test_without_an_attack(attacked: Make) -> None:
    """The sixth client has an optimum of its own, which honest nodes leave out where they tolerate one."""
    assert attacked(3, NNA, beta=0.9)[0] == pytest.approx((0.130978176, 0.043811072), abs=6e-11)
    assert attacked(400, NNA, beta=0.9)[0] == pytest.approx(OPTIMUM, abs=6e-10)


def clusters(rule: Any, attack: Any = None, **keys: Any) -> dict[str, Any]:
    """26 nodes on a complete graph, of the 21 honest ones ten with the optimum 0 and eleven with 1; one step there."""
    evil = {"attackers": list(range(21, 26)), **(attack or {})}
    return {
        "algorithm": {"name": "monna", "lr": 1.0, "beta": 0.0, "batch_size": "full", **keys},
        "topology": {"graph": "complete"},
        "aggregator": rule,
        "run": {"rounds": 1, "dtype": "float64"},
        **({} if attack is None else {"attack": evil}),
    }


def test_two_clusters_contract(quadratic: Make, run_scenario: Make) -> None:
    b = np.array([[0.0]] * 10 + [[1.0]] * 11 + [[0.0]] * 5)
    data = quadratic(A=np.ones((26, 1)), b=b, x0=[0.5], n=26, d=1).section()
    dissensus = {"name": "dissensus", "eps": 0.45}
    found = run_scenario(data=data, **clusters({"name": "nna", "f": 5}, dissensus)).params.numpy()
    assert found[[0, 20], 0] == pytest.approx([0.05, 0.9761904762], abs=6e-11)
    found = run_scenario(data=data, **clusters({"name": "mean"}, dissensus)).params.numpy()
    assert found[[0, 20], 0] == pytest.approx([0.2326923077, 0.7884615385], abs=6e-11)


@pytest.mark.parametrize(("n", "f"), [(12, 2), (16, 2), (26, 5)])
def test_spread_of_two_clusters_under_the_worst_messages(quadratic: Make, run_scenario: Make, n: int, f: int) -> None:
    """Honest clusters of equal size at 0 and 1, attackers that pull them apart: 4 f / (n - f) is left after a round."""
    half = (n - f) // 2
    b = np.array([[0.0]] * (f + half) + [[1.0]] * (n - f - half))
    data = quadratic(A=np.ones((n, 1)), b=b, x0=[0.5], n=n, d=1).section()
    scenario = clusters({"name": "nna", "f": f})  # attackers come first, and win ties
    scenario["attack"] = {"name": "edge_attackers:Apart", "attackers": list(range(f))}
    found = run_scenario(data=data, **scenario).params.numpy()[f:, 0]
    if (n - f) % 2 == 0:
        assert found.max() - found.min() == pytest.approx(4 * f / (n - f), abs=1e-12)
    else:
        assert 0 < found.max() - found.min() < 1


# --- what it contains -------------------------------------------------------------------------------------------------


def test_without_momentum_and_attackers_it_is_dfedavg_with_uniform_weights(attacked: Make) -> None:
    """On a complete graph, whose Metropolis weights are 1 / n."""
    nna0 = {"name": "nna", "f": 0}
    one, other = attacked(12, nna0, beta=0.0), attacked(12, {"name": "mean"}, name="dfedavg")
    assert np.abs(one - other).max() < 1e-12
    assert np.abs(attacked(12, nna0, beta=0.5) - other).max() > 1e-4


def test_momentum_lives_through_the_run(attacked: Make) -> None:
    """Against the recursion itself, damped and not, with weight decay."""
    A_, b_ = np.array(A), np.array(B)
    for keys, damped in (({}, 0.2), ({"dampening": 0.0}, 1.0), ({"dampening": 0.5, "weight_decay": 0.3}, 0.5)):
        x, m = np.zeros((6, 2)), np.zeros((6, 2))
        for _ in range(7):
            m = 0.8 * m + damped * (A_ * (x - b_) + keys.get("weight_decay", 0.0) * x)
            x = (x - 0.2 * m).mean(0) * np.ones((6, 1))
        assert np.abs(attacked(7, {"name": "mean"}, beta=0.8, **keys) - x).max() < 1e-12


def test_several_exchanges_are_one_after_the_other(quadratic: Make, run_scenario: Make) -> None:
    problem = quadratic(n=6, d=3)
    ring = {"graph": "ring"}

    def run(exchanges: int, rounds: int = 1) -> Any:
        algorithm = {"name": "monna", "lr": 0.1, "exchanges": exchanges}
        return run_scenario(data=problem.section(), algorithm=algorithm, topology=ring, aggregator={"name": "mean"},
                            run={"rounds": rounds, "eval_every": 1, "dtype": "float64"})  # fmt: skip

    once, thrice = run(1), run(3)
    W = np.eye(6) / 3 + (np.eye(6, k=1) + np.eye(6, k=-1) + np.eye(6, k=5) + np.eye(6, k=-5)) / 3
    assert np.abs(W @ W @ once.params.numpy() - thrice.params.numpy()).max() < 1e-12
    assert thrice.metrics["bytes_sent"].iloc[-1] == 3 * once.metrics["bytes_sent"].iloc[-1]


# --- waiting for a quorum ---------------------------------------------------------------------------------------------


def test_a_quorum_hears_all_but_f_and_always_the_attackers(attacked: Make) -> None:
    """Of five neighbours four are heard, the attacker among them; nearest-neighbour averaging drops one more."""
    rule = {"name": "nna", "f": 1}
    everybody, quorum = (attacked(1, rule, {**FLIP, "scale": 50.0}, beta=0.0, wait=w) for w in ("all", "quorum"))
    y = 0.2 * np.array(A) * np.array(B)
    kept: list[set[int]] = []
    for i in range(5):
        assert np.allclose(everybody[i], y[:5].mean(0))  # the attacker's message is the farthest
        pairs = [set(range(5)) - {late} for late in range(5) if late != i]
        (left,) = [s for s in pairs if np.allclose(quorum[i], y[sorted(s)].mean(0), atol=1e-12)]
        kept.append(left)
    assert len({frozenset(s) for s in kept}) > 1


def test_a_quorum_needs_a_number(attacked: Make) -> None:
    with pytest.raises(InputError, match="nobody knows how many may be late, for 'mean' has no f"):
        attacked(1, {"name": "mean"}, wait="quorum")


def test_momentum_of_a_round_is_refused(attacked: Make) -> None:
    with pytest.raises(InputError, match="would restart in every round; allowed: 0, and beta"):
        attacked(1, {"name": "mean"}, momentum=0.9)


def test_what_is_not_finite_is_left_out(attacked: Make) -> None:
    found = attacked(20, NNA, {"name": "nan"}, beta=0.5)
    assert np.isfinite(found).all()
    assert torch.as_tensor(found[:5]).std(0).max() < 0.1


@pytest.mark.parametrize("rule", [NNA, {"name": "mean"}, {"name": "median"}], ids=lambda r: r["name"])
def test_nobody_attacks(quadratic: Make, run_scenario: Make, rule: Any) -> None:
    """A section with no attackers is the run without it, bit for bit."""
    data = quadratic(n=6, d=3).section(noise=0.3)
    scenario = {"data": data, "algorithm": {"name": "monna", "lr": 0.1}, "topology": {"graph": "complete"}}
    alone, none = (
        run_scenario(**scenario, aggregator=rule, run={"rounds": 8}, **({"attack": attack} if attack else {}))
        for attack in (None, {"name": "alie", "attackers": 0})
    )
    assert np.array_equal(alone.params, none.params)


def test_krum_takes_the_message_near_the_mean(attacked: Make) -> None:
    """Under `alie` it is the attackers' one, as docs/robustness.md says."""
    y = 0.2 * np.array(A) * np.array(B)
    assert attacked(1, {"name": "krum", "f": 1}, {"name": "alie", "z": 0.2}, beta=0.0)[0] == pytest.approx(
        y[:5].mean(0) - 0.2 * y[:5].std(0, ddof=1)
    )
