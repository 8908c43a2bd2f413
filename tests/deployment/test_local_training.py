"""Algorithms whose clients do more than plain training, in a Flower app with data and models of its own.

The numbers are those of the simulation: with the same batches a round of the app is a round of `fedsim run`.
"""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fedsim
from fedsim.core.errors import InputError, RunError
from fedsim.deployment.local_training import train_locally
from fedsim.deployment.strategy import make_strategy
from fedsim.engine.assembly import assemble
from fedsim.objective.supervised import SupervisedTask
from fedsim.scenario.load import parse

pytest.importorskip("flwr")
NODES, STEPS, ROUNDS = (33, 11, 22), 3, 4
ALGORITHMS: list[dict[str, Any]] = [
    {"name": "fedavg", "momentum": 0.5, "relaxed_init": 0.1},
    {"name": "fedprox", "mu": 0.5},
    {"name": "scaffold"},
    {"name": "scaffold", "option": 1, "weighting": "uniform"},
    {"name": "feddyn", "alpha": 0.1},
    {"name": "fednova"},
    {"name": "fedcm"},
    {"name": "fedsam", "rho": 0.05},
    {"name": "fedgamma", "rho": 0.05},
    {"name": "mofedsam", "rho": 0.05},
    {"name": "fedspeed", "rho": 0.05},
    {"name": "fedsmoo"},
    {"name": "fedadam", "server_lr": 0.05, "solver": {"name": "adam"}, "lr_decay": 0.9},
]


class Grid:
    def get_node_ids(self) -> list[int]:
        return list(NODES)


class App:
    """Three nodes with models and data of their own, and what each node keeps."""

    def __init__(self, data: list[tuple[torch.Tensor, torch.Tensor]], model: nn.Module) -> None:
        from flwr.app import RecordDict
        from flwr.supercore.task_identity import TaskIdentity

        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self.data, self.model = dict(zip(sorted(NODES), data, strict=True)), model
        self.states = {node: RecordDict() for node in NODES}

    def answer(self, message: Any, steps: int = STEPS) -> Any:
        from flwr.app import Context

        node = message.metadata.dst_node_id
        context, (x, y) = Context(1, node, {}, self.states[node], {}), self.data[node]
        answer = train_locally(message, context, self.model, [(x, y)] * steps, nn.CrossEntropyLoss(), len(y))
        self.states[node] = context.state
        return answer

    def round(self, strategy: Any, arrays: Any, number: int) -> Any:
        from flwr.app import ConfigRecord

        messages = list(strategy.configure_train(number, arrays, ConfigRecord({}), Grid()))
        made, _ = strategy.aggregate_train(number, [self.answer(message) for message in messages])
        return made


def sections(file: Path, algorithm: dict[str, Any]) -> dict[str, Any]:
    return {
        "data": {"dataset": "npz", "path": str(file), "clients": 3, "partition": {"scheme": "dirichlet", "alpha": 2.0}},
        "model": {"name": "linear"},
        "algorithm": {"lr": 0.2, **algorithm, "batch_size": "full", "local_steps": STEPS},
        "run": {"rounds": ROUNDS, "dtype": "float64", "device": "cpu"},
    }


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw, file = np.random.default_rng(1), tmp_path_factory.mktemp("data") / "rows.npz"
    x, y = draw.normal(size=(60, 5)), draw.integers(0, 3, 60)
    np.savez(file, x_train=x[:45], y_train=y[:45], x_test=x[45:], y_test=y[45:])
    return file


@pytest.fixture
def app(rows: Path) -> App:
    """With the data and the initial model of the simulation."""
    task = assemble(parse(sections(rows, {"name": "fedavg"}))).task
    assert isinstance(task, SupervisedTask)
    model = nn.Linear(5, 3).double()
    nn.utils.vector_to_parameters(task.initial(), model.parameters())
    of = [task.indices[a:b] for a, b in itertools.pairwise(task.offsets)]
    return App([(task.inputs[i].double(), task.targets[i]) for i in of], model)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: "-".join(map(str, [a["name"], *list(a)[1:]])))
