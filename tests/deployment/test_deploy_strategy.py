"""fedsim's server half inside a Flower app: the same numbers as Flower's own FedAvg, and as fedsim's own rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedsim.algorithms.base import Round
from fedsim.core.errors import InputError
from fedsim.core.fields import part_from
from fedsim.deployment.strategy import make_strategy

pytest.importorskip("flwr")
EXAMPLES = (10, 30, 60)
NODES = (33, 11, 22)


@pytest.fixture(autouse=True)
def _identity() -> None:
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def model(seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    weights = {k: random.normal(size=s).astype(np.float32) for k, s in (("w", (4, 3)), ("b", (3,)))}
    return {**weights, "seen": np.array([seed * 10])}


def record(arrays: dict[str, Any]) -> Any:
    from flwr.app import Array, ArrayRecord

    return ArrayRecord({k: Array(v) for k, v in arrays.items()})


class Grid:
    def get_node_ids(self) -> list[int]:
        return list(NODES)


def step(strategy: Any, x: dict[str, Any], number: int = 1, made: Any = model) -> dict[str, Any]:
    """A round in which clients answer with models 1, 2 and 3 (plus the round's number)."""
    from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

    messages = list(strategy.configure_train(number, record(x), ConfigRecord({}), Grid()))
    assert len(messages) == 3
    replies = []
    for i, message in enumerate(sorted(messages, key=lambda m: NODES.index(m.metadata.dst_node_id))):
        metrics = MetricRecord({"num-examples": EXAMPLES[i], "loss": 1.0})
        content = RecordDict({"arrays": record(made(i + 10 * number)), "metrics": metrics})
        replies.append(Message(content, reply_to=message))
    arrays, metrics = strategy.aggregate_train(number, replies)
    assert metrics["loss"] == pytest.approx(1.0)
    return {k: v.numpy() for k, v in arrays.items()}


def flat(arrays: dict[str, Any]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([arrays["w"].ravel(), arrays["b"]]))


def test_fedavg_is_flowers_fedavg() -> None:
    from flwr.serverapp.strategy import FedAvg

    ours, theirs = step(make_strategy({"name": "fedavg"}), model(7)), step(FedAvg(), model(7))
    assert ours.keys() == theirs.keys()
    for k in ours:
        assert ours[k].shape == theirs[k].shape
        assert ours[k] == pytest.approx(theirs[k], abs=1e-6)
    assert ours["w"].dtype == np.float32


@pytest.mark.parametrize("keys", [{"name": "fedadam", "server_lr": 0.1}, {"name": "fedavg", "server_momentum": 0.9}])
def test_state_is_kept_from_round_to_round(keys: dict[str, Any]) -> None:
    strategy, algorithm = make_strategy(keys), part_from("algorithm", "name", keys)
    x, weights = model(7), torch.tensor(EXAMPLES) / 100.0
    state = algorithm.init(flat(x))
    for number in (1, 2, 3):
        x = step(strategy, x, number)
        sent = torch.stack([flat(model(i + 10 * number)) for i in range(3)])
        column = weights.unsqueeze(1)
        info = Round(number, 3, column, torch.ones_like(column), torch.ones_like(column), column)
        state = algorithm.combine(
            state, {"delta": sent - state["x"]}, info, lambda v, given=None: (weights if given is None else given) @ v
        )
        assert flat(x).numpy() == pytest.approx(state["x"].numpy(), abs=1e-5)


def test_a_robust_aggregator_and_uniform_weights() -> None:
    got = step(make_strategy({"name": "fedavg"}, {"name": "median"}), model(7))
    models = np.stack([flat(model(i + 10)).numpy() for i in range(3)])
    assert flat(got).numpy() == pytest.approx(np.median(models, 0), abs=1e-6)
    got = step(make_strategy({"name": "fedavg", "weighting": "uniform"}), model(7))
    assert flat(got).numpy() == pytest.approx(models.mean(0), abs=1e-6)


def test_a_round_of_too_few_answers_leaves_the_model() -> None:
    got = step(make_strategy({"name": "fedavg"}, {"name": "krum", "f": 1}), model(7))
    assert torch.equal(flat(got), flat(model(7)))
    got = step(make_strategy({"name": "fedavg"}, {"name": "krum", "f": 0}), model(7))
    assert any(torch.allclose(flat(got), flat(model(i + 10)), atol=1e-6) for i in range(3))


def test_a_rule_that_has_to_know_its_clients_is_refused() -> None:
    with pytest.raises(InputError, match="does not know its clients' numbers"):
        make_strategy({"name": "fedavg"}, {"name": "fltrust", "root": 0})


REFUSED = {
    "dspodfl": "has its models on a graph",
    "fedasync": "has no rounds of a cohort",
    "diff2": "needs all clients in a round",
    "qffl": "asks clients for more than gradients",
    "ditto": "keeps other models than the common one",
    "ef21": "sends compressed messages",
}


@pytest.mark.parametrize("name", REFUSED)
def test_algorithms_that_need_a_scenario_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"'{name}' {REFUSED[name]}, which a Strategy cannot: deploy it as a scenario"):
        make_strategy({"name": name})


@pytest.mark.parametrize(
    "algorithm,aggregator,message",
    [
        ({"name": "fedprox", "local_epochs": 3}, None, "clients' batches decide"),
        ({"name": "scaffold"}, {"name": "median"}, "found 'median', but 'scaffold' moves by more than"),
        ({"name": "scaffold", "solver": {"name": "adam"}}, None, "divides a client's change by the sum"),
    ],
)
def test_keys_that_would_do_nothing_or_harm(algorithm: dict[str, Any], aggregator: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_strategy(algorithm, aggregator)


def test_names_that_are_averaged_are_a_list() -> None:
    with pytest.raises(InputError, match=r"averaged: found 'scale', allowed: a list"):
        make_strategy({"name": "fedavg"}, averaged="scale")  # its letters end many names


@pytest.mark.parametrize("more", [{}, {"averaged": ["ema"]}], ids=["", "others, too"])
@pytest.mark.parametrize("name", ["fedavg", "fedadam"])
def test_what_a_model_carries_takes_no_step(name: str, more: dict[str, Any]) -> None:
    """Counters without an axis and running statistics of batch normalisation: averaged, in their own types."""
    from flwr.serverapp.strategy import FedAvg

    def carrying(seed: int) -> dict[str, Any]:
        made = model(seed)
        made["norm.running_var"] = np.abs(made["b"]) + 1
        made["norm.num_batches_tracked"] = np.array(7 * seed + 2**40)
        return made

    ours = step(make_strategy({"name": name, "server_lr": 0.5}, **more), carrying(7), made=carrying)
    theirs = step(FedAvg(), carrying(7), made=carrying)
    assert ours["norm.running_var"] == pytest.approx(theirs["norm.running_var"], abs=1e-6)
    for k in ("norm.num_batches_tracked", "seen"):
        assert ours[k].dtype == np.int64
        assert ours[k].shape == carrying(7)[k].shape
        assert ours[k] == pytest.approx(theirs[k], abs=0.5)


def test_a_robust_rule_is_one_for_what_a_model_carries_too() -> None:
    got = step(make_strategy({"name": "fedavg"}, {"name": "median"}), model(7))
    assert got["seen"].tolist() == [int(model(11)["seen"][0])]


def test_settings_are_flowers() -> None:
    assert make_strategy({"name": "fedavg"}, fraction_train=0.5).fraction_train == 0.5
