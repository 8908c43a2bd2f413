"""Limit cases in which one method is another, and DSpodFL's delays recomputed from a run's trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

Make = Callable[..., Any]
BETA = {"beta": [0.8, 0.8]}
DIGITS = {
    "dataset": "digits",
    "clients": 6,
    "partition": {"scheme": "dirichlet", "alpha": 0.5, "min_partition_size": 8},
}


@pytest.fixture
def problem(quadratic: Make) -> Any:
    return quadratic(n=6, d=4)


@pytest.fixture
def serve(run_scenario: Make, problem: Any) -> Make:
    """Parameters after some rounds of a server algorithm with noisy gradients, unequal steps and changing cohorts."""

    def params(name: str, rounds: int = 8, **keys: Any) -> Any:
        participation = keys.pop("participation", {"mode": "synchronous", "clients_per_round": 4})
        sections = {k: keys.pop(k) for k in ("aggregator", "data", "model") if k in keys}
        run_keys = {"rounds": rounds, **keys.pop("run", {})}
        work = {} if "local_epochs" in keys else {"local_steps": {"uniform": [1, 4]}}
        return run_scenario(
            data=sections.pop("data", problem.section(noise=0.3)),
            algorithm={"name": name, "lr": 0.1, **work, **keys},
            participation=participation,
            run=run_keys,
            **sections,
        ).params.numpy()

    return params


@pytest.fixture
def spread(run_scenario: Make, problem: Any) -> Make:
    """A run of a gossip algorithm with noisy gradients on a ring with a chord."""

    def run(name: str, rounds: int = 12, participation: Any = None, topology: Any = None, **keys: Any) -> Any:
        sections = {k: keys.pop(k) for k in ("data", "model") if k in keys}
        run_keys = {"rounds": rounds, **keys.pop("run", {})}
        return run_scenario(
            data=sections.pop("data", problem.section(noise=0.3)),
            algorithm={"name": name, "lr": 0.1, **keys},
            topology=topology or {"graph": "star"},
            participation={"mode": "gossip", **(participation or {})},
            run=run_keys,
            **sections,
        )

    return run


def same(one: Any, other: Any) -> bool:
    return bool(np.array_equal(one, other))


def close(one: Any, other: Any, tolerance: float = 1e-12) -> bool:
    return bool(np.abs(one - other).max() <= tolerance)


# --- servers --------------------------------------------------------------------------------------


def test_fedprox_without_mu_is_fedavg(serve: Make) -> None:
    assert same(serve("fedprox", mu=0.0), serve("fedavg"))
    assert not close(serve("fedprox", mu=0.1), serve("fedavg"), 1e-4)


def test_scaffold_begins_as_fedavg(serve: Make) -> None:
    for option in (1, 2):
        assert close(serve("scaffold", 1, option=option), serve("fedavg", 1))
        assert not close(serve("scaffold", 3, option=option), serve("fedavg", 3), 1e-4)


def test_feddyn_begins_with_fedprox_clients(serve: Make) -> None:
    """While all h and g_i are 0, FedDyn's clients are FedProx's with mu = alpha; -h/alpha doubles the step."""
    everybody = {"participation": {"mode": "synchronous"}}
    prox, start = serve("fedprox", 1, mu=0.7, **everybody), serve("fedprox", 1, mu=0.7, lr=1e-300, **everybody)
    dyn = serve("feddyn", 1, alpha=0.7, **everybody)
    assert close(dyn - start, 2 * (prox - start))


@pytest.mark.parametrize("keys", [{}, {"momentum": 0.9}, {"weight_decay": 0.1}])
def test_fednova_with_equal_steps_is_fedavg(serve: Make, keys: dict[str, float]) -> None:
    assert close(serve("fednova", local_steps=3, **keys), serve("fedavg", local_steps=3, **keys))
    assert not close(serve("fednova", **keys), serve("fedavg", **keys), 1e-3)


def test_adaptive_servers_with_a_huge_accumulator_are_fedavg(serve: Make) -> None:
    """sqrt(v) is then the same number for all coordinates and rounds, and the server's rate cancels it."""
    huge = {"server_lr": 1e10, "initial_accumulator": 1e20, "beta1": 0.0}
    assert close(serve("fedadagrad", **huge), serve("fedavg"))
    assert close(serve("fedyogi", beta2=1 - 1e-16, **huge), serve("fedavg"))
    assert close(serve("fedadam", beta2=1 - 1e-16, **huge), serve("fedavg"))


