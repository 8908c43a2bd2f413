"""EF21, EF21-W, CHOCO, DeepSqueeze and BEER: exact values, identities, step sizes, bytes, and what is refused."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.algorithms.choco import Choco
from fedsim.algorithms.ef21 import xi
from fedsim.core.errors import InputError
from fedsim.core.job import Job, RunFacts
from fedsim.engine.assembly import assemble
from fedsim.messages.compressors import TopK
from fedsim.messages.memory import OwnCompressor
from fedsim.scenario.load import parse

Make = Callable[..., Any]
A = np.array([[1, 2, 3, 4, 5], [2, 1, 1, 1, 2], [5, 4, 3, 2, 1], [1, 1, 10, 1, 1]], dtype=float)
B = np.array([[1, 0, 2, -1, 3], [0, 1, -2, 1, 0], [-3, 2, 1, 0, 1], [4, -1, 0, 2, -2]], dtype=float)
OPTIMUM = (A * B).sum(0) / A.sum(0)
OLD, NEW = 0.017599987819, 0.019666941234
RING = {"graph": "ring"}
TOP = {"name": "top_k", "k": 1}


@pytest.fixture
def go(run_scenario: Make, quadratic: Make) -> Make:
    """Run an algorithm with a compressor on the four quadratics, or on the six of the ring."""

    def run(algorithm: dict[str, Any], compression: dict[str, Any] | None, rounds: int, **sections: Any) -> Any:
        data = sections.pop("problem", None) or quadratic(A=A, b=B, x0=np.zeros(5))
        scenario = {"data": data.section(), "algorithm": algorithm, "run": {"rounds": rounds}, **sections}
        return run_scenario(**scenario, **({} if compression is None else {"compression": compression}))

    return run


@pytest.fixture
def nodes(quadratic: Make) -> Any:
    """Node i of six wants (i, (-1)^i i)."""
    return quadratic(A=np.ones((6, 2)), b=np.array([[i, (-1.0) ** i * i] for i in range(6)]), x0=np.zeros(2))


# --- under a server -----------------------------------------------------------------------------------------------


def test_constants_of_the_theory() -> None:
    assert xi(0.2) == pytest.approx(8.4721359550, abs=5e-11)
    assert xi(0.01) == pytest.approx(198.4987437107, abs=5e-11)
    assert xi(1.0) == 0


EF21: dict[str, tuple[dict[str, Any], list[float], list[float], float, float]] = {
    "zero, old": (
        {"step_size": "theory_old"},
        [-0.0483999665, 0, -0.0087999939, 0, 0.0659999543],
        [-0.1451998995, 0.0791999452, 0.0397145991, -0.004399997, 0.1798190759], 0.948056640487, 1.53914e-5,
    ),
    "zero, new": (
        {"step_size": "theory_new"},
        [-0.0540840884, 0, -0.0098334706, 0, 0.0737510296],
        [-0.1622522652, 0.0885012356, 0.044393524, -0.0049167353, 0.2008609191], 0.854182994616, 3.81497e-6,
    ),
    "full, new": (
        {"step_size": "theory_new", "init": "full"},
        [-0.0491673531, 0.0393338825, 0.0344171472, -0.0049167353, 0.0688342943],
        [-0.1441295451, 0.1164544931, 0.0982580424, -0.0147502059, 0.2001307636], 0.850154105347, 3.65036e-6,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ["ef21", "ef21_w"])
@pytest.mark.parametrize("case", EF21)
def test_ef21_on_four_quadratics(go: Make, case: str, name: str) -> None:
    """For top_k, which is positively homogeneous, ef21_w with the new step is ef21."""
    keys, first, third, near, far = EF21[case]
    run = lambda rounds: go({"name": name, **keys}, TOP, rounds).params.numpy()  # noqa: E731
    assert run(1).tolist() == pytest.approx(first, abs=6e-11)
    assert run(3).tolist() == pytest.approx(third, abs=6e-11)
    assert np.linalg.norm(run(20) - OPTIMUM) == pytest.approx(near, abs=1e-11)
    assert np.linalg.norm(run(300) - OPTIMUM) == pytest.approx(far, rel=1e-5)


@pytest.mark.parametrize(
    "feedback,third,near,far",
    [
        ("ef14", [-0.1590612594, 0.0885012356, 0.0593876123, 0, 0.1256594323], 0.915738832315, 0.116764),
        ("none", None, None, 1.0451714442),
    ],
)
def test_older_ways_on_four_quadratics(go: Make, feedback: str, third: Any, near: Any, far: float) -> None:
    """EF14 compresses ``e + gamma grad``: one step of FedAvg with lr gamma. Without feedback the optimum is not met."""
    run = lambda rounds: go(  # noqa: E731
        {"name": "fedavg", "lr": NEW}, {**TOP, "feedback": feedback}, rounds
    ).params.numpy()
    assert run(1).tolist() == pytest.approx(EF21["zero, new"][1], abs=6e-11)
    if third is not None:
        assert run(3).tolist() == pytest.approx(third, abs=6e-11)
        assert np.linalg.norm(run(20) - OPTIMUM) == pytest.approx(near, abs=1e-11)
    assert np.linalg.norm(run(300 if third else 4000) - OPTIMUM) == pytest.approx(far, rel=1e-5)


@pytest.mark.parametrize("dense", [True, False])
def test_steps_of_the_theory(go: Make, quadratic: Make, dense: bool) -> None:
    matrices = np.stack([np.diag(a) for a in A]) if dense else A
    problem = quadratic(A=matrices, b=B, x0=np.zeros(5))
    task = assemble(parse({"data": problem.section(), "algorithm": {"name": "ef21"}})).task
    each, whole = task.smoothness(np.full(4, 0.25))
    assert each.tolist() == pytest.approx([5, 2, 5, 10])
    assert whole == pytest.approx(4.25)
    for step, gamma in (("theory_old", OLD), ("theory_new", NEW)):
        given = go({"name": "ef21", "lr": gamma}, TOP, 5, problem=problem).params
        for smoothness in ("auto", [5.0, 2.0, 5.0, 10.0]):
            found = go({"name": "ef21", "step_size": step, "smoothness": smoothness}, TOP, 5, problem=problem).params
            assert float((found - given).abs().max()) < 1e-11


def test_the_identity_of_the_two_ways(go: Make) -> None:
    """FedAvg, one step of rate 1, whose messages are remembered as h + C(v - h), is EF21."""
    for compression in (TOP, {"name": "top_k", "k": 3}):
        one = go({"name": "ef21", "lr": NEW}, compression, 50).params
        fedavg = {"name": "fedavg", "lr": 1.0, "server_lr": NEW, "weighting": "uniform"}
        other = go(fedavg, {**compression, "feedback": "ef21"}, 50).params
        assert float((one - other).abs().max()) <= 1e-12


def test_weights_by_smoothness_matter_for_compressors_that_are_not_homogeneous(go: Make) -> None:
    for name, least in (("sign", 0.0), ("natural", 1e-4)):
        one, other = (
            go({"name": n, "lr": 0.01, "smoothness": [5.0, 2.0, 5.0, 10.0]}, {"name": name}, 20).params
            for n in ("ef21", "ef21_w")
        )
        gap = float((one - other).abs().max())
        assert gap >= least
        assert (gap <= 1e-12) == (name == "sign")


def test_without_loss_it_is_gradient_descent(go: Make) -> None:
    plain = go({"name": "fedavg", "lr": 0.05, "batch_size": "full", "weighting": "uniform"}, None, 40).params
    for compression in ({"name": "none"}, None, {"name": "top_k", "k": 5}):
        assert float((go({"name": "ef21", "lr": 0.05}, compression, 40).params - plain).abs().max()) <= 1e-12


def test_where_compression_without_memory_diverges(go: Make, quadratic: Make) -> None:
    """Beznosikov et al.'s example: every coordinate grows by 1 + 11 lr / 6 per round; EF21 converges."""
    a = np.array([[-3.0, 2, 2], [2, -3, 2], [2, 2, -3]])
    problem = quadratic(A=np.stack([2 * np.outer(v, v) + np.eye(3) / 2 for v in a]), b=np.zeros((3, 3)), x0=np.ones(3))
    run = go({"name": "fedavg", "lr": 0.1}, TOP, 30, problem=problem)
    assert run.params.tolist() == pytest.approx([156.0317394514] * 3, abs=1e-9)
    run = go({"name": "ef21", "lr": 0.005859121085}, TOP, 3000, problem=problem)
    assert float(run.params.norm()) < 1e-8