def test_the_numbers_are_those_of_the_simulation(
    algorithm: dict[str, Any], rows: Path, app: App, tmp_path: Path
) -> None:
    from flwr.app import ArrayRecord

    begin = nn.utils.parameters_to_vector(app.model.parameters()).detach().clone()
    arrays = ArrayRecord(app.model.state_dict())
    strategy = make_strategy({"lr": 0.2, **algorithm})
    for number in range(1, ROUNDS + 1):
        arrays = app.round(strategy, arrays, number)
    run = fedsim.run(sections(rows, algorithm), out=tmp_path / "run")
    found = torch.cat([torch.from_numpy(v.numpy()).ravel() for v in arrays.values()])
    assert float((found - run.params).abs().max()) < 1e-12
    assert float((found - begin).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_another_strategy_finds_clients_that_begin(name: str, app: App) -> None:
    """What clients keep belongs to the server's half that it was made with, whose state is gone."""
    from flwr.app import ArrayRecord

    def rounds() -> dict[str, Any]:
        strategy, arrays = make_strategy({"name": name, "lr": 0.2}), start
        for number in (1, 2):
            arrays = app.round(strategy, arrays, number)
        return {k: v.numpy() for k, v in arrays.items()}

    start = ArrayRecord(app.model.state_dict())
    first, second = rounds(), rounds()
    assert all(np.array_equal(first[k], second[k]) for k in first)
    assert any(not np.array_equal(first[k], start[k].numpy()) for k in first)


def test_a_client_of_plain_training_is_not_taken_for_one_of_scaffold(app: App) -> None:
    from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

    strategy = make_strategy({"name": "scaffold"})
    arrays = ArrayRecord(app.model.state_dict())
    messages = list(strategy.configure_train(1, arrays, ConfigRecord({}), Grid()))
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 3})})
    with pytest.raises(RunError, match="did plain local training, of which Scaffold knows nothing: use train_locally"):
        strategy.aggregate_train(1, [Message(content, reply_to=m) for m in messages])


def test_a_client_that_lost_what_it_kept_is_named(app: App, caplog: pytest.LogCaptureFixture) -> None:
    from flwr.app import ArrayRecord, RecordDict

    arrays, strategy = ArrayRecord(app.model.state_dict()), make_strategy({"name": "scaffold"})
    with caplog.at_level(logging.WARNING, "flwr.fedsim"):
        arrays = app.round(strategy, arrays, 1)
        assert not caplog.records
        app.states[22] = RecordDict()
        app.round(strategy, arrays, 2)
    assert "nodes [22] lost what they kept between rounds" in caplog.text


@pytest.mark.parametrize(
    "model,message",
    [
        (nn.Linear(5, 3, bias=False), "bias is in one of them alone"),
        (nn.Linear(4, 3), r"the server's array 'weight' is \[3, 5\], this model's \[3, 4\]"),
    ],
)
def test_a_model_of_another_form_is_refused(model: nn.Module, message: str, app: App) -> None:
    from flwr.app import ArrayRecord, ConfigRecord

    sent = ArrayRecord(app.model.state_dict())
    messages = list(make_strategy({"name": "fedprox"}).configure_train(1, sent, ConfigRecord({}), Grid()))
    app.model = model
    with pytest.raises(InputError, match=message):
        app.answer(messages[0])


def test_batch_normalisation_and_frozen_layers(app: App) -> None:
    """Running statistics and their counters are averaged; what is frozen stays; the rest is trained."""
    from flwr.app import ArrayRecord

    app.model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    app.model[0].requires_grad_(False)
    before = {k: v.clone() for k, v in app.model.state_dict().items()}
    after = app.round(make_strategy({"name": "scaffold", "lr": 0.1}), ArrayRecord(app.model.state_dict()), 1)
    assert {k: v.numpy().dtype for k, v in after.items()} == {k: v.numpy().dtype for k, v in before.items()}
    assert int(after["1.num_batches_tracked"].numpy()) == STEPS
    assert np.array_equal(after["0.weight"].numpy(), before["0.weight"].numpy())
    for k in ("1.running_var", "1.weight", "2.weight"):
        assert not np.allclose(after[k].numpy(), before[k].numpy())