def test_adam_and_yogi_begin_alike(serve: Make) -> None:
    assert close(serve("fedadam", 1), serve("fedyogi", 1))
    assert not close(serve("fedadam", 5), serve("fedyogi", 5), 1e-4)


def test_trimming_nothing_is_the_mean(serve: Make) -> None:
    mean = serve("fedavg")
    assert close(serve("fedavg", aggregator={"name": "trimmed_mean", "trim": 0.0}), mean, 1e-14)
    assert not close(serve("fedavg", aggregator={"name": "trimmed_mean", "trim": 0.25}), mean, 1e-4)


def test_the_median_of_two_equal_weights_is_the_mean(serve: Make) -> None:
    keys = {"participation": {"mode": "synchronous", "clients_per_round": 2}}
    assert close(serve("fedavg", aggregator={"name": "median"}, **keys), serve("fedavg", **keys), 1e-14)


def test_a_clip_that_never_binds_changes_nothing(serve: Make) -> None:
    assert close(serve("fedavg", clip=1e6), serve("fedavg"), 1e-14)


def test_one_full_gradient_step_is_gradient_descent(run_scenario: Make, quadratic: Make) -> None:
    problem = quadratic(n=4, d=3, importance=True)
    x = problem.x0.copy()
    for _ in range(10):
        x = x - 0.2 * sum(p * problem.grad(i, x) for i, p in enumerate(problem.p))
    run = run_scenario(data=problem.section(), algorithm={"name": "fedavg", "lr": 0.2}, run={"rounds": 10})
    assert close(run.params.numpy(), x)


def test_bernoulli_with_certainty_is_everybody(serve: Make) -> None:
    certain = {"mode": "synchronous", "fraction": 1.0, "sampling": "bernoulli"}
    assert same(serve("fedavg", participation=certain), serve("fedavg", participation={"mode": "synchronous"}))


def test_the_seed_decides_the_numbers(run_scenario: Make, problem: Any) -> None:
    def params(seed: int) -> Any:
        data, participation = problem.section(noise=0.3), {"mode": "synchronous", "clients_per_round": 3}
        sections = {"data": data, "algorithm": {"name": "fedavg"}, "participation": participation}
        return run_scenario(seed=seed, run={"rounds": 5}, **sections).params.numpy()

    assert same(params(1), params(1))
    assert not close(params(1), params(2), 1e-3)


# --- graphs ---------------------------------------------------------------------------------------


def test_dspodfl_with_all_indicators_one_is_dgd_and_dpsgd(spread: Make) -> None:
    runs = [spread(name).params.numpy() for name in ("dspodfl", "dgd", "dpsgd")]
    assert same(runs[0], runs[1])
    assert same(runs[1], runs[2])


def test_probabilities_only_enter_the_delays_of_dgd(spread: Make) -> None:
    plain, lawful = spread("dgd"), spread("dgd", participation={"compute": BETA, "links": BETA})
    assert same(plain.params.numpy(), lawful.params.numpy())


@pytest.mark.parametrize("name,sporadic", [("randomized_gossip", {"links": BETA}), ("sporadic_sgd", {"compute": BETA})])
def test_the_cases_of_dspodfl(spread: Make, name: str, sporadic: dict[str, Any]) -> None:
    """One kind of indicator is 1; whatever its probabilities are, `name` is DSpodFL without them."""
    special = spread(name, participation={"compute": BETA, "links": BETA}).params.numpy()
    assert same(special, spread("dspodfl", participation=sporadic).params.numpy())
    assert not close(special, spread("dspodfl", participation={"compute": BETA, "links": BETA}).params.numpy(), 1e-3)


def test_periodic_gossip_in_every_round_is_dgd(spread: Make) -> None:
    assert same(spread("periodic_gossip", every=1).params.numpy(), spread("dgd").params.numpy())
    assert same(spread("periodic_gossip").params.numpy(), spread("dgd").params.numpy())  # auto, d = 1


def test_periodic_gossip_every_third_round_is_dfedavg_with_its_last_step_after_mixing(spread: Make) -> None:
    """Between mixings nodes only step, so D - 1 steps, then ``W x - lr g(x)``."""
    keys = {"topology": {"graph": "complete"}, "every": 3}
    three, two = (spread("periodic_gossip", rounds, **keys).params.numpy() for rounds in (3, 2))
    after_two = spread("dspodfl", 2, {"links": 0.0}).params.numpy()
    assert same(two, after_two)
    assert close((three - two).mean(0), (spread("dspodfl", 3, {"links": 0.0}).params.numpy() - two).mean(0))