def test_logistic_regression(tmp_path: Path, run_scenario: Make) -> None:
    """Three clients of four samples, three features, no bias, 0.05 |x|^2."""
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["a", "b", "c", "client", "label"])
        for c, j in itertools.product(range(3), range(4)):
            rows.writerow([*((3 * c + 5 * j + 2 * k) % 7 - 3 for k in range(3)), c, int((c + j) % 2)])
    data = {
        "dataset": "csv", "path": str(tmp_path / "rows.csv"), "test_path": str(tmp_path / "rows.csv"),
        "target": "label", "task": "classification", "normalize": "none",
        "partition": {"scheme": "natural_id", "partition_by": "client"},
    }  # fmt: skip

    def run(rounds: int, **keys: Any) -> Any:
        algorithm = {"name": "ef21", "weight_decay": 0.1, **keys}
        model = {"name": "linear", "loss": "logistic", "bias": False, "init": "zeros"}
        return run_scenario(data=data, model=model, algorithm=algorithm, compression=TOP, run={"rounds": rounds}).params

    scenario = {"data": data, "model": {"name": "linear", "loss": "logistic", "bias": False}}
    made = assemble(parse({**scenario, "algorithm": {"name": "ef21"}, "run": {"dtype": "float64"}}))
    known = made.task.smoothness(np.full(3, 1 / 3))
    assert known is not None
    assert (known[0] + 0.1).tolist() == pytest.approx([1.6671649792, 1.9330822929, 1.7098942039], abs=5e-11)
    assert known[1] + 0.1 == pytest.approx(1.6580898907, abs=5e-11)
    for rounds, expected in (
        (1, [0, -0.0174814847, 0]),
        (5, [0.0395116957, -0.0803836046, -0.078093244]),
        (50, [-0.0211621831, -0.2619870612, -0.2649874469]),
    ):
        assert run(rounds, step_size="theory_new").tolist() == pytest.approx(expected, abs=6e-11)
    assert run(1, step_size="theory_old").tolist() == pytest.approx([0, -0.0174814847 * 0.1047014641 / 0.1048889080, 0])
    optimum = torch.tensor([-0.0472632037, -0.2919156752, -0.3033502155], dtype=torch.float64)
    assert float((run(2000, step_size="theory_new") - optimum).norm()) < 1e-8


