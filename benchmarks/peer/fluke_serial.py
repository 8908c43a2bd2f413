"""fluke: its FedAvg, one process, PyTorch, with fluke's own loaders, which shuffle a client's tensors at each epoch.

The data are split by what is given, evaluations are off, and models are averaged with equal weights, as clients have
equally many samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from gate import Over, begin

given, gate = begin("fluke")
import torch  # noqa: E402
from torch import library as operators  # noqa: E402

# fluke imports torchvision, whose published build needs a PyTorch with CUDA: beside one without, its operators are not
# there, and the import fails at those that it looks for. No operator of torchvision is called here.
if torch.version.cuda is None:
    missing = operators.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        missing.define(f"{operator}(Tensor dets, Tensor scores, float iou) -> Tensor")
from fluke import DDict, FlukeENV  # noqa: E402
from fluke.algorithms.fedavg import FedAVG  # noqa: E402
from fluke.data import FastDataLoader  # noqa: E402
from fluke.server import Server  # noqa: E402
from fluke.utils import FederationObserver  # noqa: E402
from torch.nn.utils import parameters_to_vector, vector_to_parameters  # noqa: E402
from works import network  # noqa: E402

torch.set_num_threads(given.threads)
work, x, y = given.work, torch.tensor(given.x), torch.tensor(given.y)


class Split:
    """Loaders of the clients' rows, in the given order until the first round is over."""

    def assign(self, clients: int, batch_size: int) -> tuple[tuple[list[Any], list[None]], None]:
        self.loaders = []
        for client in range(clients):
            order = given.steps_of(client)
            rows = torch.tensor(given.rows[client] if order is None else order.flatten())
            self.loaders.append(FastDataLoader(x[rows], y[rows], num_labels=10, batch_size=batch_size))
        return (self.loaders, [None] * clients), None


class Chosen(Server):
    def get_eligible_clients(self, eligible_perc: float) -> Sequence[Any]:
        if gate.first:
            return [self.clients[i] for i in given.cohort]
        return super().get_eligible_clients(eligible_perc)


class Fed(FedAVG):
    def get_server_class(self) -> type[Server]:
        return Chosen


class Turns(FederationObserver):
    def start_round(self, round: int, global_model: Any) -> None:
        def parameters() -> Any:
            return parameters_to_vector(global_model.parameters()).detach().numpy()

        gate.between(parameters, *(("fluke-fl", "torch", "numpy") if round == 1 else ()))
        if round == 2:
            for loader in split.loaders:
                loader.shuffle = True


env = FlukeENV()
env.set_device("cpu")
env.set_eval_cfg(pre_fit=False, post_fit=False, server=False, locals=False)
net, split = network(work.model), Split()
vector_to_parameters(torch.tensor(given.start), net.parameters())
keys = {
    "client": {
        "batch_size": work.batch, "local_epochs": 1, "loss": "CrossEntropyLoss",
        "optimizer": {"name": "SGD", "lr": given.lr}, "scheduler": {"name": "StepLR", "step_size": 1, "gamma": 1},
    },
    "server": {"weighted": False},
    "model": net,
}  # fmt: skip
fed = Fed(work.clients, split, DDict(keys))
fed.set_callbacks([Turns()])
with suppress(Over):
    fed.run(n_rounds=10**6, eligible_perc=work.cohort / work.clients)