def test_a_buffer_that_is_no_parameter_has_to_be_named(app: App) -> None:
    from flwr.app import ArrayRecord

    app.model.register_buffer("scale", torch.ones(2))
    sent = ArrayRecord(app.model.state_dict())
    with pytest.raises(InputError, match=r"found 'scale', .* allowed: make_strategy\(averaged="):
        app.round(make_strategy({"name": "scaffold"}), sent, 1)
    assert app.round(make_strategy({"name": "scaffold"}, averaged=["scale"]), sent, 1)["scale"].numpy().tolist() == [
        1,
        1,
    ]


def test_a_client_without_a_batch_is_told_so(app: App) -> None:
    from flwr.app import ArrayRecord, ConfigRecord

    sent = ArrayRecord(app.model.state_dict())
    messages = list(make_strategy({"name": "scaffold"}).configure_train(1, sent, ConfigRecord({}), Grid()))
    with pytest.raises(InputError, match="found no batch"):
        app.answer(messages[0], steps=0)


def test_numbers_that_are_not_finite_are_not_used(app: App, caplog: pytest.LogCaptureFixture) -> None:
    from flwr.app import ArrayRecord

    begin = ArrayRecord(app.model.state_dict())
    wanted = app.round(make_strategy({"name": "fedprox"}), begin, 1)
    x, y = app.data[22]
    app.data[22] = (x * float("nan"), y)
    with caplog.at_level(logging.WARNING, "flwr.fedsim"):
        found = app.round(make_strategy({"name": "fedprox"}), begin, 1)
    assert "nodes [22] sent numbers that are not finite: not used" in caplog.text
    assert all(np.isfinite(v.numpy()).all() for v in found.values())
    assert not np.allclose(found["weight"].numpy(), wanted["weight"].numpy())
    app.data = dict.fromkeys(app.data, (x * float("nan"), y))
    kept = app.round(make_strategy({"name": "fedprox"}), begin, 1)
    assert all(np.array_equal(kept[k].numpy(), v.numpy()) for k, v in begin.items())


class Shared(nn.Module):
    """Two layers of one weight: as PyTorch has them (`tied`), or as one parameter that is used twice."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(5, 5, bias=False), nn.Linear(5, 3)
        self.second = nn.Linear(5, 5, bias=False) if tied else None
        if self.second is not None:
            self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        again = self.first if self.second is None else self.second
        return self.out(again(torch.tanh(self.first(x))))


@pytest.mark.parametrize(
    "algorithm",
    [{"name": "fedsam", "rho": 0.5}, {"name": "fedavg", "clip": 0.05}, {"name": "fedgamma", "rho": 0.5}],
    ids=lambda a: str(a["name"]),
)
def test_shared_weights_count_once(algorithm: dict[str, Any], app: App) -> None:
    from flwr.app import ArrayRecord

    found = []
    for tied in (True, False):
        torch.manual_seed(3)
        model = Shared(False).double()
        whole = Shared(tied).double()
        whole.load_state_dict({**model.state_dict(), **({"second.weight": model.first.weight} if tied else {})})
        alone = App(list(app.data.values()), whole)
        arrays, strategy = ArrayRecord(whole.state_dict()), make_strategy({"lr": 0.2, **algorithm})
        for number in (1, 2):
            arrays = alone.round(strategy, arrays, number)
        found.append({k: v.numpy() for k, v in arrays.items()})
    twice, once = found
    assert np.array_equal(twice["first.weight"], twice["second.weight"])
    for name, value in once.items():
        assert np.allclose(twice[name], value, rtol=0, atol=1e-14), name