def test_smoothness_is_that_of_the_loss() -> None:
    """No gradient changes faster than L says, and in the worst direction one comes near it."""
    for loss in ("logistic", "cross_entropy", "mse"):
        data = {"dataset": "synthetic", "alpha": 0.5, "beta": 0.5, "clients": 3, "num_classes": 2, "dimension": 3}
        scenario = {"data": data, "model": {"name": "linear", "loss": loss, "init": "zeros"}}
        try:
            task = assemble(parse({**scenario, "algorithm": {"name": "ef21"}, "run": {"dtype": "float64"}})).task
        except InputError:
            assert loss == "mse"
            continue
        known = task.smoothness(np.full(3, 1 / 3))
        assert known is not None
        who, one = np.arange(3), np.ones(3, dtype=np.int64)
        oracle = task.plan(who, one, one, "full", False).oracle(0, 3, torch.ones(3, 1))
        jacobian = torch.stack([
            (oracle.grad(1e-6 * e.expand(3, -1)) - oracle.grad(-1e-6 * e.expand(3, -1))) / 2e-6
            for e in torch.eye(task.dim, dtype=torch.float64)
        ], dim=1)  # fmt: skip
        found = torch.linalg.eigvalsh((jacobian + jacobian.mT) / 2)[:, -1].numpy()
        assert (found <= known[0] * (1 + 1e-6)).all()
        assert (found >= 0.999 * known[0]).all() or loss == "mse"


# --- on a graph -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "algorithm,one,five,consensus",
    [
        ({"name": "choco", "gamma": 0.3}, [0.1954, -0.114], [0.8414, -0.684], 0.8043707596),
        ({"name": "choco", "gamma": 0.3, "order": "gmc"}, [0.19, -0.19], [0.89, -0.95], 1.0933333333),
        ({"name": "deepsqueeze", "gamma": 0.1}, [0.1906, -0.1513333333], None, 2.8426283347),
    ],
    ids=lambda v: v.get("order", v["name"]) if isinstance(v, dict) else "",
)
def test_on_a_ring(go: Make, nodes: Any, algorithm: Any, one: Any, five: Any, consensus: float) -> None:
    def run(rounds: int) -> torch.Tensor:
        return go({**algorithm, "lr": 0.1}, TOP, rounds, problem=nodes, topology=RING).params

    second = run(2)
    assert second[1].tolist() == pytest.approx(one, abs=6e-11)
    if five is not None:
        assert second[5].tolist() == pytest.approx(five, abs=6e-11)
    last = run(400)
    assert last.mean(0).tolist() == pytest.approx([2.5, -0.5])
    assert float(((last - last.mean(0)) ** 2).sum(1).mean()) == pytest.approx(consensus, abs=6e-11)


