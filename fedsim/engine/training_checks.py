"""What does not go with a model that draws or counts while it trains, found before anything is written."""

from __future__ import annotations

import numpy as np

from fedsim.algorithms.base import one_message
from fedsim.clients.worker import Worker
from fedsim.core.errors import InputError
from fedsim.core.job import Job
from fedsim.core.oracle import Task
from fedsim.objective.supervised import SupervisedTask
from fedsim.scenario.sections import Scenario


def check_training(s: Scenario, supervised: SupervisedTask, clipped: bool) -> None:
    """Let a client take a step, where that is not sure to work.

    Parameters
    ----------
    clipped : whether a privacy mechanism changes the gradients of samples.

    Raises
    ------
    InputError
        Gradients of single samples are needed, which a sample has not while masks and statistics are of a minibatch.
    """
    nature = supervised.kernel.nature
    if nature.plain:
        return
    if nature.buffers.total:
        name = nature.buffers.names[0]
        raise InputError(
            f"missing, and training changes the buffer '{name}'; allowed: group, frozen", key="model.batch_norm"
        )
    what = "dropout" if nature.draws else "batch normalisation or another buffer that training changes"
    if clipped:
        raise InputError(
            f"found '{s.names['privacy']}', which clips the gradient of each sample, and a model with {what}; allowed: "
            "model.batch_norm group or frozen, dropout 0, or a mechanism that clips updates",
            key="privacy.mechanism",
        )
    try:
        _step(s, supervised)
    except NotImplementedError:
        raise InputError(
            f"found '{s.names['algorithm']}', which needs the gradient of each sample, and a model with {what}; "
            "allowed: model.batch_norm group or frozen, dropout 0, or another algorithm",
            key="algorithm.name",
        ) from None


def _step(s: Scenario, task: Task) -> None:
    client = np.array([int(task.sizes.argmax())])  # on a machine of a deployment the only one that has data
    received, _ = one_message(s.algorithm, task, gossip=s.algorithm.setting == "gossip")
    one = np.ones(1, dtype=np.int64)
    Worker(task, s.algorithm, chunk_rows=1).run(Job(client, one, one, received))
