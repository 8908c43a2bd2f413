"""How long the jobs of a run take: a scenario's devices and network under an algorithm's work and messages."""

from __future__ import annotations

import numpy as np

from fedsim.algorithms.base import Algorithm, one_message
from fedsim.core.oracle import Task
from fedsim.devices.system import Durations, SystemSection
from fedsim.messages.base import Pipeline


def durations_of(section: SystemSection, algorithm: Algorithm, task: Task, pipeline: Pipeline) -> Durations:
    """The durations of jobs; of a server's clients with what they receive, and send through `pipeline`.

    On a graph messages take the time of their links (`Durations.links`), which the caller sets.

    Raises
    ------
    InputError
        The section does not fit these clients; keys are its own.
    """
    everyone = np.arange(task.num_clients)
    samples = task.passes * task.samples_per_step(everyone, np.ones_like(everyone), algorithm.batch_size, epochs=False)
    if algorithm.setting == "gossip":
        return Durations(section, task.num_clients, pipeline.run.seed, samples=samples)
    received, sent = one_message(algorithm, task, gossip=False)
    down, up = algorithm.received_size(received), pipeline.row_bytes(sent)
    return Durations(section, task.num_clients, pipeline.run.seed, down, up, samples)