def test_beer_reaches_the_optimum_and_tracks_the_mean_gradient(go: Make, nodes: Any) -> None:
    beer = {"name": "beer", "lr": 0.05, "gamma": 0.2}
    run = lambda rounds: go(beer, TOP, rounds, problem=nodes, topology=RING)  # noqa: E731
    assert run(2).params[1].tolist() == pytest.approx([0.0975, -0.0975], abs=6e-11)
    optimum = torch.tensor([2.5, -0.5], dtype=torch.float64)
    assert float((run(3000).params - optimum).abs().max()) <= 1e-13
    kept = _state_of(beer, nodes, 30)
    assert max(float(u.mean(0).abs().max()) for u in kept) <= 2e-15  # u = v - g: mean(v) = mean(g)
    assert max(float(u.abs().max()) for u in kept) > 0.1


def _state_of(algorithm: dict[str, Any], problem: Any, rounds: int) -> list[torch.Tensor]:
    """u of all nodes after every round, through the algorithm's own methods."""
    from fedsim.clients.round import begin, describe, finish
    from fedsim.core.job import Contribution

    scenario = {"data": problem.section(), "algorithm": algorithm, "compression": TOP, "topology": RING}
    s = parse({**scenario, "run": {"dtype": "float64"}})
    made = assemble(s)
    assert made.network is not None
    worker, who, one = made.worker(s), np.arange(6), np.ones(6, dtype=np.int64)
    mixing = torch.as_tensor(made.network.mixings[0].matrix.toarray())
    state = s.algorithm.init(made.task.initial().expand(6, -1).clone())
    found = []
    for number in range(1, rounds + 1):
        messages = worker.run(Job(who, one * number, one, begin(s.algorithm, state)))
        info = describe(s.algorithm, made.task, Contribution(number, who, one * number, one))
        state = finish(s.algorithm, state, messages, info, lambda values: mixing @ values)
        found.append(state["u"])
    return found


def test_choco_without_compression_is_dfedavg(go: Make, nodes: Any) -> None:
    for compression in ({"name": "none"}, None):
        one = go({"name": "choco", "gamma": 1.0, "lr": 0.1}, compression, 60, problem=nodes, topology=RING).params
        other = go({"name": "dfedavg", "lr": 0.1}, None, 60, problem=nodes, topology=RING).params
        assert torch.equal(one, other)
        squeezed = go({"name": "deepsqueeze", "gamma": 1.0, "lr": 0.1}, compression, 60, problem=nodes, topology=RING)
        assert torch.equal(squeezed.params, other)


def test_choco_gossip_contracts_as_its_theory_says() -> None:
    """No gradients: the mean is kept, and the distance to it and to the copies falls by the theory's rate."""
    x = torch.tensor([[i, i * i, -i, 1.0 * (i == 2)] for i in range(6)], dtype=torch.float64)
    delta, beta, alpha = 1 / 3, 4 / 3, 0.25
    gamma = delta**2 * alpha / (16 * delta + delta**2 + 4 * beta**2 + 2 * delta * beta**2 - 8 * delta * alpha)
    ring = (torch.eye(6) + torch.eye(6).roll(1, 0) + torch.eye(6).roll(-1, 0)).double() / 3
    choco, link = Choco(gamma=gamma), OwnCompressor(compressor=TopK(k=1), remembers="copies")
    who, one, mean = np.arange(6), np.ones(6, dtype=np.int64), x.mean(0)
    kept, state = {"hat": torch.zeros_like(x)}, {"x": x}
    errors = []
    for number in range(4001):
        messages, kept = link.send({"hat": state["x"]}, kept, Job(who, one * number, one, {}), RunFacts(0, 6))
        errors.append(float(((state["x"] - mean) ** 2).sum() + ((state["x"] - messages["hat"]) ** 2).sum()))
        state = choco.combine(state, {**messages, "y": state["x"]}, None, lambda v: ring @ v)  # type: ignore[arg-type]
    errors = errors[1:]  # counted from the first mixing on
    assert errors[0] == pytest.approx(565.5463493140, abs=1e-9)
    assert errors[1000] == pytest.approx(88.8910585966, abs=1e-8)
    worst = max(b / a for a, b in itertools.pairwise(errors))
    assert worst == pytest.approx(0.9985840620, abs=5e-11)
    assert worst < 1 - delta**2 * alpha / 82
    assert float((state["x"].mean(0) - mean).abs().max()) <= 1e-13