def test_dfedavg_with_one_step_mixes_after_adapting(spread: Make) -> None:
    """From equal starts the first round of DGD only adapts; DFedAvg mixes that result. Later the two orders differ."""
    from networkx import star_graph

    from fedsim.graphs.mixing import mixing_matrix

    W = mixing_matrix(star_graph(5), "metropolis").toarray()
    adapted = spread("dgd", 1).params.numpy()
    assert close(spread("dfedavg", 1).params.numpy(), W @ adapted, 1e-14)
    assert not close(spread("dfedavg", 5).params.numpy(), spread("dgd", 5).params.numpy(), 1e-2)


@pytest.mark.parametrize("keys", [{}, {"local_steps": 4, "momentum": 0.8, "lr_decay": 0.9}])
def test_gossip_on_a_complete_graph_is_fedavg(spread: Make, serve: Make, keys: dict[str, Any]) -> None:
    """W = 11^T / n, adapt then combine: every node is the server."""
    nodes = spread("dfedavg", topology={"graph": "complete"}, **keys).params.numpy()
    server = serve("fedavg", 12, participation={"mode": "synchronous"}, **{"local_steps": 1, **keys})
    assert close(nodes, np.tile(server, (6, 1)))


def test_the_network_average_moves_by_gradients_alone(spread: Make, problem: Any) -> None:
    """Rounds 11 and later have a learning rate of 1e-301: nodes approach each other, their average stays."""
    sporadic = {"compute": BETA, "links": 0.5}
    stop = {"lr_decay": {"step": 1e-300, "every": 10}, "topology": {"graph": "star"}, "data": problem.section()}
    early, late = (spread("dspodfl", rounds, sporadic, **stop).params.numpy() for rounds in (10, 100))
    assert close(early.mean(0), late.mean(0), 2e-15)
    distances = [np.square(x - x.mean(0)).sum(1).mean() for x in (early, late)]
    assert distances[0] > 1e-3
    assert distances[1] < 1e-3 * distances[0]


def test_the_network_average_is_minus_the_sum_of_gradients(spread: Make, problem: Any) -> None:
    """For equal curvatures the average obeys its own recursion when everybody computes, whatever links fire."""
    a, mean_b = 0.8, problem.b.mean(0)
    np.savez(problem.file, A=np.full((6, 4), a), b=problem.b, x0=problem.x0)
    run = spread("dspodfl", 20, {"links": BETA}, data=problem.section())
    expected = mean_b + (1 - 0.1 * a) ** 20 * (problem.x0 - mean_b)
    assert close(run.params.numpy().mean(0), expected, 1e-14)


# --- chunks, kernels, data ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fedavg", "scaffold", "fednova"])
def test_chunks_do_not_change_a_servers_numbers(serve: Make, name: str) -> None:
    whole = serve(name, momentum=0.5, run={"chunk_rows": 6})
    assert whole.shape == (4,)
    for rows in (1, 2, 5):
        assert close(serve(name, momentum=0.5, run={"chunk_rows": rows}), whole, 1e-13)


@pytest.mark.parametrize("name", ["dspodfl", "dfedavg", "gradient_tracking"])
def test_chunks_do_not_change_a_graphs_numbers(spread: Make, name: str) -> None:
    sporadic = {"compute": BETA, "links": BETA}
    whole = spread(name, participation=sporadic, run={"chunk_rows": 6}).params.numpy()
    for rows in (1, 4):
        assert close(spread(name, participation=sporadic, run={"chunk_rows": rows}).params.numpy(), whole, 1e-13)


@pytest.mark.parametrize("model", [{"name": "linear"}, {"name": "mlp", "hidden": [12], "activation": "tanh"}])
@pytest.mark.parametrize("work", [{"local_steps": {"uniform": [1, 3]}}, {"local_epochs": 1}])
def test_chunks_do_not_change_trained_models(serve: Make, model: dict[str, Any], work: dict[str, Any]) -> None:
    """Which samples a minibatch holds depends on client, round and step alone, so all divisions give the same model."""

    def trained(rounds: int, chunk_rows: int) -> Any:
        keys = {"data": DIGITS, "model": model, "batch_size": 10, "momentum": 0.5, **work}
        return serve("fedavg", rounds, run={"chunk_rows": chunk_rows}, **keys)

    everybody = trained(2, 6)
    assert close(trained(2, 1), everybody, 1e-12)
    assert close(trained(2, 4), everybody, 1e-12)
    assert not close(trained(3, 6), everybody, 1e-4)


