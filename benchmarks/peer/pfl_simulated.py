"""pfl: its `SimulatedBackend`, one process, PyTorch.

A user's rows come in a random order whenever the user is drawn, which `Dataset` cuts into minibatches; models are
averaged with equal weights, as users have equally many samples. Only the first iteration evaluates.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from gate import Over, begin

given, gate = begin("pfl")
import numpy as np  # noqa: E402
import torch  # noqa: E402
from pfl.aggregate.simulate import SimulatedBackend  # noqa: E402
from pfl.algorithm.base import NNAlgorithmParams  # noqa: E402
from pfl.algorithm.federated_averaging import FederatedAveraging  # noqa: E402
from pfl.callback.base import TrainingProcessCallback  # noqa: E402
from pfl.data.dataset import Dataset  # noqa: E402
from pfl.data.federated_dataset import FederatedDataset  # noqa: E402
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams  # noqa: E402
from pfl.metrics import Metrics, Weighted  # noqa: E402
from pfl.model.pytorch import PyTorchModel  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.utils import parameters_to_vector, vector_to_parameters  # noqa: E402
from works import network  # noqa: E402

torch.set_num_threads(given.threads)
work, x, y, rows = (given.work, *(torch.tensor(v) for v in (given.x, given.y, given.rows)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = network(work.model)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.layers(inputs), targets)

    @torch.no_grad()
    def metrics(self, inputs: Tensor, targets: Tensor) -> dict[str, Weighted]:
        total = nn.functional.cross_entropy(self.layers(inputs), targets, reduction="sum")
        return {"loss": Weighted(float(total), len(inputs))}


def user(client: int) -> Dataset:
    """The user's samples: in the given order in the first round, else in a random one."""
    order = rows[client][torch.randperm(work.samples)]
    if gate.first:
        order = torch.tensor(given.steps_of(client)).flatten()
    return Dataset(raw_data=[x[order], y[order]])


def cohorts() -> Iterator[int]:
    random = np.random.default_rng(0)
    yield from given.cohort.tolist()
    while True:
        yield from random.permutation(work.clients)[: work.cohort].tolist()


class Turns(TrainingProcessCallback):
    def on_train_begin(self, *, model: Any) -> Metrics:
        self.net = model.pytorch_model
        gate.between(self.parameters, "pfl", "torch", "numpy")
        return Metrics()

    def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Metrics]:
        gate.between(self.parameters)
        return False, Metrics()

    def parameters(self) -> Any:
        return parameters_to_vector(self.net.parameters()).detach().numpy()


net, users = Net(), cohorts()
vector_to_parameters(torch.tensor(given.start), net.parameters())
model = PyTorchModel(
    model=net, local_optimizer_create=torch.optim.SGD, central_optimizer=torch.optim.SGD(net.parameters(), lr=1.0)
)
federated = FederatedDataset(user, lambda: next(users))
with suppress(Over):
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=10**9, evaluation_frequency=10**9, train_cohort_size=work.cohort, val_cohort_size=0
        ),
        backend=SimulatedBackend(training_data=federated, val_data=federated),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=given.lr, local_batch_size=work.batch
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=None),
        callbacks=[Turns()],
    )