# --- bytes ------------------------------------------------------------------------------------------------------------


def test_bytes_under_a_server(go: Make) -> None:
    bits = 64 + 3
    run = go({"name": "ef21", "lr": 0.01}, TOP, 6, participation={"mode": "synchronous", "clients_per_round": 3})
    assert run.metrics["bytes_sent"].iloc[-1] == 6 * 3 * (8 * 5 + math.ceil(bits / 8))
    run = go({"name": "ef21", "lr": 0.01, "init": "full"}, TOP, 6)
    assert run.metrics["bytes_sent"].iloc[-1] == 6 * 4 * 8 * 5 + 4 * 8 * 5 + 5 * 4 * math.ceil(bits / 8)


@pytest.mark.parametrize("name,vectors", [("choco", 1), ("deepsqueeze", 1), ("beer", 2)])
def test_bytes_on_a_graph(go: Make, nodes: Any, name: str, vectors: int) -> None:
    """Each of the ring's six links carries one message each way: 64 bits of a value and one for its place."""
    run = go({"name": name, "lr": 0.01}, TOP, 5, problem=nodes, topology=RING)
    assert run.metrics["bytes_sent"].iloc[-1] == 5 * 12 * vectors * math.ceil((64 + 1) / 8)


def test_a_plan_says_what_compression_does(quadratic: Make) -> None:
    data = {"data": quadratic(A=A, b=B, x0=np.zeros(5)).section(), "run": {"rounds": 6, "dtype": "float64"}}
    ef21 = {**data, "algorithm": {"name": "ef21", "step_size": "theory_new", "init": "full"}, "compression": TOP}
    said = fedsim.plan(ef21)
    assert said["work"]["lr from theory"] == f"{NEW:.6g}"
    messages = said["messages"]
    assert messages["compressed 'g'"] == "67 of 320 bits, alpha 0.2"
    assert messages["to clients"] == "40 B: the broadcast counts in full"
    assert (messages["one message"], messages["sent in the first round"]) == ("9 B", "320 B")
    assert messages["sent in all"] == f"about {320 + 5 * 4 * 49} B".replace("1300 B", "1.27 KiB")
    fedavg = {**data, "algorithm": {"name": "fedavg"}, "compression": {"name": "qsgd", "levels": 4}}
    assert fedsim.plan(fedavg)["messages"]["compressed 'delta'"] == "84 of 320 bits, omega 0.3125"
    assert "note" not in fedsim.plan(fedavg)["messages"]
    assert "biased" in fedsim.plan({**fedavg, "compression": {"name": "sign"}})["messages"]["note"]
    beer = {**data, "algorithm": {"name": "beer"}, "topology": RING, "compression": {"name": "natural"}}
    messages = fedsim.plan(beer)["messages"]
    assert messages["compressed 'h'"] == messages["compressed 'k'"] == "60 of 320 bits, omega 0.125"
    assert messages["divided by 1 + omega"] == "alpha 0.8889"
    assert "to clients" not in messages