@pytest.mark.parametrize("name", ["dspodfl", "dpsgd"])
def test_minibatch_gossip_on_real_data(spread: Make, name: str) -> None:
    keys = {"data": DIGITS, "model": {"name": "linear"}, "batch_size": 4}
    whole = spread(name, 4, **keys).params.numpy()
    assert close(spread(name, 4, run={"chunk_rows": 1}, **keys).params.numpy(), whole, 1e-12)
    assert same(whole, spread("dspodfl", 4, **keys).params.numpy())


def test_full_batches_are_dgd(spread: Make) -> None:
    keys = {"data": DIGITS, "model": {"name": "linear"}}
    assert same(spread("dpsgd", 4, batch_size="full", **keys).params.numpy(), spread("dgd", 4, **keys).params.numpy())


def test_one_epoch_of_full_batches_is_one_step(run_scenario: Make) -> None:
    def params(**work: Any) -> Any:
        algorithm = {"name": "fedavg", "lr": 0.1, "batch_size": "full", **work}
        return run_scenario(
            data=DIGITS, model={"name": "linear"}, algorithm=algorithm, run={"rounds": 3}
        ).params.numpy()

    assert same(params(local_epochs=2), params(local_steps=2))


# --- delays (arXiv 2402.03448, section 5) ---------------------------------------------------------

D = [0.9, 0.3, 0.05, 1.0, 0.6, 0.2]
EDGES = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]  # a path: nodes of one and of two neighbours
B = [0.5, 0.1, 1.0, 0.7, 0.02]
LAWS = {"compute": D, "links": B}
PATH = {"graph": "path"}


def delays(trace: list[dict[str, Any]]) -> tuple[float, float]:
    """The metric as printed: sums over the nodes, the neighbours and the iterations."""
    neighbours = {i: [j for e in EDGES for j in e if i in e and j != i] for i in range(6)}
    b = {frozenset(e): p for e, p in zip(EDGES, B, strict=True)}
    processing = transmission = 0.0
    for row in trace:
        fired = {frozenset(e) for e in row["edges"]}
        processing += sum(1 / D[i] for i in row["compute"]) / sum(1 / d for d in D)
        above = below = 0.0
        for i in range(6):
            for j in neighbours[i]:
                cost = 1 / (len(neighbours[i]) * b[frozenset((i, j))])
                below += cost
                above += cost if frozenset((i, j)) in fired else 0.0
        transmission += above / below
    return processing, transmission


def test_dgd_costs_two_per_round(spread: Make) -> None:
    for laws in ({}, LAWS, {"compute": BETA, "links": BETA}):
        last = spread("dgd", 30, laws, PATH).metrics.iloc[-1]
        assert last["delay_processing"] == pytest.approx(30, abs=1e-12)
        assert last["delay_transmission"] == pytest.approx(30, abs=1e-12)
        assert last["delay_total"] == pytest.approx(60, abs=1e-12)


@pytest.mark.parametrize("name", ["dspodfl", "randomized_gossip", "sporadic_sgd", "periodic_gossip", "dfedavg"])
def test_delays_follow_from_the_trace(spread: Make, name: str) -> None:
    run = spread(name, 40, LAWS, PATH)
    processing, transmission = delays(run.trace)
    last = run.metrics.iloc[-1]
    assert last["delay_processing"] == pytest.approx(processing, abs=1e-12)
    assert last["delay_transmission"] == pytest.approx(transmission, abs=1e-12)
    assert last["delay_total"] == pytest.approx(processing + transmission, abs=1e-12)
    assert 0 < transmission <= 40
    assert 0 < processing <= 40


def test_delays_of_the_special_cases(spread: Make) -> None:
    last = {
        name: spread(name, 30, LAWS, PATH).metrics.iloc[-1]
        for name in ("randomized_gossip", "sporadic_sgd", "periodic_gossip")
    }
    assert last["randomized_gossip"]["delay_processing"] == pytest.approx(30, abs=1e-12)
    assert last["randomized_gossip"]["delay_transmission"] < 20
    assert last["sporadic_sgd"]["delay_transmission"] == pytest.approx(30, abs=1e-12)
    assert last["sporadic_sgd"]["delay_processing"] < 20
    period = int(np.ceil(np.mean([1 / d for d in D])))  # 6
    assert last["periodic_gossip"]["delay_processing"] == pytest.approx(30, abs=1e-12)
    assert last["periodic_gossip"]["delay_transmission"] == pytest.approx(30 // period, abs=1e-12)


def test_several_local_steps_cost_that_many_computations(spread: Make) -> None:
    assert spread("dgd", 10, LAWS, PATH, local_steps=3).metrics["delay_processing"].iloc[-1] == pytest.approx(
        30, abs=1e-12
    )
