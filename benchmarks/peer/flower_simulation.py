"""Flower: its simulation runtime with Ray, one actor per thread, FedAvg of the message API.

Messages are one flat array and clients read their rows of a mapped file, which is as little as Flower can be given to
carry. No evaluation. The first round, of given minibatches, asks all clients, of which those that are not in its cohort
weigh nothing.
"""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # Ray's actors look where this process does
from gate import Gate, Given, Over, begin


@cache
def loaded(folder: str) -> tuple[Given, Any]:
    """What an actor keeps between its clients: the data and a model."""
    import torch
    from works import network

    torch.set_num_threads(1)
    given = Given(folder)
    return given, network(given.work.model)


def train(message: Any, context: Any) -> Any:
    """A client's local epoch."""
    import numpy as np
    import torch
    from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
    from torch.nn.utils import parameters_to_vector, vector_to_parameters

    given, model = loaded(message.content["config"]["folder"])
    client, work = int(context.node_config["partition-id"]), given.work
    flat, weight = message.content["arrays"]["x"].numpy(), work.samples
    order, drawn = None, torch.randperm(work.samples).numpy()
    if message.content["config"]["server-round"] == 1:
        order = given.steps_of(client)
        weight = 0 if order is None else weight
    else:
        order = given.rows[client][drawn].reshape(work.steps, work.batch)
    if order is not None:
        vector_to_parameters(torch.tensor(flat), model.parameters())
        optimiser = torch.optim.SGD(model.parameters(), lr=given.lr)
        for part in order:
            optimiser.zero_grad()
            inputs, targets = torch.from_numpy(given.x[part]), torch.from_numpy(given.y[part])
            torch.nn.functional.cross_entropy(model(inputs), targets).backward()
            optimiser.step()
        flat = parameters_to_vector(model.parameters()).detach().numpy()
    content = RecordDict(
        {"arrays": ArrayRecord({"x": Array(np.ascontiguousarray(flat))}), "n": MetricRecord({"num-examples": weight})}
    )
    return Message(content, reply_to=message)


def serve(grid: Any, given: Given, gate: Gate) -> None:
    """Rounds of FedAvg until no more are wanted."""
    import numpy as np
    from flwr.app import Array, ArrayRecord, ConfigRecord
    from flwr.serverapp.strategy import FedAvg

    class Whole(FedAvg):
        """FedAvg that is not content with some of its clients."""

        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            replies = list(replies)
            failed = [reply.error.reason for reply in replies if reply.has_error()]
            if failed:
                raise RuntimeError(f"{len(failed)} of {len(replies)} clients failed: {failed[0]}")
            return super().aggregate_train(server_round, replies)

    strategy = Whole(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=given.work.cohort)

    def between(number: int, arrays: Any) -> None:
        gate.between(lambda: arrays["x"].numpy(), *(() if number else ("flwr", "ray", "torch", "numpy")))
        strategy.fraction_train = 1.0 if number == 0 else given.work.cohort / given.work.clients

    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord({"x": Array(np.array(given.start))}),
        num_rounds=10**9,
        train_config=ConfigRecord({"folder": str(given.folder)}),
        evaluate_fn=between,
    )


def main() -> None:
    given, gate = begin("flower")
    os.environ["OMP_NUM_THREADS"] = "1"  # of each actor
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    server, client = ServerApp(), ClientApp()
    client.train()(train)

    @server.main()
    def _(grid: Any, _context: Any) -> None:
        with suppress(Over):
            serve(grid, given, gate)

    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=given.work.clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {
                "address": "local",  # never a cluster that somebody else has on this machine
                "num_cpus": given.threads,
                "include_dashboard": False,
                "logging_level": "error",
            },
        },
    )


if __name__ == "__main__":
    import flower_simulation  # by its name, which actors can import

    try:
        flower_simulation.main()
    except BaseException:  # the server's thread would keep this process, and whoever waits for it, for ever
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