def test_links_take_the_time_of_compressed_messages(go: Make, nodes: Any, tmp_path: Path) -> None:
    import networkx as nx

    graph = nx.cycle_graph(6)
    nx.set_edge_attributes(graph, 0.001, "bandwidth_mbps")
    nx.write_graphml(graph, tmp_path / "slow.graphml")
    topology = {"graph": "file", "path": str(tmp_path / "slow.graphml")}
    times = {}
    for name, size in (("top_k", 9), ("none", 16)):
        compression = {**TOP} if name == "top_k" else {"name": name}
        run = go({"name": "choco", "lr": 0.1}, compression, 3, problem=nodes, topology=topology)
        times[name] = (run.metrics["time"].iloc[-1], 3 * 8 * size / 1000)
    work = times["none"][0] - times["none"][1]  # what both spend on anything else
    assert times["top_k"][0] - times["top_k"][1] == pytest.approx(work)
    assert times["none"][0] > times["top_k"][0]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sections,key,words",
    [
        ({"algorithm": {"name": "ef21", "local_steps": 2}}, "algorithm.local_steps", "one gradient"),
        ({"algorithm": {"name": "ef21", "momentum": 0.9}}, "algorithm.momentum", "one gradient"),
        ({"algorithm": {"name": "ef21_w", "server_lr": 0.5}}, "algorithm.server_lr", "one gradient"),
        ({"algorithm": {"name": "ef21", "smoothness": [1.0]}}, "algorithm.smoothness", "4"),
        ({"algorithm": {"name": "ef21", "step_size": "theory_new", "lr": 0.3}}, "algorithm.lr", "step_size"),
        ({"algorithm": {"name": "ef21_w", "weighting": "samples"}}, "algorithm.weighting", "uniform"),
        ({"algorithm": {"name": "ef21"}, "aggregator": {"name": "median"}}, "aggregator.name", "protect nothing"),
        ({"algorithm": {"name": "ef21"}, "attack": {"name": "sign_flip", "attackers": 1}}, "attack", "for good"),
        (
            {"algorithm": {"name": "ef21"}, "compression": {**TOP, "feedback": "ef14"}},
            "compression.feedback", "its own memory",
        ),
        ({"algorithm": {"name": "ef21"}, "compression": {**TOP, "keys": ["g"]}}, "compression.keys", "all vectors"),
        ({"algorithm": {"name": "ef21"}, "compression": {"name": "top_k", "k": 6}}, "compression.k", "at most 5"),
        (
            {"algorithm": {"name": "ef21"}, "participation": {"mode": "asynchronous"}},
            "participation.mode", "synchronous",
        ),
        (
            {
                "algorithm": {"name": "ef21"},
                "privacy": {"mechanism": "dp_fedavg", "noise_multiplier": 1.0, "clip_norm": 1.0},
            },
            "compression", "dp_fedavg",
        ),
        ({"algorithm": {"name": "choco", "gamma": 1.5}, "topology": RING}, "algorithm.gamma", "1"),
        (
            {"algorithm": {"name": "choco"}, "topology": RING, "participation": {"links": 0.5}},
            "participation.links", "copies",
        ),
        (
            {"algorithm": {"name": "beer"}, "topology": RING, "participation": {"links": [1.0, 1.0, 0.9, 1.0]}},
            "participation.links", "copies",
        ),
        (
            {"algorithm": {"name": "choco"}, "topology": {"graph": "sequence", "graphs": [RING, {"graph": "star"}]}},
            "topology", "copies",
        ),
        (
            {"algorithm": {"name": "choco"}, "topology": RING, "participation": {"mode": "poisson"}},
            "participation.mode", "rounds",
        ),
        (
            {
                "algorithm": {"name": "choco"}, "topology": RING,
                "backend": {"name": "ray", "actors": 2, "client_errors": "drop"},
            },
            "backend.client_errors", "copies",
        ),
        ({"algorithm": {"name": "beer", "local_steps": 2}, "topology": RING}, "algorithm.local_steps", "one local"),
        ({"algorithm": {"name": "deepsqueeze"}, "topology": {"graph": "ring", "weights": "uniform", "directed": True}},
         None, ""),
        ({"algorithm": {"name": "dgd"}, "topology": RING}, "compression", "choco, beer, deepsqueeze"),
    ],
    ids=lambda v: v["algorithm"]["name"] if isinstance(v, dict) else "",
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, quadratic: Make, sections: Any, key: Any, words: str) -> None:
    data = quadratic(A=A, b=B, x0=np.zeros(5)).section()
    with pytest.raises(InputError) as caught:
        fedsim.run({"data": data, "compression": TOP, "run": {"rounds": 2}, **sections}, out=tmp_path / "run")
    if key is not None:
        assert key in [p.key for p in caught.value.problems], caught.value
    assert words in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_smoothness_that_is_not_known_is_refused(tmp_path: Path) -> None:
    scenario = {
        "data": {"dataset": "digits", "clients": 3, "limit": 60},
        "model": {"name": "mlp", "hidden": [4]},
        "algorithm": {"name": "ef21", "step_size": "theory_new"},
        "compression": TOP,
        "run": {"rounds": 1},
    }
    with pytest.raises(InputError, match=r"algorithm.smoothness: found 'auto', but the L_i are not known"):
        fedsim.run(scenario, out=tmp_path / "run")
    given = {**scenario, "algorithm": {"name": "ef21_w", "step_size": "theory_new", "smoothness": [1.0, 2.0, 3.0]}}
    assert len(fedsim.run(given, out=tmp_path / "run").metrics) == 2
