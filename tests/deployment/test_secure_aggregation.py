"""What docs/deploy.md says of Flower's SecAgg+, tried: its mod, its workflow, and answers of both kinds of API."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr")
NODES, EXAMPLES = (33, 11, 22, 44), (10, 20, 30, 40)


def models(client: int) -> list[Any]:
    return [np.full(3, float(client + 1)), np.array([[0.5 * client]])]


@dataclass
class Grid:
    """Messages in this process, copied on their way as real ones are."""

    app: Any
    contexts: dict[int, Any]
    answers: list[Any] = field(default_factory=list)
    run: Any = field(default_factory=lambda: SimpleNamespace(run_id=1))

    def get_node_ids(self) -> list[int]:
        return list(NODES)

    def get_nodes(self) -> list[Any]:
        from flwr.proto.node_pb2 import NodeInfo

        return [NodeInfo(node_id=node) for node in NODES]

    def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> list[Any]:
        made = []
        for message in [copy.deepcopy(message) for message in messages]:
            message.metadata.__dict__["_message_id"] = f"m{len(self.answers)}"
            made.append(self.app(message, self.contexts[message.metadata.dst_node_id]))
            self.answers.append(made[-1])
        return made


def secure_round(answer: Any) -> Grid:
    """One round of Flower's SecAgg+ workflow, whose clients answer to training with `answer(client)`."""
    from flwr.app import Context, Message, RecordDict
    from flwr.client.mod import secaggplus_mod
    from flwr.clientapp import ClientApp
    from flwr.common import ndarrays_to_parameters
    from flwr.server import ServerConfig
    from flwr.server.compat import LegacyContext
    from flwr.server.strategy import FedAvg
    from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    app = ClientApp(mods=[secaggplus_mod])

    @app.train()
    def train(message: Any, context: Any) -> Any:
        return Message(answer(int(context.node_config["partition-id"])), reply_to=message)

    grid = Grid(app, {n: Context(1, n, {"partition-id": i}, RecordDict(), {}) for i, n in enumerate(NODES)})
    strategy = FedAvg(
        initial_parameters=ndarrays_to_parameters(models(0)), fraction_evaluate=0.0, min_fit_clients=4,
        min_available_clients=4,
    )  # fmt: skip
    legacy = LegacyContext(Context(1, 1, {}, RecordDict(), {}), ServerConfig(num_rounds=1), strategy)
    DefaultWorkflow(fit_workflow=SecAggPlusWorkflow(num_shares=3, reconstruction_threshold=2))(grid, legacy)  # type: ignore[arg-type]
    grid.run.made = [v.numpy() for v in legacy.state.array_records["parameters"].values()]
    return grid


def test_answers_of_the_message_api_do_not_pass_its_mod() -> None:
    from flwr.app import ArrayRecord, MetricRecord, RecordDict

    def answer(client: int) -> Any:
        metrics = MetricRecord({"num-examples": EXAMPLES[client]})
        return RecordDict({"arrays": ArrayRecord(models(client)), "metrics": metrics})

    with pytest.raises(KeyError, match=r"fitres\.parameters"):
        secure_round(answer)


def test_answers_of_the_older_api_do_and_are_hidden_but_for_their_weights() -> None:
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
    from flwr.compat.common.recorddict_compat import fitres_to_recorddict

    def answer(client: int) -> Any:
        fit = FitRes(Status(Code.OK, ""), ndarrays_to_parameters(models(client)), EXAMPLES[client], {})
        return fitres_to_recorddict(fit, keep_input=True)

    grid = secure_round(answer)
    wanted = np.average([np.concatenate([v.ravel() for v in models(i)]) for i in range(4)], axis=0, weights=EXAMPLES)
    assert np.concatenate([v.ravel() for v in grid.run.made]) == pytest.approx(wanted, abs=1e-3)
    trained = [a.content for a in grid.answers if "fitres.num_examples" in a.content]
    assert sorted(next(iter(c["fitres.num_examples"].values())) for c in trained) == list(EXAMPLES)
    assert all(len(c["fitres.parameters"]) == 0 for c in trained)
